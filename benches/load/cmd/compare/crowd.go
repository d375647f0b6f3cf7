package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"kvd.dev/load/internal/measure"
)

// eventsField is WatchResponse.events. Source: etcd API v3.7, rpc.proto.
const eventsField = 11

// arriveTimeout bounds the wait for answers and events.
const arriveTimeout = 2 * time.Minute

// bare hands messages over as they came: the official client needs more CPU for an event than either server.
type bare struct{}

func (bare) Name() string { return "proto" }

func (bare) Marshal(message any) (mem.BufferSlice, error) {
	encoded, err := proto.Marshal(message.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(encoded)}, err
}

func (bare) Unmarshal(message mem.BufferSlice, into any) error {
	buffer := into.(*[]byte)
	*buffer = slices.Grow((*buffer)[:0], message.Len())[:message.Len()]
	message.CopyTo(*buffer)
	return nil
}

// countEvents counts the events of an encoded WatchResponse without decoding them.
func countEvents(response []byte) (int64, error) {
	var events int64
	for len(response) > 0 {
		field, _, length := protowire.ConsumeField(response)
		if length < 0 {
			return 0, protowire.ParseError(length)
		}
		if field == eventsField {
			events++
		}
		response = response[length:]
	}
	return events, nil
}

// crowd tells how many events a second reach a crowd of watchers of one prefix, whose streams are read and counted only.
func crowd(streams, watchers, puts int) func(context.Context, *cluster) ([]figure, error) {
	return func(ctx context.Context, c *cluster) ([]figure, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var created, seen atomic.Int64
		var reading sync.WaitGroup
		var lock sync.Mutex
		var failed error
		read := func(stream grpc.ClientStream) error {
			var message []byte
			for {
				if err := stream.RecvMsg(&message); err != nil {
					if errors.Is(err, io.EOF) || ctx.Err() != nil {
						return nil
					}
					return err
				}
				events, err := countEvents(message)
				if err != nil {
					return err
				}
				if events == 0 {
					created.Add(1)
				}
				seen.Add(events)
			}
		}
		for range streams {
			conn, err := c.connection()
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			description := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
			stream, err := conn.NewStream(ctx, description, pb.Watch_Watch_FullMethodName, grpc.ForceCodecV2(bare{}))
			if err != nil {
				return nil, err
			}
			reading.Go(func() {
				if err := read(stream); err != nil {
					lock.Lock()
					defer lock.Unlock()
					failed = errors.Join(failed, err)
				}
			})
			for range watchers {
				create := &pb.WatchCreateRequest{Key: []byte("crowd/"), RangeEnd: []byte("crowd0")}
				request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
				if err := stream.SendMsg(request); err != nil {
					return nil, err
				}
			}
		}
		all := int64(streams * watchers)
		if err := await(ctx, arriveTimeout, func() bool { return created.Load() == all }); err != nil {
			return nil, fmt.Errorf("%d of %d watchers were made: %w", created.Load(), all, err)
		}
		client, err := c.client(c.endpoints()...)
		if err != nil {
			return nil, err
		}
		defer client.Close()
		server := []int{c.members[0].pid()}
		before, err := measure.ReadUsage(server)
		if err != nil {
			return nil, err
		}
		value := string(make([]byte, 256))
		for n := range puts {
			if _, err := client.Put(ctx, fmt.Sprintf("crowd/%04d", n), value); err != nil {
				return nil, err
			}
		}
		expected := all * int64(puts)
		if err := await(ctx, arriveTimeout, func() bool { return seen.Load() >= expected }); err != nil {
			return nil, fmt.Errorf("%d of %d events came: %w", seen.Load(), expected, err)
		}
		after, err := measure.ReadUsage(server)
		cancel()
		reading.Wait()
		cost := after.Since(before)
		each := func(spent time.Duration) float64 { return float64(spent.Nanoseconds()) / 1e3 / float64(expected) }
		return []figure{
			{"events a second", float64(expected) / cost.Elapsed.Seconds()}, {"server CPU us an event", each(cost.ServerCPU)},
			{"client CPU us an event", each(cost.ClientCPU)},
		}, errors.Join(err, failed)
	}
}

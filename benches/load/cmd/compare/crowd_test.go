package main

import (
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func TestEventsAreCountedWithoutDecodingThem(t *testing.T) {
	event := &mvccpb.Event{Type: mvccpb.PUT, Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 7}}
	for count := range 3 {
		response := &pb.WatchResponse{Header: &pb.ResponseHeader{Revision: 7}, WatchId: 1, Created: count == 0}
		for range count {
			response.Events = append(response.Events, event)
		}
		encoded, err := proto.Marshal(response)
		if err != nil {
			t.Fatal(err)
		}
		if events, err := countEvents(encoded); err != nil || events != int64(count) {
			t.Errorf("%d of %d events, %v", events, count, err)
		}
		if _, err := countEvents(encoded[:len(encoded)-1]); err == nil {
			t.Error("half a response is one")
		}
	}
}

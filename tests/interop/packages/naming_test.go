package packages

import (
	"context"
	"fmt"
	"net"
	"sort"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
)

const service = "service"

// backend serves gRPC health on a port of its own.
func (e *env) backend() string {
	e.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	e.must(err)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(listener) }()
	e.Cleanup(server.Stop)
	return listener.Addr().String()
}

func names(list endpoints.Key2EndpointMap) string {
	var all []string
	for key, endpoint := range list {
		all = append(all, fmt.Sprintf("%s=%s %v", key, endpoint.Addr, endpoint.Metadata))
	}
	sort.Strings(all)
	return strings.Join(all, ", ")
}

func TestEndpointsAreListedAndWatched(t *testing.T) {
	both(t, func(e *env) {
		manager, err := endpoints.NewManager(e.cli, service)
		e.must(err)
		e.must(manager.AddEndpoint(e.ctx, service+"/1", endpoints.Endpoint{Addr: "a:1", Metadata: "first"}))
		watch, err := manager.NewWatchChannel(e.ctx)
		e.must(err)
		next := func() string {
			e.Helper()
			var all []string
			for _, update := range <-watch {
				all = append(all, fmt.Sprintf("%d %s %s", update.Op, update.Key, update.Endpoint.Addr))
			}
			// The updates of one transaction come in any order.
			sort.Strings(all)
			return strings.Join(all, ", ")
		}
		want(e, "those there before", next(), "0 service/1 a:1")
		e.must(manager.Update(e.ctx, []*endpoints.UpdateWithOpts{
			endpoints.NewAddUpdateOpts(service+"/2", endpoints.Endpoint{Addr: "b:2"}),
			endpoints.NewDeleteUpdateOpts(service + "/1"),
		}))
		want(e, "one update", next(), "0 service/2 b:2, 1 service/1 ")
		lease, err := e.cli.Grant(e.ctx, 60)
		e.must(err)
		e.must(manager.AddEndpoint(e.ctx, service+"/3", endpoints.Endpoint{Addr: "c:3"}, clientv3.WithLease(lease.ID)))
		want(e, "leased", next(), "0 service/3 c:3")
		list, err := manager.List(e.ctx)
		e.must(err)
		want(e, "list", names(list), "service/2=b:2 <nil>, service/3=c:3 <nil>")
		_, err = e.cli.Revoke(e.ctx, lease.ID)
		e.must(err)
		want(e, "the lease's end", next(), "1 service/3 ")
		if err := manager.AddEndpoint(e.ctx, "elsewhere/1", endpoints.Endpoint{Addr: "d:4"}); err == nil {
			e.Error("a key of another service is taken")
		}
	})
}

// A gRPC client finds its servers by the store and follows their changes.
func TestGrpcResolvesByTheStore(t *testing.T) {
	both(t, func(e *env) {
		manager, err := endpoints.NewManager(e.cli, service)
		e.must(err)
		first, second := e.backend(), e.backend()
		e.must(manager.AddEndpoint(e.ctx, service+"/1", endpoints.Endpoint{Addr: first}))
		builder, err := resolver.NewBuilder(e.cli)
		e.must(err)
		conn, err := grpc.NewClient("etcd:///"+service, grpc.WithResolvers(builder),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
		e.must(err)
		defer conn.Close()
		reached := func() string {
			e.Helper()
			var from peer.Peer
			_, err := healthpb.NewHealthClient(conn).Check(e.ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true), grpc.Peer(&from))
			e.must(err)
			return from.Addr.String()
		}
		want(e, "the only one", reached(), first)
		e.must(manager.AddEndpoint(e.ctx, service+"/2", endpoints.Endpoint{Addr: second}))
		e.await("the second is reached", func() bool { return reached() == second })
		e.must(manager.DeleteEndpoint(e.ctx, service+"/1"))
		// Round robin over both would reach the first every other time.
		e.await("only the second is reached", func() bool {
			for range 10 {
				if reached() != second {
					return false
				}
			}
			return true
		})
	})
}

// await asks again and again until a condition holds.
func (e *env) await(what string, holds func() bool) {
	e.Helper()
	for !holds() {
		if e.ctx.Err() != nil {
			e.Fatalf("%s: %v", what, context.Cause(e.ctx))
		}
	}
}

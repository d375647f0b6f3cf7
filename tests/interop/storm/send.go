package main

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	_ "go.etcd.io/etcd/api/v3/etcdserverpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
)

// method is one method of one service.
type method struct{ protoreflect.MethodDescriptor }

// name is the service's last part and the method.
func (m method) name() string { return string(m.Parent().Name()) + "/" + string(m.Name()) }

func (m method) path() string { return "/" + string(m.Parent().FullName()) + "/" + string(m.Name()) }

// left out: AuthEnable belongs to the tidying, which alone can take it back.
var omitted = map[string]bool{"Auth/AuthEnable": true, "Auth/AuthDisable": true}

// rare are methods that are heavy, or after which others have to wait; one in fifty that are chosen is sent.
var rare = map[string]bool{
	"Maintenance/Snapshot": true, "Maintenance/Defragment": true, "Maintenance/MoveLeader": true, "Maintenance/Downgrade": true,
	"Maintenance/Alarm": true, "Maintenance/Hash": true, "Auth/UserAdd": true, "Auth/UserChangePassword": true, "Auth/Authenticate": true,
	"Cluster/MemberAdd": true,
}

func allMethods() []method {
	var all []method
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		services := file.Services()
		for i := range services.Len() {
			methods := services.Get(i).Methods()
			for j := range methods.Len() {
				m := method{methods.Get(j)}
				switch m.Parent().ParentFile().Package() {
				case "etcdserverpb", "v3lockpb", "v3electionpb":
					if !omitted[m.name()] {
						all = append(all, m)
					}
				}
			}
		}
		return true
	})
	return all
}

// send makes one request, or opens one stream, at a member that is chosen at random.
func (s *storm) send(ctx context.Context, random *rand.Rand) {
	m := s.methods[random.IntN(len(s.methods))]
	if rare[m.name()] && random.IntN(50) > 0 {
		return
	}
	conn := s.conns[random.IntN(len(s.conns))]
	limit := 2 * time.Second
	if parent := m.Parent().Name(); parent == "Lock" || parent == "Election" || m.IsStreamingClient() {
		// They wait for others, or for events.
		limit = 200 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s.mu.Lock()
	token := s.token
	s.mu.Unlock()
	if token != "" && random.IntN(4) > 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, "token", token)
	}
	g := generator{random, s.ids, m.name()}
	var err error
	if m.IsStreamingClient() || m.IsStreamingServer() {
		err = stream(ctx, conn, m, g)
	} else {
		err = conn.Invoke(ctx, m.path(), g.message(m.Input(), 0), dynamicpb.NewMessage(m.Output()))
	}
	s.note(m, err)
}

// stream sends some messages and reads what comes until the stream ends, a number of answers is there, or time is over.
func stream(ctx context.Context, conn *grpc.ClientConn, m method, g generator) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opened, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: m.IsStreamingClient(), ServerStreams: true}, m.path())
	if err != nil {
		return err
	}
	messages := 1
	if m.IsStreamingClient() {
		messages += g.random.IntN(8)
	}
	for range messages {
		if err := opened.SendMsg(g.message(m.Input(), 0)); err != nil {
			break
		}
	}
	if g.random.IntN(2) == 0 || !m.IsStreamingClient() {
		_ = opened.CloseSend()
	}
	answers := g.random.IntN(20)
	for n := 0; n <= answers; n++ {
		err = opened.RecvMsg(dynamicpb.NewMessage(m.Output()))
		if err != nil {
			if n > 0 {
				return nil
			}
			return err
		}
	}
	return nil
}

// note counts an answer. Whatever a client sends, it is never told of an internal error.
func (s *storm) note(m method, err error) {
	code := status.Code(err)
	switch {
	case strings.HasPrefix(status.Convert(err).Message(), "RangeStream does not support"):
		// etcd's answer as well.
	case err != nil && (code == codes.Internal || code == codes.Unimplemented):
		s.failed("%s: %v", m.name(), err)
	case err != nil && strings.Contains(err.Error(), "panic"):
		s.failed("%s: %v", m.name(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts[m.name()]
	if c == nil {
		c = &count{codes: map[string]int{}}
		s.counts[m.name()] = c
	}
	c.sent++
	// The end of a stream without an answer, and a wait that was ended by this side, tell nothing against the method.
	if err == nil || err.Error() == "EOF" {
		c.ok++
		return
	}
	c.codes[code.String()]++
}

// generator makes the messages of one request.
type generator struct {
	random *rand.Rand
	ids    []uint64
	method string
}

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

var (
	words   = []string{"", "a", "b", "c", "a/1", "a/2", "root", "storm", "guest", "3.6", "3.6.0", "3.7.0", "http://127.0.0.1:1", "x y", "é", strings.Repeat("w", 300)}
	keys    = []string{"", "\x00", "a", "b", "c", "a/1", "a/2", "a0", "b\x00", "\xff", "\xff\xff", strings.Repeat("k", 2000)}
	numbers = []int64{0, 0, 1, 1, 2, 3, 5, 10, 100, 1000, 5000, -1, -2, 1 << 31, 1<<31 - 1, 1 << 53, 1<<63 - 1, -1 << 63, 9_000_000_000}
)

// message fills a message: each field with some probability, deeper ones less and less.
func (g generator) message(descriptor protoreflect.MessageDescriptor, depth int) proto.Message {
	made := dynamicpb.NewMessage(descriptor)
	fields := descriptor.Fields()
	// Sparse messages are the ones that succeed, dense ones combine what nobody combines.
	filled := 1 + g.random.IntN(4)
	for i := range fields.Len() {
		field := fields.Get(i)
		if one := field.ContainingOneof(); one != nil {
			// One arm at most, and mostly one.
			chosen := one.Fields().Get(g.random.IntN(one.Fields().Len()))
			if i != one.Fields().Get(0).Index() || g.random.IntN(20) == 0 {
				continue
			}
			field = chosen
		} else if g.random.IntN(5) >= filled {
			continue
		}
		if field.Message() != nil && depth > 3 {
			continue
		}
		switch {
		case field.IsMap():
		case field.IsList():
			list := made.Mutable(field).List()
			for range g.random.IntN(4) {
				list.Append(g.value(field, depth))
			}
		default:
			made.Set(field, g.value(field, depth))
		}
	}
	return made
}

func (g generator) value(field protoreflect.FieldDescriptor, depth int) protoreflect.Value {
	random := g.random
	switch field.Kind() {
	case protoreflect.MessageKind:
		return protoreflect.ValueOfMessage(g.message(field.Message(), depth+1).ProtoReflect())
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(random.IntN(2) == 0)
	case protoreflect.EnumKind:
		// One in ten is no value of the enum.
		if random.IntN(10) == 0 {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(random.IntN(12) - 3))
		}
		values := field.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(random.IntN(values.Len())).Number())
	case protoreflect.StringKind:
		// Few names, so that users meet their roles.
		if random.IntN(2) == 0 && strings.HasPrefix(g.method, "Auth/") {
			return protoreflect.ValueOfString(pick(random, []string{"a", "b", "storm"}))
		}
		return protoreflect.ValueOfString(pick(random, words))
	case protoreflect.BytesKind:
		if random.IntN(50) == 0 {
			return protoreflect.ValueOfBytes(make([]byte, random.IntN(64<<10)))
		}
		return protoreflect.ValueOfBytes([]byte(pick(random, keys)))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(pick(random, numbers))
	case protoreflect.Uint64Kind:
		// Real members only where it does them no harm.
		if g.method == "Maintenance/MoveLeader" || g.method == "Maintenance/Alarm" {
			return protoreflect.ValueOfUint64(pick(random, g.ids))
		}
		return protoreflect.ValueOfUint64(uint64(pick(random, numbers)))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(pick(random, numbers)))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(pick(random, numbers)))
	default:
		panic("no field of the API has the kind " + field.Kind().String())
	}
}

package main

import (
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A masked field keeps only whether it was set, so that a server which leaves out its member id is still found.
// Nothing beyond this table, the ports in the member list and the ids below is hidden from the comparison.
var masked = map[protoreflect.FullName]bool{
	"etcdserverpb.ResponseHeader.cluster_id":       true,
	"etcdserverpb.ResponseHeader.member_id":        true,
	"etcdserverpb.ResponseHeader.raft_term":        true,
	"etcdserverpb.StatusResponse.dbSize":           true,
	"etcdserverpb.StatusResponse.dbSizeInUse":      true,
	"etcdserverpb.StatusResponse.leader":           true,
	"etcdserverpb.StatusResponse.raftIndex":        true,
	"etcdserverpb.StatusResponse.raftTerm":         true,
	"etcdserverpb.StatusResponse.raftAppliedIndex": true,
	"etcdserverpb.Member.ID":                       true,
	"etcdserverpb.HashResponse.hash":               true, // hashes the whole database file, which differs by design
}

// patchLevel fields are compared up to major.minor.
var patchLevel = map[protoreflect.FullName]bool{
	"etcdserverpb.StatusResponse.version":        true,
	"etcdserverpb.StatusResponse.storageVersion": true,
}

// leaseFields carry a lease id, which the server may have chosen.
var leaseFields = map[protoreflect.FullName]bool{
	"mvccpb.KeyValue.lease":                   true,
	"etcdserverpb.PutRequest.lease":           true,
	"etcdserverpb.Compare.lease":              true,
	"etcdserverpb.LeaseGrantResponse.ID":      true,
	"etcdserverpb.LeaseRevokeRequest.ID":      true,
	"etcdserverpb.LeaseKeepAliveRequest.ID":   true,
	"etcdserverpb.LeaseKeepAliveResponse.ID":  true,
	"etcdserverpb.LeaseTimeToLiveRequest.ID":  true,
	"etcdserverpb.LeaseTimeToLiveResponse.ID": true,
	"etcdserverpb.LeaseStatus.ID":             true,
}

// leaseNames maps the lease ids one server chose to names common to both servers, and back.
type leaseNames struct {
	toName map[int64]int64
	toID   map[int64]int64
}

func newLeaseNames() *leaseNames {
	return &leaseNames{toName: map[int64]int64{}, toID: map[int64]int64{}}
}

func (l *leaseNames) bind(name, id int64) {
	l.toName[id] = name
	l.toID[name] = id
}

// eachField calls f for every set field of m and of the messages inside it, f may set the field.
func eachField(m protoreflect.Message, f func(m protoreflect.Message, fd protoreflect.FieldDescriptor, v protoreflect.Value)) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Kind() == protoreflect.MessageKind && fd.IsList():
			for i := range v.List().Len() {
				eachField(v.List().Get(i).Message(), f)
			}
		case fd.Kind() == protoreflect.MessageKind:
			eachField(v.Message(), f)
		default:
			f(m, fd, v)
		}
		return true
	})
}

// toServer returns the request as this server must get it: lease names replaced by its own ids.
func (l *leaseNames) toServer(req proto.Message) proto.Message {
	out := proto.Clone(req)
	eachField(out.ProtoReflect(), func(m protoreflect.Message, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		if leaseFields[fd.FullName()] {
			if id, ok := l.toID[v.Int()]; ok {
				m.Set(fd, protoreflect.ValueOfInt64(id))
			}
		}
	})
	return out
}

// normalise rewrites an answer in place so that equal behaviour gives equal messages.
func normalise(msg proto.Message, leases *leaseNames, clientAddr, peerAddr string) {
	addresses := strings.NewReplacer(clientAddr, "CLIENT", peerAddr, "PEER")
	eachField(msg.ProtoReflect(), func(m protoreflect.Message, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		name := fd.FullName()
		switch {
		case masked[name]:
			m.Set(fd, one(fd))
		case patchLevel[name]:
			m.Set(fd, protoreflect.ValueOfString(majorMinor(v.String())))
		case leaseFields[name]:
			if n, ok := leases.toName[v.Int()]; ok {
				m.Set(fd, protoreflect.ValueOfInt64(n))
			}
		case name == "etcdserverpb.Member.peerURLs" || name == "etcdserverpb.Member.clientURLs":
			for i := range v.List().Len() {
				v.List().Set(i, protoreflect.ValueOfString(addresses.Replace(v.List().Get(i).String())))
			}
		}
	})
	if ttl, ok := msg.(*pb.LeaseTimeToLiveResponse); ok {
		sortBytes(ttl.Keys) // the order of attached keys is unspecified
	}
}

func one(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	default:
		panic("no placeholder for " + fd.FullName())
	}
}

func majorMinor(version string) string {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 3 {
		return version
	}
	return parts[0] + "." + parts[1] + ".x"
}

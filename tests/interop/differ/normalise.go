package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"kvd.dev/interop/proc"
)

// A masked field keeps only whether it was set, so that a server which leaves out its cluster id is still found.
// Nothing beyond this table, the ports in the member list and the ids below is hidden from the comparison.
var masked = map[protoreflect.FullName]bool{
	"etcdserverpb.ResponseHeader.cluster_id":        true,
	"etcdserverpb.ResponseHeader.raft_term":         true,
	"etcdserverpb.StatusResponse.dbSize":            true,
	"etcdserverpb.StatusResponse.dbSizeInUse":       true,
	"etcdserverpb.StatusResponse.leader":            true,
	"etcdserverpb.StatusResponse.raftIndex":         true,
	"etcdserverpb.StatusResponse.raftTerm":          true,
	"etcdserverpb.StatusResponse.raftAppliedIndex":  true,
	"etcdserverpb.AuthenticateResponse.token":       true,
	"etcdserverpb.HashResponse.hash":                true, // hashes the whole database file, which differs by design
	"etcdserverpb.SnapshotResponse.blob":            true, // the file itself; its form is checked on each server
	"etcdserverpb.SnapshotResponse.remaining_bytes": true,
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
	"v3lockpb.LockRequest.lease":              true,
	"v3electionpb.CampaignRequest.lease":      true,
	"v3electionpb.LeaderKey.lease":            true,
}

// memberFields carry a member id, which follows from the member's ports or the time.
var memberFields = map[protoreflect.FullName]bool{
	"etcdserverpb.ResponseHeader.member_id":   true,
	"etcdserverpb.Member.ID":                  true,
	"etcdserverpb.AlarmRequest.memberID":      true,
	"etcdserverpb.AlarmMember.memberID":       true,
	"etcdserverpb.MoveLeaderRequest.targetID": true,
	"etcdserverpb.MemberRemoveRequest.ID":     true,
	"etcdserverpb.MemberUpdateRequest.ID":     true,
	"etcdserverpb.MemberPromoteRequest.ID":    true,
}

// urlFields carry the URLs of members.
var urlFields = map[protoreflect.FullName]bool{
	"etcdserverpb.Member.peerURLs":              true,
	"etcdserverpb.Member.clientURLs":            true,
	"etcdserverpb.MemberAddRequest.peerURLs":    true,
	"etcdserverpb.MemberUpdateRequest.peerURLs": true,
}

// names maps what one server or cluster chose (lease ids, member ids, ports) to names common to both, and back.
type names struct {
	lease, leaseID   map[int64]int64
	member, memberID map[uint64]uint64
	addresses, ports *strings.Replacer
}

// firstMember is the name of member 1's id; the others follow.
const firstMember = 101

func newNames(servers ...*proc.Server) *names {
	n := &names{
		lease: map[int64]int64{}, leaseID: map[int64]int64{},
		member: map[uint64]uint64{}, memberID: map[uint64]uint64{},
	}
	n.replaceAddresses(servers)
	return n
}

// replaceAddresses names the ports of servers.
func (n *names) replaceAddresses(servers []*proc.Server) {
	var toNames, toPorts []string
	for i, s := range servers {
		client, peer := fmt.Sprintf("CLIENT%d", i+1), fmt.Sprintf("PEER%d", i+1)
		toNames = append(toNames, s.Addr(), client, s.PeerAddr(), peer)
		toPorts = append(toPorts, client, s.Addr(), peer, s.PeerAddr())
	}
	n.addresses, n.ports = strings.NewReplacer(toNames...), strings.NewReplacer(toPorts...)
}

func (n *names) bindLease(name, id int64) { n.lease[id], n.leaseID[name] = name, id }

func (n *names) bindMember(name, id uint64) { n.member[id], n.memberID[name] = name, id }

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

// toServer returns the request as this server must get it: names replaced by its own ids and ports.
func (n *names) toServer(req proto.Message) proto.Message {
	out := proto.Clone(req)
	eachField(out.ProtoReflect(), func(m protoreflect.Message, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		switch name := fd.FullName(); {
		case leaseFields[name]:
			if id, ok := n.leaseID[v.Int()]; ok {
				m.Set(fd, protoreflect.ValueOfInt64(id))
			}
		case memberFields[name]:
			if id, ok := n.memberID[v.Uint()]; ok {
				m.Set(fd, protoreflect.ValueOfUint64(id))
			}
		case urlFields[name]:
			replaceAll(v.List(), n.ports)
		}
	})
	return out
}

func replaceAll(list protoreflect.List, by *strings.Replacer) {
	for i := range list.Len() {
		list.Set(i, protoreflect.ValueOfString(by.Replace(list.Get(i).String())))
	}
}

// alarmText is an alarm as Status tells it; the spaces are not stable (protobuf's text form).
var alarmText = regexp.MustCompile(`^(?:memberID:(\d+))?\s*(?:alarm:(\w+))?$`)

// normalise rewrites an answer in place so that equal behaviour gives equal messages.
func normalise(msg proto.Message, n *names) {
	eachField(msg.ProtoReflect(), func(m protoreflect.Message, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		switch name := fd.FullName(); {
		case masked[name]:
			m.Set(fd, one(fd))
		case patchLevel[name]:
			m.Set(fd, protoreflect.ValueOfString(majorMinor(v.String())))
		case leaseFields[name]:
			if common, ok := n.lease[v.Int()]; ok {
				m.Set(fd, protoreflect.ValueOfInt64(common))
			}
		case memberFields[name]:
			if common, ok := n.member[v.Uint()]; ok {
				m.Set(fd, protoreflect.ValueOfUint64(common))
			}
		case urlFields[name]:
			replaceAll(v.List(), n.addresses)
		case name == "etcdserverpb.StatusResponse.errors":
			for i := range v.List().Len() {
				v.List().Set(i, protoreflect.ValueOfString(n.alarm(v.List().Get(i).String())))
			}
		}
	})
	switch m := msg.(type) {
	case *pb.LeaseTimeToLiveResponse:
		sortBytes(m.Keys) // the order of attached keys is unspecified
	case *pb.StatusResponse:
		sort.Strings(m.Errors) // by member id
	case *pb.AlarmResponse:
		sort.SliceStable(m.Alarms, func(i, j int) bool {
			a, b := m.Alarms[i], m.Alarms[j]
			return a.MemberID < b.MemberID || a.MemberID == b.MemberID && a.Alarm < b.Alarm
		})
	}
	if list, ok := msg.(interface{ GetMembers() []*pb.Member }); ok {
		members := list.GetMembers()
		sort.Slice(members, func(i, j int) bool { return members[i].ID < members[j].ID })
	}
}

func (n *names) alarm(text string) string {
	parts := alarmText.FindStringSubmatch(text)
	if parts == nil {
		return text
	}
	id, _ := strconv.ParseUint(parts[1], 10, 64)
	if name, ok := n.member[id]; ok {
		id = name
	}
	return fmt.Sprintf("memberID:%d alarm:%s", id, parts[2])
}

// membersOutOfOrder tells whether a list of members is not in the order of their ids, which is each cluster's own.
func membersOutOfOrder(msg proto.Message) string {
	if list, ok := msg.(interface{ GetMembers() []*pb.Member }); ok {
		if !slices.IsSortedFunc(list.GetMembers(), func(a, b *pb.Member) int { return cmp.Compare(a.ID, b.ID) }) {
			return "members are not in the order of their ids"
		}
	}
	return ""
}

func one(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("1")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("1"))
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

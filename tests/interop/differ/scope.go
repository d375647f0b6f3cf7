package main

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// This file is the whole list of what a run must have exercised. A run fails when a request field, enum value, oneof
// arm, response field or error listed here was never seen from both servers. To bring a new RPC under test, add it here
// and teach the generator (gen.go) to send it; the coverage report then names what is still missing.

// rpcScope is one RPC with the message types that travel on it.
type rpcScope struct {
	name      string // Service.Method as printed
	method    string // full gRPC method
	req, resp proto.Message
	errors    []string // names of scopedErrors that this RPC must have answered
}

var inScope = []rpcScope{
	{"KV.Range", "/etcdserverpb.KV/Range", &pb.RangeRequest{}, &pb.RangeResponse{}, []string{
		"ErrGRPCEmptyKey", "ErrGRPCInvalidSortOption", "ErrGRPCCompacted", "ErrGRPCFutureRev", "ErrGRPCInvalidClientAPIVersion", "gRPC message too large", "gRPC unknown service", "gRPC unknown method",
	}},
	{"KV.RangeStream", "/etcdserverpb.KV/RangeStream", &pb.RangeRequest{}, &pb.RangeStreamResponse{}, []string{
		"ErrGRPCEmptyKey", "ErrGRPCInvalidSortOption", "ErrGRPCCompacted", "ErrGRPCFutureRev", "RangeStream custom sort", "RangeStream revision filters",
	}},
	{"KV.Put", "/etcdserverpb.KV/Put", &pb.PutRequest{}, &pb.PutResponse{}, []string{
		"ErrGRPCEmptyKey", "ErrGRPCKeyNotFound", "ErrGRPCValueProvided", "ErrGRPCLeaseProvided", "ErrGRPCLeaseNotFound", "ErrGRPCRequestTooLarge", "gRPC message too large",
	}},
	{"KV.DeleteRange", "/etcdserverpb.KV/DeleteRange", &pb.DeleteRangeRequest{}, &pb.DeleteRangeResponse{}, []string{
		"ErrGRPCEmptyKey", "ErrGRPCRequestTooLarge", "gRPC message too large",
	}},
	{"KV.Txn", "/etcdserverpb.KV/Txn", &pb.TxnRequest{}, &pb.TxnResponse{}, []string{
		"ErrGRPCEmptyKey", "ErrGRPCKeyNotFound", "ErrGRPCValueProvided", "ErrGRPCLeaseProvided", "ErrGRPCTooManyOps", "ErrGRPCDuplicateKey", "ErrGRPCInvalidSortOption", "ErrGRPCCompacted", "ErrGRPCFutureRev", "ErrGRPCLeaseNotFound", "ErrGRPCRequestTooLarge", "gRPC message too large",
	}},
	{"KV.Compact", "/etcdserverpb.KV/Compact", &pb.CompactionRequest{}, &pb.CompactionResponse{}, []string{
		"ErrGRPCCompacted", "ErrGRPCFutureRev",
	}},
	{"Watch.Watch", "/etcdserverpb.Watch/Watch", &pb.WatchRequest{}, &pb.WatchResponse{}, nil},
	{"Lease.LeaseGrant", "/etcdserverpb.Lease/LeaseGrant", &pb.LeaseGrantRequest{}, &pb.LeaseGrantResponse{}, []string{
		"ErrGRPCLeaseExist", "ErrGRPCLeaseTTLTooLarge",
	}},
	{"Lease.LeaseRevoke", "/etcdserverpb.Lease/LeaseRevoke", &pb.LeaseRevokeRequest{}, &pb.LeaseRevokeResponse{}, []string{
		"ErrGRPCLeaseNotFound",
	}},
	{"Lease.LeaseKeepAlive", "/etcdserverpb.Lease/LeaseKeepAlive", &pb.LeaseKeepAliveRequest{}, &pb.LeaseKeepAliveResponse{}, nil},
	{"Lease.LeaseTimeToLive", "/etcdserverpb.Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{}, &pb.LeaseTimeToLiveResponse{}, nil},
	{"Lease.LeaseLeases", "/etcdserverpb.Lease/LeaseLeases", &pb.LeaseLeasesRequest{}, &pb.LeaseLeasesResponse{}, nil},
	{"Cluster.MemberList", "/etcdserverpb.Cluster/MemberList", &pb.MemberListRequest{}, &pb.MemberListResponse{}, nil},
	{"Maintenance.Status", "/etcdserverpb.Maintenance/Status", &pb.StatusRequest{}, &pb.StatusResponse{}, nil},
	{"Maintenance.Hash", "/etcdserverpb.Maintenance/Hash", &pb.HashRequest{}, &pb.HashResponse{}, nil},
	{"Maintenance.HashKV", "/etcdserverpb.Maintenance/HashKV", &pb.HashKVRequest{}, &pb.HashKVResponse{}, []string{
		"ErrGRPCCompacted", "ErrGRPCFutureRev",
	}},
	{"Maintenance.Defragment", "/etcdserverpb.Maintenance/Defragment", &pb.DefragmentRequest{}, &pb.DefragmentResponse{}, nil},
	{"Maintenance.Alarm", "/etcdserverpb.Maintenance/Alarm", &pb.AlarmRequest{}, &pb.AlarmResponse{}, nil},
	{"Health.Check", "/grpc.health.v1.Health/Check", &healthpb.HealthCheckRequest{}, &healthpb.HealthCheckResponse{}, []string{
		"health unknown service",
	}},
}

// notInScope lists what the descriptors of the RPCs above contain but a run need not produce, with the reason.
// Keys are "RPC item" as the coverage report prints them.
var notInScope = map[string]string{
	"Maintenance.Alarm AlarmRequest.action":                     "only GET is in scope: raising an alarm would end the run's writes",
	"Maintenance.Alarm AlarmRequest.action=ACTIVATE":            "as above",
	"Maintenance.Alarm AlarmRequest.action=DEACTIVATE":          "as above",
	"Maintenance.Alarm AlarmRequest.action=unknown":             "crashes etcd 3.7.3 (nil answer of its apply loop)",
	"Maintenance.Alarm response AlarmResponse.alarms":           "no alarm is raised",
	"Maintenance.Alarm response AlarmMember.memberID":           "no alarm is raised",
	"Maintenance.Alarm response AlarmMember.alarm":              "no alarm is raised",
	"Maintenance.Status response StatusResponse.errors":         "a healthy member has none",
	"Maintenance.Status response StatusResponse.isLearner":      "the only member is a voter",
	"Maintenance.Status response DowngradeInfo.enabled":         "no downgrade is running",
	"Maintenance.Status response DowngradeInfo.targetVersion":   "no downgrade is running",
	"Maintenance.Defragment response DefragmentResponse.header": "the server leaves it unset",
	"Maintenance.Defragment response ResponseHeader.cluster_id": "as above",
	"Maintenance.Defragment response ResponseHeader.member_id":  "as above",
	"Maintenance.Defragment response ResponseHeader.revision":   "as above",
	"Maintenance.Defragment response ResponseHeader.raft_term":  "as above",
	"Cluster.MemberList response ResponseHeader.revision":       "the server leaves it unset",
	"Cluster.MemberList response Member.isLearner":              "the only member is a voter",
	"Lease.LeaseGrant response LeaseGrantResponse.error":        "the server never sets it",
}

// outOfScopeErrors are the remaining errors of the API: those the RPCs above cannot raise on one healthy member
// without authentication, and those a client cannot observe. They are listed so that a missing one is a decision.
var outOfScopeErrors = map[string]string{
	"ErrGRPCNoSpace":       "needs an alarm or a full quota, whose point differs with the storage engine",
	"ErrGRPCCorrupt":       "needs an alarm",
	"ErrGRPCWatchCanceled": "ends a stream the client itself cancelled, so no client sees it",
	"ErrGRPCCanceled":      "made locally by a client that gave up", "ErrGRPCDeadlineExceeded": "as above",
	"ErrGRPCRequestTooManyRequests": "needs a backlog of 5,000 entries",
	"ErrGRPCNoLeader":               "needs more than one member", "ErrGRPCNotLeader": "as above", "ErrGRPCLeaderChanged": "as above",
	"ErrGRPCTimeout": "as above", "ErrGRPCTimeoutDueToLeaderFail": "as above", "ErrGRPCTimeoutDueToConnectionLost": "as above",
	"ErrGRPCTimeoutWaitAppliedIndex": "as above", "ErrGRPCUnhealthy": "as above", "ErrGRPCNotSupportedForLearner": "as above",
	"ErrGRPCNotCapable": "start-up only", "ErrGRPCStopped": "shutdown only",
	"ErrGRPCMember*, ErrGRPCPeerURLExist, ErrGRPC*Learner*, ErrGRPCClusterIDMismatch":                 "membership changes",
	"ErrGRPC*Downgrade*, ErrGRPCClusterVersionUnavailable, ErrGRPCBadLeaderTransferee":                "maintenance not in scope yet",
	"ErrGRPCRoot*, ErrGRPCUser*, ErrGRPCRole*, ErrGRPCAuth*, ErrGRPCPermission*, ErrGRPCInvalidAuth*": "authentication",
}

// knownError is an error of the API. Text is the exact gRPC message, or its beginning when prefix is set.
type knownError struct {
	name   string
	code   codes.Code
	text   string
	prefix bool
}

// scopedErrors are the errors in scope; inScope says which RPC must answer which.
var scopedErrors = []knownError{
	{name: "ErrGRPCEmptyKey", code: codes.InvalidArgument, text: "etcdserver: key is not provided"},
	{name: "ErrGRPCKeyNotFound", code: codes.InvalidArgument, text: "etcdserver: key not found"},
	{name: "ErrGRPCValueProvided", code: codes.InvalidArgument, text: "etcdserver: value is provided"},
	{name: "ErrGRPCLeaseProvided", code: codes.InvalidArgument, text: "etcdserver: lease is provided"},
	{name: "ErrGRPCTooManyOps", code: codes.InvalidArgument, text: "etcdserver: too many operations in txn request"},
	{name: "ErrGRPCDuplicateKey", code: codes.InvalidArgument, text: "etcdserver: duplicate key given in txn request"},
	{name: "ErrGRPCInvalidSortOption", code: codes.InvalidArgument, text: "etcdserver: invalid sort option"},
	{name: "ErrGRPCInvalidClientAPIVersion", code: codes.InvalidArgument, text: "etcdserver: invalid client api version"},
	{name: "ErrGRPCRequestTooLarge", code: codes.InvalidArgument, text: "etcdserver: request is too large"},
	{name: "ErrGRPCCompacted", code: codes.OutOfRange, text: "etcdserver: mvcc: required revision has been compacted"},
	{name: "ErrGRPCFutureRev", code: codes.OutOfRange, text: "etcdserver: mvcc: required revision is a future revision"},
	{name: "ErrGRPCLeaseNotFound", code: codes.NotFound, text: "etcdserver: requested lease not found"},
	{name: "ErrGRPCLeaseExist", code: codes.FailedPrecondition, text: "etcdserver: lease already exists"},
	{name: "ErrGRPCLeaseTTLTooLarge", code: codes.OutOfRange, text: "etcdserver: too large lease TTL"},
	{name: "RangeStream custom sort", code: codes.Unimplemented, text: "RangeStream does not support custom sort orders"},
	{name: "RangeStream revision filters", code: codes.Unimplemented, text: "RangeStream does not support revision filters"},
	{name: "gRPC message too large", code: codes.ResourceExhausted, text: "grpc: received message larger than max", prefix: true},
	{name: "gRPC unknown service", code: codes.Unimplemented, text: "unknown service ", prefix: true},
	{name: "gRPC unknown method", code: codes.Unimplemented, text: "unknown method ", prefix: true},
	{name: "health unknown service", code: codes.NotFound, text: "unknown service"},
}

// scopedReasons are the cancel reasons and cancel forms of watches that must have been seen from both servers.
var scopedReasons = []string{
	"etcdserver: mvcc: required revision has been compacted",
	"mvcc: watcher range is empty",
	"mvcc: duplicate watch ID provided on the WatchStream",
	reasonClientCancel,
	reasonCompactRevision,
}

const (
	reasonClientCancel    = "(none: cancelled by the client)"
	reasonCompactRevision = "(none: compact_revision is set)"
)

// errorName names a status; ok is false when the table does not know it.
func errorName(code codes.Code, text string) (string, bool) {
	for _, e := range scopedErrors {
		if e.code == code && (e.text == text || e.prefix && len(text) >= len(e.text) && text[:len(e.text)] == e.text) {
			return e.name, true
		}
	}
	return code.String() + " " + text, false
}

package main

import (
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	lpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// This file is the whole list of what a run must have exercised. A run fails when a request field, enum value, oneof
// arm, response field or error listed here was never seen from both servers. To bring a new RPC under test, add it here
// and teach the generator (gen.go) to send it; the coverage report then names what is still missing.

// Some items need more than one member without auth gives. "auth:x" is only wanted of a run that has the feature.
const (
	withAuth  = "auth"
	withJWT   = "jwt"
	withTLS   = "tls"
	withThree = "three"
	// Without certificates there are callers whom nothing names.
	withNameless  = "nameless"
	withDowngrade = "downgrade"
)

func (c config) features() map[string]bool {
	return map[string]bool{
		withAuth: c.auth != authOff, withJWT: c.auth == authJWT, withTLS: c.tls, withThree: c.members > 1,
		withNameless: c.auth != authOff && !c.tls, withDowngrade: c.downgrade,
	}
}

// needs splits the feature off an item.
func needs(item string) (feature, rest string) {
	if f, rest, found := strings.Cut(item, ":"); found {
		switch f {
		case withAuth, withJWT, withTLS, withThree, withNameless, withDowngrade:
			return f, rest
		}
	}
	return "", item
}

// rpcScope is one RPC with the message types that travel on it.
type rpcScope struct {
	name      string // Service.Method as printed
	method    string // full gRPC method
	req, resp proto.Message
	errors    []string // names of scopedErrors that this RPC must have answered
}

// What an RPC says to callers without a token, with a bad one, and who may not.
var (
	refusesAll = []string{"nameless:ErrGRPCUserEmpty", "auth:ErrGRPCInvalidAuthToken", "auth:ErrGRPCPermissionDenied"}
	// The same for RPCs that compare the revision of users and roles in the token.
	refusesOld = append([]string{"jwt:ErrGRPCAuthOldRevision"}, refusesAll...)
	// Any user may.
	refusesNobody = []string{"nameless:ErrGRPCUserEmpty", "auth:ErrGRPCInvalidAuthToken"}
)

func errorsOf(lists ...[]string) []string { return slices.Concat(lists...) }

var inScope = []rpcScope{
	{"KV.Range", "/etcdserverpb.KV/Range", &pb.RangeRequest{}, &pb.RangeResponse{}, errorsOf(refusesOld, []string{
		"ErrGRPCEmptyKey", "ErrGRPCInvalidSortOption", "ErrGRPCCompacted", "ErrGRPCFutureRev", "ErrGRPCInvalidClientAPIVersion", "gRPC message too large", "gRPC unknown service", "gRPC unknown method", "three:ErrGRPCNoLeader", "three:ErrGRPCTimeout",
	})},
	{"KV.RangeStream", "/etcdserverpb.KV/RangeStream", &pb.RangeRequest{}, &pb.RangeStreamResponse{}, errorsOf(refusesOld, []string{
		"ErrGRPCEmptyKey", "ErrGRPCInvalidSortOption", "ErrGRPCCompacted", "ErrGRPCFutureRev", "RangeStream custom sort", "RangeStream revision filters",
	})},
	{"KV.Put", "/etcdserverpb.KV/Put", &pb.PutRequest{}, &pb.PutResponse{}, errorsOf(refusesOld, []string{
		"ErrGRPCEmptyKey", "ErrGRPCKeyNotFound", "ErrGRPCValueProvided", "ErrGRPCLeaseProvided", "ErrGRPCLeaseNotFound", "ErrGRPCRequestTooLarge", "gRPC message too large", "ErrGRPCNoSpace", "ErrGRPCCorrupt",
	})},
	{"KV.DeleteRange", "/etcdserverpb.KV/DeleteRange", &pb.DeleteRangeRequest{}, &pb.DeleteRangeResponse{}, errorsOf(refusesOld, []string{
		"ErrGRPCEmptyKey", "ErrGRPCRequestTooLarge", "gRPC message too large", "ErrGRPCCorrupt",
	})},
	{"KV.Txn", "/etcdserverpb.KV/Txn", &pb.TxnRequest{}, &pb.TxnResponse{}, errorsOf(refusesOld, []string{
		"ErrGRPCEmptyKey", "ErrGRPCKeyNotFound", "ErrGRPCValueProvided", "ErrGRPCLeaseProvided", "ErrGRPCTooManyOps", "ErrGRPCDuplicateKey", "ErrGRPCInvalidSortOption", "ErrGRPCCompacted", "ErrGRPCFutureRev", "ErrGRPCLeaseNotFound", "ErrGRPCRequestTooLarge", "gRPC message too large", "ErrGRPCNoSpace", "ErrGRPCCorrupt",
	})},
	{"KV.Compact", "/etcdserverpb.KV/Compact", &pb.CompactionRequest{}, &pb.CompactionResponse{}, errorsOf(refusesAll, []string{
		"ErrGRPCCompacted", "ErrGRPCFutureRev", "ErrGRPCCorrupt",
	})},
	{"Watch.Watch", "/etcdserverpb.Watch/Watch", &pb.WatchRequest{}, &pb.WatchResponse{}, []string{"three:ErrGRPCNoLeader"}},
	{"Lease.LeaseGrant", "/etcdserverpb.Lease/LeaseGrant", &pb.LeaseGrantRequest{}, &pb.LeaseGrantResponse{}, errorsOf([]string{
		"ErrGRPCLeaseExist", "ErrGRPCLeaseTTLTooLarge", "ErrGRPCNoSpace", "ErrGRPCCorrupt",
	})},
	{"Lease.LeaseRevoke", "/etcdserverpb.Lease/LeaseRevoke", &pb.LeaseRevokeRequest{}, &pb.LeaseRevokeResponse{}, errorsOf([]string{
		"ErrGRPCLeaseNotFound", "ErrGRPCCorrupt", "auth:ErrGRPCPermissionDenied",
	})},
	{"Lease.LeaseKeepAlive", "/etcdserverpb.Lease/LeaseKeepAlive", &pb.LeaseKeepAliveRequest{}, &pb.LeaseKeepAliveResponse{}, nil},
	{"Lease.LeaseTimeToLive", "/etcdserverpb.Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{}, &pb.LeaseTimeToLiveResponse{}, nil},
	{"Lease.LeaseLeases", "/etcdserverpb.Lease/LeaseLeases", &pb.LeaseLeasesRequest{}, &pb.LeaseLeasesResponse{}, nil},
	{"Cluster.MemberList", "/etcdserverpb.Cluster/MemberList", &pb.MemberListRequest{}, &pb.MemberListResponse{}, errorsOf(refusesNobody)},
	{"Cluster.MemberAdd", "/etcdserverpb.Cluster/MemberAdd", &pb.MemberAddRequest{}, &pb.MemberAddResponse{}, errorsOf(refusesAll, []string{
		"ErrGRPCMemberBadURLs", "ErrGRPCPeerURLExist", "ErrGRPCTooManyLearners", "three:ErrGRPCMemberNotEnoughStarted", "three:ErrGRPCUnhealthy",
	})},
	{"Cluster.MemberRemove", "/etcdserverpb.Cluster/MemberRemove", &pb.MemberRemoveRequest{}, &pb.MemberRemoveResponse{}, errorsOf(refusesAll, []string{
		"ErrGRPCMemberNotFound", "three:ErrGRPCMemberNotEnoughStarted",
	})},
	{"Cluster.MemberUpdate", "/etcdserverpb.Cluster/MemberUpdate", &pb.MemberUpdateRequest{}, &pb.MemberUpdateResponse{}, errorsOf(refusesAll, []string{
		"ErrGRPCMemberNotFound", "ErrGRPCPeerURLExist",
	})},
	{"Cluster.MemberPromote", "/etcdserverpb.Cluster/MemberPromote", &pb.MemberPromoteRequest{}, &pb.MemberPromoteResponse{}, errorsOf(refusesAll, []string{
		"ErrGRPCMemberNotFound", "ErrGRPCMemberNotLearner", "ErrGRPCLearnerNotReady",
	})},
	{"Maintenance.Status", "/etcdserverpb.Maintenance/Status", &pb.StatusRequest{}, &pb.StatusResponse{}, errorsOf(refusesNobody)},
	{"Maintenance.Hash", "/etcdserverpb.Maintenance/Hash", &pb.HashRequest{}, &pb.HashResponse{}, errorsOf(refusesAll)},
	{"Maintenance.HashKV", "/etcdserverpb.Maintenance/HashKV", &pb.HashKVRequest{}, &pb.HashKVResponse{}, errorsOf(refusesAll, []string{
		"ErrGRPCCompacted", "ErrGRPCFutureRev",
	})},
	{"Maintenance.Defragment", "/etcdserverpb.Maintenance/Defragment", &pb.DefragmentRequest{}, &pb.DefragmentResponse{}, errorsOf(refusesAll)},
	{"Maintenance.Snapshot", "/etcdserverpb.Maintenance/Snapshot", &pb.SnapshotRequest{}, &pb.SnapshotResponse{}, errorsOf(refusesAll)},
	{"Maintenance.Alarm", "/etcdserverpb.Maintenance/Alarm", &pb.AlarmRequest{}, &pb.AlarmResponse{}, errorsOf(refusesAll)},
	{"Maintenance.MoveLeader", "/etcdserverpb.Maintenance/MoveLeader", &pb.MoveLeaderRequest{}, &pb.MoveLeaderResponse{}, errorsOf(refusesAll, []string{
		"ErrGRPCBadLeaderTransferee", "three:ErrGRPCNotLeader",
	})},
	{"Maintenance.Downgrade", "/etcdserverpb.Maintenance/Downgrade", &pb.DowngradeRequest{}, &pb.DowngradeResponse{}, errorsOf(refusesAll, []string{
		"ErrGRPCWrongDowngradeVersionFormat", "ErrGRPCInvalidDowngradeTargetVersion", "downgrade:ErrGRPCDowngradeInProcess", "unknown downgrade action",
	})},
	{"Auth.AuthEnable", "/etcdserverpb.Auth/AuthEnable", &pb.AuthEnableRequest{}, &pb.AuthEnableResponse{}, errorsOf(refusesAll, []string{
		"auth:ErrGRPCRootUserNotExist", "auth:ErrGRPCRootRoleNotExist",
	})},
	{"Auth.AuthDisable", "/etcdserverpb.Auth/AuthDisable", &pb.AuthDisableRequest{}, &pb.AuthDisableResponse{}, nil},
	{"Auth.AuthStatus", "/etcdserverpb.Auth/AuthStatus", &pb.AuthStatusRequest{}, &pb.AuthStatusResponse{}, []string{"auth:ErrGRPCInvalidAuthToken"}},
	{"Auth.Authenticate", "/etcdserverpb.Auth/Authenticate", &pb.AuthenticateRequest{}, &pb.AuthenticateResponse{}, []string{
		"auth:ErrGRPCAuthNotEnabled", "auth:ErrGRPCAuthFailed", "auth:no password user",
	}},
	{"Auth.UserAdd", "/etcdserverpb.Auth/UserAdd", &pb.AuthUserAddRequest{}, &pb.AuthUserAddResponse{}, errorsOf(refusesAll, []string{
		"auth:ErrGRPCUserAlreadyExist", "auth:password too long",
	})},
	{"Auth.UserGet", "/etcdserverpb.Auth/UserGet", &pb.AuthUserGetRequest{}, &pb.AuthUserGetResponse{}, errorsOf(refusesAll, []string{"auth:ErrGRPCUserNotFound"})},
	{"Auth.UserList", "/etcdserverpb.Auth/UserList", &pb.AuthUserListRequest{}, &pb.AuthUserListResponse{}, errorsOf(refusesAll)},
	{"Auth.UserDelete", "/etcdserverpb.Auth/UserDelete", &pb.AuthUserDeleteRequest{}, &pb.AuthUserDeleteResponse{}, errorsOf(refusesAll, []string{
		"auth:ErrGRPCUserNotFound", "auth:ErrGRPCInvalidAuthMgmt",
	})},
	{"Auth.UserChangePassword", "/etcdserverpb.Auth/UserChangePassword", &pb.AuthUserChangePasswordRequest{}, &pb.AuthUserChangePasswordResponse{}, errorsOf(refusesAll, []string{"auth:ErrGRPCUserNotFound"})},
	{"Auth.UserGrantRole", "/etcdserverpb.Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{}, &pb.AuthUserGrantRoleResponse{}, errorsOf(refusesAll, []string{
		"auth:ErrGRPCUserNotFound", "auth:ErrGRPCRoleNotFound",
	})},
	{"Auth.UserRevokeRole", "/etcdserverpb.Auth/UserRevokeRole", &pb.AuthUserRevokeRoleRequest{}, &pb.AuthUserRevokeRoleResponse{}, errorsOf(refusesAll, []string{
		"auth:ErrGRPCUserNotFound", "auth:ErrGRPCRoleNotGranted", "auth:ErrGRPCInvalidAuthMgmt",
	})},
	{"Auth.RoleAdd", "/etcdserverpb.Auth/RoleAdd", &pb.AuthRoleAddRequest{}, &pb.AuthRoleAddResponse{}, errorsOf(refusesAll, []string{
		"auth:ErrGRPCRoleAlreadyExist", "auth:ErrGRPCRoleEmpty",
	})},
	{"Auth.RoleGet", "/etcdserverpb.Auth/RoleGet", &pb.AuthRoleGetRequest{}, &pb.AuthRoleGetResponse{}, errorsOf(refusesAll, []string{"auth:ErrGRPCRoleNotFound"})},
	{"Auth.RoleList", "/etcdserverpb.Auth/RoleList", &pb.AuthRoleListRequest{}, &pb.AuthRoleListResponse{}, errorsOf(refusesAll)},
	{"Auth.RoleDelete", "/etcdserverpb.Auth/RoleDelete", &pb.AuthRoleDeleteRequest{}, &pb.AuthRoleDeleteResponse{}, errorsOf(refusesAll, []string{
		"auth:ErrGRPCRoleNotFound", "auth:ErrGRPCInvalidAuthMgmt",
	})},
	{"Auth.RoleGrantPermission", "/etcdserverpb.Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{}, &pb.AuthRoleGrantPermissionResponse{}, errorsOf(refusesAll, []string{
		"auth:ErrGRPCPermissionNotGiven", "auth:ErrGRPCInvalidAuthMgmt", "auth:ErrGRPCRoleNotFound",
	})},
	{"Auth.RoleRevokePermission", "/etcdserverpb.Auth/RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{}, &pb.AuthRoleRevokePermissionResponse{}, errorsOf(refusesAll, []string{
		"auth:ErrGRPCRoleNotFound", "auth:ErrGRPCPermissionNotGranted",
	})},
	{"Lock.Lock", "/v3lockpb.Lock/Lock", &lpb.LockRequest{}, &lpb.LockResponse{}, nil},
	{"Lock.Unlock", "/v3lockpb.Lock/Unlock", &lpb.UnlockRequest{}, &lpb.UnlockResponse{}, nil},
	{"Election.Campaign", "/v3electionpb.Election/Campaign", &epb.CampaignRequest{}, &epb.CampaignResponse{}, nil},
	{"Election.Proclaim", "/v3electionpb.Election/Proclaim", &epb.ProclaimRequest{}, &epb.ProclaimResponse{}, nil},
	{"Election.Leader", "/v3electionpb.Election/Leader", &epb.LeaderRequest{}, &epb.LeaderResponse{}, nil},
	{"Election.Observe", "/v3electionpb.Election/Observe", &epb.LeaderRequest{}, &epb.LeaderResponse{}, nil},
	{"Election.Resign", "/v3electionpb.Election/Resign", &epb.ResignRequest{}, &epb.ResignResponse{}, nil},
	{"Health.Check", "/grpc.health.v1.Health/Check", &healthpb.HealthCheckRequest{}, &healthpb.HealthCheckResponse{}, []string{
		"health unknown service",
	}},
}

// wantedOf tells whether a run with these features must produce anything of an RPC.
func (s rpcScope) wantedOf(features map[string]bool) bool {
	return !strings.HasPrefix(s.name, "Auth.") || features[withAuth]
}

// notInScope lists what the descriptors of the RPCs above contain but a run need not produce, with the reason.
// Keys are "RPC item" as the coverage report prints them; an item that begins with "response " and has no RPC holds for all.
var notInScope = map[string]string{
	"Maintenance.Alarm AlarmRequest.action=unknown":             "crashes etcd 3.7.3 (nil answer of its apply loop)",
	"Maintenance.Defragment response DefragmentResponse.header": "the server leaves it unset",
	"Maintenance.MoveLeader response MoveLeaderResponse.header": "the server leaves it unset",
	"Maintenance.Snapshot response SnapshotResponse.header":     "the server leaves it unset",
	"Lease.LeaseGrant response LeaseGrantResponse.error":        "the server never sets it",
	"Cluster.MemberRemove response Member.isLearner":            "one learner at most, and it is the one removed",
	"Cluster.MemberPromote response Member.isLearner":           "one learner at most, and it is the one promoted",
	"Cluster.MemberAdd response Member.name":                    "of the new member; the others' are counted with MemberList",
}

// headersUnset are the RPCs whose answers have no header, and of whose header which fields are never set.
var headersUnset = map[string][]string{
	"Maintenance.Defragment": {"cluster_id", "member_id", "revision", "raft_term"},
	"Maintenance.MoveLeader": {"cluster_id", "member_id", "revision", "raft_term"},
	"Maintenance.Snapshot":   {"cluster_id", "member_id", "revision", "raft_term"},
	"Cluster.MemberList":     {"revision"}, "Cluster.MemberAdd": {"revision"}, "Cluster.MemberRemove": {"revision"},
	"Cluster.MemberUpdate": {"revision"}, "Cluster.MemberPromote": {"revision"},
}

// leftOut tells why an item need not be produced.
func leftOut(rpc, item string) (string, bool) {
	if why, ok := notInScope[rpc+" "+item]; ok {
		return why, true
	}
	field, isHeader := strings.CutPrefix(item, "response ResponseHeader.")
	if isHeader && slices.Contains(headersUnset[rpc], field) {
		return "the server leaves it unset", true
	}
	return "", false
}

// itemNeeds names the feature without which an item cannot be produced.
var itemNeeds = map[string]string{
	"Maintenance.Status response DowngradeInfo.enabled":            withDowngrade,
	"Maintenance.Status response DowngradeInfo.targetVersion":      withDowngrade,
	"Maintenance.Status response StatusResponse.isLearner":         withThree,
	"Cluster.MemberPromote response MemberPromoteResponse.header":  withThree,
	"Cluster.MemberPromote response ResponseHeader.cluster_id":     withThree,
	"Cluster.MemberPromote response ResponseHeader.member_id":      withThree,
	"Cluster.MemberPromote response ResponseHeader.raft_term":      withThree,
	"Cluster.MemberPromote response MemberPromoteResponse.members": withThree,
	"Cluster.MemberPromote response Member.ID":                     withThree,
	"Cluster.MemberPromote response Member.name":                   withThree,
	"Cluster.MemberPromote response Member.peerURLs":               withThree,
	"Cluster.MemberPromote response Member.clientURLs":             withThree,
}

// outOfScopeErrors are the remaining errors of the API, those that no combination raises, and those a client cannot
// observe. They are listed so that a missing one is a decision.
var outOfScopeErrors = map[string]string{
	"ErrGRPCWatchCanceled": "ends a stream the client itself cancelled, so no client sees it",
	"ErrGRPCCanceled":      "made locally by a client that gave up", "ErrGRPCDeadlineExceeded": "as above",
	"ErrGRPCRequestTooManyRequests": "needs a backlog of 5,000 entries",
	"ErrGRPCLeaderChanged":          "needs a leader that changes under a request: tests/faults.sh", "ErrGRPCTimeoutDueToLeaderFail": "as above",
	"ErrGRPCTimeoutDueToConnectionLost": "as above", "ErrGRPCTimeoutWaitAppliedIndex": "as above",
	"ErrGRPCNotCapable": "start-up only", "ErrGRPCStopped": "shutdown only",
	"ErrGRPCMemberExist":               "needs two ids of the same sum",
	"ErrGRPCClusterIDMismatch":         "between members only",
	"ErrGRPCClusterVersionUnavailable": "before the first election is over",
	"ErrGRPCNoInflightDowngrade":       "DowngradeCancel keeps it to itself",
}

// knownError is an error of the API. Text is the exact gRPC message, or its beginning when prefix is set.
type knownError struct {
	name   string
	code   codes.Code
	text   string
	prefix bool
	needs  string // the feature without which it cannot be produced
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
	{name: "ErrGRPCNoSpace", code: codes.ResourceExhausted, text: "etcdserver: mvcc: database space exceeded"},
	{name: "ErrGRPCCorrupt", code: codes.DataLoss, text: "etcdserver: corrupt cluster"},
	{name: "ErrGRPCMemberBadURLs", code: codes.InvalidArgument, text: "etcdserver: given member URLs are invalid"},
	{name: "ErrGRPCPeerURLExist", code: codes.FailedPrecondition, text: "etcdserver: Peer URLs already exists"},
	{name: "ErrGRPCMemberNotFound", code: codes.NotFound, text: "etcdserver: member not found"},
	{name: "ErrGRPCMemberNotLearner", code: codes.FailedPrecondition, text: "etcdserver: can only promote a learner member"},
	{name: "ErrGRPCLearnerNotReady", code: codes.FailedPrecondition, text: "etcdserver: can only promote a learner member which is in sync with leader"},
	{name: "ErrGRPCTooManyLearners", code: codes.FailedPrecondition, text: "etcdserver: too many learner members in cluster"},
	{name: "ErrGRPCMemberNotEnoughStarted", code: codes.Unknown, text: "etcdserver: re-configuration failed due to not enough started members", needs: withThree},
	{name: "ErrGRPCNotSupportedForLearner", code: codes.FailedPrecondition, text: "etcdserver: rpc not supported for learner", needs: withThree},
	{name: "ErrGRPCUnhealthy", code: codes.Unavailable, text: "etcdserver: unhealthy cluster", needs: withThree},
	{name: "ErrGRPCNoLeader", code: codes.Unavailable, text: "etcdserver: no leader", needs: withThree},
	{name: "ErrGRPCTimeout", code: codes.Unavailable, text: "etcdserver: request timed out", needs: withThree},
	{name: "proposal without a leader", code: codes.DeadlineExceeded, text: "context deadline exceeded", needs: withThree},
	{name: "ErrGRPCNotLeader", code: codes.FailedPrecondition, text: "etcdserver: not leader", needs: withThree},
	{name: "ErrGRPCBadLeaderTransferee", code: codes.FailedPrecondition, text: "etcdserver: bad leader transferee"},
	{name: "ErrGRPCWrongDowngradeVersionFormat", code: codes.InvalidArgument, text: "etcdserver: wrong downgrade target version format"},
	{name: "ErrGRPCInvalidDowngradeTargetVersion", code: codes.InvalidArgument, text: "etcdserver: invalid downgrade target version"},
	{name: "ErrGRPCDowngradeInProcess", code: codes.FailedPrecondition, text: "etcdserver: cluster has a downgrade job in progress", needs: withDowngrade},
	{name: "unknown downgrade action", code: codes.Unknown, text: "etcdserver: unknown method"},
	{name: "no leader key", code: codes.Unknown, text: "\"leader\" field must be provided"},
	{name: "no leader elected", code: codes.Unknown, text: "election: no leader"},
	{name: "not the leader any more", code: codes.Unknown, text: "election: not leader"},
	{name: "ErrGRPCRootUserNotExist", code: codes.FailedPrecondition, text: "etcdserver: root user does not exist", needs: withAuth},
	{name: "ErrGRPCRootRoleNotExist", code: codes.FailedPrecondition, text: "etcdserver: root user does not have root role", needs: withAuth},
	{name: "ErrGRPCUserAlreadyExist", code: codes.FailedPrecondition, text: "etcdserver: user name already exists", needs: withAuth},
	{name: "ErrGRPCUserEmpty", code: codes.InvalidArgument, text: "etcdserver: user name is empty", needs: withAuth},
	{name: "ErrGRPCUserNotFound", code: codes.FailedPrecondition, text: "etcdserver: user name not found", needs: withAuth},
	{name: "ErrGRPCRoleAlreadyExist", code: codes.FailedPrecondition, text: "etcdserver: role name already exists", needs: withAuth},
	{name: "ErrGRPCRoleNotFound", code: codes.FailedPrecondition, text: "etcdserver: role name not found", needs: withAuth},
	{name: "ErrGRPCRoleEmpty", code: codes.InvalidArgument, text: "etcdserver: role name is empty", needs: withAuth},
	{name: "ErrGRPCAuthFailed", code: codes.InvalidArgument, text: "etcdserver: authentication failed, invalid user ID or password", needs: withAuth},
	{name: "ErrGRPCPermissionNotGiven", code: codes.InvalidArgument, text: "etcdserver: permission not given", needs: withAuth},
	{name: "ErrGRPCPermissionDenied", code: codes.PermissionDenied, text: "etcdserver: permission denied", needs: withAuth},
	{name: "ErrGRPCRoleNotGranted", code: codes.FailedPrecondition, text: "etcdserver: role is not granted to the user", needs: withAuth},
	{name: "ErrGRPCPermissionNotGranted", code: codes.FailedPrecondition, text: "etcdserver: permission is not granted to the role", needs: withAuth},
	{name: "ErrGRPCAuthNotEnabled", code: codes.FailedPrecondition, text: "etcdserver: authentication is not enabled", needs: withAuth},
	{name: "ErrGRPCInvalidAuthToken", code: codes.Unauthenticated, text: "etcdserver: invalid auth token", needs: withAuth},
	{name: "ErrGRPCInvalidAuthMgmt", code: codes.InvalidArgument, text: "etcdserver: invalid auth management", needs: withAuth},
	{name: "ErrGRPCAuthOldRevision", code: codes.InvalidArgument, text: "etcdserver: revision of auth store is old", needs: withJWT},
	{name: "no password user", code: codes.Unknown, text: "auth: authentication failed, password was given for no password user", needs: withAuth},
	{name: "password too long", code: codes.Unknown, text: "bcrypt: password length exceeds 72 bytes", needs: withAuth},
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
	"auth:rpc error: code = PermissionDenied desc = etcdserver: permission denied",
	"auth:rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
	"nameless:rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
	"jwt:rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
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

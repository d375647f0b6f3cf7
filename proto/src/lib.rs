//! etcd's v3 messages and services, key ranges, and what a log entry carries.
//!
//! The messages are generated from `proto/*.proto`, whose numbers and types are those of etcd API v3.7
//! (`tests/wire.rs` compares each one with the published surface). Keys, values and all other `bytes`
//! fields are [`bytes::Bytes`], so decoding a request copies nothing.

pub mod command;
pub mod key_range;

/// Keys, values and events as stored and watched.
#[allow(missing_docs)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
/// Users, roles and permissions.
#[allow(missing_docs)]
pub mod authpb {
    tonic::include_proto!("authpb");
}
/// Leases as stored.
#[allow(missing_docs)]
pub mod leasepb {
    tonic::include_proto!("leasepb");
}
/// Cluster members and versions.
#[allow(missing_docs)]
pub mod membershippb {
    tonic::include_proto!("membershippb");
}
/// The client API: KV, Watch, Lease, Cluster, Maintenance, Auth.
#[allow(
    missing_docs,
    clippy::large_enum_variant,
    clippy::doc_lazy_continuation
)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
/// The Lock service.
#[allow(missing_docs)]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
/// The Election service.
#[allow(missing_docs)]
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
/// The standard gRPC health service.
#[allow(missing_docs)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
/// Bodies of commands that have no API message of their own.
#[allow(missing_docs)]
pub mod commandpb {
    tonic::include_proto!("kvd.command");
}

/// What members send each other.
#[allow(missing_docs)]
pub mod peerpb {
    tonic::include_proto!("kvd.peer");
}

/// All descriptors of the compiled `.proto` files, as an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");

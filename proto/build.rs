//! Compiles the `.proto` files with protox, so that no `protoc` is needed.

use std::path::Path;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    let files = [
        "kv.proto",
        "auth.proto",
        "lease.proto",
        "membership.proto",
        "rpc.proto",
        "v3lock.proto",
        "v3election.proto",
        "health.proto",
        "command.proto",
        "peer.proto",
        "leader.proto",
    ];
    let descriptors = protox::compile(files.map(|f| root.join(f)), [root])?;
    println!("cargo::rerun-if-changed=proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}

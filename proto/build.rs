//! Compiles the `.proto` files with protox, so that no `protoc` is needed.

use std::path::Path;

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
    ];
    let descriptors = protox::compile(files.map(|f| root.join(f)), [root])?;
    println!("cargo::rerun-if-changed=proto");
    tonic_prost_build::configure()
        .bytes(".")
        .file_descriptor_set_path(
            Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin"),
        )
        .compile_fds(descriptors)?;
    Ok(())
}

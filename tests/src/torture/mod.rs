//! Members that lose their process or their power under load, and the proof that nothing acknowledged went with it.
//!
//! [`load`] sends operations and keeps every answer with its time; [`model`] is what those answers say the store must
//! hold; [`verify`] reads a restarted member and compares. [`kill`] ends processes. [`power_cut`] has the member's file
//! operations traced ([`strace`]), keeps what a disk may hold of them ([`disk`]), and starts members on that.
//! Every run is told by a seed; the choice of operations and cuts follows from it, their timing does not.

pub mod disk;
pub mod kill;
pub mod load;
pub mod model;
pub mod operation;
pub mod power_cut;
pub mod strace;
pub mod verify;

use std::path::Path;

/// The engines every run is made with.
pub const ENGINES: [&str; 2] = ["redb", "sled"];

/// How many rounds a test runs: the environment variable `name`, else `default`.
pub fn rounds(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number"))
    })
}

/// Copies a data folder with its holes, without the reserve.
pub fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if entry.file_name() != "reserve" {
            copy_sparse(&entry.path(), &target)?;
        }
    }
    Ok(())
}

fn copy_sparse(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::io::Read;
    use std::os::unix::fs::FileExt;
    let (mut source, target) = (std::fs::File::open(from)?, std::fs::File::create(to)?);
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            return target.set_len(at);
        }
        if buffer[..n].iter().any(|byte| *byte != 0) {
            target.write_all_at(&buffer[..n], at)?;
        }
        at += n as u64;
    }
}

//! Snapshot files: any bytes, and whole files with some bytes changed, are verified or refused, and never half taken.

#![no_main]

use std::io;
use std::path::Path;
use std::sync::Arc;

use kv_wal::fs::{FaultFs, Fs};
use kv_wal::snapshot_file::{SnapshotReader, SnapshotWriter, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("/snap/a");
    let fs = folder().expect("a folder in memory");
    let file = fs.create(path).expect("a file in memory");
    file.write_at(data, 0).expect("memory takes bytes");
    read(&fs, path);

    let Some((edits, content)) = data.split_at_checked(6) else {
        return;
    };
    let fs = Arc::new(folder().expect("a folder in memory"));
    let mut writer = SnapshotWriter::create(fs.clone(), path).expect("a file in memory");
    for chunk in content.chunks(7) {
        writer.write(chunk).expect("a small chunk");
    }
    writer.finish().expect("a whole file");
    assert_eq!(read(&fs, path).as_deref(), Some(content));
    let mut changed = false;
    fs.edit(path, |bytes| {
        for edit in edits.chunks(3) {
            let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % bytes.len();
            bytes[at] ^= edit[2];
            changed |= edit[2] != 0;
        }
    })
    .expect("the file is there");
    if let Some(seen) = read(&fs, path) {
        // Two edits may undo each other.
        assert_eq!(seen, content, "damage was served, edits: {changed}");
    }
});

fn folder() -> io::Result<FaultFs> {
    let fs = FaultFs::new();
    fs.create_dir(Path::new("/snap"))?;
    Ok(fs)
}

/// The content of a file that is whole.
fn read(fs: &FaultFs, path: &Path) -> Option<Vec<u8>> {
    let verified = verify(fs, path);
    let mut reader = SnapshotReader::open(fs, path).ok()?;
    let mut content = Vec::new();
    loop {
        match reader.next_chunk() {
            Ok(Some(chunk)) => content.extend_from_slice(&chunk),
            Ok(None) => {
                assert!(verified.is_ok(), "read and not verified: {verified:?}");
                return Some(content);
            }
            Err(_) => {
                assert!(verified.is_err(), "verified and not read");
                return None;
            }
        }
    }
}

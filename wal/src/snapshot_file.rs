//! Snapshot files: whole or absent, and never read without their checksums.
//!
//! A snapshot is written under a temporary name, fsynced, read back, renamed, and the folder fsynced: a file with its
//! final name is complete. All numbers are little endian.
//! ```text
//! offset  bytes
//!      0      8  magic "kvdsnap\n"
//!      8      4  format version, 1
//!     12      4  crc32 of bytes 0..12
//!     16      .  chunks:  length u32, over zero
//!                         crc32, continued from the crc before it over the length and the bytes
//!                         the bytes
//!      .     16  end:     length 0 u32
//!                         crc32, continued over the length and the total
//!                         total u64: bytes in all chunks
//! ```
//! Invariant: nothing follows the end; a file without one is incomplete.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use crc32fast::Hasher;

use crate::error::{Error, Result};
use crate::fs::{File, Fs};

/// Longest chunk.
pub const CHUNK_BYTES_MAX: usize = 16 << 20;
/// What a temporary name ends with.
const TEMPORARY_SUFFIX: &str = ".tmp";

const MAGIC: [u8; 8] = *b"kvdsnap\n";
const FORMAT_VERSION: u32 = 1;
const HEADER_LEN: usize = 16;
const CHUNK_HEADER_LEN: usize = 8;

/// What a complete snapshot file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes in all chunks.
    pub bytes: u64,
    /// The last crc of the chain, which stands for the contents and their division into chunks.
    pub crc: u32,
}

/// A snapshot file being written. Dropped before [`SnapshotWriter::finish`] it leaves nothing behind.
pub struct SnapshotWriter {
    fs: Arc<dyn Fs>,
    file: Arc<dyn File>,
    path: PathBuf,
    temporary: PathBuf,
    buffer: Vec<u8>,
    offset: u64,
    total: u64,
    crc: u32,
    is_finished: bool,
}

impl SnapshotWriter {
    /// Starts a snapshot that will have this path. What an earlier attempt left is overwritten; a complete snapshot
    /// of that name stays until this one is complete.
    pub fn create(fs: Arc<dyn Fs>, path: &Path) -> Result<SnapshotWriter> {
        let temporary = temporary_name(path);
        match fs.remove(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &temporary, error));
            }
            _ => {}
        }
        let file = fs
            .create(&temporary)
            .map_err(|error| Error::io("create", &temporary, error))?;
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        let crc = crc32fast::hash(&header[..12]);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        let mut writer = SnapshotWriter {
            fs,
            file,
            path: path.to_owned(),
            temporary,
            buffer: header.to_vec(),
            offset: 0,
            total: 0,
            crc,
            is_finished: false,
        };
        writer.flush()?;
        Ok(writer)
    }

    /// Appends a chunk of at most [`CHUNK_BYTES_MAX`]; an empty one changes nothing.
    pub fn write(&mut self, chunk: &[u8]) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        if chunk.len() > CHUNK_BYTES_MAX {
            return Err(Error::TooLarge {
                bytes: chunk.len() as u64,
                max: CHUNK_BYTES_MAX as u64,
            });
        }
        let len = u32::try_from(chunk.len())
            .expect("at most 16 MiB")
            .to_le_bytes();
        self.crc = chain(self.crc, &len, chunk);
        self.total += chunk.len() as u64;
        self.buffer.extend_from_slice(&len);
        self.buffer.extend_from_slice(&self.crc.to_le_bytes());
        self.buffer.extend_from_slice(chunk);
        self.flush()
    }

    /// Ends the file, makes it durable, verifies it and gives it its name.
    pub fn finish(mut self) -> Result<Summary> {
        let total = self.total.to_le_bytes();
        self.crc = chain(self.crc, &[0; 4], &total);
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&self.crc.to_le_bytes());
        self.buffer.extend_from_slice(&total);
        self.flush()?;
        self.file
            .sync_data()
            .map_err(|error| Error::io("sync", &self.temporary, error))?;
        let written = Summary {
            bytes: self.total,
            crc: self.crc,
        };
        let read = verify(&*self.fs, &self.temporary)?;
        if read != written {
            let what = format!("{written:?} was written and {read:?} is there");
            return Err(Error::damage(&self.temporary, 0, what));
        }
        self.fs
            .rename(&self.temporary, &self.path)
            .map_err(|error| Error::io("rename", &self.temporary, error))?;
        self.is_finished = true;
        if let Some(dir) = self.path.parent() {
            self.fs
                .sync_dir(dir)
                .map_err(|error| Error::io("sync", dir, error))?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> Result<()> {
        self.file
            .write_at(&self.buffer, self.offset)
            .map_err(|error| Error::io("write", &self.temporary, error))?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = self.fs.remove(&self.temporary)
        {
            tracing::warn!(file = %self.temporary.display(), %error, "cannot remove an unfinished snapshot");
        }
    }
}

/// A snapshot file being read, chunk by chunk. Each chunk is verified before it is returned, but only the end tells
/// that the file is complete: take nothing for true before [`SnapshotReader::next_chunk`] has returned `None`, or
/// [`verify`] the file first.
pub struct SnapshotReader {
    file: Arc<dyn File>,
    path: PathBuf,
    len: u64,
    offset: u64,
    total: u64,
    crc: u32,
    summary: Option<Summary>,
}

impl SnapshotReader {
    /// Opens a snapshot file and checks its header.
    pub fn open(fs: &dyn Fs, path: &Path) -> Result<SnapshotReader> {
        let file = fs
            .open(path)
            .map_err(|error| Error::io("open", path, error))?;
        let len = file.len().map_err(|error| Error::io("size", path, error))?;
        let path = path.to_owned();
        let mut reader = SnapshotReader {
            file,
            path,
            len,
            offset: 0,
            total: 0,
            crc: 0,
            summary: None,
        };
        let mut header = [0; HEADER_LEN];
        reader.read(&mut header)?;
        if header[..8] != MAGIC {
            return Err(Error::damage(
                &reader.path,
                0,
                "this is not a snapshot file",
            ));
        }
        let found = u32_at(&header, 8);
        if found != FORMAT_VERSION {
            return Err(Error::UnknownVersion {
                file: reader.path,
                found,
                known: FORMAT_VERSION,
            });
        }
        reader.crc = crc32fast::hash(&header[..12]);
        if reader.crc != u32_at(&header, 12) {
            return Err(Error::damage(
                &reader.path,
                0,
                "the header's checksum does not match",
            ));
        }
        Ok(reader)
    }

    /// The next chunk; `None` once the file is known to be complete.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        if self.summary.is_some() {
            return Ok(None);
        }
        let start = self.offset;
        let mut header = [0; CHUNK_HEADER_LEN];
        self.read(&mut header)?;
        let len = u32_at(&header, 0) as usize;
        if len > CHUNK_BYTES_MAX {
            return Err(Error::damage(
                &self.path,
                start,
                format!("a chunk of {len} bytes"),
            ));
        }
        let mut body = vec![0; if len == 0 { 8 } else { len }];
        self.read(&mut body)?;
        self.crc = chain(self.crc, &header[..4], &body);
        if self.crc != u32_at(&header, 4) {
            return Err(Error::damage(
                &self.path,
                start,
                "a chunk's checksum does not match",
            ));
        }
        if len > 0 {
            self.total += len as u64;
            return Ok(Some(body.into()));
        }
        if body != self.total.to_le_bytes() {
            return Err(Error::damage(
                &self.path,
                start,
                "the total at the end is not that of the chunks",
            ));
        }
        if self.offset < self.len {
            return Err(Error::damage(
                &self.path,
                self.offset,
                "bytes after the end",
            ));
        }
        self.summary = Some(Summary {
            bytes: self.total,
            crc: self.crc,
        });
        Ok(None)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        let end = self.offset + buffer.len() as u64;
        if end > self.len {
            return Err(Error::damage(
                &self.path,
                self.len,
                "the file ends too early: the snapshot is incomplete",
            ));
        }
        self.file
            .read_exact_at(buffer, self.offset)
            .map_err(|error| Error::io("read", &self.path, error))?;
        self.offset = end;
        Ok(())
    }
}

/// Reads a whole snapshot file and checks all of it.
pub fn verify(fs: &dyn Fs, path: &Path) -> Result<Summary> {
    let mut reader = SnapshotReader::open(fs, path)?;
    while reader.next_chunk()?.is_some() {}
    Ok(reader
        .summary
        .expect("the last chunk of a complete file sets it"))
}

/// Removes what unfinished snapshots left in a folder, and returns how many.
pub fn remove_unfinished(fs: &dyn Fs, dir: &Path) -> Result<usize> {
    let files = fs
        .list(dir)
        .map_err(|error| Error::io("list", dir, error))?;
    let mut removed = 0;
    for file in files {
        if file
            .as_os_str()
            .as_encoded_bytes()
            .ends_with(TEMPORARY_SUFFIX.as_bytes())
        {
            fs.remove(&file)
                .map_err(|error| Error::io("remove", &file, error))?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(TEMPORARY_SUFFIX);
    name.into()
}

fn chain(previous: u32, len: &[u8], body: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(previous);
    hasher.update(len);
    hasher.update(body);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Fault, FaultFs};

    const PATH: &str = "/snap/1";

    fn disk() -> Arc<FaultFs> {
        let fs = FaultFs::new();
        fs.create_dir("/snap".as_ref()).unwrap();
        Arc::new(fs)
    }

    fn write(fs: &Arc<FaultFs>, chunks: &[&[u8]]) -> Result<Summary> {
        let mut writer = SnapshotWriter::create(Arc::clone(fs) as Arc<dyn Fs>, PATH.as_ref())?;
        for chunk in chunks {
            writer.write(chunk)?;
        }
        writer.finish()
    }

    fn read(fs: &FaultFs) -> Result<Vec<Bytes>> {
        let mut reader = SnapshotReader::open(fs, PATH.as_ref())?;
        std::iter::from_fn(|| reader.next_chunk().transpose()).collect()
    }

    #[test]
    fn chunks_come_back_as_they_were_written() {
        let fs = disk();
        let written = write(&fs, &[b"first", b"", &[7; 10_000]]).unwrap();
        assert_eq!(written.bytes, 10_005);
        assert_eq!(
            read(&fs).unwrap(),
            [Bytes::from("first"), Bytes::from(vec![7; 10_000])]
        );
        assert_eq!(verify(&*fs, PATH.as_ref()).unwrap(), written);
    }

    #[test]
    fn every_flipped_bit_and_every_lost_tail_is_found() {
        let fs = disk();
        write(&fs, &[b"some", b"chunks of", b"bytes"]).unwrap();
        let whole = fs.contents(PATH.as_ref()).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                fs.edit(PATH.as_ref(), |bytes| bytes[at] ^= 1 << bit)
                    .unwrap();
                verify(&*fs, PATH.as_ref()).expect_err("a flipped bit");
                fs.edit(PATH.as_ref(), |bytes| bytes.clone_from(&whole))
                    .unwrap();
            }
            fs.edit(PATH.as_ref(), |bytes| bytes.truncate(at)).unwrap();
            assert!(matches!(
                verify(&*fs, PATH.as_ref()),
                Err(Error::Damage { .. })
            ));
            fs.edit(PATH.as_ref(), |bytes| bytes.clone_from(&whole))
                .unwrap();
        }
        fs.edit(PATH.as_ref(), |bytes| bytes.push(0)).unwrap();
        verify(&*fs, PATH.as_ref()).expect_err("a byte after the end");
    }

    #[test]
    fn a_power_cut_leaves_the_old_snapshot_or_the_new_one() {
        let old = [Bytes::from("old")];
        let new = [Bytes::from(vec![1; 9_000]), Bytes::from("new")];
        let mut outcomes = [0, 0];
        for operation in 0.. {
            let fs = disk();
            write(&fs, &[&old[0]]).unwrap();
            fs.fail_at(fs.operation_count() + operation, Fault::PowerCut);
            let finished = write(&fs, &[&new[0], &new[1]]).is_ok();
            for seed in 0..8 {
                let after = fs.power_cut(seed);
                let found = read(&after).unwrap();
                let is_new = found == new;
                assert!(
                    is_new || found == old,
                    "neither the old snapshot nor the new one at operation {operation}"
                );
                assert!(is_new || !finished, "a finished snapshot was lost");
                outcomes[usize::from(is_new)] += 1;
                remove_unfinished(&after, "/snap".as_ref()).unwrap();
                assert_eq!(after.list("/snap".as_ref()).unwrap(), [PathBuf::from(PATH)]);
            }
            if finished {
                break;
            }
        }
        assert!(outcomes[0] > 0, "no cut left the old snapshot");
        assert!(outcomes[1] > 0, "no cut left the new snapshot");
    }

    #[test]
    fn an_unfinished_snapshot_leaves_nothing() {
        let fs = disk();
        let mut writer =
            SnapshotWriter::create(Arc::clone(&fs) as Arc<dyn Fs>, PATH.as_ref()).unwrap();
        writer.write(b"half").unwrap();
        drop(writer);
        assert!(fs.list("/snap".as_ref()).unwrap().is_empty());
    }
}

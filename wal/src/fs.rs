//! The file-system seam: what the log needs of a disk, the real one, and one that fails on command.
//!
//! Everything this crate does to a disk goes through [`Fs`] and [`File`], so that a test can lose power between any
//! two operations. Paths are whole paths. The seam knows nothing of the log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod fault;
mod real;
#[cfg(feature = "disk-faults")]
mod steered;

pub use fault::{Fault, FaultFs, Operation, OperationKind};
pub use real::RealFs;

/// A folder tree that files are created in, renamed in and removed from.
pub trait Fs: Send + Sync {
    /// Creates the folder and its parents; one that exists is no error.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Creates a new empty file, open for reading and writing; one that exists is an error.
    fn create(&self, file: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens a file for reading and writing.
    fn open(&self, file: &Path) -> io::Result<Arc<dyn File>>;
    /// Gives `from` the name `to`, replacing a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; handles that are open keep reading it.
    fn remove(&self, file: &Path) -> io::Result<()>;
    /// The files of a folder, in order of their names; a folder that does not exist is an error of kind `NotFound`.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Makes every creation, renaming and removal in the folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Reads and writes name their position, so one handle serves the writer and its readers at once.
pub trait File: Send + Sync {
    /// Reads up to `buffer.len()` bytes and returns how many; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all bytes, growing the file where needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the file's bytes and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// The file's length.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file holds no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves blocks for the first `len` bytes where the file system can, so that a full disk shows before a write.
    fn reserve(&self, len: u64) -> io::Result<()>;

    /// Reads exactly `buffer.len()` bytes; an early end of the file is an error of kind `UnexpectedEof`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self.read_at(buffer, offset)? {
            n if n == buffer.len() => Ok(()),
            n => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "the file ends after {n} of {} bytes at offset {offset}",
                    buffer.len()
                ),
            )),
        }
    }
}

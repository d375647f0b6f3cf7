//! Which files are the database: generations and CURRENT.
//!
//! ```text
//! member/CURRENT         names the live generation and its engine
//! member/db/<n>/         the engine's files; INCOMPLETE beside them while the generation is being made
//! member/db/<n>/CURRENT  what CURRENT will say, until it is renamed into its place
//! member/db/<n>.removed/ a generation that is being removed
//! ```
//! CURRENT is four lines of text, the last one the crc32 of the three above:
//! ```text
//! kvd-db 1
//! engine redb
//! generation 3
//! crc32 89abcdef
//! ```
//! It is replaced by temporary name, fsync, rename, fsync of the folder, so that it always names a finished generation.
//! What a full disk may refuse comes before the rename: an error until then changes nothing.
//! A generation becomes live by being named; the one before is removed when its last reader is gone, or at the next
//! start. Nothing that CURRENT names is ever deleted.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{info, warn};

use super::engine::{Engine, damage, io_error};
use super::guard::guarded;
use super::redb::RedbEngine;
use super::sled::SledEngine;
use super::{EngineKind, Options, db_dir, kill_point};
use crate::{Error, Result};

const CURRENT: &str = "CURRENT";
const INCOMPLETE: &str = "INCOMPLETE";
/// Behind the number of a generation that is being removed.
const REMOVED_SUFFIX: &str = ".removed";
const FORMAT: &str = "kvd-db 1";

/// The files of one generation. Removed when this is dropped after [`Generation::supersede`].
pub(crate) struct Generation {
    engine: EngineKind,
    number: u64,
    dir: PathBuf,
    superseded: AtomicBool,
}

impl Generation {
    /// Makes the folder of a generation that nothing names yet.
    pub(crate) fn create(member_dir: &Path, engine: EngineKind, number: u64) -> Result<Generation> {
        let db = db_dir(member_dir);
        let dir = db.join(number.to_string());
        create_dir_durably(&db, member_dir)?;
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(|error| io_error(&dir, &error))?;
        }
        create_dir_durably(&dir, &db)?;
        kill_point();
        let mark = dir.join(INCOMPLETE);
        File::create(&mark)
            .and_then(|file| file.sync_all())
            .map_err(|error| io_error(&mark, &error))?;
        sync_dir(&dir)?;
        kill_point();
        Ok(Generation {
            engine,
            number,
            dir,
            superseded: AtomicBool::new(false),
        })
    }

    /// Does all that may be done before CURRENT names this generation. Its files must be durable. After an error the
    /// generation may be removed.
    pub(crate) fn prepare_current(&self) -> Result<()> {
        let current = Current {
            engine: self.engine,
            number: self.number,
        };
        current.write(&self.dir.join(CURRENT))?;
        sync_dir(&self.dir)?;
        kill_point();
        Ok(())
    }

    /// Has CURRENT name this generation, which must be [prepared](Generation::prepare_current). After an error it is not
    /// known which one the next start finds.
    pub(crate) fn make_current(&self, member_dir: &Path) -> Result<()> {
        let path = member_dir.join(CURRENT);
        fs::rename(self.dir.join(CURRENT), &path).map_err(|error| io_error(&path, &error))?;
        sync_dir(member_dir)?;
        kill_point();
        remove_mark(&self.dir)?;
        kill_point();
        Ok(())
    }

    /// Has the files removed when the last reader is gone.
    pub(crate) fn supersede(&self) {
        self.superseded.store(true, Ordering::Release);
    }

    /// Removes the files now. For a generation that never became live.
    pub(crate) fn remove(self) {
        if let Err(error) = set_aside(&self.dir).and_then(fs::remove_dir_all) {
            warn!(dir = %self.dir.display(), %error, "an unfinished generation is left for the next start to remove");
        }
    }

    pub(crate) fn engine(&self) -> EngineKind {
        self.engine
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that the files occupy on disk; files that go away meanwhile count nothing.
    pub(crate) fn size_bytes(&self) -> u64 {
        allocated_bytes(&self.dir)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !*self.superseded.get_mut() {
            return;
        }
        // Freeing gigabytes takes the file system a while, and the last reader may be anyone's thread.
        let dir = match set_aside(&self.dir) {
            Ok(dir) => dir,
            Err(error) => {
                warn!(dir = %self.dir.display(), %error, "an old generation is left for the next start to remove");
                return;
            }
        };
        let removal = move || {
            if let Err(error) = fs::remove_dir_all(&dir) {
                warn!(dir = %dir.display(), %error, "an old generation is left for the next start to remove");
            }
        };
        if std::thread::Builder::new()
            .name("remove-generation".to_owned())
            .spawn(removal)
            .is_err()
        {
            warn!("no thread to remove an old generation: the next start will");
        }
    }
}

/// What the file CURRENT says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) engine: EngineKind,
    pub(crate) number: u64,
}

impl Current {
    /// Reads `member_dir`/CURRENT; `None` if there is no such file.
    pub(crate) fn read(member_dir: &Path) -> Result<Option<Current>> {
        let path = member_dir.join(CURRENT);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(damage(&path, "it is not text"));
            }
            Err(error) => return Err(io_error(&path, &error)),
        };
        Current::parse(&text)
            .map(Some)
            .map_err(|what| damage(&path, what))
    }

    fn parse(text: &str) -> Result<Current, String> {
        let lines: Vec<&str> = text.lines().collect();
        let [format, engine, generation, crc32] = lines[..] else {
            return Err(format!("{} lines instead of 4", lines.len()));
        };
        if format != FORMAT {
            return Err(format!(
                "format {format:?} is not known to this version, which reads {FORMAT:?}"
            ));
        }
        let content = format!("{format}\n{engine}\n{generation}\n");
        if crc32 != crc32_line(&content).trim_end() {
            return Err("the content does not match its checksum".to_owned());
        }
        let field = |line: &str, name: &str| {
            line.strip_prefix(name)
                .and_then(|rest| rest.strip_prefix(' '))
                .map(str::to_owned)
                .ok_or_else(|| format!("expected {name:?}, found {line:?}"))
        };
        Ok(Current {
            engine: field(engine, "engine")?.parse()?,
            number: field(generation, "generation")?
                .parse()
                .map_err(|error| format!("{generation:?}: {error}"))?,
        })
    }

    fn text(self) -> String {
        let content = format!(
            "{FORMAT}\nengine {}\ngeneration {}\n",
            self.engine, self.number
        );
        let crc32 = crc32_line(&content);
        content + &crc32
    }

    fn write(self, path: &Path) -> Result<()> {
        let write = || {
            let mut file = File::create(path)?;
            file.write_all(self.text().as_bytes())?;
            kill_point();
            file.sync_all()
        };
        write().map_err(|error| io_error(path, &error))?;
        kill_point();
        Ok(())
    }
}

fn crc32_line(content: &str) -> String {
    format!("crc32 {:08x}\n", crc32fast::hash(content.as_bytes()))
}

/// Opens the live generation of `member_dir`, or makes the first one.
pub(crate) fn open_current(
    member_dir: &Path,
    options: &Options,
) -> Result<(Generation, Arc<dyn Engine>)> {
    fs::create_dir_all(member_dir).map_err(|error| io_error(member_dir, &error))?;
    let current = Current::read(member_dir)?;
    remove_others(member_dir, current)?;
    let Some(current) = current else {
        return create_first(member_dir, options);
    };
    let db = db_dir(member_dir);
    if let Some(wanted) = options.engine
        && wanted != current.engine
    {
        return Err(Error::EngineMismatch {
            dir: db,
            found: current.engine.to_string(),
            wanted: wanted.to_string(),
        });
    }
    let generation = Generation {
        engine: current.engine,
        number: current.number,
        dir: db.join(current.number.to_string()),
        superseded: AtomicBool::new(false),
    };
    if !generation.dir.is_dir() {
        return Err(damage(
            &generation.dir,
            "CURRENT names this generation and its folder does not exist",
        ));
    }
    remove_mark(&generation.dir)?;
    let engine = open_engine(&generation, options.cache_bytes)?;
    Ok((generation, engine))
}

fn create_first(member_dir: &Path, options: &Options) -> Result<(Generation, Arc<dyn Engine>)> {
    let kind = options.engine.unwrap_or(EngineKind::Redb);
    let generation = Generation::create(member_dir, kind, 1)?;
    let engine = open_engine(&generation, options.cache_bytes)?;
    generation.prepare_current()?;
    generation.make_current(member_dir)?;
    info!(engine = %kind, dir = %generation.dir.display(), "made an empty database");
    Ok((generation, engine))
}

/// Opens the engine's files in the folder of `generation`, making them if it is empty.
pub(crate) fn open_engine(generation: &Generation, cache_bytes: u64) -> Result<Arc<dyn Engine>> {
    let dir = &generation.dir;
    guarded(dir, || match generation.engine {
        EngineKind::Redb => Ok(Arc::new(RedbEngine::open(dir, cache_bytes)?) as Arc<dyn Engine>),
        EngineKind::Sled => Ok(Arc::new(SledEngine::open(dir, cache_bytes)?) as Arc<dyn Engine>),
        EngineKind::Memory => Err(damage(
            dir,
            format!("no files of the {} engine", generation.engine),
        )),
    })
}

/// Removes generations that are not the live one. Without a CURRENT only unfinished ones may be there.
fn remove_others(member_dir: &Path, current: Option<Current>) -> Result<()> {
    let db = db_dir(member_dir);
    let entries = match fs::read_dir(&db) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(&db, &error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| io_error(&db, &error))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let is_aside = name.is_some_and(|name| {
            let number = name.strip_suffix(REMOVED_SUFFIX);
            number.is_some_and(|number| number.parse::<u64>().is_ok())
        });
        if is_aside {
            remove_dir(&path)?;
            continue;
        }
        let number: Option<u64> = name.and_then(|name| name.parse().ok());
        let Some(number) = number else {
            return Err(damage(
                &path,
                "not a generation, and nothing else belongs here",
            ));
        };
        if current.is_some_and(|current| current.number == number) {
            continue;
        }
        if current.is_none() && !path.join(INCOMPLETE).exists() && !is_empty_dir(&path) {
            return Err(damage(
                &member_dir.join(CURRENT),
                format!("it is missing, while generation {} exists", path.display()),
            ));
        }
        info!(dir = %path.display(), "removing a generation that is not the live one");
        remove_dir(&path)?;
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        // The last reader of a handle that was just dropped is removing it too.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error(path, &error)),
    }
}

/// Takes its name from the folder of a generation that goes away: a later one of that name is never removed for it.
fn set_aside(dir: &Path) -> std::io::Result<PathBuf> {
    let mut name = dir.as_os_str().to_owned();
    name.push(REMOVED_SUFFIX);
    let aside = PathBuf::from(name);
    fs::rename(dir, &aside)?;
    Ok(aside)
}

fn is_empty_dir(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn remove_mark(dir: &Path) -> Result<()> {
    let mark = dir.join(INCOMPLETE);
    match fs::remove_file(&mark) {
        Ok(()) => sync_dir(dir),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error(&mark, &error)),
    }
}

/// Makes `dir` unless it exists, and its name in `parent` durable.
pub(crate) fn create_dir_durably(dir: &Path, parent: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => sync_dir(parent),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io_error(dir, &error)),
    }
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| io_error(dir, &error))
}

fn allocated_bytes(dir: &Path) -> u64 {
    const BLOCK_BYTES: u64 = 512;
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() {
                allocated_bytes(&entry.path())
            } else {
                metadata.blocks() * BLOCK_BYTES
            })
        })
        .sum()
}

/// Whether `path` is a database file of etcd (bbolt), such as `member/snap/db` of its data folder.
pub fn is_etcd_database(path: &Path) -> std::io::Result<bool> {
    /// bbolt's magic, after the 16 bytes of the first page's header, in the machine's order.
    const BBOLT_MAGIC: u32 = 0xed0c_daed;
    let mut head = [0; 20];
    match File::open(path).and_then(|mut file| file.read_exact(&mut head)) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    let [.., a, b, c, d] = head;
    Ok(u32::from_ne_bytes([a, b, c, d]) == BBOLT_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let current = Current {
            engine: EngineKind::Sled,
            number: 42,
        };
        current.write(&dir.path().join(CURRENT)).unwrap();
        assert_eq!(Current::read(dir.path()).unwrap(), Some(current));
    }

    #[test]
    fn generation_that_was_being_removed_goes_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::default();
        drop(open_current(dir.path(), &options).unwrap());
        let unfinished = Generation::create(dir.path(), EngineKind::Redb, 2).unwrap();
        let aside = set_aside(unfinished.dir()).unwrap();
        assert!(aside.join(INCOMPLETE).exists());

        drop(open_current(dir.path(), &options).unwrap());

        let left = fs::read_dir(dir.path().join("db")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["1"]);
    }

    /// The stored form is a format: later versions must read it.
    #[test]
    fn stored_form_of_current_is_fixed() {
        let current = Current::parse("kvd-db 1\nengine redb\ngeneration 3\ncrc32 a608875e\n");
        assert_eq!(
            current,
            Ok(Current {
                engine: EngineKind::Redb,
                number: 3
            })
        );
    }

    #[test]
    fn damaged_current_is_refused() {
        let text = Current {
            engine: EngineKind::Redb,
            number: 3,
        }
        .text();
        for bit in 0..(text.len() - 1) * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(damaged) = String::from_utf8(bytes) else {
                continue;
            };
            assert!(Current::parse(&damaged).is_err(), "{damaged:?}");
        }
    }

    #[test]
    fn bbolt_file_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        assert!(!is_etcd_database(&path).unwrap());
        fs::write(&path, b"short").unwrap();
        assert!(!is_etcd_database(&path).unwrap());
        let mut page = vec![0; 4096];
        page[16..20].copy_from_slice(&0xed0c_daed_u32.to_ne_bytes());
        fs::write(&path, page).unwrap();
        assert!(is_etcd_database(&path).unwrap());
    }
}

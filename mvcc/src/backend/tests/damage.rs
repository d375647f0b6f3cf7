//! Files are damaged while the database is closed: an error, or an older consistent state; never wrong data.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::rounds;
use super::workload::{Model, Random, Values, batch};
use crate::backend::{Backend, EngineKind, Options};
use crate::{Error, Result};

const ENTRIES: u64 = 150;

#[derive(Clone, Copy, Debug)]
enum Harm {
    FlippedBits,
    CutTail,
    ZeroedPage,
}

#[derive(Debug, Default)]
struct Outcomes {
    refused_at_open: u64,
    found_by_reads: u64,
    older_state: u64,
    unharmed: u64,
}

#[test]
fn redb_never_serves_damage() {
    check(EngineKind::Redb, "data.redb");
}

#[test]
fn sled_never_serves_damage() {
    check(EngineKind::Sled, "db");
}

fn check(engine: EngineKind, file_name: &str) {
    let intact = tempfile::tempdir().unwrap();
    let backend = Backend::open(intact.path(), options(engine)).unwrap();
    for index in 1..=ENTRIES {
        backend.write(batch(index, Values::Small));
        if index % 10 == 0 {
            backend.checkpoint().unwrap();
        }
    }
    drop(backend);
    for harm in [Harm::FlippedBits, Harm::CutTail, Harm::ZeroedPage] {
        let mut outcomes = Outcomes::default();
        for seed in 0..rounds(10) * 2 {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(intact.path(), copy.path());
            inflict(
                harm,
                &copy.path().join("db/1").join(file_name),
                &mut Random(seed),
            );
            outcomes.judge(copy.path(), engine);
        }
        println!("{engine} {harm:?}: {outcomes:?}");
        assert!(
            outcomes.unharmed < rounds(10) * 2,
            "{engine} {harm:?}: nothing was ever damaged, so nothing was tested"
        );
    }
}

impl Outcomes {
    fn judge(&mut self, member_dir: &Path, engine: EngineKind) {
        let backend = match Backend::open(member_dir, options(engine)) {
            Ok(backend) => backend,
            Err(error) => {
                assert!(
                    matches!(error, Error::Damage { .. } | Error::Io { .. }),
                    "{error:?}"
                );
                self.refused_at_open += 1;
                return;
            }
        };
        let applied = backend.durable_index();
        assert!(applied <= ENTRIES, "index {applied} was invented");
        let mut model = Model::new(Values::Small);
        model.advance(applied);
        let compared: Result<()> = model.compare(&backend);
        let absent = model.compare_gets(&backend);
        match compared {
            Err(error) => {
                assert!(
                    matches!(error, Error::Damage { .. } | Error::Io { .. }),
                    "{error:?}"
                );
                self.found_by_reads += 1;
            }
            Ok(()) => {
                assert_eq!(absent, 0, "a scan found what a get does not");
                if applied < ENTRIES {
                    self.older_state += 1;
                } else {
                    self.unharmed += 1;
                }
            }
        }
    }
}

fn inflict(harm: Harm, path: &PathBuf, random: &mut Random) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let len = file.metadata().unwrap().len();
    match harm {
        Harm::FlippedBits => {
            for _ in 0..4 {
                // Where there is content: files are made larger than they need to be.
                let at = position_of_content(&file, len, random);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << random.below(8)], at)
                    .unwrap();
            }
        }
        Harm::CutTail => {
            // Zeros behind the content may go without harm, and so may its end: engines use old places again.
            let end = end_of_content(&file, len);
            let most = if random.below(2) == 0 { 64 << 10 } else { end };
            file.set_len(end - (1 + random.below(most)).min(end))
                .unwrap()
        }
        Harm::ZeroedPage => {
            let page = position_of_content(&file, len, random) / 4096 * 4096;
            let zeroes = vec![0; (len - page).min(4096) as usize];
            file.write_all_at(&zeroes, page).unwrap();
        }
    }
}

fn end_of_content(file: &File, len: u64) -> u64 {
    let mut content = vec![0; len as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    let zeros = content.iter().rev().take_while(|byte| **byte == 0).count();
    len - zeros as u64
}

fn position_of_content(file: &File, len: u64, random: &mut Random) -> u64 {
    loop {
        let at = random.below(len);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        if byte[0] != 0 {
            return at;
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            let mut content = Vec::new();
            File::open(entry.path())
                .unwrap()
                .read_to_end(&mut content)
                .unwrap();
            fs::write(&target, content).unwrap();
        }
    }
}

fn options(engine: EngineKind) -> Options {
    Options {
        engine: Some(engine),
        cache_bytes: 1 << 20,
        commit_interval: Duration::from_secs(3600),
        ..Options::default()
    }
}

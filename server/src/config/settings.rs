//! Values on their way from a source to a [`Config`], and the reading of a command line.
//!
//! The syntax is that of Go's flag package: one or two dashes, `-x=v` or `-x v`, booleans need `=` for a value, the last one
//! wins, the first argument that is no flag ends the reading.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::flags::{CONFIG_FILE, FLAGS, Flag, Status, VERSION, defaults, find};
use super::notice::Notice;
use super::removed::{REMOVED, Removed, Successor};
use super::{Config, Error, value};

/// Flags of the distant past: accepted as booleans, without effect.
const IGNORED: &[&str] = &[
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "snapshot",
    "v",
    "vv",
    "test.coverprofile",
    "test.outputdir",
];

/// What a command line asks for, before its values are read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Run,
    Help,
    Version,
}

/// Values given so far, as text, by the name of their flag.
pub(super) struct Settings {
    values: BTreeMap<&'static str, String>,
    /// Values given under the name of a removed flag; they count when the successor was not given itself.
    old: BTreeMap<&'static str, String>,
    pub(super) notices: Vec<Notice>,
}

impl Settings {
    pub(super) fn new() -> Settings {
        Settings {
            values: BTreeMap::new(),
            old: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    /// Whether the flag was given under its own name.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub(super) fn config_file(&self) -> Option<PathBuf> {
        self.values
            .get(CONFIG_FILE)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    }

    pub(super) fn give(&mut self, flag: &'static Flag, value: String) {
        self.values.insert(flag.name, value);
    }

    pub(super) fn give_old(&mut self, removed: &'static Removed, value: String) {
        self.old.insert(removed.name, value);
    }

    /// Reads a command line without the program's name.
    pub(super) fn read_args(
        &mut self,
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Request, Error> {
        let mut args = args.into_iter().map(|arg| {
            arg.into_string().map_err(|arg| Error::NotUtf8 {
                argument: arg.to_string_lossy().into_owned(),
            })
        });
        while let Some(arg) = args.next().transpose()? {
            let dashless = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'));
            let Some(body) = dashless.filter(|_| arg != "-") else {
                return Err(Error::Positional { argument: arg });
            };
            if body.is_empty() {
                // `--` ends the flags.
                return match args.next().transpose()? {
                    Some(argument) => Err(Error::Positional { argument }),
                    None => Ok(self.request()),
                };
            }
            let (name, inline) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            if matches!(name, "h" | "help") {
                return Ok(Request::Help);
            }
            if IGNORED.contains(&name) {
                self.notices.push(Notice::Ignored {
                    flag: name.to_owned(),
                });
                continue;
            }
            let value = |is_bool: bool| match inline {
                Some(value) => Ok(value),
                None if is_bool => Ok("true".to_owned()),
                None => args.next().transpose()?.ok_or_else(|| Error::MissingValue {
                    flag: name.to_owned(),
                }),
            };
            if let Some(flag) = find(name) {
                let value = value(flag.is_bool())?;
                // Every occurrence is checked, as Go does, although only the last one counts.
                flag.check(&value)
                    .map_err(|why| Error::invalid(name, &value, why))?;
                self.give(flag, value);
            } else if let Some(removed) = REMOVED.iter().find(|removed| removed.name == name) {
                let is_bool = match removed.successor {
                    Successor::Flag(successor) => find(successor).is_some_and(Flag::is_bool),
                    Successor::Gate(_) => true,
                    Successor::None(advice) => {
                        let advice = advice.to_owned();
                        return Err(Error::RemovedFlag {
                            flag: removed.name,
                            removed_in: removed.removed_in,
                            advice,
                        });
                    }
                };
                let value = value(is_bool)?;
                self.give_old(removed, value);
            } else {
                return Err(Error::UnknownFlag {
                    flag: name.to_owned(),
                    suggestion: nearest(name),
                });
            }
        }
        Ok(self.request())
    }

    fn request(&self) -> Request {
        match self
            .values
            .get(VERSION)
            .map(|value| value::parse_bool(value))
        {
            Some(Ok(true)) => Request::Version,
            _ => Request::Run,
        }
    }

    /// Reads all values into a [`Config`]. Its dependent defaults are not filled in yet.
    pub(super) fn finish(mut self) -> Result<(Config, Vec<Notice>), Error> {
        self.resolve_old_names();
        let mut config = defaults();
        for flag in FLAGS {
            let Some(text) = self.values.get(flag.name) else {
                continue;
            };
            flag.set(&mut config, text)
                .map_err(|why| Error::invalid(flag.name, text, why))?;
            config.given.insert(flag.name);
            match flag.status {
                Status::Used => {}
                // Installers write defaults out; a value that is the default asks for nothing.
                Status::Accepted(_) if text == flag.default => {}
                Status::Accepted(why) => self.notices.push(Notice::NoEffect {
                    flag: flag.name,
                    why,
                }),
                Status::Deprecated => self.notices.push(Notice::Deprecated { flag: flag.name }),
            }
        }
        Ok((config, self.notices))
    }

    /// Moves values that were given under old names to their successors.
    fn resolve_old_names(&mut self) {
        for removed in REMOVED {
            let Some(value) = self.old.remove(removed.name) else {
                continue;
            };
            match removed.successor {
                Successor::Flag(new) if self.values.contains_key(new) => {
                    self.notices.push(Notice::OldNameIgnored {
                        old: removed.name,
                        new,
                    });
                }
                Successor::Flag(new) => {
                    self.values.insert(new, value);
                    self.notices.push(Notice::Replaced {
                        old: removed.name,
                        new: new.to_owned(),
                    });
                }
                Successor::Gate(gate) => {
                    // A gate named in --feature-gates itself stands later in the list, and so wins.
                    let gates = self.values.entry("feature-gates").or_default();
                    *gates = format!("{gate}={value},{gates}");
                    let new = format!("feature-gates={gate}={value}");
                    self.notices.push(Notice::Replaced {
                        old: removed.name,
                        new,
                    });
                }
                Successor::None(_) => {}
            }
        }
    }
}

/// The known flag with the nearest name, if one is near enough to be meant.
fn nearest(name: &str) -> Option<&'static str> {
    let candidates = FLAGS
        .iter()
        .map(|flag| (edit_distance(name, flag.name), flag.name));
    candidates
        .min()
        .filter(|(distance, _)| *distance <= 1 + name.chars().count() / 4)
        .map(|(_, flag)| flag)
}

/// Insertions, deletions and replacements that turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

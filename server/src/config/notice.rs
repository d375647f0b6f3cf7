//! Facts about the settings that an operator should see in the log.

use std::fmt;

/// One fact, logged as a warning at start. Values of flags are never part of it: some are secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The flag is accepted and changes nothing.
    NoEffect {
        /// The flag.
        flag: &'static str,
        /// Why, and what takes its place.
        why: &'static str,
    },
    /// The flag will go away.
    Deprecated {
        /// The flag.
        flag: &'static str,
    },
    /// A flag of an older release was read as a newer one.
    Replaced {
        /// The old name.
        old: &'static str,
        /// What it was read as.
        new: String,
    },
    /// An old and a new name of one setting were given; the new one counts.
    OldNameIgnored {
        /// The old name.
        old: &'static str,
        /// The new name.
        new: &'static str,
    },
    /// A flag of the distant past, accepted without effect.
    Ignored {
        /// The flag.
        flag: String,
    },
    /// A variable of an older release that has no successor.
    RemovedVariable {
        /// The variable.
        variable: String,
        /// What takes its place.
        advice: String,
    },
    /// An `ETCD_*` variable that means nothing.
    UnknownVariable {
        /// The variable.
        variable: String,
    },
    /// A variable that clashes with a flag of another kind and was left unread.
    VariableUnset {
        /// The variable.
        variable: &'static str,
    },
    /// Settings come from the file alone.
    FileOnly {
        /// The file.
        path: String,
    },
    /// A key of the config file that means nothing.
    UnknownKey {
        /// The key, nested names joined by dots.
        key: String,
    },
    /// A value that works and is likely to hurt.
    Unwise {
        /// The flag.
        flag: &'static str,
        /// What will hurt.
        why: String,
    },
}

impl Notice {
    /// Logs the fact as a warning.
    pub fn log(&self) {
        tracing::warn!(detail = %self, "setting needs attention");
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::NoEffect { flag, why } => {
                write!(f, "--{flag} is accepted and has no effect: {why}")
            }
            Notice::Deprecated { flag } => {
                write!(f, "--{flag} is deprecated and has no effect; remove it")
            }
            Notice::Replaced { old, new } => {
                write!(f, "--{old} was removed from etcd; it was read as --{new}")
            }
            Notice::OldNameIgnored { old, new } => {
                write!(
                    f,
                    "--{old} is an older name of --{new}, which was given too; the older one is ignored"
                )
            }
            Notice::Ignored { flag } => {
                write!(f, "--{flag} is no longer supported and was ignored")
            }
            Notice::RemovedVariable { variable, advice } => {
                write!(
                    f,
                    "environment variable {variable} belongs to an older release and was ignored; {advice}"
                )
            }
            Notice::UnknownVariable { variable } => {
                write!(f, "unrecognized environment variable {variable}")
            }
            Notice::VariableUnset { variable } => {
                write!(f, "environment variable {variable} was ignored")
            }
            Notice::FileOnly { path } => {
                write!(
                    f,
                    "settings come from {path}; other flags and environment variables are ignored"
                )
            }
            Notice::UnknownKey { key } => {
                write!(f, "the config file's key {key} is unknown and was ignored")
            }
            Notice::Unwise { flag, why } => write!(f, "--{flag}: {why}"),
        }
    }
}

//! The `ETCD_*` variables: the same settings under other names.
//!
//! A variable beside its own flag is an error (etcd's rule: nobody should have to know which one wins). Variables that
//! mean nothing, or belong to an older release, are told and left alone, since they often come from shared unit files.

use std::ffi::OsString;
use std::path::PathBuf;

use super::Error;
use super::flags::FLAGS;
use super::notice::Notice;
use super::removed::{REMOVED, Successor};
use super::settings::Settings;

/// Variables with the prefix that other parts of an installation read.
const OF_OTHERS: &[&str] = &["ETCD_UNSUPPORTED_ARCH"];

/// The config file that `variables` name.
pub(super) fn config_file(variables: &[(OsString, OsString)]) -> Option<PathBuf> {
    let named = variables
        .iter()
        .find(|(name, value)| name == "ETCD_CONFIG_FILE" && !value.is_empty());
    named.map(|(_, value)| PathBuf::from(value))
}

/// Adds what `variables` set to `settings`, which hold the flags already. Empty variables are as good as absent.
pub(super) fn read(
    settings: &mut Settings,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(), Error> {
    let mut variables: Vec<(String, OsString)> = variables
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, value)| name.starts_with("ETCD_") && !value.is_empty())
        .collect();
    variables.sort();
    for (variable, value) in variables {
        let Ok(value) = value.into_string() else {
            return Err(Error::NotUtf8 { argument: variable });
        };
        if variable == "ETCD_VERSION" {
            // Images often set it to the release they carry; read as a flag it would print the version and exit.
            settings.notices.push(Notice::VariableUnset {
                variable: "ETCD_VERSION",
            });
        } else if let Some(flag) = FLAGS.iter().find(|flag| flag.variable() == variable) {
            if settings.is_given(flag.name) {
                return Err(Error::Shadowed { variable });
            }
            settings.give(flag, value);
        } else if let Some(removed) = REMOVED
            .iter()
            .find(|removed| removed.variable() == variable)
        {
            match removed.successor {
                Successor::None(advice) => {
                    let advice = advice.to_owned();
                    settings
                        .notices
                        .push(Notice::RemovedVariable { variable, advice });
                }
                _ => settings.give_old(removed, value),
            }
        } else if !OF_OTHERS.contains(&variable.as_str()) {
            settings.notices.push(Notice::UnknownVariable { variable });
        }
    }
    Ok(())
}

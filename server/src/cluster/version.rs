//! The version of the cluster as a whole, and how the leader decides it.
//!
//! It is the least of what the members' builds serve, so that nothing is ever proposed that a member cannot apply. It
//! goes up when all can, and down by one minor version while a downgrade is enabled, which lets the builds before in.
//! Source: etcd v3.7, etcdserver/version/monitor.go and downgrade.go.

use std::fmt;
use std::str::FromStr;

/// A major and minor version; what comes behind them never matters to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
}

/// Cluster versions from which on further command versions may be proposed, ascending.
const COMMANDS: &[(Version, u16)] = &[(Version::UNKNOWN, 1), (Version::new(3, 8), 2)];

impl Version {
    /// What holds until all members have told theirs.
    pub(crate) const UNKNOWN: Version = Version::new(3, 0);

    pub(crate) const fn new(major: u32, minor: u32) -> Version {
        Version { major, minor }
    }

    /// The newest command version that every member of such a cluster applies.
    pub(crate) fn commands(self) -> u16 {
        let known = COMMANDS.iter().rev().find(|(from, _)| *from <= self);
        known.map_or(kv_proto::command::VERSION_MIN, |(_, commands)| *commands)
    }

    /// Major and minor alone, as the answers of Downgrade have it.
    pub(crate) fn minor_form(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }

    /// The only version that a cluster of this one can go down to.
    pub(crate) fn before(self) -> Option<Version> {
        let minor = self.minor.checked_sub(1)?;
        Some(Version { minor, ..self })
    }

    /// As metrics label it.
    pub(crate) fn major_minor(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.0", self.major, self.minor)
    }
}

/// Why a text is no version.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form major.minor or major.minor.patch")]
pub(crate) struct NotAVersion(String);

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Version, NotAVersion> {
        let number = |part: &str| {
            let is_plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u32>().ok().filter(|_| is_plain)
        };
        let parts: Option<Vec<u32>> = text.split('.').map(number).collect();
        match parts.as_deref() {
            Some([major, minor] | [major, minor, _]) => Ok(Version::new(*major, *minor)),
            _ => Err(NotAVersion(text.to_owned())),
        }
    }
}

/// What the leader knows when it looks at the cluster's version.
pub(crate) struct View {
    /// The version in force; none before the first decision.
    pub(crate) current: Option<Version>,
    /// The least of what all members' builds serve; none while a member has not told.
    pub(crate) least: Option<Version>,
    /// Where a downgrade that is under way leads to.
    pub(crate) downgrade: Option<Version>,
}

impl View {
    /// The version to set, none to leave it as it is.
    pub(crate) fn decide(&self) -> Option<Version> {
        let Some(current) = self.current else {
            return Some(self.least.unwrap_or(Version::UNKNOWN));
        };
        let least = self.least?;
        if let Some(target) = self.downgrade {
            let can_go_down = |from: Version| from == target || from.before() == Some(target);
            return (current.before() == Some(target) && can_go_down(least)).then_some(target);
        }
        (current < least && current.major == least.major).then_some(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V3_6: Version = Version::new(3, 6);
    const V3_7: Version = Version::new(3, 7);
    const V3_8: Version = Version::new(3, 8);

    fn check(
        current: impl Into<Option<Version>>,
        least: impl Into<Option<Version>>,
        downgrade: impl Into<Option<Version>>,
        expect: impl Into<Option<Version>>,
    ) {
        let view = View {
            current: current.into(),
            least: least.into(),
            downgrade: downgrade.into(),
        };
        let (current, least, downgrade) = (view.current, view.least, view.downgrade);
        assert_eq!(
            view.decide(),
            expect.into(),
            "{current:?} {least:?} {downgrade:?}"
        );
    }

    #[test]
    fn the_version_is_the_least_of_all_members_and_never_goes_down_by_itself() {
        check(None, V3_7, None, V3_7);
        check(None, None, None, Version::UNKNOWN);
        check(Version::UNKNOWN, None, None, None);
        check(Version::UNKNOWN, V3_7, None, V3_7);
        check(V3_7, V3_8, None, V3_8);
        check(V3_7, V3_7, None, None);
        check(V3_8, V3_7, None, None);
        check(V3_8, Version::new(4, 0), None, None);
    }

    #[test]
    fn an_enabled_downgrade_takes_it_down_one_minor_and_holds_it_there() {
        check(V3_8, V3_8, V3_7, V3_7);
        check(V3_7, V3_8, V3_7, None);
        check(V3_7, V3_7, V3_7, None);
        check(V3_8, None, V3_7, None);
        // Nothing skips a version.
        check(V3_8, V3_8, V3_6, None);
    }

    #[test]
    fn versions_are_read_with_and_without_a_patch_level() {
        assert_eq!("3.7".parse(), Ok(V3_7));
        assert_eq!("3.7.12".parse(), Ok(V3_7));
        assert_eq!(V3_7.to_string(), "3.7.0");
        for text in [
            "",
            "3",
            "3.",
            "3.7.",
            "3.7.1.2",
            "v3.7",
            "3.x",
            "-3.7",
            "3.+7",
            "99999999999.1",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
        assert!(V3_7 < V3_8);
        assert!(Version::new(3, 10) > Version::new(3, 9));
    }

    #[test]
    fn a_cluster_of_unknown_version_takes_the_oldest_commands() {
        assert_eq!(Version::UNKNOWN.commands(), kv_proto::command::VERSION_MIN);
        assert_eq!(V3_7.commands(), 1);
        assert!(crate::build::cluster_version().commands() <= kv_proto::command::version_max());
    }
}

//! What `--help` and `--version` print.

use std::fmt::Write;

use super::ETCD_VERSION;
use super::flags::{FLAGS, Flag, Section, Status};

/// The version in etcd's four lines, which scripts parse, and one of our own.
pub fn version_text() -> String {
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: {}\nGo Version: none (kvd is written in Rust)\nGo OS/Arch: {}/{}\nkvd Version: {}\n",
        option_env!("KVD_GIT_SHA").unwrap_or("not provided"),
        std::env::consts::OS,
        go_arch(std::env::consts::ARCH),
        env!("CARGO_PKG_VERSION"),
    )
}

/// All flags by group, in the order of the table.
pub fn help_text() -> String {
    let mut text = String::from(
        "kvd: a member of a cluster that serves etcd's v3 API\n\n\
         Usage:\n  kvd [flags]\n  kvd --version\n  kvd --help\n  kvd --config-file=<path>   (replaces all other flags and variables)\n  kvd gateway start [flags]      (forwards connections to the members in turn; has its own --help)\n  kvd grpc-proxy start [flags]   (a gRPC server before a cluster; has its own --help)\n\n\
         Each flag can also be given as the environment variable ETCD_<FLAG IN CAPITALS>.\n",
    );
    let mut sections: Vec<Section> = FLAGS.iter().map(|flag| flag.section).collect();
    sections.sort_unstable();
    sections.dedup();
    for section in sections {
        text.push_str(&format!("\n{}:\n", title(section)));
        for flag in FLAGS.iter().filter(|flag| flag.section == section) {
            push_flag(&mut text, flag);
        }
    }
    text
}

fn push_flag(text: &mut String, flag: &Flag) {
    let default = if flag.default.is_empty() {
        "''"
    } else {
        flag.default
    };
    let note = match flag.status {
        Status::Used => "",
        Status::Accepted(_) => " [no effect]",
        Status::Deprecated => " [deprecated]",
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "  --{} {}  ({})\n      {}{note}",
        flag.name,
        default,
        flag.kind(),
        flag.help
    );
    if let Status::Accepted(why) = flag.status {
        let _ = writeln!(text, "      No effect: {why}.");
    }
}

fn title(section: Section) -> &'static str {
    match section {
        Section::Member => "Member",
        Section::Clustering => "Clustering",
        Section::Security => "Security",
        Section::Auth => "Auth",
        Section::Compaction => "Compaction",
        Section::Features => "Features",
        Section::Logging => "Logging",
        Section::Metrics => "Metrics",
        Section::Tracing => "Distributed tracing",
        Section::Unsafe => "Unsafe: may lose data",
        Section::Misc => "Misc",
    }
}

/// Go's name of a processor.
fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

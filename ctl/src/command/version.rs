//! `version`: of the program and of the API it speaks.

use std::path::PathBuf;

use clap::Args;

use crate::{exit::Result, session::write_out};

/// The release of etcd whose API and command line this program has.
const ETCD_VERSION: &str = "3.7.1";
const API_VERSION: &str = "3.7";

/// Arguments of `version`; it heeds none.
#[derive(Args, Debug)]
pub(crate) struct VersionArgs {
    #[arg(hide = true)]
    ignored: Vec<String>,
}

/// Runs `version`. Called by the name of `etcdctl`, it answers as that.
pub(crate) fn run(_: &VersionArgs) -> Result<()> {
    let called = std::env::args_os()
        .next()
        .map(PathBuf::from)
        .unwrap_or_default();
    write_out(text(called.file_stem().is_some_and(|name| name == "etcdctl")).as_bytes())
}

fn text(as_etcdctl: bool) -> String {
    let (name, version) = match as_etcdctl {
        true => ("etcdctl", ETCD_VERSION),
        false => ("kvctl", env!("CARGO_PKG_VERSION")),
    };
    format!("{name} version: {version}\nAPI version: {API_VERSION}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides_the_version() {
        assert_eq!(text(true), "etcdctl version: 3.7.1\nAPI version: 3.7\n");
        assert!(text(false).starts_with("kvctl version: "));
    }
}

//! Members speak TLS to each other, know each other by certificates, and let nobody else in.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::path::Path;

use anyhow::Result;
use kv_tests::authority::{Authority, loopback};
use kv_tests::cluster::{Cluster, until};

/// An authority in a folder of its own name.
fn authority(folder: &Path, name: &str) -> Authority {
    Authority::new(&folder.join(name), name)
}

/// Flags of a member that presents `file` and trusts this authority.
fn peer_flags(authority: &Authority, file: &str) -> Vec<String> {
    let path = |file, extension| authority.file(file, extension).display().to_string();
    let pairs = [
        ("--peer-cert-file", path(file, "crt")),
        ("--peer-key-file", path(file, "key")),
        ("--peer-trusted-ca-file", path("ca", "crt")),
    ];
    let mut flags: Vec<String> = pairs
        .into_iter()
        .flat_map(|(flag, path)| [flag.to_owned(), path])
        .collect();
    flags.push("--peer-client-cert-auth".into());
    flags
}

fn texts(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn members_with_certificates_of_one_authority_form_a_cluster() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = authority(folder.path(), "ours");
    authority.issue("peer", loopback("member"));
    let mut flags = peer_flags(&authority, "peer");
    flags.extend(["--peer-cert-allowed-cn".into(), "member".into()]);
    let mut cluster = Cluster::start_tls(3, &texts(&flags));
    let leader = cluster.leader().await?;
    cluster.put(0, "a", "1").await?;

    // New files hold for new connections, without a restart of the members that stay.
    authority.issue("peer", loopback("member"));
    cluster.kill(leader);
    cluster.start_member(leader);

    cluster.leader().await?;
    cluster.put(leader, "b", "2").await?;
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn members_make_certificates_for_themselves() -> Result<()> {
    let cluster = Cluster::start_tls(3, &["--peer-auto-tls"]);

    cluster.leader().await?;

    cluster.put(1, "a", "1").await?;
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn member_with_a_foreign_certificate_is_left_out() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ours = authority(folder.path(), "ours");
    ours.issue("peer", loopback("member"));
    ours.issue("other", loopback("somebody"));
    let mut flags = peer_flags(&ours, "peer");
    flags.extend(["--peer-cert-allowed-cn".into(), "member".into()]);
    let foreign = authority(folder.path(), "foreign");
    foreign.issue("peer", loopback("member"));
    let mut cluster = Cluster::start_tls(0, &[]);
    for _ in 0..2 {
        cluster.add_place(&texts(&flags));
    }
    // One is not signed by the authority, one does not have the name.
    cluster.add_place(&texts(&peer_flags(&foreign, "peer")));
    cluster.add_place(&texts(&peer_flags(&ours, "other")));
    for n in 0..4 {
        cluster.start_member(n);
    }

    // Two of four are no quorum, and the other two cannot help.
    until("a member without a leader to serve", || async {
        let status = cluster.status(0).await?;
        anyhow::ensure!(status.leader == 0, "member {:x} leads", status.leader);
        Ok(())
    })
    .await?;
    assert!(cluster.put(0, "a", "1").await.is_err());
    assert!(cluster.put(3, "a", "1").await.is_err());
    Ok(())
}

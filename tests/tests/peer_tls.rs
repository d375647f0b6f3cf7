//! Members speak TLS to each other, know each other by certificates, and let nobody else in.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::path::{Path, PathBuf};

use anyhow::Result;
use kv_tests::cluster::{Cluster, until};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// An authority and the folder its certificates are written to.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("ca.crt"), issuer.pem()).unwrap();
        Authority { issuer, folder }
    }

    /// Makes a certificate for loopback under `common_name`, as `<file>.crt` and `<file>.key`.
    fn issue(&self, file: &str, common_name: &str) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file(file, "crt"), certificate.pem()).unwrap();
        std::fs::write(self.file(file, "key"), key.serialize_pem()).unwrap();
    }

    fn file(&self, file: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{file}.{extension}"))
    }

    /// Flags of a member that presents `file` and trusts this authority.
    fn flags(&self, file: &str) -> Vec<String> {
        let path = |file, extension| self.file(file, extension).display().to_string();
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
}

fn texts(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn members_with_certificates_of_one_authority_form_a_cluster() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new(folder.path(), "ours");
    authority.issue("peer", "member");
    let mut flags = authority.flags("peer");
    flags.extend(["--peer-cert-allowed-cn".into(), "member".into()]);
    let mut cluster = Cluster::start_tls(3, &texts(&flags));
    let leader = cluster.leader().await?;
    cluster.put(0, "a", "1").await?;

    // New files hold for new connections, without a restart of the members that stay.
    authority.issue("peer", "member");
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
    let ours = Authority::new(folder.path(), "ours");
    ours.issue("peer", "member");
    ours.issue("other", "somebody");
    let mut flags = ours.flags("peer");
    flags.extend(["--peer-cert-allowed-cn".into(), "member".into()]);
    let foreign = Authority::new(folder.path(), "foreign");
    foreign.issue("peer", "member");
    let mut cluster = Cluster::start_tls(0, &[]);
    for _ in 0..2 {
        cluster.add_place(&texts(&flags));
    }
    // One is not signed by the authority, one does not have the name.
    cluster.add_place(&texts(&foreign.flags("peer")));
    cluster.add_place(&texts(&ours.flags("other")));
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

//! Certificates made at start, for `--auto-tls` and `--peer-auto-tls`.
//!
//! They are kept below the data folder, in etcd's places, and used again until they expire. Clients cannot know whom they
//! talk to, so this protects against those who listen and not against those who pretend.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Error;
use crate::config::Url;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Certificate and key for the hosts of `urls`, below `folder`; made if there is no valid one.
pub(super) fn ensure(folder: &Path, urls: &[Url], years: u64) -> Result<(PathBuf, PathBuf), Error> {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    if !(key.exists() && is_valid_now(&cert)) {
        let failed = |source| Error::SelfSigned {
            folder: folder.to_owned(),
            source,
        };
        make(urls, years)
            .map_err(io::Error::other)
            .and_then(|made| store(folder, &cert, &key, &made))
            .map_err(failed)?;
    }
    Ok((cert, key))
}

struct Made {
    cert: String,
    key: String,
}

fn make(urls: &[Url], years: u64) -> Result<Made, rcgen::Error> {
    let hosts = urls
        .iter()
        .filter(|url| url.scheme.is_tls())
        .map(|url| match url.host_port() {
            Some((host, _)) => host.to_owned(),
            None => "localhost".to_owned(),
        });
    let mut hosts: Vec<String> = hosts.collect();
    hosts.sort_unstable();
    hosts.dedup();
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "kvd");
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_epoch();
    params.not_before = now;
    params.not_after = now + YEAR * u32::try_from(years.clamp(1, 1_000)).expect("at most 1,000");
    let key = KeyPair::generate()?;
    Ok(Made {
        cert: params.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
    })
}

fn store(folder: &Path, cert: &Path, key: &Path, made: &Made) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let write = |path: &Path, text: &str, mode: u32| {
        // A file that is replaced keeps its old mode, so it goes first.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write(cert, &made.cert, 0o644)?;
    write(key, &made.key, 0o600)
}

fn is_valid_now(path: &Path) -> bool {
    let Ok(certificate) = CertificateDer::from_pem_file(path) else {
        return false;
    };
    X509Certificate::from_der(&certificate)
        .is_ok_and(|(_, certificate)| certificate.validity().is_valid())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a certificate's dates are those of the world, not of a simulation"
)]
fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn certificate_is_made_once_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("fixtures/client");
        let urls =
            ["https://127.0.0.1:2379", "https://localhost:2379"].map(|url| url.parse().unwrap());
        let (cert, key) = ensure(&folder, &urls, 2).unwrap();
        let first = fs::read(&cert).unwrap();
        assert_eq!(
            fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let der = CertificateDer::from_pem_slice(&first).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let validity = parsed.validity();
        assert_eq!(
            validity.not_after.timestamp() - validity.not_before.timestamp(),
            2 * 365 * 86_400
        );
        ensure(&folder, &urls, 2).unwrap();
        assert_eq!(fs::read(&cert).unwrap(), first);
        fs::remove_file(&key).unwrap();
        ensure(&folder, &urls, 2).unwrap();
        assert_ne!(
            fs::read(&cert).unwrap(),
            first,
            "a certificate without its key is replaced"
        );
    }
}

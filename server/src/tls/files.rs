//! What the certificate files hold, and what can be wrong with them.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::Error;
use crate::config::TlsFiles;

/// The bytes of all files of one side. Compared to see changes; never printed, since one is a key.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    certificate: File,
    key: File,
    authority: Option<File>,
    revoked: Option<File>,
}

#[derive(PartialEq, Eq)]
struct File {
    path: PathBuf,
    flag: String,
    bytes: Vec<u8>,
}

impl Contents {
    /// Reads the files that `files` names; certificate and key must be named.
    pub(super) fn read(files: &TlsFiles, flag_prefix: &'static str) -> Result<Contents, Error> {
        let read = |path: &Path, flag: &str| {
            let flag = format!("{flag_prefix}{flag}");
            match std::fs::read(path) {
                Ok(bytes) => Ok(File {
                    path: path.to_owned(),
                    flag,
                    bytes,
                }),
                Err(source) => Err(Error::Unreadable {
                    path: path.to_owned(),
                    flag,
                    source,
                }),
            }
        };
        let required = |path: &Option<PathBuf>, flag| match path {
            Some(path) => read(path, flag),
            None => Err(Error::NoCertificate(flag_prefix)),
        };
        // The client side's list has the prefix in its name already.
        let crl_flag = if flag_prefix.is_empty() {
            "client-crl-file"
        } else {
            "crl-file"
        };
        Ok(Contents {
            certificate: required(&files.cert_file, "cert-file")?,
            key: required(&files.key_file, "key-file")?,
            authority: files
                .trusted_ca_file
                .as_deref()
                .map(|path| read(path, "trusted-ca-file"))
                .transpose()?,
            revoked: files
                .crl_file
                .as_deref()
                .map(|path| read(path, crl_flag))
                .transpose()?,
        })
    }

    /// The chain that is presented, own certificate first.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        self.certificate.certificates()
    }

    pub(super) fn key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        let text = String::from_utf8_lossy(&self.key.bytes);
        if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
            let why = "the key is encrypted, and there is nobody to ask for its password; \
                       decrypt it with 'openssl pkey -in <file> -out <new file>'";
            return Err(self.key.malformed(why));
        }
        PrivateKeyDer::from_pem_slice(&self.key.bytes).map_err(|error| match error {
            rustls_pki_types::pem::Error::NoItemsFound => {
                self.key.malformed("no private key found; expected PEM with BEGIN PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY")
            }
            other => self.key.malformed(&format!("the key is not valid PEM: {other}; copy the file again")),
        })
    }

    /// Who signs the certificates of the other side.
    pub(super) fn authorities(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.authority {
            for certificate in file.certificates()? {
                roots.add(certificate).map_err(|error| {
                    file.malformed(&format!("a certificate cannot be an authority: {error}"))
                })?;
            }
        }
        Ok(roots)
    }

    /// Lists of revoked certificates, from PEM or a single DER list.
    pub(super) fn revoked(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
        let Some(file) = &self.revoked else {
            return Ok(Vec::new());
        };
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&file.bytes).collect();
        match lists {
            // Without a PEM section the file is the list itself; what is neither is refused by the verifier.
            Ok(lists) if lists.is_empty() => {
                Ok(vec![CertificateRevocationListDer::from(file.bytes.clone())])
            }
            Ok(lists) => Ok(lists),
            Err(error) => Err(file.malformed(&format!(
                "the list is not valid PEM: {error}; copy the file again"
            ))),
        }
    }

    /// Says which file the library's refusal is about.
    pub(super) fn explain(&self, error: rustls::Error) -> Error {
        match error {
            rustls::Error::InconsistentKeys(_) => Error::KeyMismatch {
                cert: self.certificate.path.clone(),
                key: self.key.path.clone(),
            },
            rustls::Error::InvalidCertificate(why) => self.certificate.malformed(&format!(
                "the certificate is not valid: {why}; make a new one"
            )),
            rustls::Error::General(why) => self.key.malformed(&format!(
                "the key cannot be used: {why}; use RSA, ECDSA or Ed25519"
            )),
            other => Error::Unusable(other),
        }
    }
}

impl File {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        match certificates {
            Ok(certificates) if certificates.is_empty() => {
                Err(self.malformed("no certificate found; expected PEM with BEGIN CERTIFICATE"))
            }
            Ok(certificates) => Ok(certificates),
            Err(error) => Err(self.malformed(&format!(
                "the certificate is not valid PEM: {error}; copy the file again"
            ))),
        }
    }

    fn malformed(&self, why: &str) -> Error {
        Error::Malformed {
            path: self.path.clone(),
            flag: self.flag.clone(),
            why: why.to_owned(),
        }
    }
}

//! A certificate authority of a test, with its files.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// An authority and the folder its certificates are written to, its own as `ca.crt`.
pub struct Authority {
    /// Signs whatever [`Authority::issue`] does not make.
    pub issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    /// An authority of this name, with its files in `folder`, which is made.
    pub fn new(folder: &Path, common_name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let key = KeyPair::generate().expect("a key can be made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a key signs its own");
        std::fs::create_dir_all(folder).expect("the folder can be made");
        let authority = Authority {
            issuer,
            folder: folder.to_owned(),
        };
        authority.write("ca", "crt", &authority.issuer.pem());
        authority
    }

    /// Makes a certificate, for a server and a client, as `<name>.crt` and `<name>.key`.
    pub fn issue(&self, name: &str, mut params: CertificateParams) {
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.expect("the authority can sign");
        self.write(name, "crt", &certificate.pem());
        self.write(name, "key", &key.serialize_pem());
    }

    /// Path of one of its files.
    pub fn file(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}.{extension}"))
    }

    /// What is in one of its files.
    pub fn read(&self, name: &str, extension: &str) -> Vec<u8> {
        let path = self.file(name, extension);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn write(&self, name: &str, extension: &str, text: &str) {
        let path = self.file(name, extension);
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// A certificate to be issued: for loopback under this name.
pub fn loopback(common_name: &str) -> CertificateParams {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).expect("the names are well formed");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

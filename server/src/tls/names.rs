//! Names in certificates: the common name, and which names the other side must have.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::TlsFiles;

/// The common name of a certificate's subject.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate
        .subject()
        .iter_common_name()
        .last()?
        .as_str()
        .ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Adds the lists of allowed names to `verifier`; without lists it stays as it is.
pub(super) fn restrict(
    verifier: Arc<dyn ClientCertVerifier>,
    files: &TlsFiles,
) -> Arc<dyn ClientCertVerifier> {
    if files.allowed_common_names.is_empty() && files.allowed_hostnames.is_empty() {
        return verifier;
    }
    Arc::new(NameVerifier {
        verifier,
        common_names: files.allowed_common_names.clone(),
        hostnames: files.allowed_hostnames.clone(),
    })
}

/// As [`restrict`], for servers that this member connects to.
pub(super) fn restrict_servers(
    verifier: Arc<dyn ServerCertVerifier>,
    files: &TlsFiles,
) -> Arc<dyn ServerCertVerifier> {
    if files.allowed_common_names.is_empty() && files.allowed_hostnames.is_empty() {
        return verifier;
    }
    Arc::new(NameVerifier {
        verifier,
        common_names: files.allowed_common_names.clone(),
        hostnames: files.allowed_hostnames.clone(),
    })
}

/// Refuses certificates of trusted authorities that carry none of the allowed names.
struct NameVerifier<V: ?Sized> {
    verifier: Arc<V>,
    common_names: Vec<String>,
    hostnames: Vec<String>,
}

impl<V: ?Sized> NameVerifier<V> {
    fn allows(&self, certificate: &CertificateDer<'_>) -> bool {
        if !self.common_names.is_empty() {
            let name = common_name(certificate);
            if !name.is_some_and(|name| self.common_names.contains(&name)) {
                return false;
            }
        }
        self.hostnames.is_empty()
            || self
                .hostnames
                .iter()
                .any(|hostname| is_valid_for(certificate, hostname))
    }
}

/// Whether the certificate is valid for the host, by its alternative names alone (RFC 6125).
fn is_valid_for(certificate: &CertificateDer<'_>, hostname: &str) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return false;
    };
    let address = hostname
        .parse::<IpAddr>()
        .ok()
        .map(|address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        });
    names
        .value
        .general_names
        .iter()
        .any(|name| match (name, &address) {
            (GeneralName::IPAddress(bytes), Some(address)) => bytes == address,
            (GeneralName::DNSName(pattern), None) => matches_pattern(pattern, hostname),
            _ => false,
        })
}

/// Whether a DNS name of a certificate covers the host; `*` stands for exactly one whole label, the first.
fn matches_pattern(pattern: &str, hostname: &str) -> bool {
    let hostname = hostname.strip_suffix('.').unwrap_or(hostname);
    match pattern.strip_prefix("*.") {
        Some(parent) => hostname
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
        None => pattern.eq_ignore_ascii_case(hostname),
    }
}

impl<V: ?Sized> fmt::Debug for NameVerifier<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameVerifier")
            .field("common_names", &self.common_names)
            .field("hostnames", &self.hostnames)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for NameVerifier<dyn ClientCertVerifier> {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .verifier
            .verify_client_cert(end_entity, intermediates, now)?;
        if self.allows(end_entity) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

impl ServerCertVerifier for NameVerifier<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        if self.allows(end_entity) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Accepts every server that holds the key of the certificate it presents.
#[derive(Debug)]
pub(super) struct AnyServer(WebPkiSupportedAlgorithms);

impl AnyServer {
    pub(super) fn new(provider: &CryptoProvider) -> AnyServer {
        AnyServer(provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_covers_one_label() {
        let check = |pattern: &str, hostname: &str, expect: bool| {
            assert_eq!(
                matches_pattern(pattern, hostname),
                expect,
                "{pattern} {hostname}"
            );
        };
        check("a.example.com", "A.example.COM", true);
        check("a.example.com", "a.example.com.", true);
        check("*.example.com", "a.example.com", true);
        check("*.example.com", "a.b.example.com", false);
        check("*.example.com", "example.com", false);
        check("*.example.com", ".example.com", false);
        check("a.example.com", "b.example.com", false);
    }
}

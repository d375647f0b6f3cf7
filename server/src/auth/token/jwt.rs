//! JSON Web Tokens: signed by a member, or by somebody else, and taken by every member that has the public key.
//!
//! Claims are `username`, `revision` and `exp`. The revision is the one of the time of signing, so every change of auth
//! ends all tokens for what concerns keys. With a public key alone this member takes tokens and makes none.
//!
//! The key files are looked at again while the member runs: new keys count from then on, files that cannot be used are
//! reported and the keys in force stay. Source: etcd 3.7, auth/jwt.go and auth/options.go.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use arc_swap::ArcSwap;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::OptionsError;
use crate::clock;
use crate::config::parse_duration;
use crate::{Error, Result};

/// etcd's, when no ttl is given.
const TTL_DEFAULT: Duration = Duration::from_secs(300);

/// Methods by their names in `sign-method`.
const METHODS: [(&str, Algorithm); 12] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
];

/// The names of all methods, for messages.
pub(super) fn methods() -> String {
    METHODS.map(|(name, _)| name).join(", ")
}

/// What follows `jwt` in `--auth-token`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JwtOptions {
    method: Algorithm,
    public_key: Option<PathBuf>,
    private_key: Option<PathBuf>,
    ttl: Duration,
}

impl JwtOptions {
    /// Unknown names are passed over, as etcd does.
    pub(super) fn parse(options: &[(&str, &str)]) -> Result<JwtOptions, OptionsError> {
        let value = |name| {
            let found = options.iter().find(|(have, _)| *have == name);
            found.map(|(_, value)| *value).filter(|v| !v.is_empty())
        };
        let name = value("sign-method").unwrap_or_default();
        let method = METHODS.iter().find(|(known, _)| *known == name);
        let (_, method) = *method.ok_or_else(|| OptionsError::Method(name.to_owned()))?;
        let ttl = match value("ttl") {
            None => TTL_DEFAULT,
            Some(text) => parse_duration(text).map_err(|_| OptionsError::Ttl(text.to_owned()))?,
        };
        let public_key = value("pub-key").map(PathBuf::from);
        let private_key = value("priv-key").map(PathBuf::from);
        if is_hmac(method) && private_key.is_none() {
            return Err(OptionsError::MissingKey(
                "HS methods need priv-key, the file of the shared secret",
            ));
        }
        if public_key.is_none() && private_key.is_none() {
            return Err(OptionsError::MissingKey(
                "give priv-key to sign tokens, or pub-key to only take them",
            ));
        }
        Ok(JwtOptions {
            method,
            public_key,
            private_key,
            ttl,
        })
    }

    fn read(&self) -> anyhow::Result<Contents> {
        let read = |path: &Option<PathBuf>, option| {
            let read = |path: &PathBuf| {
                std::fs::read(path).with_context(|| {
                    format!("--auth-token: {option}={} cannot be read", path.display())
                })
            };
            path.as_ref().map(read).transpose()
        };
        Ok(Contents {
            public_key: read(&self.public_key, "pub-key")?,
            private_key: read(&self.private_key, "priv-key")?,
        })
    }
}

/// What the key files hold. Never printed.
#[derive(PartialEq, Eq)]
struct Contents {
    public_key: Option<Vec<u8>>,
    private_key: Option<Vec<u8>>,
}

/// Keys in force.
struct Keys {
    /// `None`: tokens are only taken.
    signing: Option<EncodingKey>,
    verifying: DecodingKey,
}

/// Makes and reads JSON Web Tokens.
pub(crate) struct JwtTokens {
    options: JwtOptions,
    keys: ArcSwap<Keys>,
    /// What the files held when they were last looked at, usable or not.
    seen: Mutex<Contents>,
}

#[derive(Serialize)]
struct NewClaims<'a> {
    exp: u64,
    revision: u64,
    username: &'a str,
}

/// Numbers may have fractions: JSON knows no other.
#[derive(Deserialize)]
struct Claims {
    username: String,
    revision: f64,
    exp: Option<f64>,
    nbf: Option<f64>,
}

impl JwtTokens {
    /// Reads the key files. Errors name the file and what is wrong with it.
    pub(super) fn open(options: JwtOptions) -> anyhow::Result<JwtTokens> {
        let contents = options.read()?;
        let keys = Keys::make(&options, &contents)?;
        Ok(JwtTokens {
            options,
            keys: ArcSwap::from_pointee(keys),
            seen: Mutex::new(contents),
        })
    }

    /// A token that says who and as of which auth revision. Slow: for a blocking thread.
    pub(crate) fn sign(&self, user: &str, revision: u64) -> Result<String> {
        let keys = self.keys.load();
        let signing = keys.signing.as_ref().ok_or(Error::TokenVerifyOnly)?;
        let claims = NewClaims {
            exp: clock::wall_ms() / 1000 + self.options.ttl.as_secs(),
            revision,
            username: user,
        };
        let header = Header::new(self.options.method);
        jsonwebtoken::encode(&header, &claims, signing)
            .map_err(|error| Error::Storage(format!("auth: cannot sign a token: {error}")))
    }

    /// User and revision of a token that is signed by the right key, has begun and has not ended.
    pub(crate) fn verify(&self, token: &str) -> Option<(String, u64)> {
        let mut validation = Validation::new(self.options.method);
        // Times are compared here, without the leeway and with this process's clock.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let keys = self.keys.load();
        let verified = jsonwebtoken::decode::<Claims>(token, &keys.verifying, &validation);
        let claims = verified.ok()?.claims;
        let now = clock::wall_ms() as f64 / 1000.0;
        if claims.exp.is_some_and(|exp| now >= exp) || claims.nbf.is_some_and(|nbf| now < nbf) {
            return None;
        }
        // The conversion saturates, so a negative revision is 0, which is none.
        Some((claims.username, claims.revision as u64))
    }

    /// Takes over what the key files hold now, if it changed and is usable. Blocks on the disk.
    pub(crate) fn recheck(&self) {
        let contents = match self.options.read() {
            Ok(contents) => contents,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "token keys stay as they were");
                return;
            }
        };
        let mut seen = self.seen.lock();
        if *seen == contents {
            return;
        }
        match Keys::make(&self.options, &contents) {
            Ok(keys) => {
                self.keys.store(keys.into());
                tracing::info!("new token keys are in force");
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "token keys stay as they were");
            }
        }
        *seen = contents;
    }
}

impl Keys {
    fn make(options: &JwtOptions, contents: &Contents) -> anyhow::Result<Keys> {
        let method = options.method;
        if is_hmac(method) {
            let secret = contents.private_key.as_deref().unwrap_or_default();
            ensure!(
                !secret.is_empty(),
                "--auth-token: the priv-key file is empty"
            );
            return Ok(Keys {
                signing: Some(EncodingKey::from_secret(secret)),
                verifying: DecodingKey::from_secret(secret),
            });
        }
        let pair = match (&contents.private_key, &options.private_key) {
            (Some(pem), Some(path)) => Some(read_pair(method, pem).with_context(|| {
                format!(
                    "--auth-token: priv-key={} is no key of the sign-method",
                    path.display()
                )
            })?),
            _ => None,
        };
        let public = match (&contents.public_key, &options.public_key) {
            (Some(pem), Some(path)) => Some(read_public(method, pem, path)?),
            _ => None,
        };
        let keys = match (pair, public) {
            (None, None) => bail!("--auth-token: neither priv-key nor pub-key is given"),
            (None, Some(verifying)) => Keys {
                signing: None,
                verifying,
            },
            (Some((signing, verifying)), public) => Keys {
                signing: Some(signing),
                verifying: public.unwrap_or(verifying),
            },
        };
        keys.check_pair(method)?;
        Ok(keys)
    }

    /// What one key signs the other takes.
    fn check_pair(&self, method: Algorithm) -> anyhow::Result<()> {
        let Some(signing) = &self.signing else {
            return Ok(());
        };
        let message = b"a pair of keys";
        let signature = jsonwebtoken::crypto::sign(message, signing, method)
            .context("--auth-token: priv-key cannot sign with this sign-method")?;
        let is_pair = jsonwebtoken::crypto::verify(&signature, message, &self.verifying, method)?;
        ensure!(
            is_pair,
            "--auth-token: pub-key and priv-key do not belong together"
        );
        Ok(())
    }
}

fn is_hmac(method: Algorithm) -> bool {
    matches!(
        method,
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
    )
}

fn read_public(method: Algorithm, pem: &[u8], path: &Path) -> anyhow::Result<DecodingKey> {
    let key = match method {
        Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem(pem),
        Algorithm::EdDSA => DecodingKey::from_ed_pem(pem),
        _ => DecodingKey::from_rsa_pem(pem),
    };
    key.with_context(|| {
        format!(
            "--auth-token: pub-key={} is no key of the sign-method",
            path.display()
        )
    })
}

/// A private key, in any of the forms openssl writes, and its public one.
fn read_pair(method: Algorithm, pem: &[u8]) -> anyhow::Result<(EncodingKey, DecodingKey)> {
    let der = PrivateKeyDer::from_pem_slice(pem).context("not a private key in PEM form")?;
    Ok(match method {
        Algorithm::ES256 => ec_pair(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &der)?,
        Algorithm::ES384 => ec_pair(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, &der)?,
        Algorithm::EdDSA => {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der())?;
            (
                EncodingKey::from_ed_der(der.secret_der()),
                DecodingKey::from_ed_der(pair.public_key().as_ref()),
            )
        }
        _ => {
            let pair = match &der {
                PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der())?,
                other => RsaKeyPair::from_pkcs8(other.secret_der())?,
            };
            (
                EncodingKey::from_rsa_pem(pem)?,
                DecodingKey::from_rsa_der(pair.public_key().as_ref()),
            )
        }
    })
}

fn ec_pair(
    algorithm: &'static EcdsaSigningAlgorithm,
    der: &PrivateKeyDer<'_>,
) -> anyhow::Result<(EncodingKey, DecodingKey)> {
    let pair = match der {
        PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der())?,
        other => EcdsaKeyPair::from_private_key_der(algorithm, other.secret_der())?,
    };
    let pkcs8 = pair.to_pkcs8v1()?;
    Ok((
        EncodingKey::from_ec_der(pkcs8.as_ref()),
        DecodingKey::from_ec_der(pair.public_key().as_ref()),
    ))
}

#[cfg(test)]
mod tests;

//! Tokens: what a client shows instead of its password.
//!
//! `--auth-token=simple` or `--auth-token=jwt,sign-method=...,pub-key=...,priv-key=...,ttl=...`. Nothing here is ever
//! logged, since a token is as good as the password while it lives.

pub(crate) mod jwt;
pub(crate) mod simple;

use std::time::Duration;

use self::jwt::JwtOptions;
use crate::config::Config;

/// The kind that `--auth-token` chooses.
#[derive(Debug, PartialEq)]
pub(crate) enum TokenKind {
    Simple,
    Jwt(JwtOptions),
}

/// Why `--auth-token` cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OptionsError {
    /// Neither of the kinds there are.
    #[error("{0:?} is no kind of token; give simple or jwt")]
    Kind(String),
    /// A part that is not `name=value`, or comes twice.
    #[error("{0:?} is not name=value, or comes twice")]
    Option(String),
    /// The method is required.
    #[error("sign-method is missing or unknown: {0:?}; give one of {known}", known = jwt::methods())]
    Method(String),
    /// Not a Go duration.
    #[error("ttl={0:?} is no time; give one such as 5m")]
    Ttl(String),
    /// Which file is needed depends on the method.
    #[error("{0}")]
    MissingKey(&'static str),
}

impl TokenKind {
    /// Reads the value of `--auth-token`; names of files are not looked at.
    pub(crate) fn parse(text: &str) -> Result<TokenKind, OptionsError> {
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut options: Vec<(&str, &str)> = Vec::new();
        for part in parts {
            match part.split_once('=') {
                Some((name, value))
                    if !value.contains('=') && options.iter().all(|(have, _)| *have != name) =>
                {
                    options.push((name, value));
                }
                _ => return Err(OptionsError::Option(part.to_owned())),
            }
        }
        match kind {
            "simple" => Ok(TokenKind::Simple),
            "jwt" => JwtOptions::parse(&options).map(TokenKind::Jwt),
            other => Err(OptionsError::Kind(other.to_owned())),
        }
    }
}

/// What makes and reads the tokens of this member.
pub(crate) enum Tokens {
    Simple(simple::SimpleTokens),
    Jwt(jwt::JwtTokens),
}

impl Tokens {
    /// The tokens that the configuration asks for. Errors name the flag or the key file.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Tokens> {
        let kind = TokenKind::parse(&config.auth_token);
        Ok(
            match kind.map_err(|e| anyhow::anyhow!("--auth-token: {e}"))? {
                TokenKind::Simple => {
                    let ttl = match config.auth_token_ttl {
                        Duration::ZERO => Duration::from_secs(300),
                        ttl => ttl,
                    };
                    Tokens::Simple(simple::SimpleTokens::new(ttl))
                }
                TokenKind::Jwt(options) => Tokens::Jwt(jwt::JwtTokens::open(options)?),
            },
        )
    }
}

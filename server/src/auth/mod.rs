//! Who may do what: users, roles and permissions, passwords and tokens.
//!
//! ```text
//! credentials of a call ── token or certificate ──> Caller {user, auth revision} ── in the command ──> check at apply
//!                                                                                └─ reads: check here, and the revision again after
//! ```
//! The state ([`store`]) is changed by the apply loop alone and looked at by everybody. A command carries its caller, and
//! apply decides with the state of that moment, so a change of auth and a write that follow each other in the log are
//! never judged by two members differently. While auth is disabled nobody is asked who they are.
//! Source: etcd 3.7, server/auth and etcdserver/apply/auth.go.

mod password;
mod permission;
mod range_permission;
mod role;
mod store;
mod token;
mod user;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use kv_mvcc::backend::{Backend, Op};
use kv_mvcc::lease::Lessor;
use kv_proto::command::{AuthChange, Body, Caller};
use kv_raft::{Node, ReadError};

use self::password::Passwords;
pub(crate) use self::range_permission::Access;
pub(crate) use self::store::State;
pub(crate) use self::token::TokenKind;
use self::token::{Tokens, simple::letters};
use crate::config::Config;
use crate::{Error, Result};

/// Header of a token. Source: etcd API v3.7.
static TOKEN: HeaderName = HeaderName::from_static("token");
/// Header that the JSON gateway adds to its calls.
static GATEWAY: HeaderName = HeaderName::from_static("grpcgateway-accept");
/// Time between two looks at the key files of tokens.
const RECHECK: Duration = Duration::from_secs(2);

/// Auth of this member: the agreed state, and what this member keeps for it.
pub(crate) struct Auth {
    state: ArcSwap<State>,
    tokens: Tokens,
    pub(crate) passwords: Passwords,
    /// Longest wait for the log index that a token names.
    patience: Duration,
    /// Origin of the times of tokens.
    started: Instant,
}

/// The common name in the verified certificate of a connection; an extension of its requests.
#[derive(Clone, Debug)]
pub(crate) struct CommonName(pub(crate) Arc<str>);

/// What a call says of its caller, not checked yet.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    token: Option<HeaderValue>,
    common_name: Option<Arc<str>>,
}

impl Credentials {
    /// What headers and connection of a call say. A certificate does not count for a call of the gateway, whose
    /// connection is not the caller's.
    pub(crate) fn of(headers: &HeaderMap, extensions: &Extensions) -> Credentials {
        let token = headers.get(&TOKEN).or_else(|| headers.get(AUTHORIZATION));
        let common_name = extensions
            .get::<CommonName>()
            .filter(|_| !headers.contains_key(&GATEWAY));
        Credentials {
            token: token.cloned(),
            common_name: common_name.map(|name| name.0.clone()),
        }
    }

    fn token(&self) -> Option<&[u8]> {
        let token = self.token.as_ref()?.as_bytes();
        Some(token.strip_prefix(b"Bearer ").unwrap_or(token))
    }
}

impl Auth {
    /// Auth as the configuration asks for it, with the state of a new cluster. Errors name the flag or the file.
    pub(crate) fn new(config: &Config, started: Instant) -> anyhow::Result<Auth> {
        let cost = u32::try_from(config.bcrypt_cost)?;
        let patience = config.request_timeout();
        Ok(Auth {
            state: ArcSwap::from_pointee(State::default()),
            tokens: Tokens::new(config)?,
            passwords: Passwords::new(cost, patience),
            patience,
            started,
        })
    }

    /// The state as of now; it does not change while it is held.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Whether `caller` may have `body` applied now.
    pub(crate) fn check(&self, caller: &Caller, lessor: &Lessor, body: &Body) -> Result<()> {
        self.state.load().check(caller, lessor, body)
    }

    /// Whether `caller` may do this now with all keys that `key` and `range_end` address.
    pub(crate) fn check_range(
        &self,
        caller: &Caller,
        access: Access,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<()> {
        self.state
            .load()
            .check_range(caller, access, key, range_end)
    }

    /// Whether callers are asked who they are.
    pub(crate) fn is_enabled(&self) -> bool {
        self.state.load().is_enabled()
    }

    /// Counts changes of users and roles.
    pub(crate) fn revision(&self) -> u64 {
        self.state.load().revision()
    }

    /// Whether what was read for `caller` may be answered: users and roles are as they were when it was permitted.
    pub(crate) fn check_unchanged(&self, caller: &Caller) -> Result<()> {
        match caller {
            Caller::User { revision, .. } if *revision != self.revision() => {
                Err(Error::AuthOldRevision)
            }
            _ => Ok(()),
        }
    }

    /// Takes over the state in `backend`. Tokens end: what became of their users meanwhile is not known.
    pub(crate) fn restore(&self, backend: &Backend) -> anyhow::Result<()> {
        self.state.store(State::load(backend)?.into());
        self.end_tokens(None);
        Ok(())
    }

    /// Carries out a command of auth that is permitted; returns what to store. For the apply loop alone.
    pub(crate) fn apply(&self, change: &AuthChange) -> Result<Vec<Op>> {
        let (next, ops) = self.state.load().changed(change)?;
        if ops.is_empty() {
            return Ok(ops);
        }
        self.state.store(Arc::new(next));
        match change {
            AuthChange::Disable(_) => self.end_tokens(None),
            AuthChange::UserDelete(request) => self.end_tokens(Some(&request.name)),
            AuthChange::UserChangePassword(request) => self.end_tokens(Some(&request.name)),
            _ => {}
        }
        Ok(ops)
    }

    /// Gives `user`, whose password was compared, a token made of `letters` and `index`; `None` where tokens are signed
    /// instead. For the apply loop alone.
    pub(crate) fn apply_authenticate(
        &self,
        user: &str,
        letters: &str,
        index: u64,
    ) -> Result<Option<Token>> {
        let state = self.state.load();
        if !state.is_enabled() {
            return Err(Error::AuthNotEnabled);
        }
        // Both can have changed since the password was compared.
        let found = state.user(user).ok_or(Error::AuthFailed)?;
        found.password_hash().map_err(|_| Error::AuthFailed)?;
        Ok(match &self.tokens {
            Tokens::Simple(tokens) => Some(Token(tokens.assign(letters, index, user, self.now()))),
            Tokens::Jwt(_) => None,
        })
    }

    /// Signs a token for `user` as of auth revision `revision`.
    pub(crate) async fn sign_token(self: &Arc<Self>, user: &str, revision: u64) -> Result<Token> {
        let (auth, user) = (self.clone(), user.to_owned());
        let sign = move || match &auth.tokens {
            Tokens::Jwt(tokens) => tokens.sign(&user, revision),
            Tokens::Simple(_) => Err(Error::Storage("tokens are not signed here".into())),
        };
        self.passwords.run(sign).await?.map(Token)
    }

    /// Letters of the next simple token; none where tokens are signed.
    pub(crate) fn token_letters(&self) -> String {
        match &self.tokens {
            Tokens::Simple(_) => letters(),
            Tokens::Jwt(_) => String::new(),
        }
    }

    /// Who calls. Nobody while auth is disabled, and nobody without a token or certificate.
    ///
    /// A simple token that this member may not have applied yet is waited for.
    pub(crate) async fn caller(&self, node: &Node, credentials: &Credentials) -> Result<Caller> {
        if !self.is_enabled() {
            return Ok(Caller::Nobody);
        }
        if let Some(token) = credentials.token() {
            return self.bearer(node, token).await;
        }
        let revision = self.revision();
        Ok(match &credentials.common_name {
            Some(name) => Caller::User {
                name: name.to_string(),
                revision,
            },
            None => Caller::Nobody,
        })
    }

    async fn bearer(&self, node: &Node, token: &[u8]) -> Result<Caller> {
        let token = std::str::from_utf8(token).map_err(|_| Error::InvalidAuthToken)?;
        let (name, revision) = match &self.tokens {
            Tokens::Jwt(tokens) => tokens.verify(token).ok_or(Error::InvalidAuthToken)?,
            Tokens::Simple(tokens) => {
                // Taken first: a change that comes between makes the caller's identity older, not newer.
                let mut revision = self.revision();
                let mut user = tokens.user(token, self.now());
                if user.is_none() {
                    self.wait_for(node, token).await?;
                    revision = self.revision();
                    user = tokens.user(token, self.now());
                }
                let user = user.ok_or(Error::InvalidAuthToken)?;
                (user.to_string(), revision)
            }
        };
        Ok(Caller::User { name, revision })
    }

    /// Waits until this member has applied the entry that the token may be of: whoever has the token was answered before, so
    /// one look at the leader, shared with all reads, is enough whatever index a made-up token names.
    async fn wait_for(&self, node: &Node, token: &str) -> Result<()> {
        let index = token::simple::index_of(token).ok_or(Error::InvalidAuthToken)?;
        if index <= node.applied_index() {
            return Ok(());
        }
        match tokio::time::timeout(self.patience, node.linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ReadError::Stopped)) => Err(Error::Stopped),
            Ok(Err(ReadError::NoLeader)) | Err(_) => Err(Error::InvalidAuthToken),
        }
    }

    /// Looks at the key files of tokens now and then; runs as long as the process.
    pub(crate) async fn watch_keys(self: Arc<Self>) {
        if !matches!(self.tokens, Tokens::Jwt(_)) {
            return;
        }
        let mut ticks = tokio::time::interval(RECHECK);
        loop {
            ticks.tick().await;
            let auth = self.clone();
            let recheck = move || {
                if let Tokens::Jwt(tokens) = &auth.tokens {
                    tokens.recheck();
                }
            };
            // A panic there would be our bug; the keys in force stay.
            let _ = tokio::task::spawn_blocking(recheck).await;
        }
    }

    fn end_tokens(&self, user: Option<&str>) {
        match (&self.tokens, user) {
            (Tokens::Simple(tokens), Some(user)) => tokens.end_of(user),
            (Tokens::Simple(tokens), None) => tokens.end_all(),
            (Tokens::Jwt(_), _) => {}
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A token, kept out of logs.
#[derive(PartialEq, Eq)]
pub(crate) struct Token(pub(crate) String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

//! What can go wrong between a call and its answer.

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use tonic::Code;

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The configuration names no endpoint.
    #[error("etcdclient: no available endpoints")]
    NoEndpoints,
    /// An endpoint is neither `host:port` nor an http or https URL.
    #[error("endpoint {endpoint:?} is not usable: {reason}")]
    BadEndpoint {
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The domain name system does not say where something is.
    #[error("dns lookup of {name}: {reason}")]
    Dns {
        /// What was asked for.
        name: String,
        /// What came back.
        reason: String,
    },
    /// A certificate or key file cannot be used.
    #[error("open {}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificates were read, but rustls refuses them.
    #[error("TLS configuration is refused: {0}")]
    TlsRefused(#[from] rustls::Error),
    /// No answer came within the request timeout. A write may or may not have taken effect.
    #[error(
        "context deadline exceeded: no answer within {timeout:?} from {endpoints}{}",
        last.as_ref().map(|e| format!(" (last error: {e})")).unwrap_or_default()
    )]
    Timeout {
        /// The endpoints that were tried, joined by commas.
        endpoints: String,
        /// How long the call waited.
        timeout: Duration,
        /// The last error before time ran out.
        last: Option<Arc<Error>>,
    },
    /// The connection could not be made, so nothing was sent.
    #[error("cannot connect to {endpoint}: {reason}")]
    Unreachable {
        /// As configured.
        endpoint: String,
        /// The operating system's or the TLS library's words.
        reason: String,
    },
    /// The server, or the transport on its behalf, answered with an error.
    #[error("{message}")]
    Server {
        /// The gRPC code.
        code: Code,
        /// The message as sent: clients of etcd compare it, so it is part of the API.
        message: String,
    },
}

impl Error {
    /// Whether the server refused the call for want of permission.
    pub fn is_permission_denied(&self) -> bool {
        matches!(
            self,
            Error::Server {
                code: Code::PermissionDenied,
                ..
            }
        )
    }

    /// Whether the call may succeed on another endpoint or a little later.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Error::Unreachable { .. }
                | Error::Server {
                    code: Code::Unavailable,
                    ..
                }
        )
    }

    /// Whether a fresh token may help. Source: etcd 3.7, `rpctypes` and the rules of its Go client.
    pub(crate) fn wants_new_token(&self) -> bool {
        let Error::Server { message, .. } = self else {
            return false;
        };
        token_is_refused(message)
    }

    pub(crate) fn not_found(message: &str) -> Error {
        Error::Server {
            code: Code::NotFound,
            message: message.to_owned(),
        }
    }

    pub(crate) fn from_status(endpoint: &str, status: &tonic::Status) -> Error {
        match crate::endpoints::connect_failure(status) {
            Some(reason) => Error::Unreachable {
                endpoint: endpoint.to_owned(),
                reason,
            },
            None => Error::Server {
                code: status.code(),
                message: message_of(status),
            },
        }
    }
}

/// Whether a message says that the token is missing, expired or of an older auth revision.
pub(crate) fn token_is_refused(message: &str) -> bool {
    [
        "etcdserver: invalid auth token",
        "etcdserver: user name is empty",
        "etcdserver: revision of auth store is old",
    ]
    .iter()
    .any(|text| message.contains(text))
}

/// The status message, or the code's meaning where there is none; transport errors add their cause.
fn message_of(status: &tonic::Status) -> String {
    let mut message = status.message().to_owned();
    if message.is_empty() {
        message = status.code().to_string();
    }
    let mut source = std::error::Error::source(status).and_then(|e| e.source());
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    message
}

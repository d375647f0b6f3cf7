//! What every HTTP request of a client passes before its page: the rules for browsers.
//!
//! A browser can be led to a member by a name that its attacker resolves to the member's address (DNS rebinding), so plain
//! HTTP accepts only the names of `--host-whitelist`. A page of another origin may read answers only if `--cors` has it.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, HOST,
    ORIGIN,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::{Answer, Listener, text};
use crate::config::Config;

/// Names and origins that are let in.
#[derive(Debug, Clone)]
pub struct Front {
    hosts: Allowed,
    origins: Allowed,
}

#[derive(Debug, Clone)]
enum Allowed {
    All,
    Only(Vec<String>),
}

impl Allowed {
    fn new(list: &[String]) -> Allowed {
        if list.is_empty() || list.iter().any(|item| item == "*") {
            Allowed::All
        } else {
            Allowed::Only(list.to_vec())
        }
    }
}

impl Front {
    /// The rules of `--host-whitelist` and `--cors`.
    pub fn new(config: &Config) -> Front {
        Front {
            hosts: Allowed::new(&config.host_whitelist),
            origins: Allowed::new(&config.cors),
        }
    }

    /// The answer to a request whose Host is not let in; `None` for all others.
    pub fn refuse(&self, listener: Listener, request: &http::request::Parts) -> Option<Answer> {
        let Allowed::Only(hosts) = &self.hosts else {
            return None;
        };
        if listener != Listener::Client {
            return None;
        }
        let header = request
            .headers
            .get(HOST)
            .and_then(|host| host.to_str().ok());
        let host = header
            .or_else(|| request.uri.authority().map(|authority| authority.as_str()))
            .unwrap_or_default();
        let name = host_name(host);
        if hosts.iter().any(|allowed| allowed == name) {
            return None;
        }
        let body = format!(
            "\nThe Host header {name:?} of this request is not allowed, so that no other site can lead a browser here \
             (DNS rebinding).\n\nTo allow it, use https, or start the member with --host-whitelist {name:?}.\n\n"
        );
        Some(text(StatusCode::MISDIRECTED_REQUEST, body))
    }

    /// Lets the origin of the request read the answer, if it may.
    pub fn allow_origin(&self, request: &HeaderMap, answer: &mut HeaderMap) {
        let origin = match &self.origins {
            Allowed::All => HeaderValue::from_static("*"),
            Allowed::Only(origins) => match request.get(ORIGIN) {
                Some(origin)
                    if origins
                        .iter()
                        .any(|allowed| allowed.as_bytes() == origin.as_bytes()) =>
                {
                    origin.clone()
                }
                _ => return,
            },
        };
        answer.insert(
            ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"),
        );
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        answer.insert(
            ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("accept, content-type, authorization"),
        );
    }
}

/// The Host header without its port and, for IPv6, without brackets.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, _)) if !name.contains(':') => name,
        _ => host,
    }
}

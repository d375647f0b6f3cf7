//! The URLs that flags carry: where to listen, and what to tell others.
//!
//! Four forms, no path, no query: `http://host:port`, `https://host:port`, `unix://path` and `unixs://path`
//! (a socket file; `unixs` speaks TLS over it). Lists are sorted and hold each URL once.
//! Source: etcd 3.7 client/pkg/types URLs.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

/// How bytes travel under a [`Url`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A Unix socket.
    Unix,
    /// TLS over a Unix socket.
    Unixs,
}

impl Scheme {
    /// Whether connections speak TLS.
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }

    /// Whether the address is a socket file.
    pub fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }

    fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }
}

/// An address with its scheme.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    /// Plain or TLS, TCP or Unix socket.
    pub scheme: Scheme,
    /// `host:port` (IPv6 hosts in brackets), or the path of the socket file.
    pub address: String,
}

impl Url {
    /// Host without brackets, and port. `None` for a Unix socket.
    pub fn host_port(&self) -> Option<(&str, u16)> {
        if self.scheme.is_unix() {
            None
        } else {
            split_host_port(&self.address)
        }
    }

    /// The socket file. `None` for TCP.
    pub fn socket_path(&self) -> Option<&Path> {
        self.scheme.is_unix().then(|| Path::new(&self.address))
    }

    /// Whether a listener can bind the host: an IP address or `localhost`. Names are refused, as etcd refuses them,
    /// because a resolver's later answer would move the listener.
    pub fn is_bindable(&self) -> bool {
        match self.host_port() {
            None => true,
            Some((host, _)) => host == "localhost" || host.parse::<IpAddr>().is_ok(),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.address)
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Url, String> {
        let text = text.trim();
        let refused = |why: &str| Err(format!("{text:?}: {why}"));
        let Some((scheme, rest)) = text.split_once("://") else {
            return refused("a URL begins with http://, https://, unix:// or unixs://");
        };
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return refused("the scheme must be http, https, unix or unixs"),
        };
        if scheme.is_unix() {
            if rest.is_empty() {
                return refused("the path of the socket is missing, as in unix:///run/etcd.sock");
            }
        } else {
            if rest.contains(['/', '?', '#']) {
                return refused("a URL must end after host:port; remove the path");
            }
            if split_host_port(rest).is_none() {
                return refused("the address must have the form host:port with a numeric port");
            }
            if let Some(bad) = rest.chars().find(|c| !is_of_address(*c)) {
                return refused(&format!("{bad:?} does not belong in a host name"));
            }
        }
        Ok(Url {
            scheme,
            address: rest.to_owned(),
        })
    }
}

/// Parses a comma-separated list; an empty text is the empty list. The result is sorted and holds each URL once.
pub(crate) fn parse_urls(text: &str) -> Result<Vec<Url>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut urls = text
        .split(',')
        .map(str::parse)
        .collect::<Result<Vec<Url>, String>>()?;
    urls.sort_by_cached_key(Url::to_string);
    urls.dedup();
    Ok(urls)
}

/// Whether a character may stand in host:port; as in Go's URLs, what is not ASCII may.
fn is_of_address(c: char) -> bool {
    !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:@%[]<>\"".contains(c)
}

fn split_host_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    if port.starts_with('+') {
        return None;
    }
    Some((host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_print_as_they_were_read() {
        for text in [
            "http://127.0.0.1:2379",
            "https://[::1]:2379",
            "unix:///run/etcd.sock",
            "unixs://localhost:m1",
            "http://a.b:0",
        ] {
            assert_eq!(
                text.parse::<Url>().map(|url| url.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn hosts_and_sockets_are_told_apart() {
        let url: Url = "https://[::1]:2379".parse().unwrap();
        assert_eq!(url.host_port(), Some(("::1", 2379)));
        assert_eq!(url.socket_path(), None);
        let url: Url = "unix:///run/etcd.sock".parse().unwrap();
        assert_eq!(url.host_port(), None);
        assert_eq!(url.socket_path(), Some(Path::new("/run/etcd.sock")));
    }

    #[test]
    fn malformed_urls_are_refused_with_the_reason() {
        let check = |text: &str, reason: &str| {
            let error = text.parse::<Url>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        };
        check("127.0.0.1:2379", "begins with http://");
        check("ftp://127.0.0.1:2379", "scheme must be");
        check("http://127.0.0.1", "host:port");
        check("http://127.0.0.1:x", "host:port");
        check("http://127.0.0.1:70000", "host:port");
        check("http://::1:2379", "host:port");
        check("http://two words:2379", "' ' does not belong");
        check("http://a\tb:2379", "does not belong");
        check("http://a|b:2379", "does not belong");
        check("http://127.0.0.1:2379/", "remove the path");
        check("unix://", "socket is missing");
    }

    #[test]
    fn only_addresses_and_localhost_can_be_bound() {
        let check = |text: &str, expect: bool| {
            assert_eq!(text.parse::<Url>().unwrap().is_bindable(), expect, "{text}")
        };
        check("http://0.0.0.0:2379", true);
        check("http://[::]:2379", true);
        check("http://localhost:2379", true);
        check("unix://anything", true);
        check("http://example.com:2379", false);
        check("http://:2379", false);
    }

    #[test]
    fn lists_are_sorted_without_doubles() {
        let urls = parse_urls("http://b:1, http://a:1,http://b:1").unwrap();
        assert_eq!(
            urls.iter().map(Url::to_string).collect::<Vec<_>>(),
            ["http://a:1", "http://b:1"]
        );
        assert_eq!(parse_urls(""), Ok(vec![]));
        assert!(parse_urls("http://a:1,").is_err());
    }
}

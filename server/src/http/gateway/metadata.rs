//! What of a request's headers the gRPC call gets as metadata.

use ::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ::http::{HeaderMap, HeaderName, HeaderValue};

/// Passed on as metadata of the name that follows.
const PREFIX: &str = "grpc-metadata-";
/// Marks a call of the gateway: the certificate of its connection names nobody. Source: etcd 3.7, auth.
const MARK: HeaderName = HeaderName::from_static("grpcgateway-accept");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Metadata that a client may not set: they are the call's own. Source: grpc-gateway v2, malformed headers; RFC 9113, 8.2.2.
const RESERVED: &[&str] = &[
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The header `Grpc-Timeout` is not a number with a unit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid grpc-timeout: {0}")]
pub struct BadTimeout(String);

/// The headers of the gRPC call for an HTTP request.
///
/// `Authorization` goes as it is, `Grpc-Metadata-X` as `X`, `Grpc-Timeout` limits the call. Binary metadata is not
/// passed on: no service reads any.
pub fn metadata(request: &HeaderMap) -> Result<HeaderMap, BadTimeout> {
    let mut metadata = HeaderMap::new();
    for (name, value) in request {
        let Some(key) = name.as_str().strip_prefix(PREFIX) else {
            continue;
        };
        let is_text = value.as_bytes().iter().all(|b| (0x20..=0x7e).contains(b));
        if key.ends_with("-bin") || !is_text || is_reserved(key) {
            continue;
        }
        if let Ok(key) = HeaderName::from_bytes(key.as_bytes()) {
            metadata.append(key, value.clone());
        }
    }
    // Metadata of the same name comes first to what a service looks at, as with etcd.
    for value in request.get_all(AUTHORIZATION) {
        metadata.append(AUTHORIZATION, value.clone());
    }
    if let Some(timeout) = request.get(&TIMEOUT).filter(|value| !value.is_empty()) {
        if !is_timeout(timeout.as_bytes()) {
            let text = String::from_utf8_lossy(timeout.as_bytes()).into_owned();
            return Err(BadTimeout(text));
        }
        metadata.insert(TIMEOUT, timeout.clone());
    }
    metadata.insert(MARK, HeaderValue::from_static("*/*"));
    metadata.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    metadata.insert("te", HeaderValue::from_static("trailers"));
    Ok(metadata)
}

fn is_reserved(key: &str) -> bool {
    RESERVED.contains(&key)
        || key.starts_with("grpc-")
        || key.starts_with("grpcgateway-")
        || key == FORWARDED_FOR
}

fn is_timeout(value: &[u8]) -> bool {
    match value {
        [digits @ .., b'H' | b'M' | b'S' | b'm' | b'u' | b'n'] if !digits.is_empty() => {
            digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

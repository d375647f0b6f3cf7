//! The JSON gateway's side of HTTP: paths, headers, JSON and answers. `rpc/gateway.rs` makes the calls.
//!
//! A path of [`bindings`] stands for a gRPC method; the body is the request in the JSON form of protobuf, read and written
//! by the messages' descriptors. What is read: field names as in the .proto file or in lowerCamelCase, 64-bit numbers as
//! numbers or strings, bytes in standard or URL-safe base64, enum values by name or number; unknown fields are left out of
//! account, and an empty body is an empty request. What is written: names as in the .proto file, 64-bit numbers as
//! strings, no fields at their default.
//! Source: etcd 3.7, server/embed/serve.go; grpc-gateway v2, runtime; answers compared with a running etcd.

mod bindings;
mod json;
mod metadata;
mod twice;
mod values;

use std::collections::HashMap;

use ::http::header::WWW_AUTHENTICATE;
use ::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use prost_reflect::{DescriptorPool, MessageDescriptor};
use serde::Serialize;

pub use self::json::JsonError;
pub use self::metadata::{BadTimeout, metadata};
pub use self::values::{NotAnObject, Values};
use super::{Answer, typed};

/// The name under which the answer's own gRPC content type is passed on.
pub const METADATA_CONTENT_TYPE: HeaderName = HeaderName::from_static("grpc-metadata-content-type");
/// What JSON answers say they are.
pub const JSON: &str = "application/json";

/// gRPC's numbers of codes that the gateway itself answers with.
mod code {
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// All paths.
pub struct Gateway {
    bindings: HashMap<&'static str, Binding>,
}

/// What a path stands for.
pub struct Binding {
    /// The gRPC method, such as `/etcdserverpb.KV/Range`.
    pub method: &'static str,
    /// How requests and responses come.
    pub kind: Kind,
    request: MessageDescriptor,
    response: MessageDescriptor,
}

/// How many requests and responses a method has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request, one response.
    Unary,
    /// One request, any number of responses.
    ServerStream,
    /// Any number of both.
    BidiStream,
}

/// The JSON form of a gRPC status.
#[derive(Serialize)]
struct ErrorBody<'a> {
    code: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
}

impl Default for Gateway {
    fn default() -> Gateway {
        Gateway::new()
    }
}

impl Gateway {
    /// The gateway to etcd's services.
    pub fn new() -> Gateway {
        let pool = DescriptorPool::decode(kv_proto::DESCRIPTORS)
            .expect("the descriptors are those that the messages were generated from");
        let bindings = bindings::BINDINGS
            .iter()
            .map(|(path, method)| (*path, Binding::new(&pool, method)))
            .collect();
        Gateway { bindings }
    }

    /// What a path stands for.
    pub fn binding(&self, path: &str) -> Option<&Binding> {
        // Of etcd 3.2's time. Source: etcd v3.7, server/embed/serve.go.
        match path.strip_prefix("/v3beta/") {
            Some(rest) => self.bindings.get(format!("/v3/{rest}").as_str()),
            None => self.bindings.get(path),
        }
    }

    /// What a gRPC method of [`Binding::method`] is bound by.
    pub fn of_method(&self, method: &str) -> &Binding {
        let mut bindings = self.bindings.values();
        bindings
            .find(|binding| binding.method == method)
            .expect("a method that a binding named")
    }

    /// All paths, in no order.
    pub fn paths(&self) -> impl Iterator<Item = &'static str> {
        self.bindings.keys().copied()
    }
}

impl Binding {
    fn new(pool: &DescriptorPool, method: &'static str) -> Binding {
        let (service, name) = method
            .trim_start_matches('/')
            .split_once('/')
            .expect("a gRPC method has a service");
        let service = pool.get_service_by_name(service);
        let service = service.unwrap_or_else(|| panic!("{method} is not in the descriptors"));
        let found = service
            .methods()
            .find(|candidate| candidate.name() == name)
            .unwrap_or_else(|| panic!("{method} is not in the descriptors"));
        let kind = match (found.is_client_streaming(), found.is_server_streaming()) {
            (false, false) => Kind::Unary,
            (false, true) => Kind::ServerStream,
            (true, _) => Kind::BidiStream,
        };
        Binding {
            method,
            kind,
            request: found.input(),
            response: found.output(),
        }
    }

    /// The encoded request of a JSON body; what follows the first JSON value is not looked at.
    pub fn request(&self, body: &[u8]) -> Result<Vec<u8>, JsonError> {
        json::to_message(&self.request, body)
    }

    /// The JSON form of an encoded response.
    pub fn response(&self, message: Bytes) -> Result<Vec<u8>, JsonError> {
        json::from_message(&self.response, message)
    }

    /// The same as an element of a stream of responses.
    pub fn streamed(&self, message: Bytes) -> Result<Vec<u8>, JsonError> {
        let mut line = b"{\"result\":".to_vec();
        line.extend(self.response(message)?);
        line.extend(b"}\n");
        Ok(line)
    }
}

/// The answer for a gRPC status that is not OK.
pub fn error(code: i32, message: &str) -> Answer {
    let mut answer = typed(JSON, error_json(code, message));
    *answer.status_mut() = http_status(code);
    if code == code::UNAUTHENTICATED
        && let Ok(message) = HeaderValue::from_str(message)
    {
        answer.headers_mut().insert(WWW_AUTHENTICATE, message);
    }
    answer
}

/// The same as the last element of a stream of responses.
pub fn streamed_error(code: i32, message: &str) -> Vec<u8> {
    let mut line = b"{\"error\":".to_vec();
    line.extend(error_json(code, message));
    line.extend(b"}\n");
    line
}

/// The answer to a path below `/v3/` that stands for nothing.
pub fn not_found() -> Answer {
    error(code::NOT_FOUND, "Not Found")
}

/// The answer to any method but POST.
pub fn method_not_allowed() -> Answer {
    error(code::UNIMPLEMENTED, "Method Not Allowed")
}

fn error_json(code: i32, message: &str) -> Vec<u8> {
    serde_json::to_vec(&ErrorBody { code, message }).expect("a number and a text have a JSON form")
}

/// The HTTP status for a gRPC code. Source: grpc-gateway v2, runtime/errors.go.
pub fn http_status(code: i32) -> StatusCode {
    let status = match code {
        0 => 200,
        // The client closed the request: nginx's number.
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    };
    StatusCode::from_u16(status).expect("the numbers above are of HTTP")
}

#[cfg(test)]
mod tests;

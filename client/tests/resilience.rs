//! What the client does when servers fail: a small server that answers as it is told, and counts.

// A test helper that fails should fail the test.
#![allow(clippy::unwrap_used)]

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use kv_client::{Client, Code, Config, Credentials, Error};
use kv_proto::{
    etcdserverpb::{
        AuthenticateRequest, AuthenticateResponse, CompactionRequest, CompactionResponse,
        DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RangeStreamResponse, ResponseHeader, TxnRequest, TxnResponse,
        WatchCreateRequest, WatchRequest, WatchResponse,
        kv_server::{Kv, KvServer},
        watch_request::RequestUnion,
        watch_server::{Watch, WatchServer},
    },
    mvccpb::{Event, KeyValue},
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What the server was asked, and what it shall answer.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Errors for the next calls of KV; then they succeed.
    errors: VecDeque<Status>,
    calls: usize,
    tokens: Vec<Option<String>>,
    /// One list of responses for each watch stream that is opened; then the stream breaks.
    watches: VecDeque<Vec<WatchResponse>>,
    watched_from: Vec<i64>,
}

impl Script {
    fn failing(errors: impl IntoIterator<Item = Status>) -> Script {
        let script = Script::default();
        script.0.lock().unwrap().errors.extend(errors);
        script
    }

    fn answer<Q, A: Default>(&self, request: &Request<Q>) -> Result<Response<A>, Status> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        let token = request
            .metadata()
            .get("token")
            .map(|t| t.to_str().unwrap().to_owned());
        state.tokens.push(token);
        state
            .errors
            .pop_front()
            .map_or_else(|| Ok(Response::new(A::default())), Err)
    }

    fn calls(&self) -> usize {
        self.0.lock().unwrap().calls
    }

    /// Serves until the test ends; the address is returned.
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let routes = tonic::transport::Server::builder()
            .add_service(KvServer::new(self.clone()))
            .add_service(WatchServer::new(self.clone()))
            .add_service(kv_proto::etcdserverpb::auth_server::AuthServer::new(
                Authenticator::default(),
            ));
        tokio::spawn(routes.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for Script {
    type RangeStreamStream = BoxStream<RangeStreamResponse>;

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        self.answer(&request)
    }

    async fn range_stream(
        &self,
        _: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("not part of this test"))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.answer(&request)
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.answer(&request)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.answer(&request)
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        self.answer(&request)
    }
}

#[tonic::async_trait]
impl Watch for Script {
    type WatchStream = BoxStream<WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let first = request
            .into_inner()
            .message()
            .await?
            .and_then(|r| r.request_union);
        let Some(RequestUnion::CreateRequest(create)) = first else {
            return Err(Status::invalid_argument(
                "the first request does not create a watch",
            ));
        };
        let mut state = self.0.lock().unwrap();
        state.watched_from.push(create.start_revision);
        let responses = state.watches.pop_front().unwrap_or_default();
        let broken = tokio_stream::once(Err(Status::unavailable("the connection broke")));
        Ok(Response::new(Box::pin(
            tokio_stream::iter(responses).map(Ok).chain(broken),
        )))
    }
}

/// Gives tokens t1, t2, ...
#[derive(Default)]
struct Authenticator(Mutex<u32>);

macro_rules! unused {
    ($($method:ident($request:ident) -> $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl kv_proto::etcdserverpb::auth_server::Auth for Authenticator {
            async fn authenticate(
                &self,
                _: Request<AuthenticateRequest>,
            ) -> Result<Response<AuthenticateResponse>, Status> {
                let mut count = self.0.lock().unwrap();
                *count += 1;
                Ok(Response::new(AuthenticateResponse { token: format!("t{count}"), ..Default::default() }))
            }

            $(async fn $method(
                &self,
                _: Request<kv_proto::etcdserverpb::$request>,
            ) -> Result<Response<kv_proto::etcdserverpb::$response>, Status> {
                Err(Status::unimplemented("not part of this test"))
            })*
        }
    };
}

unused! {
    auth_enable(AuthEnableRequest) -> AuthEnableResponse,
    auth_disable(AuthDisableRequest) -> AuthDisableResponse,
    auth_status(AuthStatusRequest) -> AuthStatusResponse,
    user_add(AuthUserAddRequest) -> AuthUserAddResponse,
    user_get(AuthUserGetRequest) -> AuthUserGetResponse,
    user_list(AuthUserListRequest) -> AuthUserListResponse,
    user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse,
    user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse,
    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse,
    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse,
    role_add(AuthRoleAddRequest) -> AuthRoleAddResponse,
    role_get(AuthRoleGetRequest) -> AuthRoleGetResponse,
    role_list(AuthRoleListRequest) -> AuthRoleListResponse,
    role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse,
    role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse,
    role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse,
}

/// An address where nobody listens.
async fn dead() -> String {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

fn key(key: &'static str) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn put(key: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn reads_and_writes_pass_over_an_endpoint_that_is_down() {
    let script = Script::default();
    let client = Client::connect(Config::new([dead().await, script.serve().await]))
        .await
        .unwrap();
    client.put(put("a")).await.unwrap();
    client.range(key("a")).await.unwrap();
    assert_eq!(script.calls(), 2);
}

#[tokio::test]
async fn a_write_that_may_have_been_applied_is_not_repeated_and_a_read_is() {
    let unavailable = || Status::unavailable("etcdserver: leader changed");
    let script = Script::failing([unavailable(), unavailable()]);
    let client = Client::connect(Config::new([script.serve().await]))
        .await
        .unwrap();
    let error = client.put(put("a")).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Server {
                code: Code::Unavailable,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(script.calls(), 1);
    client.range(key("a")).await.unwrap();
    assert_eq!(script.calls(), 3);
}

#[tokio::test]
async fn a_call_ends_within_its_timeout_and_names_what_was_tried() {
    let endpoint = dead().await;
    let timeout = Duration::from_millis(100);
    let config = Config {
        request_timeout: Some(timeout),
        ..Config::new([endpoint.clone()])
    };
    let client = Client::connect(config).await.unwrap();
    let error = client.put(put("a")).await.unwrap_err();
    let Error::Timeout {
        endpoints, last, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(endpoints, &endpoint);
    assert!(
        matches!(last.as_deref(), Some(Error::Unreachable { .. })),
        "{last:?}"
    );
}

/// The connection counts the request's limit, too, and in its own words.
#[tokio::test]
async fn a_member_that_accepts_and_never_answers_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let mut config = Config::new(vec![endpoint.clone()]);
    config.request_timeout = Some(Duration::from_millis(300));
    let client = Client::connect(config).await.unwrap();
    for _ in 0..5 {
        let error = client.status().await.unwrap_err();
        let Error::Timeout { endpoints, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(endpoints, endpoint);
    }
}

#[tokio::test]
async fn an_expired_token_is_renewed_once() {
    let expired = || Status::unauthenticated("etcdserver: invalid auth token");
    let script = Script::failing([expired(), expired()]);
    let credentials = Credentials::Password {
        user: "root".into(),
        password: "secret".into(),
    };
    let config = Config {
        credentials: Some(credentials),
        ..Config::new([script.serve().await])
    };
    let client = Client::connect(config).await.unwrap();
    let error = client.put(put("a")).await.unwrap_err();
    assert_eq!(error.to_string(), "etcdserver: invalid auth token");
    assert_eq!(
        script.0.lock().unwrap().tokens,
        [Some("t1".to_owned()), Some("t2".to_owned())]
    );
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..Default::default()
    })
}

fn created(revision: i64) -> WatchResponse {
    WatchResponse {
        header: header(revision),
        created: true,
        ..Default::default()
    }
}

fn event(revision: i64, fragment: bool) -> WatchResponse {
    let kv = KeyValue {
        key: "a".into(),
        mod_revision: revision,
        ..Default::default()
    };
    let events = vec![Event {
        kv: Some(kv),
        ..Default::default()
    }];
    WatchResponse {
        header: header(revision),
        events,
        fragment,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_watch_goes_on_after_the_last_delivered_revision() {
    let script = Script::default();
    let compacted = WatchResponse {
        header: header(0),
        canceled: true,
        compact_revision: 20,
        ..Default::default()
    };
    script.0.lock().unwrap().watches.extend([
        vec![created(4)],
        vec![created(4), event(5, false), event(7, false)],
        // Half a response is no response: its events come again.
        vec![created(9), event(8, true)],
        vec![
            created(9),
            event(8, true),
            event(8, false),
            WatchResponse {
                header: header(12),
                ..Default::default()
            },
        ],
        vec![created(13), compacted],
    ]);
    let client = Client::connect(Config::new([script.serve().await]))
        .await
        .unwrap();
    let mut watcher = client.watch(WatchCreateRequest {
        key: "a".into(),
        ..Default::default()
    });
    let mut seen = Vec::new();
    while let Some(response) = watcher.next().await.unwrap() {
        seen.push((
            response.header.unwrap().revision,
            response.events.len(),
            response.compact_revision,
        ));
    }
    assert_eq!(
        seen,
        [(5, 1, 0), (7, 1, 0), (8, 2, 0), (12, 0, 0), (0, 0, 20)]
    );
    assert_eq!(script.0.lock().unwrap().watched_from, [0, 5, 8, 8, 13]);
    assert!(watcher.next().await.unwrap().is_none());
}

//! Watches that survive a broken connection.
//!
//! A [`Watcher`] has a stream of its own. It remembers the revision after the last one it delivered and,
//! when the stream breaks, asks the next endpoint to go on from there: no event is lost or delivered
//! twice. It ends when the server cancels it (compacted revision, bad range, no permission).
//! Source: etcd 3.7, watch API guarantees.

use kv_proto::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    Client, Code,
    error::{self, Error, Result},
    retry,
};

/// Requests that may wait for the stream: the create and progress requests.
const REQUESTS_MAX: usize = 16;
/// Why a server ends streams that ask for a leader. Source: etcd 3.7, `rpctypes`.
const NO_LEADER: &str = "etcdserver: no leader";

impl Client {
    /// Watches a range of keys from `start_revision`, or from now on if it is 0.
    ///
    /// Connects on the first call of [`Watcher::next`]; with start revision 0, "now" is then.
    pub fn watch(&self, request: WatchCreateRequest) -> Watcher {
        Watcher {
            client: self.clone(),
            request,
            stream: None,
            unfinished: None,
            failed: 0,
            token_renewed: false,
            ended: false,
        }
    }
}

/// Whether `response` is a progress notification: all events up to its header's revision were delivered.
pub fn is_progress(response: &WatchResponse) -> bool {
    let revision = response.header.as_ref().map_or(0, |h| h.revision);
    let plain = !response.created && !response.canceled && response.compact_revision == 0;
    plain && response.events.is_empty() && revision != 0
}

/// One watch.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    /// What to ask for; `start_revision` follows what was delivered.
    request: WatchCreateRequest,
    stream: Option<Stream>,
    /// Fragments of a response whose last one has not come yet.
    unfinished: Option<WatchResponse>,
    /// Failed attempts since the stream last worked.
    failed: usize,
    token_renewed: bool,
    ended: bool,
}

#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    endpoint: usize,
}

impl Watcher {
    /// The next response with events or progress, or the last one, which is `canceled`; then `None`.
    ///
    /// Waits for as long as it takes, over broken connections too. Errors: the server has no leader,
    /// or refuses the token or the stream itself. Cancel safe between responses.
    pub async fn next(&mut self) -> Result<Option<WatchResponse>> {
        while !self.ended {
            match self.receive().await {
                Ok(Some(response)) => return Ok(Some(response)),
                Ok(None) => {}
                Err(error) => self.recover(error).await?,
            }
        }
        Ok(None)
    }

    /// Opens the stream and waits until the server has made the watch; for one that starts from now on. False if it is refused.
    pub async fn opened(&mut self) -> Result<bool> {
        while !self.ended && self.request.start_revision == 0 {
            if let Err(error) = self.receive().await {
                self.recover(error).await?;
            }
        }
        Ok(!self.ended)
    }

    /// Asks the server for a progress notification; it comes out of [`Watcher::next`]. Nothing happens before the watch is open.
    pub async fn request_progress(&self) {
        if let Some(stream) = &self.stream {
            let request = RequestUnion::ProgressRequest(WatchProgressRequest {});
            // A stream that ended is opened again by `next`; a progress request for the old one is void.
            let _ = stream
                .requests
                .send(WatchRequest {
                    request_union: Some(request),
                })
                .await;
        }
    }

    /// One response from the wire; `None` if it is not for the caller.
    async fn receive(&mut self) -> Result<Option<WatchResponse>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(open(&self.client, &self.request).await?),
        };
        let name = self.client.endpoints().names();
        let answer = stream
            .answers
            .message()
            .await
            .map_err(|status| Error::from_status(&name, &status))?;
        let Some(response) = answer else {
            return Err(Error::Server {
                code: Code::Unavailable,
                message: "the watch stream ended".to_owned(),
            });
        };
        self.failed = 0;
        self.accept(response)
    }

    /// Follows the protocol; `Some` is a response the caller gets.
    fn accept(&mut self, response: WatchResponse) -> Result<Option<WatchResponse>> {
        let revision = response.header.as_ref().map_or(0, |h| h.revision);
        if response.canceled {
            if error::token_is_refused(&response.cancel_reason) && !self.token_renewed {
                return Err(Error::Server {
                    code: Code::Unauthenticated,
                    message: response.cancel_reason,
                });
            }
            self.ended = true;
            return Ok(Some(response));
        }
        if response.created {
            if self.request.start_revision == 0 {
                self.request.start_revision = revision + 1;
            }
            return Ok(None);
        }
        let complete = match self.unfinished.take() {
            None => response,
            Some(mut start) => {
                start.events.extend(response.events);
                start.fragment = response.fragment;
                start
            }
        };
        if complete.fragment {
            self.unfinished = Some(complete);
            return Ok(None);
        }
        let last_event = complete
            .events
            .last()
            .and_then(|e| e.kv.as_ref())
            .map(|kv| kv.mod_revision);
        let delivered = last_event.unwrap_or(if is_progress(&complete) { revision } else { 0 });
        self.request.start_revision = self.request.start_revision.max(delivered + 1);
        self.token_renewed = false;
        Ok(Some(complete))
    }

    /// Prepares for another stream, or gives up with the error.
    async fn recover(&mut self, error: Error) -> Result<()> {
        self.unfinished = None;
        let at = match self.stream.take() {
            Some(stream) => stream.endpoint,
            None => self.client.endpoints().current().0,
        };
        if error.wants_new_token() && !self.token_renewed {
            let renewed = self.client.renew_token().await?;
            self.token_renewed = true;
            if renewed {
                return Ok(());
            }
        }
        let no_leader = matches!(&error, Error::Server { message, .. } if message == NO_LEADER);
        if no_leader || !transient(&error) {
            self.ended = true;
            return Err(error);
        }
        self.client.endpoints().move_on(at);
        self.failed += 1;
        tokio::time::sleep(retry::pause(self.failed, self.client.endpoints().len())).await;
        Ok(())
    }
}

/// Whether a stream that ended so may be opened again. A broken connection shows as `Unavailable`,
/// `Unknown`, `Internal` or `Canceled`, depending on which layer saw it first.
fn transient(error: &Error) -> bool {
    let broken = [
        Code::Unavailable,
        Code::Unknown,
        Code::Internal,
        Code::Cancelled,
    ];
    match error {
        Error::Unreachable { .. } => true,
        Error::Server { code, .. } => broken.contains(code),
        _ => false,
    }
}

async fn open(client: &Client, request: &WatchCreateRequest) -> Result<Stream> {
    let (endpoint, name, channel) = client.endpoints().current();
    let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(request.clone())),
    };
    // The server answers only after the first request, so it is queued before the stream opens.
    let queued = requests.try_send(create);
    assert!(
        queued.is_ok(),
        "a new queue of {REQUESTS_MAX} has no room for one request"
    );
    let mut call = client.request(ReceiverStream::new(outgoing)).await;
    call.metadata_mut().insert(
        "hasleader",
        tonic::metadata::MetadataValue::from_static("true"),
    );
    let answers = WatchClient::new(channel)
        .max_decoding_message_size(client.config().response_bytes_max)
        .watch(call)
        .await
        .map_err(|status| Error::from_status(name, &status))?
        .into_inner();
    Ok(Stream {
        requests,
        answers,
        endpoint,
    })
}

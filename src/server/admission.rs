//! Admission: the checks that every call of every service on the port passes first.
//!
//! An open call takes memory, whatever it does, so their number is limited. Each connection always gets some calls, so
//! that one that opens thousands takes none from the others. The body of an admitted call is behind the guard of
//! [`Call`]. Its response leaves with the share that covers it, or is dropped if the client does not read it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    speaks_grpc,
    unread::{OpenResponse, OpenResponses},
};
use crate::{
    call::Call,
    grpc, http,
    partition::{Account, ChunkAccount},
    response::Unread,
};

/// Calls that a connection may always have open.
const CONNECTION_CALLS_MIN: usize = 16;
/// Calls beyond those that may be open in total.
const CALLS_MAX: usize = 16_384;

/// The state shared by the calls of a connection. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Peer {
    account: Account,
    chunks: ChunkAccount,
    unread: Unread,
    calls: Arc<AtomicUsize>,
    responses: OpenResponses,
}

/// Puts admission before all `routes`.
pub(super) fn guard(routes: Router) -> Router {
    let places = Arc::new(Semaphore::new(CALLS_MAX));
    routes.layer(from_fn_with_state(places, admit))
}

async fn admit(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let (mut head, body) = request.into_parts();
    let peer = head.extensions.get::<Peer>();
    let peer = peer.expect("every connection has its peer").clone();
    let Some(place) = peer.place(&places) else {
        return match speaks_grpc(&head.headers) {
            true => grpc::too_many_calls().into_http(),
            false => http::too_many_calls(),
        };
    };
    let (call, guarded) = Call::new(peer.account, peer.chunks, body);
    head.extensions.insert(call.clone());
    head.extensions.insert(peer.unread);
    let request = Request::from_parts(head, Body::new(guarded));
    let response = next.run(request).await;
    let is_grpc = speaks_grpc(response.headers());
    response.map(|inner| {
        Body::new(AdmittedBody {
            inner: peer.responses.begin(inner, is_grpc),
            call,
            _place: place,
        })
    })
}

impl Peer {
    /// Whether a call is open.
    pub fn is_called(&self) -> bool {
        self.calls.load(Relaxed) > 0
    }

    /// Drops responses of which the client has read nothing for `limit`. Returns whether a dropped one has stayed
    /// unread as long again: then only closing the connection frees its memory.
    pub fn drop_unread(&self, now: Instant, limit: Duration) -> bool {
        self.responses.drop_unread(now, limit)
    }

    /// A place for another call, if there is one.
    fn place(&self, places: &Arc<Semaphore>) -> Option<Place> {
        let open = self.calls.fetch_add(1, Relaxed);
        let mut place = Place {
            calls: Arc::clone(&self.calls),
            _permit: None,
        };
        if open >= CONNECTION_CALLS_MIN {
            let permit = Arc::clone(places).try_acquire_owned();
            place._permit = Some(permit.ok()?);
        }
        Some(place)
    }
}

/// The place of an open call.
struct Place {
    calls: Arc<AtomicUsize>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Relaxed);
    }
}

/// The response body of a call, which keeps its place.
struct AdmittedBody {
    inner: OpenResponse,
    call: Call,
    _place: Place,
}

impl http_body::Body for AdmittedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = self.inner.poll_frame(cx);
        polled.map(|frame| {
            frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| self.call.covered(bytes))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

//! Large responses in memory: their total, and the shares that cover them until they have been sent.
//!
//! For responses that are built whole before they are sent: counters, pages, single events. Streamed lists are bounded
//! where they are read. While a connection's unsent responses take more than an eighth of the free memory, it gets no
//! further one: a client that reads nothing turns nobody else away.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, http::Extensions, response::Response};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::timeout;

use crate::{
    covered::covered,
    limits::SHARE_WAIT_SECONDS_MAX,
    pool::{Pool, PoolAccount, PoolShare},
};

/// The memory of all large responses, in bytes.
const RESPONSES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How much a connection may hold when it asks for another response, as a part of the free memory.
const CONNECTION_PART: usize = 8;

/// The memory for responses. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ResponseMemory(Pool);

/// The memory of the responses to one connection. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Unread(PoolAccount);

/// Too many responses in memory have not been read.
pub(crate) struct TooManyUnread;

/// Memory reserved for a response; released when dropped.
pub(crate) type Reserved = PoolShare;

/// The memory of a response; released once it has been sent.
#[derive(Clone)]
pub(crate) struct ResponseShare {
    _reserved: Arc<Reserved>,
}

impl Default for ResponseMemory {
    fn default() -> Self {
        Self(Pool::new(RESPONSES_BYTES_MAX))
    }
}

impl ResponseMemory {
    /// Waits a while for the memory of a response of at most `bytes` to the connection of `unread`.
    pub async fn reserve(&self, unread: &Unread, bytes: usize) -> Result<Reserved, TooManyUnread> {
        let bytes = bytes.min(RESPONSES_BYTES_MAX);
        let reserved = self.0.take(|| self.try_reserve(unread, bytes));
        let wait = Duration::from_secs(SHARE_WAIT_SECONDS_MAX);
        timeout(wait, reserved).await.map_err(|_| TooManyUnread)
    }

    fn try_reserve(&self, unread: &Unread, bytes: usize) -> Option<Reserved> {
        self.0.try_take(&unread.0, bytes, |held, free| {
            held <= free / CONNECTION_PART
        })
    }
}

impl ResponseShare {
    /// Keeps as much of a reservation as a response of `bytes` takes.
    pub fn keep(mut reserved: Reserved, bytes: usize) -> Self {
        reserved.shrink(bytes);
        Self {
            _reserved: Arc::new(reserved),
        }
    }
}

/// The memory of the responses to a request's connection.
pub(crate) fn unread(extensions: &Extensions) -> Unread {
    let unread = extensions.get::<Unread>();
    unread.expect("every call is admitted").clone()
}

/// Bytes that keep their share until they have been sent.
pub(crate) fn held(bytes: Vec<u8>, reserved: Reserved) -> Bytes {
    let share = ResponseShare::keep(reserved, bytes.len());
    covered(bytes.into(), Some(share))
}

/// Moves the share in a response's extensions into its body. A gRPC body ends with a frame of trailers, which is
/// requested once everything before it has been sent.
pub(crate) async fn hold(mut response: Response) -> Response {
    match response.extensions_mut().remove::<ResponseShare>() {
        Some(share) => response.map(|body| {
            Body::new(HeldBody {
                body,
                _share: share,
            })
        }),
        None => response,
    }
}

struct HeldBody {
    body: Body,
    _share: ResponseShare,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn reserve(memory: &ResponseMemory, unread: &Unread, bytes: usize) -> Option<Reserved> {
        memory.reserve(unread, bytes).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_holds_its_memory_until_it_has_been_sent() {
        let memory = ResponseMemory::default();
        let unread = Unread::default();
        let free = || memory.0.free();
        let reserved = reserve(&memory, &unread, RESPONSES_BYTES_MAX)
            .await
            .expect("all is free");
        assert!(reserve(&memory, &unread, 1).await.is_none());
        let bytes = held(vec![7; 1000], reserved);
        assert_eq!(free(), RESPONSES_BYTES_MAX - 1000);
        let part = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(free(), RESPONSES_BYTES_MAX - 1000);
        drop(part);
        assert_eq!(free(), RESPONSES_BYTES_MAX);

        let reserved = reserve(&memory, &unread, 5000).await.expect("all is free");
        let mut response = Response::new(Body::from("body"));
        let share = ResponseShare::keep(reserved, 4);
        response.extensions_mut().insert(share);
        let held = hold(response).await;
        assert_eq!(free(), RESPONSES_BYTES_MAX - 4);
        drop(held);
        assert_eq!(free(), RESPONSES_BYTES_MAX);
        assert_eq!(unread.0.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_read_nothing_leave_room_for_another() {
        const BYTES: usize = 3 * 1024 * 1024;
        let memory = ResponseMemory::default();
        let mut held = Vec::new();
        for _ in 0..10 {
            let rude = Unread::default();
            while let Some(reserved) = memory.try_reserve(&rude, BYTES) {
                held.push(reserved);
            }
        }
        let other = Unread::default();
        assert!(reserve(&memory, &other, BYTES).await.is_some());
        // A waiting request continues once something has been sent.
        let large = RESPONSES_BYTES_MAX / 4;
        let waiting = reserve(&memory, &other, large);
        let leaving = async {
            tokio::task::yield_now().await;
            held.clear();
        };
        let (waited, ()) = tokio::join!(waiting, leaving);
        assert!(waited.is_some());
    }
}

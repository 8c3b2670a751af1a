//! A reader that resumes where it was.

use std::{sync::Arc, time::Duration};

use thiserror::Error;
use tokio::time::{sleep, timeout};
use tonic::{Status, Streaming, transport::Endpoint};

use super::{
    Cause, InvalidEndpoint, MESSAGE_BYTES_MAX,
    backoff::{Backoff, is_transient},
    endpoint,
};
use crate::proto::v1::{
    ListEventsRequest, ListEventsResponse, aggregator_service_client::AggregatorServiceClient,
};

/// The limits of a [`Reader`].
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// How long a stream that follows may be silent before it counts as broken; the server sends something
    /// every 15 s. Default 45 s.
    pub silence_max: Duration,
    /// How long to keep retrying after the first break without a response. Default 60 s.
    pub give_up_after: Duration,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self {
            silence_max: Duration::from_secs(45),
            give_up_after: Duration::from_secs(60),
        }
    }
}

/// Why events cannot be read. [`Reader::cursor`] still has the place to resume.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// The address of the server is invalid.
    #[error(transparent)]
    InvalidEndpoint(#[from] InvalidEndpoint),
    /// The server refused the list; retrying will not help.
    #[error("{server} refused to list events: {cause}")]
    Refused {
        /// The address of the server.
        server: Arc<str>,
        /// The server's reply.
        #[source]
        cause: Cause,
    },
    /// The connection kept breaking.
    #[error("gave up on {server} after {} s without a response: {cause}", .after.as_secs_f32())]
    GaveUp {
        /// The address of the server.
        server: Arc<str>,
        /// How long the reader kept trying.
        after: Duration,
        /// How the last attempt ended.
        #[source]
        cause: Cause,
    },
}

/// Reads a ListEvents stream to its end, resuming it when it breaks.
///
/// There are no gaps and no repeats, with one exception: a stream from `START_POSITION_LATEST` that breaks
/// before its first response starts again at the tail of that moment.
#[derive(Debug)]
pub struct Reader {
    endpoint: Endpoint,
    server: Arc<str>,
    options: ReaderOptions,
    backoff: Backoff,
    /// The rest of the request: the cursor and the limit move as events arrive.
    request: ListEventsRequest,
    responses: Option<Streaming<ListEventsResponse>>,
    ended: bool,
}

impl Reader {
    /// Makes a reader for `request`. Connects on the first [`next`](Self::next).
    pub fn connect(
        server: &str,
        request: ListEventsRequest,
        options: ReaderOptions,
    ) -> Result<Self, ReadError> {
        Ok(Self {
            endpoint: endpoint(server)?,
            server: server.into(),
            backoff: Backoff::new(options.give_up_after),
            options,
            request,
            responses: None,
            ended: false,
        })
    }

    /// The next response; `None` at the end of the list, or once the limit is reached. A list that
    /// follows without a limit has no end.
    ///
    /// A response may have no events. Dropping the future before it is ready loses none.
    pub async fn next(&mut self) -> Result<Option<ListEventsResponse>, ReadError> {
        while !self.ended {
            match self.receive().await {
                Ok(Some(response)) => {
                    self.advance(&response);
                    return Ok(Some(response));
                }
                Ok(None) if self.request.follow => {
                    self.retry(Status::unavailable("the server ended the stream"))
                        .await?;
                }
                Ok(None) => self.ended = true,
                Err(status) => self.retry(status).await?,
            }
        }
        Ok(None)
    }

    /// Resumes after the last event that [`next`](Self::next) returned; before the first, the cursor of the
    /// request.
    pub fn cursor(&self) -> &str {
        &self.request.cursor
    }

    async fn receive(&mut self) -> Result<Option<ListEventsResponse>, Status> {
        let silence_max = self.options.silence_max;
        let follow = self.request.follow;
        let response = async {
            let responses = match &mut self.responses {
                Some(responses) => responses,
                None => {
                    let opened = open(&self.endpoint, self.request.clone()).await?;
                    self.responses.insert(opened)
                }
            };
            responses.message().await
        };
        if !follow {
            return response.await;
        }
        match timeout(silence_max, response).await {
            Ok(response) => response,
            Err(_) => Err(Status::deadline_exceeded(format!(
                "nothing from the server for {} s",
                silence_max.as_secs_f32()
            ))),
        }
    }

    fn advance(&mut self, response: &ListEventsResponse) {
        self.backoff.progress();
        self.request.cursor.clone_from(&response.cursor);
        if self.request.limit > 0 {
            let delivered = response.events.len() as u64;
            self.request.limit = self.request.limit.saturating_sub(delivered);
            // To the server 0 means no limit, so it must not be sent at the end.
            self.ended = self.request.limit == 0;
        }
    }

    async fn retry(&mut self, status: Status) -> Result<(), ReadError> {
        self.responses = None;
        let server = Arc::clone(&self.server);
        let transient = is_transient(status.code());
        let cause = Cause::from(status);
        if !transient {
            return Err(ReadError::Refused { server, cause });
        }
        let Some(delay) = self.backoff.failure() else {
            let after = self.options.give_up_after;
            return Err(ReadError::GaveUp {
                server,
                after,
                cause,
            });
        };
        if self.backoff.is_first() {
            tracing::warn!(server = &*server, %cause, "the stream broke; reconnecting");
        }
        sleep(delay).await;
        Ok(())
    }
}

/// Opens a stream on its own connection, so that no attempt reuses a dead one.
async fn open(
    endpoint: &Endpoint,
    request: ListEventsRequest,
) -> Result<Streaming<ListEventsResponse>, Status> {
    let connected = endpoint.connect().await;
    let channel = connected.map_err(|error| Status::from_error(error.into()))?;
    let mut client =
        AggregatorServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Ok(client.list_events(request).await?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::{Fake, listener};

    fn reader(fake: &Fake, request: ListEventsRequest) -> Reader {
        Reader::connect(&fake.url, request, ReaderOptions::default()).expect("valid")
    }

    async fn sequences(reader: &mut Reader) -> Vec<u64> {
        let response = reader.next().await.expect("a list").expect("not its end");
        response.events.iter().map(|event| event.sequence).collect()
    }

    #[tokio::test]
    async fn a_broken_list_goes_on_after_the_last_event() {
        let mut fake = Fake::start();
        let request = ListEventsRequest {
            topic: "t".to_owned(),
            limit: 5,
            ..ListEventsRequest::default()
        };
        let mut reader = reader(&fake, request.clone());
        let play = async {
            let call = fake.list_call().await;
            assert_eq!(call.request, request);
            call.send(1..3, "after 2").await;
            call.send(3..4, "after 3").await;
            call.fail(Status::unavailable("stopping")).await;
            let call = fake.list_call().await;
            assert_eq!(call.request.topic, "t");
            assert_eq!(call.request.cursor, "after 3");
            assert_eq!(call.request.limit, 2);
            call.send(4..6, "after 5").await;
            call.fail(Status::unavailable("never seen")).await;
        };
        let read = async {
            assert_eq!(sequences(&mut reader).await, [1, 2]);
            assert_eq!(reader.cursor(), "after 2");
            assert_eq!(sequences(&mut reader).await, [3]);
            assert_eq!(sequences(&mut reader).await, [4, 5]);
            assert_eq!(reader.cursor(), "after 5");
            assert_eq!(reader.next().await.expect("a list"), None);
        };
        tokio::join!(play, read);
    }

    #[tokio::test]
    async fn only_a_list_that_follows_goes_on_when_the_server_ends_it() {
        let mut fake = Fake::start();
        for follow in [false, true] {
            let request = ListEventsRequest {
                follow,
                ..ListEventsRequest::default()
            };
            let mut reader = reader(&fake, request);
            let play = async {
                fake.list_call().await.send(1..2, "after 1").await;
                if follow {
                    let call = fake.list_call().await;
                    assert_eq!(call.request.cursor, "after 1");
                    call.send(2..3, "after 2").await;
                }
            };
            let read = async {
                assert_eq!(sequences(&mut reader).await, [1]);
                if follow {
                    assert_eq!(sequences(&mut reader).await, [2]);
                } else {
                    assert_eq!(reader.next().await.expect("a list"), None);
                }
            };
            tokio::join!(play, read);
        }
    }

    #[tokio::test]
    async fn a_refused_list_is_an_error() {
        let mut fake = Fake::start();
        let mut reader = reader(&fake, ListEventsRequest::default());
        let play = async {
            let call = fake.list_call().await;
            call.fail(Status::invalid_argument("cursor: not a cursor"))
                .await;
        };
        let (read, ()) = tokio::join!(reader.next(), play);
        let error = read.expect_err("refused");
        let ReadError::Refused { cause, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(cause.to_string(), "InvalidArgument: cursor: not a cursor");
    }

    #[tokio::test]
    async fn silence_is_a_break_and_then_the_end() {
        // The system accepts connections, and nothing replies.
        let listener = listener();
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let request = ListEventsRequest {
            follow: true,
            cursor: "after 7".to_owned(),
            ..ListEventsRequest::default()
        };
        let options = ReaderOptions {
            silence_max: Duration::from_millis(50),
            give_up_after: Duration::from_millis(100),
        };
        let mut reader = Reader::connect(&url, request, options).expect("valid");
        let error = reader.next().await.expect_err("nobody answers");
        assert!(matches!(error, ReadError::GaveUp { .. }), "{error}");
        assert_eq!(reader.cursor(), "after 7");
    }
}

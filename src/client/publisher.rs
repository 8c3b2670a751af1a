//! A publisher that resends until its events are durable: the handle, and the acks it returns.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    endpoint,
    window::{PublisherOptions, Window},
    worker::{Command, PublishError, Unacked, Worker},
};
use crate::{grpc::wire::RawPublishRequest, proto::v1};

/// Publishes events over one StreamingPublish stream until they are durable.
///
/// When the stream breaks, the publisher reconnects, waiting longer each time, and resends the unacknowledged
/// requests, in order and before anything new. The server drops events it has already stored, so nothing is
/// stored twice; but if the first attempt stored an event and its ack was lost, its outcome is
/// `OUTCOME_DUPLICATE`.
///
/// Clones share the stream and the window. When the last one is dropped, the requests sent so far are still
/// published as long as the runtime lives; only [`finish`](Self::finish) confirms that they were.
#[derive(Clone, Debug)]
pub struct Publisher {
    commands: mpsc::Sender<Command>,
    window: Window,
    ended: Ended,
}

impl Publisher {
    /// Makes a publisher for `server`, `http://host:port`. Connects when there is something to send.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(server: &str, options: PublisherOptions) -> Result<Self, PublishError> {
        let endpoint = endpoint(server)?;
        let window = Window::new(&options);
        let (commands, queue) = mpsc::channel(window.requests_max);
        let (end, ended) = watch::channel(None);
        let worker = Worker::new(endpoint, server, &options, queue, window.clone());
        tokio::spawn(worker.run(end));
        Ok(Self {
            commands,
            window,
            ended: Ended(ended),
        })
    }

    /// Sends `events` as one request, waiting while the window is full. Encoded, a request may have
    /// 4 MiB (`serve --max-request-bytes`).
    ///
    /// Dropped before it is ready, it has sent nothing. The [`PendingAck`] need not be awaited: the
    /// request is resent until acked anyway.
    pub async fn send(&self, events: Vec<v1::Event>) -> Result<PendingAck, PublishError> {
        let event_count = events.len();
        let encoded = Bytes::from(v1::StreamingPublishRequest { events }.encode_to_vec());
        let Some(permits) = self.window.enter(encoded.len()).await else {
            return Err(self.ended.reason());
        };
        let (ack, outcomes) = oneshot::channel();
        let request = Unacked {
            encoded: RawPublishRequest(encoded),
            event_count,
            ack,
            permits,
        };
        match self.commands.send(Command::Send(request)).await {
            Ok(()) => Ok(PendingAck {
                outcomes,
                ended: self.ended.clone(),
            }),
            Err(_) => Err(self.ended.reason()),
        }
    }

    /// Sends nothing more, waits until everything sent by this publisher and its clones is acked, and
    /// closes the stream.
    pub async fn finish(mut self) -> Result<(), PublishError> {
        // A closed queue means that the publisher has already ended.
        let _ = self.commands.send(Command::Finish).await;
        match self.ended.0.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Err(PublishError::Finished)),
            Err(_) => Err(PublishError::Finished),
        }
    }
}

/// The future ack of one request: one outcome per event, in the order of its events.
///
/// An error means that the publisher failed; see [`PublishError`].
#[derive(Debug)]
#[must_use = "only the outcomes show whether the events were stored or rejected"]
pub struct PendingAck {
    outcomes: oneshot::Receiver<Vec<v1::EventOutcome>>,
    ended: Ended,
}

impl Future for PendingAck {
    type Output = Result<Vec<v1::EventOutcome>, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcomes = ready!(Pin::new(&mut self.outcomes).poll(cx));
        Poll::Ready(outcomes.map_err(|_| self.ended.reason()))
    }
}

/// The result of the publisher, once it has ended.
#[derive(Clone, Debug)]
struct Ended(watch::Receiver<Option<Result<(), PublishError>>>);

impl Ended {
    /// Why nothing can be sent any more.
    fn reason(&self) -> PublishError {
        match &*self.0.borrow() {
            Some(Err(error)) => error.clone(),
            Some(Ok(())) | None => PublishError::Finished,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tonic::{Code, Status};

    use super::*;
    use crate::client::fake::{Fake, PublishCall, listener};

    fn event(event_id: &str) -> v1::Event {
        v1::Event {
            topic: "t".to_owned(),
            event_id: event_id.to_owned(),
            ..v1::Event::default()
        }
    }

    async fn send(publisher: &Publisher, event_id: &str) -> PendingAck {
        let sent = publisher.send(vec![event(event_id)]).await;
        sent.expect("a working publisher")
    }

    async fn expect(call: &mut PublishCall, event_id: &str) {
        assert_eq!(call.next().await, Some(vec![event(event_id)]));
    }

    async fn sequence(ack: PendingAck) -> u64 {
        ack.await.expect("acked")[0].sequence
    }

    fn impatient() -> PublisherOptions {
        PublisherOptions {
            ack_timeout: Duration::from_millis(100),
            give_up_after: Duration::from_millis(200),
            ..PublisherOptions::default()
        }
    }

    #[tokio::test]
    async fn unacked_events_of_a_broken_stream_are_resent_in_order() {
        let mut fake = Fake::start();
        let publisher = Publisher::connect(&fake.url, PublisherOptions::default()).expect("valid");
        let [a, b, c] = [
            send(&publisher, "a").await,
            send(&publisher, "b").await,
            send(&publisher, "c").await,
        ];
        let mut call = fake.publish_call().await;
        for event_id in ["a", "b", "c"] {
            expect(&mut call, event_id).await;
        }
        call.ack(1).await;
        assert_eq!(sequence(a).await, 1);
        call.fail(Status::unavailable("stopping")).await;

        let d = send(&publisher, "d").await;
        let mut call = fake.publish_call().await;
        for (event_id, sequence) in [("b", 2), ("c", 3), ("d", 4)] {
            expect(&mut call, event_id).await;
            call.ack(sequence).await;
        }
        assert_eq!(
            [sequence(b).await, sequence(c).await, sequence(d).await],
            [2, 3, 4]
        );
        let finish = tokio::spawn(publisher.finish());
        assert_eq!(call.next().await, None);
        drop(call);
        finish.await.expect("no panic").expect("all acked");
    }

    #[tokio::test]
    async fn a_killed_server_is_awaited() {
        let listener = listener();
        let mut fake = Fake::on(&listener);
        let publisher = Publisher::connect(&fake.url, PublisherOptions::default()).expect("valid");
        let ack = send(&publisher, "a").await;
        expect(&mut fake.publish_call().await, "a").await;
        drop(fake);

        let mut fake = Fake::on(&listener);
        let mut call = fake.publish_call().await;
        expect(&mut call, "a").await;
        call.ack(1).await;
        assert_eq!(sequence(ack).await, 1);
    }

    #[tokio::test]
    async fn finish_waits_for_the_acks_of_all_clones() {
        let mut fake = Fake::start();
        let publisher = Publisher::connect(&fake.url, PublisherOptions::default()).expect("valid");
        let clone = publisher.clone();
        drop(send(&clone, "a").await);
        let mut call = fake.publish_call().await;
        let mut finish = Box::pin(publisher.finish());
        assert!((&mut finish).now_or_never().is_none());
        expect(&mut call, "a").await;
        assert_eq!(call.next().await, None);
        assert!((&mut finish).now_or_never().is_none());
        call.ack(1).await;
        drop(call);
        finish.await.expect("all acked");
        let late = clone.send(vec![event("b")]).await;
        assert!(matches!(late, Err(PublishError::Finished)));
    }

    #[tokio::test]
    async fn a_full_window_holds_senders_back() {
        let mut fake = Fake::start();
        let large = v1::StreamingPublishRequest {
            events: vec![event("a")],
        };
        let options = PublisherOptions {
            requests_in_flight_max: 2,
            ..PublisherOptions::default()
        };
        let few_bytes = PublisherOptions {
            bytes_in_flight_max: u32::try_from(2 * large.encoded_len()).expect("small"),
            ..PublisherOptions::default()
        };
        for options in [options, few_bytes] {
            let publisher = Publisher::connect(&fake.url, options).expect("valid");
            let a = send(&publisher, "a").await;
            drop(send(&publisher, "b").await);
            let mut third = Box::pin(publisher.send(vec![event("c")]));
            assert!((&mut third).now_or_never().is_none());
            let mut call = fake.publish_call().await;
            call.ack(1).await;
            assert_eq!(sequence(a).await, 1);
            drop(third.await.expect("room"));
        }
    }

    #[tokio::test]
    async fn a_permanent_error_fails_everything() {
        let mut fake = Fake::start();
        let publisher = Publisher::connect(&fake.url, PublisherOptions::default()).expect("valid");
        let [a, b] = [send(&publisher, "a").await, send(&publisher, "b").await];
        let call = fake.publish_call().await;
        call.fail(Status::data_loss("log 7, offset 9")).await;
        for ack in [a, b] {
            let error = ack.await.expect_err("refused");
            let PublishError::Refused { server, cause } = error else {
                panic!("{error}");
            };
            assert_eq!(*server, *fake.url);
            assert_eq!(cause.status().code(), Code::DataLoss);
            assert_eq!(cause.to_string(), "DataLoss: log 7, offset 9");
        }
        let late = publisher.send(vec![event("c")]).await;
        assert!(matches!(late, Err(PublishError::Refused { .. })));
        let finished = publisher.finish().await;
        assert!(matches!(finished, Err(PublishError::Refused { .. })));
    }

    #[tokio::test]
    async fn acks_out_of_count_are_not_believed() {
        let mut fake = Fake::start();
        for (acknowledged_requests, outcomes) in [(2, 1), (1, 2), (1, 0)] {
            let publisher =
                Publisher::connect(&fake.url, PublisherOptions::default()).expect("valid");
            let ack = send(&publisher, "a").await;
            let mut call = fake.publish_call().await;
            let outcomes = vec![v1::EventOutcome::default(); outcomes];
            call.answer(acknowledged_requests, outcomes).await;
            let error = ack.await.expect_err("out of count");
            assert!(matches!(error, PublishError::Protocol { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn gives_up_on_a_server_that_never_acks() {
        // The system accepts connections, and nothing replies.
        let listener = listener();
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let publisher = Publisher::connect(&url, impatient()).expect("valid");
        let ack = send(&publisher, "a").await;
        let error = ack.await.expect_err("nobody answers");
        assert_eq!(
            error.to_string(),
            format!(
                "gave up on {url} after 0.2 s without an ack: DeadlineExceeded: no ack for 0.1 s"
            )
        );
        assert!(publisher.finish().await.is_err());
    }

    #[tokio::test]
    async fn gives_up_on_a_full_disk_that_stays_full() {
        let mut fake = Fake::start();
        let publisher = Publisher::connect(&fake.url, impatient()).expect("valid");
        let mut ack = send(&publisher, "a").await;
        let error = loop {
            tokio::select! {
                call = fake.publish_call() => {
                    call.fail(Status::resource_exhausted("the disk is full")).await;
                }
                acked = &mut ack => break acked.expect_err("never stored"),
            }
        };
        assert!(
            error
                .to_string()
                .ends_with("ResourceExhausted: the disk is full")
        );
    }
}

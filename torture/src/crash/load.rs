//! Load: publishers that send new events, resends and conflicts, and remember every ack.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use fastrand::Rng;
use oncelog::{
    client::{PendingAck, PublishError, Publisher, PublisherOptions},
    proto::v1::{Event, PublishRequest},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Code, Status};

use super::memory::{Memory, Sent};
use crate::{Result, client::connect, event::Events};

/// Requests that a stream has in flight.
const IN_FLIGHT: usize = 16;
/// How long a call that is made only once may take.
const CALL_MAX: Duration = Duration::from_secs(30);
/// The most requests of one client-streaming call.
const CALL_REQUESTS_MAX: usize = 5;
/// How long the client-streaming publisher waits after a refusal.
const REFUSED_WAIT: Duration = Duration::from_millis(20);

/// Where to publish, and the memory of it.
#[derive(Clone)]
pub struct Target {
    pub address: String,
    pub events: Events,
    pub memory: Arc<Memory>,
}

/// The shape of the load.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// StreamingPublish streams; another publisher calls Publish again and again.
    pub streams: usize,
    /// The most events of a request.
    pub request_events_max: usize,
    /// Once this many events are known, only resends are sent.
    pub new_to: u64,
    /// How long publishers keep trying after a break without an ack.
    pub give_up_after: Duration,
}

/// Publishers at work.
pub struct Load {
    tasks: JoinSet<Result<Option<PublishError>>>,
    stop: watch::Sender<bool>,
}

impl Load {
    /// Starts them.
    pub fn start(target: &Target, shape: Shape, random: &mut Rng) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for _ in 0..shape.streams {
            let (target, random) = (target.clone(), random.fork());
            tasks.spawn(stream(target, shape, random, stopped.clone()));
        }
        tasks.spawn(call_again(target.clone(), shape, random.fork(), stopped));
        Self { tasks, stop }
    }

    /// Ends the load, waits for the last acks, and returns why streams broke. An error is a broken promise.
    pub async fn finish(mut self) -> Result<Vec<PublishError>> {
        self.stop.send_replace(true);
        let mut breaks = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            breaks.extend(ended??);
        }
        Ok(breaks)
    }

    /// Ends the load, in which no stream may have broken.
    pub async fn finish_whole(self) -> Result<()> {
        match self.finish().await?.first() {
            Some(error) => {
                Err(format!("a publisher that resends did not get through: {error}").into())
            }
            None => Ok(()),
        }
    }
}

impl Target {
    /// The events of a request.
    pub fn make(&self, request: &[Sent]) -> Vec<Event> {
        let make = |sent: &Sent| match sent {
            Sent::Event { number, content } => self.events.make(*number, *content),
            Sent::Invalid => Event::default(),
        };
        request.iter().map(make).collect()
    }

    /// Publishes events over a stream in requests of `request_events`, and waits for all acks.
    pub async fn publish(
        &self,
        events: &[Sent],
        request_events: usize,
    ) -> Result<(), PublishFailed> {
        let publisher = Publisher::connect(&self.address, options(CALL_MAX))?;
        let mut waiting = Waiting::default();
        for request in events.chunks(request_events) {
            let ack = publisher.send(self.make(request)).await?;
            waiting.push(request.to_vec(), ack);
            waiting.take(&self.memory, IN_FLIGHT).await?;
        }
        waiting.take(&self.memory, 0).await?;
        Ok(publisher.finish().await?)
    }

    /// Makes one Publish call, and remembers its ack.
    pub async fn call(&self, requests: Vec<Vec<Sent>>) -> Result<Result<(), Status>> {
        let made: Vec<_> = requests
            .iter()
            .map(|request| PublishRequest {
                events: self.make(request),
            })
            .collect();
        let sent = requests.concat();
        let call = async {
            connect(&self.address)
                .await?
                .publish(tokio_stream::iter(made))
                .await
        };
        let totals = match timeout(CALL_MAX, call).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ok(Err(status)),
            Err(_) => {
                return Err(format!(
                    "a Publish call has no answer after {} s",
                    CALL_MAX.as_secs()
                )
                .into());
            }
        };
        let received = sent.len() as u64;
        if totals.received != received
            || totals.unique_processed + totals.duplicate_dropped != received
        {
            return Err(format!("a Publish call of {received} events got {totals:?}").into());
        }
        self.memory.acked_in_all(&sent);
        Ok(Ok(()))
    }
}

/// Why publishing over a stream failed.
#[derive(Debug)]
pub enum PublishFailed {
    /// The stream broke.
    Broke(PublishError),
    /// An ack breaks a promise.
    Promise(crate::Error),
}

impl From<PublishFailed> for crate::Error {
    fn from(failed: PublishFailed) -> Self {
        match failed {
            PublishFailed::Broke(error) => error.into(),
            PublishFailed::Promise(error) => error,
        }
    }
}

impl From<PublishError> for PublishFailed {
    fn from(error: PublishError) -> Self {
        Self::Broke(error)
    }
}

impl From<crate::Error> for PublishFailed {
    fn from(error: crate::Error) -> Self {
        Self::Promise(error)
    }
}

/// Requests that wait for their acks.
#[derive(Default)]
struct Waiting(VecDeque<(Vec<Sent>, PendingAck)>);

impl Waiting {
    fn push(&mut self, request: Vec<Sent>, ack: PendingAck) {
        self.0.push_back((request, ack));
    }

    /// Remembers acks until at most `max` are outstanding.
    async fn take(&mut self, memory: &Memory, max: usize) -> Result<(), PublishFailed> {
        while self.0.len() > max {
            let Some((request, ack)) = self.0.pop_front() else {
                return Ok(());
            };
            memory.acked(&request, &ack.await?)?;
        }
        Ok(())
    }
}

fn options(give_up_after: Duration) -> PublisherOptions {
    PublisherOptions {
        requests_in_flight_max: IN_FLIGHT,
        give_up_after,
        ..PublisherOptions::default()
    }
}

/// Publishes until it is stopped. Returns why the stream broke, if it did.
async fn stream(
    target: Target,
    shape: Shape,
    mut random: Rng,
    stopped: watch::Receiver<bool>,
) -> Result<Option<PublishError>> {
    let publisher = Publisher::connect(&target.address, options(shape.give_up_after))?;
    let mut waiting = Waiting::default();
    let publish = async {
        while !*stopped.borrow() {
            let events = random.usize(1..=shape.request_events_max);
            let request = target.memory.draw(&mut random, events, shape.new_to);
            let ack = publisher.send(target.make(&request)).await?;
            waiting.push(request, ack);
            waiting.take(&target.memory, IN_FLIGHT - 1).await?;
        }
        Ok(())
    };
    let published: Result<(), PublishFailed> = publish.await;
    // Events acked before a break are promised as well.
    let rest = loop {
        match waiting.take(&target.memory, 0).await {
            Err(PublishFailed::Broke(_)) if !waiting.0.is_empty() => {}
            rest => break rest,
        }
    };
    for ended in [published, rest] {
        match ended {
            Ok(()) => {}
            Err(PublishFailed::Broke(error)) => return allowed(error).map(Some),
            Err(PublishFailed::Promise(error)) => return Err(error),
        }
    }
    match publisher.finish().await {
        Ok(()) => Ok(None),
        Err(error) => allowed(error).map(Some),
    }
}

/// A server may go away or be unable to store; it may not refuse valid events.
fn allowed(error: PublishError) -> Result<PublishError> {
    match error {
        PublishError::GaveUp { .. } => Ok(error),
        PublishError::InvalidEndpoint(_)
        | PublishError::Refused { .. }
        | PublishError::Protocol { .. }
        | PublishError::Finished => Err(error.into()),
    }
}

/// Makes Publish calls until it is stopped.
async fn call_again(
    target: Target,
    shape: Shape,
    mut random: Rng,
    stopped: watch::Receiver<bool>,
) -> Result<Option<PublishError>> {
    while !*stopped.borrow() {
        let requests = (0..random.usize(1..=CALL_REQUESTS_MAX)).map(|_| {
            let events = random.usize(1..=shape.request_events_max);
            let mut request = target.memory.draw(&mut random, events, shape.new_to);
            request.retain(|sent| *sent != Sent::Invalid);
            request
        });
        let requests = requests.collect();
        if let Err(status) = target.call(requests).await? {
            check_refusal(&status)?;
            sleep(REFUSED_WAIT).await;
        }
    }
    Ok(None)
}

/// Whether a valid call may fail with this status, when a server goes away or cannot store.
pub fn check_refusal(status: &Status) -> Result<()> {
    let is_away = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
    // How a cut connection looks to the library. The server's own errors have details.
    let is_cut = matches!(
        status.code(),
        Code::Unknown | Code::Cancelled | Code::Internal
    ) && status.details().is_empty();
    if is_away || is_cut {
        return Ok(());
    }
    Err(format!("a valid call was refused: {status:?}").into())
}

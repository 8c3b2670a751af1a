//! Readers that follow across restarts: from their cursor, without gap or repeat.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use oncelog::{
    client::{ReadError, Reader, ReaderOptions},
    proto::v1::{ListEventsRequest, ListEventsResponse},
};
use tokio::{task::JoinHandle, time::Instant};

use super::load::Target;
use crate::Result;

/// How long a reader may take to reach the end of the log.
const CATCH_UP_MAX: Duration = Duration::from_secs(20);
/// How long it continues after its server has gone.
const GIVE_UP_AFTER: Duration = Duration::from_millis(10);
const POLL: Duration = Duration::from_millis(2);

/// A reader of one topic or of all.
pub struct Follower {
    state: State,
    /// Where it is, while it runs: it ends with its server, and returns its position.
    running: Option<JoinHandle<Result<State>>>,
}

#[derive(Clone)]
struct State {
    /// Empty for all topics.
    topic: String,
    cursor: String,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    events: AtomicU64,
    /// The sequence of the last.
    last: AtomicU64,
}

impl Follower {
    /// A reader that starts at the first event.
    pub fn new(topic: String) -> Self {
        let state = State {
            topic,
            cursor: String::new(),
            seen: Arc::default(),
        };
        Self {
            state,
            running: None,
        }
    }

    /// Continues where it was.
    pub fn resume(&mut self, target: &Target) -> Result<()> {
        let request = ListEventsRequest {
            topic: self.state.topic.clone(),
            cursor: self.state.cursor.clone(),
            follow: true,
            ..ListEventsRequest::default()
        };
        let options = ReaderOptions {
            give_up_after: GIVE_UP_AFTER,
            ..ReaderOptions::default()
        };
        let reader = Reader::connect(&target.address, request, options)?;
        let follow = follow(self.state.clone(), reader, target.clone());
        self.running = Some(tokio::spawn(follow));
        Ok(())
    }

    /// Waits for its end, after its server has gone. An error is a broken promise.
    pub async fn pause(&mut self) -> Result<()> {
        if let Some(running) = self.running.take() {
            self.state = running.await??;
        }
        Ok(())
    }

    /// Waits until it has seen the event `last`, which must be the `events`th.
    pub async fn catch_up(&mut self, events: u64, last: u64) -> Result<()> {
        let deadline = Instant::now() + CATCH_UP_MAX;
        let seen = &self.state.seen;
        while seen.last.load(Relaxed) < last && Instant::now() < deadline {
            if self.running.as_ref().is_some_and(JoinHandle::is_finished) {
                self.pause().await?;
                return Err("a reader that follows has ended while the server runs".into());
            }
            tokio::time::sleep(POLL).await;
        }
        let (seen_events, seen_last) = (seen.events.load(Relaxed), seen.last.load(Relaxed));
        if (seen_events, seen_last) != (events, last) {
            return Err(format!(
                "a reader of topic {:?} that follows has seen {seen_events} events, the last at {seen_last}; \
                 there are {events}, the last at {last}",
                self.state.topic
            )
            .into());
        }
        Ok(())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

/// Reads until the server goes.
async fn follow(mut state: State, mut reader: Reader, target: Target) -> Result<State> {
    loop {
        let response = match reader.next().await {
            Ok(Some(response)) => response,
            Ok(None) => return Err("a list that follows has ended".into()),
            Err(ReadError::GaveUp { .. }) => return Ok(state),
            Err(error) => return Err(error.into()),
        };
        state.take(response, &target)?;
    }
}

impl State {
    fn take(&mut self, response: ListEventsResponse, target: &Target) -> Result<()> {
        for stored in response.events {
            let event = stored.event.ok_or("a stored event without event")?;
            let (number, content) = target.events.read(&event)?;
            let last = self.seen.last.load(Relaxed);
            let follows = match &*self.topic {
                "" => stored.sequence == last + 1,
                topic => stored.sequence > last && event.topic == topic,
            };
            if !follows {
                return Err(format!(
                    "a reader of topic {:?} was sent sequence {} of topic {:?} after {last}",
                    self.topic, stored.sequence, event.topic
                )
                .into());
            }
            target.memory.read(stored.sequence, number, content)?;
            self.seen.events.fetch_add(1, Relaxed);
            self.seen.last.store(stored.sequence, Relaxed);
        }
        self.cursor = response.cursor;
        Ok(())
    }
}

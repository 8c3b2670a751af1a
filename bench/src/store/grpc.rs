//! A lean client of `oncelog.v1.AggregatorService`.
//!
//! Requests are framed once, in the buffer to be sent; of responses it reads only the relevant fields. A
//! client that built messages of both would use more of the two cores than the server.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use futures_util::stream::unfold;
use http::{Request, Response, Uri, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::sync::Semaphore;
use tonic::{
    Status,
    body::Body,
    client::GrpcService as _,
    transport::{Channel, Endpoint},
};

use super::{Seen, Stream};
use crate::{
    Result,
    event::{Events, put_varint},
    plan::Plan,
    recorder::Recorder,
    wire::{Messages, PREFIX_LEN, Sink, Value, take_field},
};

const SERVICE: &str = "oncelog.v1.AggregatorService";
/// Flow control: how much the server may send before it is read.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// The field of a request that holds its events: `repeated Event events = 1`.
const EVENTS_TAG: u8 = 1 << 3 | 2;

const OUTCOME_STORED: u64 = 1;
const OUTCOME_DUPLICATE: u64 = 2;

/// One connection to a server.
pub struct GrpcStream {
    channel: Channel,
    address: String,
    events: Arc<Events>,
}

impl GrpcStream {
    pub async fn connect(address: &str, events: Arc<Events>) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(Self {
            channel: endpoint.connect().await?,
            address: address.to_owned(),
            events,
        })
    }

    async fn call(&mut self, method: &str, body: Body) -> Result<Response<Body>> {
        let uri: Uri = format!("http://{}/{SERVICE}/{method}", self.address).parse()?;
        let request = Request::post(uri)
            .header(CONTENT_TYPE, "application/grpc")
            .header("te", "trailers")
            .body(body)?;
        std::future::poll_fn(|context| self.channel.poll_ready(context)).await?;
        Ok(self.channel.call(request).await?)
    }
}

#[tonic::async_trait]
impl Stream for GrpcStream {
    async fn publish(&mut self, plan: Plan, recorder: Arc<Recorder>) -> Result<()> {
        let load = plan.load;
        let acks = Arc::new(Acks {
            window: Semaphore::new(load.in_flight),
            sent: Mutex::default(),
        });
        let sender = Sender {
            plan,
            numbers: Vec::with_capacity(load.batch),
            acks: Arc::clone(&acks),
            events: Arc::clone(&self.events),
        };
        let body = unfold(sender, |mut sender| async {
            let request = sender.next().await?;
            Some((Ok::<_, Status>(Frame::data(request)), sender))
        });
        let response = self.call("StreamingPublish", Body::new(StreamBody::new(body)));
        let mut totals = Totals {
            acks,
            recorder,
            events: 0,
            stored: 0,
        };
        receive(response.await?, &mut totals).await?;
        match totals.acks.sent().len() {
            0 => Ok(()),
            unacked => Err(format!("{unacked} requests were not acknowledged").into()),
        }
    }

    async fn read(&mut self, topic: Option<usize>, seen: &mut Seen) -> Result<()> {
        let mut request = Vec::new();
        if let Some(topic) = topic {
            // `string topic = 1`.
            let topic = self.events.topics()[topic].as_bytes();
            request.push(1 << 3 | 2);
            put_varint(&mut request, topic.len() as u64);
            request.extend_from_slice(topic);
        }
        let mut framed = vec![0; PREFIX_LEN];
        framed[1..].copy_from_slice(&u32::try_from(request.len())?.to_be_bytes());
        framed.extend_from_slice(&request);
        let body = Body::new(Full::new(Bytes::from(framed)));
        let response = self.call("ListEvents", body).await?;
        receive(response, &mut Listed { seen }).await
    }
}

/// Requests sent and not acknowledged.
struct Acks {
    window: Semaphore,
    sent: Mutex<VecDeque<(Instant, usize)>>,
}

impl Acks {
    fn sent(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, usize)>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Builds requests as the window opens.
struct Sender {
    plan: Plan,
    numbers: Vec<u64>,
    acks: Arc<Acks>,
    events: Arc<Events>,
}

impl Sender {
    async fn next(&mut self) -> Option<Bytes> {
        self.acks.window.acquire().await.ok()?.forget();
        self.plan.next(&mut self.numbers);
        if self.numbers.is_empty() {
            return None;
        }
        let request = frame(&self.events, &self.numbers);
        self.acks
            .sent()
            .push_back((Instant::now(), self.numbers.len()));
        Some(request)
    }
}

/// A framed publish request.
pub fn frame(events: &Events, numbers: &[u64]) -> Bytes {
    let mut tag = vec![EVENTS_TAG];
    put_varint(&mut tag, events.encoded_len() as u64);
    let len = numbers.len() * (tag.len() + events.encoded_len());
    let mut request = Vec::with_capacity(PREFIX_LEN + len);
    request.push(0);
    request.extend_from_slice(&(len as u32).to_be_bytes());
    for number in numbers {
        request.extend_from_slice(&tag);
        events.put(*number, &mut request);
    }
    request.into()
}

/// Counts the responses of a StreamingPublish.
struct Totals {
    acks: Arc<Acks>,
    recorder: Arc<Recorder>,
    /// Of the current response.
    events: u64,
    stored: u64,
}

impl Sink for Totals {
    fn field(&mut self, number: u64, value: Value<'_>) -> Result<()> {
        // `repeated EventOutcome outcomes = 2`.
        if let (2, Value::Bytes(mut ack)) = (number, value) {
            // `Outcome outcome = 1`.
            match take_field(&mut ack)? {
                Some((1, Value::Varint(OUTCOME_STORED))) => self.stored += 1,
                Some((1, Value::Varint(OUTCOME_DUPLICATE))) => {}
                outcome => return Err(format!("an outcome of {outcome:?}").into()),
            }
            self.events += 1;
        }
        Ok(())
    }

    fn message_end(&mut self) -> Result<()> {
        let sent = self.acks.sent().pop_front();
        let (sent, events) = sent.ok_or("an answer to no request")?;
        if events as u64 != self.events {
            return Err(format!("{} outcomes for {events} events", self.events).into());
        }
        self.recorder
            .acked(self.events, self.stored, sent.elapsed());
        (self.events, self.stored) = (0, 0);
        self.acks.window.add_permits(1);
        Ok(())
    }
}

/// Reads the responses of a ListEvents.
struct Listed<'a> {
    seen: &'a mut Seen,
}

impl Sink for Listed<'_> {
    fn field(&mut self, number: u64, value: Value<'_>) -> Result<()> {
        // `repeated StoredEvent events = 1`, each with `Event event = 1`.
        let (1, Value::Bytes(mut stored)) = (number, value) else {
            return Ok(());
        };
        let Some((1, Value::Bytes(mut event))) = take_field(&mut stored)? else {
            return Err("a stored event without its event".into());
        };
        let (topic, id) = (take_field(&mut event)?, take_field(&mut event)?);
        let (Some((1, Value::Bytes(topic))), Some((2, Value::Bytes(id)))) = (topic, id) else {
            return Err("an event without its key".into());
        };
        self.seen.take(topic, id, event)
    }

    fn message_end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Passes the messages of a response to `sink`, and fails unless it ends with status OK.
async fn receive(response: Response<Body>, sink: &mut impl Sink) -> Result<()> {
    let (head, mut body) = response.into_parts();
    // A response without messages has its status in its head.
    let mut status = Status::from_header_map(&head.headers);
    let mut messages = Messages::default();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => messages.feed(&data, sink)?,
            Err(frame) => {
                status = frame
                    .trailers_ref()
                    .and_then(Status::from_header_map)
                    .or(status);
            }
        }
    }
    match status {
        Some(status) if status.code() == tonic::Code::Ok && messages.is_between_messages() => {
            Ok(())
        }
        Some(status) if status.code() != tonic::Code::Ok => Err(status.into()),
        Some(_) | None => Err("the answer was cut".into()),
    }
}

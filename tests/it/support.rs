//! Servers, clients and events for the tests.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use oncelog::{
    event::Sequence,
    proto::v1::{self, aggregator_service_client::AggregatorServiceClient},
    server::{Server, ServerError, ServerOptions},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

pub type Client = AggregatorServiceClient<Channel>;

/// A data directory that lives as long as the test.
#[derive(Clone)]
pub struct DataDir(Arc<TempDir>);

impl DataDir {
    pub fn new() -> Self {
        Self(Arc::new(tempfile::tempdir().expect("a directory")))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The files of the log, in order.
    pub fn segments(&self) -> Vec<PathBuf> {
        files(&self.path().join("log"), |name| name.ends_with(".log"))
    }

    /// The folders of the generations, in order.
    pub fn generations(&self) -> Vec<PathBuf> {
        files(&self.path().join("index"), |name| !name.contains('.'))
    }

    pub fn options(&self) -> ServerOptions {
        ServerOptions::new(self.path())
    }
}

fn files(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = paths
        .filter(|path| is_wanted(&path.file_name().expect("a name").to_string_lossy()))
        .collect();
    paths.sort();
    paths
}

/// A server in this process.
pub struct TestServer {
    pub data_dir: DataDir,
    pub server: Server,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_in(DataDir::new()).await
    }

    pub async fn start_in(data_dir: DataDir) -> Self {
        let options = data_dir.options();
        Self::start_with(data_dir, options).await
    }

    pub async fn start_with(data_dir: DataDir, options: ServerOptions) -> Self {
        Self::try_start(data_dir, options).await.expect("started")
    }

    pub async fn try_start(data_dir: DataDir, options: ServerOptions) -> Result<Self, ServerError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = Server::start(listener, options).await?;
        Ok(Self { data_dir, server })
    }

    pub async fn stop(self) -> DataDir {
        self.server.stop().await.expect("stopped in order");
        self.data_dir
    }

    pub async fn restart(self) -> Self {
        Self::start_in(self.stop().await).await
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(self.endpoint()).expect("an address");
        endpoint.connect().await.expect("connected")
    }

    pub async fn client(&self) -> Client {
        Client::new(self.channel().await).max_decoding_message_size(16 << 20)
    }
}

/// A valid event without payload.
pub fn event(topic: &str, event_id: impl ToString) -> v1::Event {
    v1::Event {
        topic: topic.to_owned(),
        event_id: event_id.to_string(),
        timestamp: Some(prost_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 5,
        }),
        source: "test".to_owned(),
        payload: None,
        attributes: BTreeMap::new(),
    }
}

/// Many valid events of one topic.
pub fn events(topic: &str, ids: impl IntoIterator<Item = u64>) -> Vec<v1::Event> {
    ids.into_iter().map(|id| event(topic, id)).collect()
}

/// An event with a payload.
pub fn event_with_data(topic: &str, event_id: impl ToString, data: Vec<u8>) -> v1::Event {
    v1::Event {
        payload: Some(v1::event::Payload::Data(data.into())),
        ..event(topic, event_id)
    }
}

/// Publishes requests on one Publish stream.
pub async fn try_publish(
    client: &mut Client,
    requests: Vec<Vec<v1::Event>>,
) -> Result<v1::PublishResponse, Status> {
    let requests = requests
        .into_iter()
        .map(|events| v1::PublishRequest { events });
    let response = client.publish(tokio_stream::iter(requests)).await?;
    Ok(response.into_inner())
}

/// Publishes events in one request.
pub async fn publish(client: &mut Client, events: Vec<v1::Event>) -> v1::PublishResponse {
    try_publish(client, vec![events]).await.expect("published")
}

/// A StreamingPublish that is driven step by step.
pub struct PublishStream {
    pub requests: mpsc::Sender<v1::StreamingPublishRequest>,
    pub responses: Streaming<v1::StreamingPublishResponse>,
}

impl PublishStream {
    pub async fn open(client: &mut Client) -> Self {
        let (requests, rx) = mpsc::channel(16);
        let responses = client.streaming_publish(ReceiverStream::new(rx)).await;
        Self {
            requests,
            responses: responses.expect("opened").into_inner(),
        }
    }

    pub async fn send(&self, events: Vec<v1::Event>) {
        let request = v1::StreamingPublishRequest { events };
        self.requests.send(request).await.expect("open");
    }

    pub async fn receive(&mut self) -> Result<Option<v1::StreamingPublishResponse>, Status> {
        self.responses.message().await
    }

    /// Sends a request and returns the outcomes of its events.
    pub async fn publish(&mut self, events: Vec<v1::Event>) -> Vec<(v1::Outcome, Sequence)> {
        self.send(events).await;
        let response = self.receive().await.expect("alive").expect("a response");
        outcomes(&response)
    }
}

pub fn outcomes(response: &v1::StreamingPublishResponse) -> Vec<(v1::Outcome, Sequence)> {
    let outcomes = response.outcomes.iter();
    outcomes
        .map(|told| (told.outcome(), told.sequence))
        .collect()
}

pub fn list_request(topic: &str) -> v1::ListEventsRequest {
    v1::ListEventsRequest {
        topic: topic.to_owned(),
        ..v1::ListEventsRequest::default()
    }
}

/// All responses of a ListEvents that ends.
pub async fn list_responses(
    client: &mut Client,
    request: v1::ListEventsRequest,
) -> Vec<v1::ListEventsResponse> {
    assert!(!request.follow, "would not end");
    let mut stream = client
        .list_events(request)
        .await
        .expect("listed")
        .into_inner();
    let mut responses = Vec::new();
    while let Some(response) = stream.message().await.expect("alive") {
        responses.push(response);
    }
    responses
}

/// All events of a topic, or of all.
pub async fn list(client: &mut Client, topic: &str) -> Vec<v1::StoredEvent> {
    let responses = list_responses(client, list_request(topic)).await;
    responses.into_iter().flat_map(|r| r.events).collect()
}

pub fn ids(events: &[v1::StoredEvent]) -> Vec<&str> {
    let events = events.iter().map(|stored| stored.event.as_ref());
    events
        .map(|event| &*event.expect("an event").event_id)
        .collect()
}

pub fn sequences(events: &[v1::StoredEvent]) -> Vec<Sequence> {
    events.iter().map(|stored| stored.sequence).collect()
}

pub async fn stats(client: &mut Client) -> v1::GetStatsResponse {
    let stats = client.get_stats(v1::GetStatsRequest::default()).await;
    stats.expect("stats").into_inner()
}

/// received, unique_processed, duplicate_dropped, conflicts, rejected.
pub async fn counters(client: &mut Client) -> [u64; 5] {
    let stats = stats(client).await;
    let sum = stats.unique_processed + stats.duplicate_dropped + stats.rejected;
    assert_eq!(stats.received, sum, "the counters balance");
    assert!(stats.conflicts <= stats.duplicate_dropped);
    [
        stats.received,
        stats.unique_processed,
        stats.duplicate_dropped,
        stats.conflicts,
        stats.rejected,
    ]
}

pub async fn get_event(
    client: &mut Client,
    topic: &str,
    id: &str,
) -> Result<v1::StoredEvent, Status> {
    let request = v1::GetEventRequest {
        topic: topic.to_owned(),
        event_id: id.to_owned(),
    };
    let response = client.get_event(request).await?.into_inner();
    Ok(response.event.expect("an event"))
}

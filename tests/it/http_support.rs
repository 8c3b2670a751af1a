//! A small HTTP client for the tests.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Counts, PATIENCE, Process, TestServer, patiently};

pub const JSON: (&str, &str) = ("content-type", "application/json");
pub const LINES: (&str, &str) = ("content-type", "application/x-ndjson");
pub const ACCEPT_LINES: (&str, &str) = ("accept", "application/x-ndjson");
pub const ACCEPT_STREAM: (&str, &str) = ("accept", "text/event-stream");

/// The HTTP endpoints of a server. Every request has its own connection.
#[derive(Clone, Copy)]
pub struct Http(pub SocketAddr);

impl From<&TestServer> for Http {
    fn from(server: &TestServer) -> Self {
        Self(server.server.address())
    }
}

impl From<&Process> for Http {
    fn from(process: &Process) -> Self {
        Self(process.address.parse().expect("an address"))
    }
}

/// A complete response.
#[derive(Debug)]
pub struct HttpResponse {
    pub status: StatusCode,
    headers: hyper::HeaderMap,
    pub body: String,
}

impl HttpResponse {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("ASCII"))
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// The body of a response with this status.
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// The only flaw in a response with this status: its place and message.
    pub fn flaw(self, status: u16) -> (Value, String) {
        let body = self.expect(status);
        let [detail] = body["detail"].as_array().expect("a list").as_slice() else {
            panic!("{body}");
        };
        let msg = detail["msg"].as_str().expect("a message");
        (detail["loc"].clone(), msg.to_owned())
    }

    pub fn json_lines(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), "application/x-ndjson");
        let lines = self.body.lines().map(serde_json::from_str);
        lines.map(|line| line.expect("JSON")).collect()
    }
}

impl Http {
    /// Sends a request and returns the response as it starts.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let stream = TcpStream::connect(self.0).await.expect("connected");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in [("host", "test")].iter().chain(headers) {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let response = patiently("an answer", sender.send_request(request)).await;
        response.expect("an answer")
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> HttpResponse {
        let (head, body) = self.open(method, path, headers, body).await.into_parts();
        let body = patiently("the end of the answer", body.collect()).await;
        let body = body.expect("whole").to_bytes();
        HttpResponse {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8(body.into()).expect("UTF-8"),
        }
    }

    pub async fn get(&self, path: &str) -> HttpResponse {
        self.send(Method::GET, path, &[], "").await
    }

    /// All events of a list, as lines.
    pub async fn lines(&self, path: &str) -> Vec<Value> {
        let answer = self.send(Method::GET, path, &[ACCEPT_LINES], "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json_lines()
    }

    pub async fn publish(&self, body: &Value) -> HttpResponse {
        let body = body.to_string();
        self.send(Method::POST, "/publish", &[JSON], body).await
    }

    pub async fn publish_lines(&self, lines: String) -> HttpResponse {
        self.send(Method::POST, "/publish", &[LINES], lines).await
    }

    /// The counters of the server.
    pub async fn counters(&self) -> Counts {
        let stats = self.get("/stats").await.expect(200);
        let counter = |name: &str| stats[name].as_u64().expect("a counter");
        counts_of(&stats)
            .rejected(counter("rejected"))
            .balanced(counter("received"))
    }

    /// Sends raw bytes, and returns everything received until the server closes.
    pub async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.0).await.expect("connected");
        stream.write_all(request).await.expect("sent");
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        // Longer than the server waits for a request.
        let read = tokio::time::timeout(2 * PATIENCE, read).await;
        read.expect("the server closes").expect("read");
        String::from_utf8(answer).expect("UTF-8")
    }
}

/// An event in the form that the original API's publishers send.
pub fn json_event(topic: &str, event_id: impl ToString) -> Value {
    json!({
        "topic": topic,
        "event_id": event_id.to_string(),
        "timestamp": "2026-01-01T12:00:00.5+02:00",
        "source": "test",
        "payload": {"n": 1, "list": [true, null, 0.5, "x"]},
    })
}

pub fn json_lines(events: impl IntoIterator<Item = Value>) -> String {
    let lines = events.into_iter().map(|event| format!("{event}\n"));
    lines.collect()
}

fn counts_of(body: &Value) -> Counts {
    let counter = |name: &str| body[name].as_u64().expect("a counter");
    Counts::new()
        .stored(counter("unique_processed"))
        .duplicates(counter("duplicate_dropped"))
        .conflicts(counter("conflicts"))
}

/// The totals of a published body, all of whose events count as enqueued.
pub fn totals(body: &Value) -> Counts {
    assert_eq!(body["received"], body["enqueued"], "{body}");
    counts_of(body).balanced(body["received"].as_u64().expect("a counter"))
}

pub fn ids(events: &[Value]) -> Vec<&str> {
    let ids = events.iter().map(|event| event["event_id"].as_str());
    ids.map(|id| id.expect("an id")).collect()
}

/// Server-sent events, read as a browser does.
pub struct EventSource {
    body: Incoming,
    arrived: String,
    /// The id of the last event, or of a comment.
    pub last_id: String,
}

impl EventSource {
    pub async fn open(http: Http, path: &str, headers: &[(&str, &str)]) -> Self {
        let headers = [headers, &[ACCEPT_STREAM]].concat();
        let response = http.open(Method::GET, path, &headers, "").await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body(),
            arrived: String::new(),
            last_id: String::new(),
        }
    }

    /// The next event; `None` when the stream ends cleanly.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            while let Some((block, rest)) = self.arrived.split_once("\n\n") {
                let field = |name| block.lines().find_map(|line| line.strip_prefix(name));
                if let Some(id) = field("id: ") {
                    self.last_id = id.to_owned();
                }
                let data = field("data: ").map(str::to_owned);
                self.arrived = rest.to_owned();
                if let Some(data) = data {
                    return Some(serde_json::from_str(&data).expect("JSON"));
                }
            }
            let frame = patiently("server-sent events", self.body.frame()).await?;
            let data = frame.expect("in order").into_data().expect("data");
            self.arrived += std::str::from_utf8(&data).expect("UTF-8");
        }
    }

    /// Reads until the server reports the position of the stream.
    pub async fn caught_up(&mut self) {
        while !self.arrived.contains(": caught up\n") {
            let frame = patiently("server-sent events", self.body.frame()).await;
            let data = frame.expect("open").expect("in order").into_data();
            self.arrived += std::str::from_utf8(&data.expect("data")).expect("UTF-8");
        }
    }

    /// Takes received text that has not been looked at.
    pub fn take_arrived(&mut self) -> String {
        std::mem::take(&mut self.arrived)
    }
}

//! An HTTP/2 connection that respects flow control and nothing else, so that a server accepts all it will.
//!
//! RFC 9113, section 5.2 (flow control) and 6.5.2 (settings).

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use oncelog_harness::frames::{self, Frame, Peer, code, flag, frame, kind};
use tokio::{
    io::AsyncWriteExt as _,
    net::tcp::OwnedWriteHalf,
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// The largest payload of a DATA frame that every server accepts.
const FRAME_BYTES_MAX: usize = 16 * 1024;
/// The window of a connection before its first WINDOW_UPDATE.
const CONNECTION_WINDOW_BYTES: i64 = 65_535;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;
/// The window that a reading peer grants: more than the server sends in a minute.
const WINDOW_MAX: u32 = 0x7fff_ffff;
/// How often a connection that waits for room checks whether it was closed.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How much of the responses is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reads {
    All,
    /// One byte of each stream: the server must keep the part that it has started to send, and builds the
    /// next.
    Byte,
    /// Nothing: the streams have a window of 0, so the server must keep its responses.
    Nothing,
}

/// A connection of many streams. Its reader ends when it is dropped.
pub struct Connection {
    to: OwnedWriteHalf,
    state: Arc<State>,
    reader: JoinHandle<()>,
    next_stream: u32,
}

#[derive(Default)]
struct State {
    windows: Mutex<Windows>,
    changed: Notify,
}

#[derive(Default)]
struct Windows {
    connection: i64,
    initial: i64,
    /// The windows of open streams.
    streams: HashMap<u32, i64>,
    /// Acknowledgements of pings and settings, to be sent.
    answers: Vec<u8>,
    closed: bool,
}

impl State {
    fn windows(&self) -> MutexGuard<'_, Windows> {
        // Nothing between lock and unlock leaves the windows half changed.
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Windows {
    fn take(&mut self, arrived: &Frame) {
        match arrived.kind {
            kind::SETTINGS if arrived.flags & flag::ACK == 0 => {
                for pair in arrived.payload.as_chunks::<6>().0 {
                    let [a, b, value @ ..] = *pair;
                    if u16::from_be_bytes([a, b]) == SETTINGS_INITIAL_WINDOW_SIZE {
                        let initial = i64::from(u32::from_be_bytes(value));
                        let change = initial - self.initial;
                        self.initial = initial;
                        self.streams
                            .values_mut()
                            .for_each(|window| *window += change);
                    }
                }
                self.answers
                    .extend(frame(kind::SETTINGS, flag::ACK, 0, &[]));
            }
            kind::PING if arrived.flags & flag::ACK == 0 => {
                self.answers
                    .extend(frame(kind::PING, flag::ACK, 0, &arrived.payload));
            }
            kind::WINDOW_UPDATE => {
                let bytes = arrived.payload.first_chunk().copied().unwrap_or_default();
                let bytes = i64::from(u32::from_be_bytes(bytes));
                match arrived.stream {
                    0 => self.connection += bytes,
                    stream => {
                        if let Some(window) = self.streams.get_mut(&stream) {
                            *window += bytes;
                        }
                    }
                }
            }
            kind::RST_STREAM => self.end(arrived.stream),
            kind::DATA | kind::HEADERS if arrived.flags & flag::END_STREAM != 0 => {
                self.end(arrived.stream);
            }
            _ => {}
        }
    }

    fn end(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }
}

impl Connection {
    /// Connects, exchanges settings, and reads frames from then on.
    pub async fn open(server: SocketAddr, reads: Reads) -> io::Result<Self> {
        let window = match reads {
            Reads::All => WINDOW_MAX,
            Reads::Byte => 1,
            Reads::Nothing => 0,
        };
        let mut peer = Peer::connect(server).await?;
        let settings = frames::settings(&[(SETTINGS_INITIAL_WINDOW_SIZE, window)]);
        let more = frames::window_update(0, WINDOW_MAX - CONNECTION_WINDOW_BYTES as u32);
        peer.send(&[frames::PREFACE, &settings, &more].concat())
            .await?;
        let state = Arc::new(State::default());
        {
            let mut windows = state.windows();
            windows.connection = CONNECTION_WINDOW_BYTES;
            windows.initial = CONNECTION_WINDOW_BYTES;
        }
        let (mut from, to) = peer.0.into_split();
        let read = Arc::clone(&state);
        let reader = tokio::spawn(async move {
            while let Ok(Some(arrived)) = frames::next(&mut from).await {
                read.windows().take(&arrived);
                read.changed.notify_one();
            }
            read.windows().closed = true;
            read.changed.notify_one();
        });
        Ok(Self {
            to,
            state,
            reader,
            next_stream: 1,
        })
    }

    /// Starts a request with the header `fields`, which is complete if `is_whole`. Returns its stream.
    pub async fn begin(&mut self, fields: &[u8], is_whole: bool) -> io::Result<u32> {
        let stream = self.next_stream;
        self.next_stream += 2;
        {
            let mut windows = self.state.windows();
            let initial = windows.initial;
            windows.streams.insert(stream, initial);
        }
        let flags = flag::END_HEADERS | if is_whole { flag::END_STREAM } else { 0 };
        self.write(&frame(kind::HEADERS, flags, stream, fields))
            .await?;
        Ok(stream)
    }

    /// Sends as much of `body` as there is room for. Returns how much; `None` if the stream has ended.
    pub async fn send(&mut self, stream: u32, body: &[u8]) -> io::Result<Option<usize>> {
        let mut sent = 0;
        while sent < body.len() {
            let bytes = {
                let mut windows = self.state.windows();
                let Some(&window) = windows.streams.get(&stream) else {
                    return Ok(None);
                };
                let room = usize::try_from(window.min(windows.connection)).unwrap_or(0);
                let bytes = room.min(FRAME_BYTES_MAX).min(body.len() - sent);
                windows.connection -= bytes as i64;
                windows
                    .streams
                    .entry(stream)
                    .and_modify(|window| *window -= bytes as i64);
                bytes
            };
            if bytes == 0 {
                break;
            }
            let part = &body[sent..sent + bytes];
            self.write(&frame(kind::DATA, flag::NONE, stream, part))
                .await?;
            sent += bytes;
        }
        Ok(Some(sent))
    }

    /// Half-closes a stream.
    pub async fn end(&mut self, stream: u32) -> io::Result<()> {
        self.write(&frame(kind::DATA, flag::END_STREAM, stream, &[]))
            .await
    }

    /// Resets a stream, unless it has ended.
    pub async fn cancel(&mut self, stream: u32) -> io::Result<()> {
        let is_open = self.state.windows().streams.remove(&stream).is_some();
        match is_open {
            true => self.write(&frames::reset(stream, code::CANCEL)).await,
            false => Ok(()),
        }
    }

    pub fn is_open(&self, stream: u32) -> bool {
        self.state.windows().streams.contains_key(&stream)
    }

    /// Waits until the server has sent something, but not long. Fails once the connection is closed.
    pub async fn wait(&mut self) -> io::Result<()> {
        // Silence is not an error: the caller watches the clock.
        _ = timeout(LOOK_INTERVAL, self.state.changed.notified()).await;
        self.write(&[]).await
    }

    /// Stays idle for a while. Fails once the connection is closed.
    pub async fn stay(&mut self, time: Duration) -> io::Result<()> {
        sleep(time).await;
        self.write(&[]).await
    }

    /// Writes `bytes` after any pending acknowledgements.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let answers = {
            let mut windows = self.state.windows();
            if windows.closed {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            std::mem::take(&mut windows.answers)
        };
        if !answers.is_empty() {
            self.to.write_all(&answers).await?;
        }
        self.to.write_all(bytes).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

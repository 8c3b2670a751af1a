//! HTTP/2 by hand: frames, right and wrong, and a peer that sends them.
//!
//! RFC 9113, sections 4 and 6; RFC 7541, section 6.2.2.

use std::{collections::BTreeMap, io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The bytes that a client sends first. RFC 9113, section 3.4.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The bytes before the payload of a frame.
const HEADER_BYTES: usize = 9;
/// The ping whose reply means that everything before it has been processed.
const LAST_PING: &[u8] = b"the last";

/// Types of frames. RFC 9113, section 6.
#[expect(missing_docs, reason = "the names of the RFC")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames. RFC 9113, section 6.
#[expect(missing_docs, reason = "the names of the RFC")]
pub mod flag {
    pub const NONE: u8 = 0;
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
}

/// Error codes. RFC 9113, section 7.
#[expect(missing_docs, reason = "the names of the RFC")]
pub mod code {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const CANCEL: u32 = 8;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// A frame whose header has the length of its payload.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_header(payload.len() as u32, kind, flags, stream);
    frame.extend_from_slice(payload);
    frame
}

/// The header of a frame that claims `bytes` of payload.
pub fn frame_header(bytes: u32, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
    let mut header = bytes.to_be_bytes()[1..].to_vec();
    header.extend([kind, flags]);
    header.extend(stream.to_be_bytes());
    header
}

/// A SETTINGS of these names and values.
pub fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in pairs {
        payload.extend(name.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(kind::SETTINGS, flag::NONE, 0, &payload)
}

/// A RST_STREAM.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, flag::NONE, stream, &code.to_be_bytes())
}

/// A WINDOW_UPDATE, of the connection if `stream` is 0.
pub fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(
        kind::WINDOW_UPDATE,
        flag::NONE,
        stream,
        &bytes.to_be_bytes(),
    )
}

/// A literal header field, not indexed.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        let bytes = text.len();
        if bytes < 127 {
            field.push(bytes as u8);
        } else {
            field.push(127);
            let mut rest = bytes - 127;
            while rest >= 128 {
                field.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            field.push(rest as u8);
        }
        field.extend(text.bytes());
    }
    field
}

/// Header fields in a row.
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields.iter();
    fields
        .flat_map(|(name, value)| field(name, value))
        .collect()
}

/// The header of a request.
pub fn request_fields(method: &str, path: &str) -> Vec<u8> {
    fields(&[
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
    ])
}

/// The header of a gRPC call of any service.
pub fn grpc_fields(path: &str) -> Vec<u8> {
    let grpc = fields(&[("content-type", "application/grpc"), ("te", "trailers")]);
    [request_fields("POST", path), grpc].concat()
}

/// The header of a gRPC call of the aggregator.
pub fn call_fields(method: &str) -> Vec<u8> {
    grpc_fields(&format!("/oncelog.v1.AggregatorService/{method}"))
}

/// The HEADERS of a gRPC call.
pub fn call(stream: u32, method: &str) -> Vec<u8> {
    let fields = call_fields(method);
    frame(kind::HEADERS, flag::END_HEADERS, stream, &fields)
}

/// A gRPC message that claims `bytes` bytes.
pub fn message(compressed: u8, bytes: u32, content: &[u8]) -> Vec<u8> {
    let mut message = vec![compressed];
    message.extend(bytes.to_be_bytes());
    message.extend_from_slice(content);
    message
}

/// A ListEvents of all topics, with follow.
pub fn follow(stream: u32) -> Vec<u8> {
    // Field 5 is true.
    let request = message(0, 2, &[5 << 3, 1]);
    let data = frame(kind::DATA, flag::END_STREAM, stream, &request);
    [call(stream, "ListEvents"), data].concat()
}

/// A frame as it arrived.
#[derive(Debug)]
pub struct Frame {
    /// One of [`kind`].
    pub kind: u8,
    /// Those of [`flag`].
    pub flags: u8,
    /// The id of its stream; 0 is the connection.
    pub stream: u32,
    /// The bytes after its header.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY or RST_STREAM.
    pub fn code(&self) -> Option<u32> {
        let code = match self.kind {
            kind::GOAWAY => self.payload.get(4..8),
            kind::RST_STREAM => self.payload.get(..4),
            _ => None,
        };
        code.and_then(|code| code.try_into().ok())
            .map(u32::from_be_bytes)
    }
}

/// How a connection ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// The code of the last GOAWAY, if it arrived: unread data on the other side can destroy it.
    pub goaway: Option<u32>,
    /// How many streams were reset, by code.
    pub resets: BTreeMap<u32, usize>,
    /// How many frames arrived.
    pub frames: usize,
    /// Whether the connection survived.
    pub survived: bool,
}

/// A client that breaks all rules.
pub struct Peer(pub TcpStream);

impl Peer {
    /// A connection that has sent nothing.
    pub async fn connect(server: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// An HTTP/2 connection with its settings exchanged.
    pub async fn greet(server: SocketAddr) -> io::Result<Self> {
        Self::greet_with(server, &[]).await
    }

    /// The same, with these settings of the client.
    pub async fn greet_with(server: SocketAddr, pairs: &[(u16, u32)]) -> io::Result<Self> {
        let mut peer = Self::connect(server).await?;
        peer.send(&[PREFACE, &settings(pairs)].concat()).await?;
        loop {
            match peer.next().await? {
                Some(frame) if frame.kind == kind::SETTINGS && frame.flags == flag::NONE => break,
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        peer.send(&frame(kind::SETTINGS, flag::ACK, 0, &[])).await?;
        Ok(peer)
    }

    /// Sends raw bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        next(&mut self.0).await
    }

    /// The next frame of a stream, ignoring the rest of the connection.
    pub async fn next_of(&mut self, stream: u32) -> io::Result<Frame> {
        loop {
            match self.next().await? {
                Some(frame) if frame.stream == stream => return Ok(frame),
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Sends `bytes` for each round, and a last ping. Returns the server's reactions up to its reply to that
    /// ping, or to the end of the connection.
    pub async fn flood(self, rounds: usize, bytes: impl Fn(usize) -> Vec<u8>) -> Ended {
        let (mut from, mut to) = self.0.into_split();
        let send = async {
            for round in 0..rounds {
                to.write_all(&bytes(round)).await?;
            }
            to.write_all(&frame(kind::PING, flag::NONE, 0, LAST_PING))
                .await
        };
        let receive = async {
            let mut ended = Ended::default();
            while let Ok(Some(frame)) = next(&mut from).await {
                ended.frames += 1;
                match frame.code() {
                    Some(code) if frame.kind == kind::GOAWAY => ended.goaway = Some(code),
                    Some(code) => *ended.resets.entry(code).or_default() += 1,
                    None if frame.kind == kind::PING && frame.payload == LAST_PING => {
                        ended.survived = true;
                        break;
                    }
                    None => {}
                }
            }
            ended
        };
        // Sending ends by itself once the server has closed.
        let (_, ended) = tokio::join!(send, receive);
        ended
    }

    /// Sends `bytes` and returns the server's reactions.
    pub async fn attack(self, bytes: &[u8]) -> Ended {
        self.flood(1, |_| bytes.to_vec()).await
    }

    /// Sends `bytes` and nothing more, and waits until the server closes as well.
    pub async fn cut(mut self, bytes: &[u8]) {
        // The server may close at the first of them.
        if self.send(bytes).await.is_ok() && self.0.shutdown().await.is_ok() {
            while let Ok(Some(_)) = self.next().await {}
        }
    }
}

/// The next frame; `None` at the end.
pub async fn next(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER_BYTES];
    match from.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [a, b, c, kind, flags, stream @ ..] = header;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    from.read_exact(&mut payload).await?;
    Ok(Some(Frame {
        kind,
        flags,
        stream: u32::from_be_bytes(stream),
        payload,
    }))
}

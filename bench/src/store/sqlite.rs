//! SQLite: a table with the key as a unique index, in a separate process.
//!
//! A library has no server; this one takes requests over a Unix socket, so that SQLite's cost is measured
//! separately from the load. It writes from one connection, as SQLite does anyway, and reads from many.

use std::{
    io::{BufReader, BufWriter, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use oncelog_harness::process::Process;
use rusqlite::{Connection, params};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Promise, Running, Seen, Store, Stream, until_ready};

use crate::{Result, event::Events, plan::Plan, recorder::Recorder};

const SETTINGS: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA cache_size = -262144;
    PRAGMA wal_autocheckpoint = 10000;
    CREATE TABLE IF NOT EXISTS events (
        sequence INTEGER PRIMARY KEY,
        topic TEXT NOT NULL,
        event_id TEXT NOT NULL,
        body BLOB NOT NULL,
        UNIQUE (topic, event_id)
    );";
const INSERT: &str =
    "INSERT INTO events (topic, event_id, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
const READ: &str = "SELECT topic, event_id, body FROM events ORDER BY sequence";
const READ_TOPIC: &str = "SELECT topic, event_id, body FROM events WHERE topic = ?";

/// The command that serves.
pub const SERVE: &str = "serve-sqlite";
/// Marks the end where a length is expected.
const END: u32 = u32::MAX;
/// Marks a read request where a number of events is expected.
const READ_REQUEST: u32 = u32::MAX;

const BUFFER_BYTES: usize = 256 * 1024;

pub struct Sqlite;

#[tonic::async_trait(?Send)]
impl Store for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn promise(&self) -> Promise {
        Promise::new("WAL fsync", "whole history", true)
    }

    async fn start(&self, dir: &Path) -> Result<Box<dyn Running>> {
        // The path of a Unix socket must be short.
        let socket_dir = tempfile::tempdir()?;
        let socket = socket_dir.path().join("sqlite.sock");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE).arg(dir).arg(&socket);
        let mut process = Process::spawn(command, dir)?;
        until_ready(&mut process, || async {
            Ok(tokio::net::UnixStream::connect(&socket).await?)
        })
        .await?;
        Ok(Box::new(Server {
            process,
            socket,
            _socket_dir: socket_dir,
        }))
    }
}

struct Server {
    process: Process,
    socket: PathBuf,
    _socket_dir: tempfile::TempDir,
}

#[tonic::async_trait]
impl Running for Server {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn stream(&self, events: Arc<Events>) -> Result<Box<dyn Stream>> {
        let socket = tokio::net::UnixStream::connect(&self.socket).await?;
        let socket = tokio::io::BufReader::with_capacity(BUFFER_BYTES, socket);
        Ok(Box::new(Client { socket, events }))
    }
}

struct Client {
    socket: tokio::io::BufReader<tokio::net::UnixStream>,
    events: Arc<Events>,
}

#[tonic::async_trait]
impl Stream for Client {
    async fn publish(&mut self, mut plan: Plan, recorder: Arc<Recorder>) -> Result<()> {
        // One request at a time: the other streams keep the one writer busy.
        let mut numbers = Vec::new();
        loop {
            plan.next(&mut numbers);
            if numbers.is_empty() {
                return Ok(());
            }
            let mut request = (numbers.len() as u32).to_le_bytes().to_vec();
            self.events.for_each(&numbers, |parts| {
                for part in parts {
                    request.extend_from_slice(&(part.len() as u32).to_le_bytes());
                    request.extend_from_slice(part);
                }
            });
            let sent = std::time::Instant::now();
            self.socket.write_all(&request).await?;
            let stored = self.socket.read_u32_le().await?;
            recorder.acked(numbers.len() as u64, stored.into(), sent.elapsed());
        }
    }

    async fn read(&mut self, topic: Option<usize>, seen: &mut Seen) -> Result<()> {
        let topic = topic.map_or("", |topic| &self.events.topics()[topic]);
        let mut request = READ_REQUEST.to_le_bytes().to_vec();
        request.extend_from_slice(&(topic.len() as u32).to_le_bytes());
        request.extend_from_slice(topic.as_bytes());
        self.socket.write_all(&request).await?;
        let mut row: [Vec<u8>; 3] = Default::default();
        loop {
            for column in &mut row {
                let len = self.socket.read_u32_le().await?;
                if len == END {
                    return Ok(());
                }
                column.resize(len as usize, 0);
                self.socket.read_exact(column).await?;
            }
            let [topic, id, body] = &row;
            seen.take(topic, id, body)?;
        }
    }
}

/// Serves `<dir> <socket>` until killed.
pub fn serve(dir: &Path, socket: &Path) -> Result<()> {
    let open = || -> Result<Connection> {
        let connection = Connection::open(dir.join("events.db"))?;
        connection.execute_batch(SETTINGS)?;
        Ok(connection)
    };
    let writer = Mutex::new(open()?);
    let listener = UnixListener::bind(socket)?;
    std::thread::scope(|threads| {
        loop {
            let (stream, _) = listener.accept()?;
            let writer = &writer;
            threads.spawn(move || answer(&stream, writer, &open()?));
        }
    })
}

/// Answers the requests of a connection until it ends.
fn answer(stream: &UnixStream, writer: &Mutex<Connection>, reader: &Connection) -> Result<()> {
    let mut requests = BufReader::with_capacity(BUFFER_BYTES, stream);
    let mut answers = BufWriter::with_capacity(BUFFER_BYTES, stream);
    loop {
        match read_u32(&mut requests)? {
            READ_REQUEST => {
                let topic = String::from_utf8(read_bytes(&mut requests)?)?;
                read(reader, &topic, &mut answers)?;
            }
            count => {
                let stored = insert(writer, &mut requests, count)?;
                answers.write_all(&stored.to_le_bytes())?;
            }
        }
        answers.flush()?;
    }
}

/// Inserts the events of a request in one transaction; returns how many were new.
fn insert(writer: &Mutex<Connection>, requests: &mut impl Read, count: u32) -> Result<u32> {
    let mut events = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let topic = String::from_utf8(read_bytes(requests)?)?;
        let id = String::from_utf8(read_bytes(requests)?)?;
        events.push((topic, id, read_bytes(requests)?));
    }
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    let transaction = writer.transaction()?;
    let mut stored = 0;
    {
        let mut insert = transaction.prepare_cached(INSERT)?;
        for (topic, id, body) in &events {
            stored += insert.execute(params![topic, id, body])? as u32;
        }
    }
    transaction.commit()?;
    Ok(stored)
}

fn read(reader: &Connection, topic: &str, answers: &mut impl Write) -> Result<()> {
    let sql = if topic.is_empty() { READ } else { READ_TOPIC };
    let mut statement = reader.prepare_cached(sql)?;
    let mut rows = match topic {
        "" => statement.query([])?,
        topic => statement.query([topic])?,
    };
    while let Some(row) = rows.next()? {
        for column in 0..3 {
            let value = row.get_ref(column)?.as_bytes()?;
            answers.write_all(&(value.len() as u32).to_le_bytes())?;
            answers.write_all(value)?;
        }
    }
    Ok(answers.write_all(&END.to_le_bytes())?)
}

fn read_u32(requests: &mut impl Read) -> Result<u32> {
    let mut bytes = [0; 4];
    requests.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_bytes(requests: &mut impl Read) -> Result<Vec<u8>> {
    let mut bytes = vec![0; read_u32(requests)? as usize];
    requests.read_exact(&mut bytes)?;
    Ok(bytes)
}

//! PostgreSQL: a table with the key as its primary key, and inserts that do nothing on a conflict.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use bytes::Buf as _;
use futures_util::{StreamExt as _, pin_mut};
use oncelog_harness::process::{Process, User, find_program};
use tokio_postgres::{Client, Config, NoTls, Statement};

use super::{Promise, Running, Seen, Store, Stream, pipelined, until_ready};

use crate::{Result, event::Events, plan::Plan, recorder::Recorder};

/// Part of the name of the socket's file; nothing listens on it.
const PORT: u16 = 5432;
const USER: &str = "bench";
/// Beyond the defaults: settings that anyone would choose for a table with many inserts.
const SETTINGS: [&str; 4] = [
    "synchronous_commit=on",
    "shared_buffers=1GB",
    "max_wal_size=8GB",
    "listen_addresses=",
];
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS events (
    sequence bigint GENERATED ALWAYS AS IDENTITY,
    topic text NOT NULL,
    event_id text NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (topic, event_id)
)";
const INSERT: &str = "INSERT INTO events (topic, event_id, body)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[])
    ON CONFLICT DO NOTHING";

/// `PGCOPY`, flags and an empty extension, before the first row of a binary COPY.
const COPY_HEADER_LEN: usize = 19;
const COPY_END: i16 = -1;

pub struct Postgres {
    /// Where `initdb` and `postgres` are.
    bin: PathBuf,
    /// PostgreSQL does not run as root.
    user: Option<User>,
}

impl Postgres {
    /// Finds the newest one installed.
    pub fn find() -> Result<Self> {
        let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .map(|version| version.path().join("bin"))
            .filter(|bin| bin.join("postgres").exists())
            .collect();
        versions.sort();
        let bin = match versions.pop() {
            Some(bin) => bin,
            None => find_program("postgres", &[])?
                .parent()
                .ok_or("postgres has no folder")?
                .to_owned(),
        };
        let user = User::instead_of_root(&["postgres", "nobody"])?;
        Ok(Self { bin, user })
    }

    fn command(&self, program: &str, dir: &Path) -> Command {
        let mut command = Command::new(self.bin.join(program));
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command.arg("-D").arg(dir.join("data")).current_dir(dir);
        command
    }
}

#[tonic::async_trait(?Send)]
impl Store for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn promise(&self) -> Promise {
        Promise::new("WAL fdatasync", "whole history", true)
    }

    async fn start(&self, dir: &Path) -> Result<Box<dyn Running>> {
        let dir = dir.canonicalize()?;
        if !dir.join("data").exists() {
            if let Some(user) = &self.user {
                std::os::unix::fs::chown(&dir, Some(user.uid), Some(user.gid))?;
            }
            let mut initdb = self.command("initdb", &dir);
            initdb.args(["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"]);
            let made = initdb.output()?;
            if !made.status.success() {
                return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr)).into());
            }
        }
        // The path of a Unix socket must be short.
        let socket_dir = tempfile::tempdir()?;
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(socket_dir.path(), Some(user.uid), Some(user.gid))?;
        }
        let mut command = self.command("postgres", &dir);
        command.arg("-k").arg(socket_dir.path());
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        let mut process = Process::spawn(command, &dir)?;
        let mut config = Config::new();
        config.host_path(socket_dir.path()).port(PORT);
        config.user(USER).dbname("postgres");
        let client = until_ready(&mut process, || connect(&config)).await?;
        client.batch_execute(SCHEMA).await?;
        Ok(Box::new(Server {
            process,
            config,
            _socket_dir: socket_dir,
        }))
    }
}

async fn connect(config: &Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await?;
    // It ends with the client; whatever breaks it breaks the client's calls.
    tokio::spawn(connection);
    Ok(client)
}

struct Server {
    process: Process,
    config: Config,
    _socket_dir: tempfile::TempDir,
}

#[tonic::async_trait]
impl Running for Server {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn stream(&self, events: Arc<Events>) -> Result<Box<dyn Stream>> {
        let client = connect(&self.config).await?;
        let insert = client.prepare(INSERT).await?;
        Ok(Box::new(Connection {
            client: Arc::new(client),
            insert,
            events,
        }))
    }
}

struct Connection {
    client: Arc<Client>,
    insert: Statement,
    events: Arc<Events>,
}

#[tonic::async_trait]
impl Stream for Connection {
    async fn publish(&mut self, plan: Plan, recorder: Arc<Recorder>) -> Result<()> {
        pipelined(plan, &recorder, |numbers| {
            let (mut topics, mut ids, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
            self.events.for_each(numbers, |[topic, id, body]| {
                topics.push(String::from_utf8_lossy(topic).into_owned());
                ids.push(String::from_utf8_lossy(id).into_owned());
                bodies.push(body.to_vec());
            });
            let (client, insert) = (Arc::clone(&self.client), self.insert.clone());
            async move { Ok(client.execute(&insert, &[&topics, &ids, &bodies]).await?) }
        })
        .await
    }

    async fn read(&mut self, topic: Option<usize>, seen: &mut Seen) -> Result<()> {
        let filter = topic.map_or(String::new(), |topic| {
            format!("WHERE topic = '{}'", self.events.topics()[topic])
        });
        let rows =
            format!("COPY (SELECT topic, event_id, body FROM events {filter}) TO STDOUT BINARY");
        let rows = self.client.copy_out(&rows).await?;
        pin_mut!(rows);
        let mut is_first = true;
        while let Some(row) = rows.next().await {
            let mut row = row?;
            if std::mem::take(&mut is_first) {
                row.advance(COPY_HEADER_LEN);
            }
            if row.remaining() == 0 || row.get_i16() == COPY_END {
                continue;
            }
            let mut column = || {
                let len = row.get_i32();
                row.split_to(len as usize)
            };
            let (topic, id, body) = (column(), column(), column());
            seen.take(&topic, &id, &body)?;
        }
        Ok(())
    }
}

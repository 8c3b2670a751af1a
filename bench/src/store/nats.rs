//! NATS JetStream: a file stream that drops message ids seen within its duplicate window.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{
        self, Context,
        consumer::pull::OrderedConfig,
        stream::{Config, StorageType},
    },
};
use futures_util::StreamExt as _;
use oncelog_harness::process::{Process, find_program};

use super::{Promise, Running, Seen, Store, Stream, pipelined, until_ready};

use crate::{Result, event::Events, plan::Plan, recorder::Recorder};

const STREAM: &str = "events";
/// Long enough for every resend of a run.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(3600);

/// When a message is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Every two minutes: an ack is a promise of the page cache.
    Default,
    Always,
}

pub struct Nats {
    program: PathBuf,
    sync: Sync,
}

impl Nats {
    pub fn find(sync: Sync, places: &[PathBuf]) -> Result<Self> {
        let program = find_program("nats-server", places)?;
        Ok(Self { program, sync })
    }
}

#[tonic::async_trait(?Send)]
impl Store for Nats {
    fn name(&self) -> &'static str {
        match self.sync {
            Sync::Default => "nats",
            Sync::Always => "nats-always",
        }
    }

    fn promise(&self) -> Promise {
        let durability = match self.sync {
            Sync::Default => "nothing; sync each 2 min",
            Sync::Always => "fsync",
        };
        Promise::new(durability, "the last hour, in RAM", false)
    }

    fn is_slow(&self) -> bool {
        self.sync == Sync::Always
    }

    async fn start(&self, dir: &Path) -> Result<Box<dyn Running>> {
        let dir = dir.canonicalize()?;
        let ports = dir.join("ports");
        _ = fs::remove_dir_all(&ports);
        fs::create_dir(&ports)?;
        let sync = match self.sync {
            Sync::Default => "",
            Sync::Always => "sync_interval: always",
        };
        let config = format!(
            "listen: \"127.0.0.1:-1\"\nports_file_dir: {ports:?}\n\
             jetstream {{ store_dir: {store:?}, max_file_store: 1TB, {sync} }}\n",
            store = dir.join("data"),
        );
        fs::write(dir.join("nats.conf"), config)?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(dir.join("nats.conf"));
        let mut process = Process::spawn(command, &dir)?;
        let (context, address) = until_ready(&mut process, || async {
            let address = address(&ports)?;
            let context = connect(&address).await?;
            context
                .get_or_create_stream(Config {
                    name: STREAM.to_owned(),
                    subjects: vec![format!("{STREAM}.*")],
                    storage: StorageType::File,
                    duplicate_window: DUPLICATE_WINDOW,
                    ..Config::default()
                })
                .await?;
            Ok((context, address))
        })
        .await?;
        drop(context);
        Ok(Box::new(Server { process, address }))
    }
}

/// Reads the server's address from the file that it writes.
fn address(ports: &Path) -> Result<String> {
    let file = fs::read_dir(ports)?.next().ok_or("no ports file")??;
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file.path())?)?;
    let address = ports["nats"][0].as_str().ok_or("no address")?;
    Ok(address.to_owned())
}

async fn connect(address: &str) -> Result<Context> {
    Ok(jetstream::new(async_nats::connect(address).await?))
}

struct Server {
    process: Process,
    address: String,
}

#[tonic::async_trait]
impl Running for Server {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn stream(&self, events: Arc<Events>) -> Result<Box<dyn Stream>> {
        let context = connect(&self.address).await?;
        Ok(Box::new(Connection { context, events }))
    }
}

struct Connection {
    context: Context,
    events: Arc<Events>,
}

#[tonic::async_trait]
impl Stream for Connection {
    async fn publish(&mut self, plan: Plan, recorder: Arc<Recorder>) -> Result<()> {
        pipelined(plan, &recorder, |numbers| {
            let mut messages = Vec::with_capacity(numbers.len());
            self.events.for_each(numbers, |[topic, id, body]| {
                let (topic, id) = (String::from_utf8_lossy(topic), String::from_utf8_lossy(id));
                let mut headers = HeaderMap::new();
                headers.insert(NATS_MESSAGE_ID, format!("{topic}/{id}"));
                messages.push((format!("{STREAM}.{topic}"), headers, body.to_vec()));
            });
            let context = self.context.clone();
            async move {
                let mut acks = Vec::with_capacity(messages.len());
                for (subject, headers, body) in messages {
                    let sent = context.publish_with_headers(subject, headers, body.into());
                    acks.push(sent.await?);
                }
                let mut stored = 0;
                for ack in acks {
                    stored += u64::from(!ack.await?.duplicate);
                }
                Ok(stored)
            }
        })
        .await
    }

    async fn read(&mut self, topic: Option<usize>, seen: &mut Seen) -> Result<()> {
        let filter = topic.map_or("*", |topic| &self.events.topics()[topic]);
        let stream = self.context.get_stream(STREAM).await?;
        let config = OrderedConfig {
            filter_subject: format!("{STREAM}.{filter}"),
            ..OrderedConfig::default()
        };
        let mut messages = stream.create_consumer(config).await?.messages().await?;
        while let Some(message) = messages.next().await {
            let message = message?;
            let id = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(NATS_MESSAGE_ID));
            let (topic, id) = id
                .and_then(|id| id.as_str().split_once('/'))
                .ok_or("a message without its id")?;
            seen.take(topic.as_bytes(), id.as_bytes(), &message.payload)?;
            if message.info()?.pending == 0 {
                break;
            }
        }
        Ok(())
    }
}

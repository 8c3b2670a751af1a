//! Redis: a key per event and a stream per topic, in one script per request.

use std::{path::Path, process::Command, sync::Arc};

use oncelog_harness::process::{Process, find_program};
use redis::{Client, Script, Value, aio::MultiplexedConnection};

use super::{Promise, Running, Seen, Store, Stream, pipelined, until_ready};

use crate::{Result, event::Events, plan::Plan, recorder::Recorder};

const SETTINGS: [&str; 10] = [
    "--port",
    "0",
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--save",
    "",
    "--stop-writes-on-bgsave-error",
    "no",
];
/// Topic, id and body of each event; returns how many were new.
const PUBLISH: &str = "
local stored = 0
for i = 1, #ARGV, 3 do
  local topic, id = ARGV[i], ARGV[i + 1]
  if redis.call('SET', 'k:' .. topic .. '/' .. id, '', 'NX') then
    redis.call('XADD', 's:' .. topic, '*', 'i', id, 'b', ARGV[i + 2])
    stored = stored + 1
  end
end
return stored";
/// Events read with one command.
const PAGE_EVENTS: usize = 1000;

pub struct Redis {
    program: std::path::PathBuf,
}

impl Redis {
    pub fn find() -> Result<Self> {
        let program = find_program("redis-server", &[])?;
        Ok(Self { program })
    }
}

#[tonic::async_trait(?Send)]
impl Store for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn promise(&self) -> Promise {
        Promise::new("AOF fdatasync", "whole history, in RAM", true)
    }

    async fn start(&self, dir: &Path) -> Result<Box<dyn Running>> {
        // The path of a Unix socket must be short.
        let socket_dir = tempfile::tempdir()?;
        let socket = socket_dir.path().join("redis.sock");
        let mut command = Command::new(&self.program);
        command.args(SETTINGS).arg("--dir").arg(dir.canonicalize()?);
        command.arg("--unixsocket").arg(&socket);
        let mut process = Process::spawn(command, dir)?;
        let client = Client::open(format!("redis+unix://{}", socket.display()))?;
        until_ready(&mut process, || async {
            let mut connection = client.get_multiplexed_async_connection().await?;
            Ok(redis::cmd("PING").exec_async(&mut connection).await?)
        })
        .await?;
        Ok(Box::new(Server {
            process,
            client,
            _socket_dir: socket_dir,
        }))
    }
}

struct Server {
    process: Process,
    client: Client,
    _socket_dir: tempfile::TempDir,
}

#[tonic::async_trait]
impl Running for Server {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn stream(&self, events: Arc<Events>) -> Result<Box<dyn Stream>> {
        // A request may wait for one sync of many.
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        Ok(Box::new(Connection {
            connection: connection.await?,
            publish: Arc::new(Script::new(PUBLISH)),
            events,
        }))
    }
}

struct Connection {
    connection: MultiplexedConnection,
    publish: Arc<Script>,
    events: Arc<Events>,
}

#[tonic::async_trait]
impl Stream for Connection {
    async fn publish(&mut self, plan: Plan, recorder: Arc<Recorder>) -> Result<()> {
        pipelined(plan, &recorder, |numbers| {
            let mut invocation = self.publish.prepare_invoke();
            self.events.for_each(numbers, |[topic, id, body]| {
                invocation.arg(topic).arg(id).arg(body);
            });
            let mut connection = self.connection.clone();
            async move { Ok(invocation.invoke_async(&mut connection).await?) }
        })
        .await
    }

    async fn read(&mut self, topic: Option<usize>, seen: &mut Seen) -> Result<()> {
        let topics = self.events.topics();
        for topic in topic.map_or(topics, |topic| &topics[topic..=topic]) {
            let mut after = "-".to_owned();
            loop {
                let mut range = redis::cmd("XRANGE");
                range.arg(format!("s:{topic}")).arg(&after).arg("+");
                range.arg("COUNT").arg(PAGE_EVENTS);
                let page: Vec<(String, [Value; 4])> =
                    range.query_async(&mut self.connection).await?;
                for (_, fields) in &page {
                    let [_, Value::BulkString(id), _, Value::BulkString(body)] = fields else {
                        return Err(format!("an entry of {fields:?}").into());
                    };
                    seen.take(topic.as_bytes(), id, body)?;
                }
                match page.last() {
                    Some((last, _)) => after = format!("({last}"),
                    None => break,
                }
            }
        }
        Ok(())
    }
}

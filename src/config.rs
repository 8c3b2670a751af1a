//! Flags and environment, and their only reader.
//!
//! Owns the names, defaults, units and limits of all settings, and reports invalid values. Commands decide
//! what to do with their values.

mod log_filter;

use std::{env, ffi::OsString, net::SocketAddr, path::PathBuf};

use axum::http::HeaderValue;
use clap::{
    Arg, Args, CommandFactory, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    builder::{RangedU64ValueParser, Resettable},
    error::ErrorKind,
};
use tracing_subscriber::filter::Targets;

use self::log_filter::log_filter;

use crate::{
    event::EVENT_BYTES_MAX,
    http::ANY_ORIGIN,
    partition::{INGEST_BYTES_MAX, TOPICS_MAX},
    server::{CONNECTIONS_MAX, GRACE_SECONDS, READERS_MAX, REQUEST_BYTES_MAX},
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

const ABOUT: &str = "A gRPC event aggregator that stores every event exactly once";

const LONG_ABOUT: &str = "\
A gRPC event aggregator that stores every event exactly once.

Publishers may send an event again and again, after a time-out, a restart or a redelivery: the server \
stores it once. An event is identified by its topic and event id, over the whole history.

What the server guarantees:
  * An acknowledged event is durable: it survives kill -9 and power loss.
  * An event whose key is already stored is dropped and counted; the first one stays.
  * Readers see each topic in order of arrival, without gap or repeat, and can resume anywhere.

Without a command, oncelog serves: `oncelog --listen ADDR` is `oncelog serve --listen ADDR`.";

const EXAMPLES: &str = "\
Examples:
  oncelog --data-dir /var/lib/oncelog          serve
  oncelog publish events.ndjson                publish a file, one event per line
  oncelog list --topic orders --follow         print the events of a topic, then follow it
  oncelog stats --watch                        counters and rates, every second
  oncelog verify --data-dir /var/lib/oncelog   check the stored data while no server runs";

const PUBLISH_HELP: &str = "\
An event is one line of JSON, in the form of `oncelog list` and HTTP:
  {\"topic\":\"t\",\"event_id\":\"1\",\"timestamp\":\"2026-01-01T00:00:00Z\",\"source\":\"s\",\"payload\":{\"n\":1}}
Instead of payload there may be data (base64), or neither; attributes is an object of strings. The names of the gRPC \
contract are accepted as well: eventId, json. Blank lines are skipped.

Unacknowledged events are resent when the connection breaks. Publishing a file again is safe: an event \
that is already stored counts as a duplicate.

Exit status: 0 if no event was rejected, 1 if some were (the line of each is on stderr), 2 if publishing \
failed, 130 if it was interrupted.";

const LIST_HELP: &str = "\
A line is one stored event in JSON, in the form of GET /events. To publish the events elsewhere:
  oncelog list | oncelog publish --server http://elsewhere:50051

At the end the cursor is printed to stderr; --cursor resumes after the last event printed.

Exit status: 0 at the end of the list, 1 if listing failed or an event could not be printed, 130 if it \
was interrupted.";

const HEALTH_HELP: &str = "\
Exit status: 0 if the server answers SERVING within 5 s, 1 otherwise.";

/// Parses the arguments and the environment of the process; on an error, or for help, prints and exits.
pub fn parse() -> Command {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Parses `args`, starting with the name of the program, and the environment, and checks values against each
/// other.
pub fn parse_from<I, T>(args: I) -> Result<Command, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let mut program = program();
    let matches = program.try_get_matches_from_mut(args)?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut program))?;
    let command = cli.command.unwrap_or(Command::Serve(cli.serve));
    if let Command::Serve(args) = &command {
        let invalid = |message| program.error(ErrorKind::ValueValidation, message);
        args.check().map_err(invalid)?;
    }
    Ok(command)
}

/// The program's parser, to which an empty variable counts as not set.
fn program() -> clap::Command {
    let unset_if_empty = |arg: Arg| {
        let value = arg.get_env().and_then(env::var_os);
        if value.is_some_and(|value| value.is_empty()) {
            return arg.env(Resettable::Reset);
        }
        arg
    };
    Cli::command()
        .mut_args(unset_if_empty)
        .mut_subcommands(|command| command.mut_args(unset_if_empty))
}

#[derive(Debug, Parser)]
#[command(
    name = "oncelog",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "COMMAND",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// The command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server (the default)
    Serve(ServeArgs),
    /// Publish events, one JSON object per line, until all are durable
    #[command(after_help = PUBLISH_HELP)]
    Publish(PublishArgs),
    /// Print stored events, one JSON object per line
    #[command(after_help = LIST_HELP)]
    List(ListArgs),
    /// Print the counters of the server and of its topics
    Stats(StatsArgs),
    /// Check whether the server is serving
    #[command(after_help = HEALTH_HELP)]
    Health(HealthArgs),
    /// Check the stored data offline: every batch of the log, and the index against it
    Verify(VerifyArgs),
}

/// The arguments of `oncelog serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Address and port to listen on
    #[arg(
        long,
        env = "ONCELOG_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:50051"
    )]
    pub listen: SocketAddr,

    /// Directory of the log and the index; created if missing, used by one server at a time
    #[arg(
        long,
        env = "ONCELOG_DATA_DIR",
        value_name = "DIR",
        default_value = "./data"
    )]
    pub data_dir: PathBuf,

    /// Most topics; events of further new topics are refused [1..=10000000]
    #[arg(long, env = "ONCELOG_MAX_TOPICS", value_name = "COUNT", default_value_t = TOPICS_MAX,
          value_parser = within(1, 10_000_000))]
    pub max_topics: usize,

    /// Largest event, encoded [1 KiB..=16 MiB]
    #[arg(long, env = "ONCELOG_MAX_EVENT_BYTES", value_name = "BYTES", default_value_t = EVENT_BYTES_MAX,
          value_parser = within(KIB, 16 * MIB))]
    pub max_event_bytes: usize,

    /// Largest publish request, encoded; at least --max-event-bytes [1 KiB..=64 MiB]
    #[arg(long, env = "ONCELOG_MAX_REQUEST_BYTES", value_name = "BYTES", default_value_t = REQUEST_BYTES_MAX,
          value_parser = within(KIB, 64 * MIB))]
    pub max_request_bytes: usize,

    /// Most bytes being read, checked or synced, over all streams, before publishers are held back; at
    /// least --max-request-bytes [1 MiB..=64 GiB]
    #[arg(long, env = "ONCELOG_MAX_INGEST_BYTES", value_name = "BYTES", default_value_t = INGEST_BYTES_MAX,
          value_parser = within(MIB, 64 * GIB))]
    pub max_ingest_bytes: usize,

    /// Most streams of stored events at a time, over gRPC and HTTP; more are refused [1..=1000000]
    #[arg(long, env = "ONCELOG_MAX_READERS", value_name = "COUNT", default_value_t = READERS_MAX,
          value_parser = within(1, 1_000_000))]
    pub max_readers: usize,

    /// Most connections at a time; more are closed as they come. Fewer if the limit on open files, less 1024
    /// for the log and the index, is too low [1..=1000000]
    #[arg(long, env = "ONCELOG_MAX_CONNECTIONS", value_name = "COUNT", default_value_t = CONNECTIONS_MAX,
          value_parser = within(1, 1_000_000))]
    pub max_connections: usize,

    /// Origins whose pages may call the HTTP endpoints from a browser, separated by commas; * is any origin
    /// [default: none]
    #[arg(
        long,
        env = "ONCELOG_HTTP_CORS_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ',',
        value_parser = origin
    )]
    pub http_cors_origin: Vec<HeaderValue>,

    /// Longest graceful stop, in seconds: time for the queued events to become durable [0..=3600]
    #[arg(long, env = "ONCELOG_GRACE_SECONDS", value_name = "SECONDS", default_value_t = GRACE_SECONDS,
          value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub grace_seconds: u64,

    /// Format of the log on stderr
    #[arg(
        long,
        env = "ONCELOG_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "human"
    )]
    pub log_format: LogFormat,

    /// What to log: a level (off, error, warn, info, debug, trace), target=level pairs, or both, separated by
    /// commas
    #[arg(
        long,
        env = "ONCELOG_LOG",
        value_name = "FILTER",
        default_value = "info",
        value_parser = log_filter
    )]
    pub log: Targets,
}

impl ServeArgs {
    /// Checks the limits against each other.
    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("--max-event-bytes", self.max_event_bytes),
            ("--max-request-bytes", self.max_request_bytes),
            ("--max-ingest-bytes", self.max_ingest_bytes),
        ];
        for [(inner, inner_bytes), (outer, outer_bytes)] in
            [[sizes[0], sizes[1]], [sizes[1], sizes[2]]]
        {
            if inner_bytes > outer_bytes {
                return Err(format!(
                    "{outer} is {outer_bytes}; it must be at least {inner}, which is {inner_bytes}"
                ));
            }
        }
        Ok(())
    }
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Human,
    /// One JSON object per line.
    Json,
}

/// The server that a command talks to.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Address of the server, http://host:port or host:port
    #[arg(
        long,
        env = "ONCELOG_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:50051"
    )]
    pub server: String,
}

/// The arguments of `oncelog publish`.
#[derive(Args, Clone, Debug)]
pub struct PublishArgs {
    /// File to read; - is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,

    /// Most events per request [1..=16384]; a request is sent earlier at 1 MiB, or when the input pauses
    #[arg(long, value_name = "COUNT", default_value = "256", value_parser = within(1, 16_384))]
    pub batch_size: usize,

    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// The arguments of `oncelog list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Topic to list; all topics by default
    #[arg(
        long,
        value_name = "TOPIC",
        default_value = "",
        hide_default_value = true
    )]
    pub topic: String,

    /// Follow: print new events as they become durable
    #[arg(long)]
    pub follow: bool,

    /// Resume after this cursor, as printed at the end of an earlier list
    #[arg(
        long,
        value_name = "CURSOR",
        default_value = "",
        hide_default_value = true
    )]
    pub cursor: String,

    /// Where to start without a cursor: at the first event, or with events stored from now on
    #[arg(
        long,
        value_name = "POSITION",
        default_value = "earliest",
        conflicts_with = "cursor"
    )]
    pub start: Start,

    /// Most events to print; no limit by default
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,

    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Where a list without a cursor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Start {
    /// At the first event.
    Earliest,
    /// With events stored from now on.
    Latest,
}

/// The arguments of `oncelog stats`.
#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// Print again every second, with rates
    #[arg(long)]
    pub watch: bool,

    /// Print one JSON object, in the form of GET /stats
    #[arg(long)]
    pub json: bool,

    /// Only topics whose name starts with this
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    pub topic_prefix: String,

    /// Most topics to print, the first by name
    #[arg(long, value_name = "COUNT", default_value = "1000",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_topics: u32,

    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// The arguments of `oncelog health`.
#[derive(Args, Clone, Debug)]
pub struct HealthArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// The arguments of `oncelog verify`.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Directory of the log and the index
    #[arg(
        long,
        env = "ONCELOG_DATA_DIR",
        value_name = "DIR",
        default_value = "./data"
    )]
    pub data_dir: PathBuf,
}

/// Parses a size or count of `min` to `max`, both included.
/// An origin as browsers write it: scheme, host, and port if it is not the scheme's own.
fn origin(text: &str) -> Result<HeaderValue, String> {
    const EXPECTED: &str = "an origin is * or scheme://host[:port], without a path";
    let (scheme, host) = match text.split_once("://") {
        Some(parts) => parts,
        None if text == ANY_ORIGIN => return Ok(HeaderValue::from_static(ANY_ORIGIN)),
        None => return Err(EXPECTED.to_owned()),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if scheme.is_empty() || host.is_empty() || !host.bytes().all(is_host) {
        return Err(EXPECTED.to_owned());
    }
    HeaderValue::from_str(text).map_err(|_| EXPECTED.to_owned())
}

fn within(min: u64, max: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(min..=max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Command, clap::Error> {
        parse_from(std::iter::once(&"oncelog").chain(args))
    }

    fn serve(args: &[&str]) -> ServeArgs {
        let command = parse(args).expect("valid");
        let Command::Serve(args) = command else {
            panic!("{command:?}");
        };
        args
    }

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_serve_flag_is_also_a_variable() {
        for command in [
            Cli::command(),
            ServeArgs::augment_args(clap::Command::new("serve")),
        ] {
            for arg in command.get_arguments() {
                let flag = arg.get_long().expect("flags only");
                let variable = format!("ONCELOG_{}", flag.to_uppercase().replace('-', "_"));
                assert_eq!(arg.get_env(), Some(variable.as_ref()), "--{flag}");
            }
        }
    }

    #[test]
    fn serving_is_the_default() {
        for args in [&[][..], &["serve"]] {
            let args = serve(args);
            assert_eq!(args.listen.to_string(), "127.0.0.1:50051");
            assert_eq!(args.data_dir.as_os_str(), "./data");
            assert_eq!(args.max_topics, 100_000);
            assert_eq!(args.max_event_bytes, crate::event::EVENT_BYTES_MAX);
            assert_eq!(args.max_request_bytes, 4 * 1024 * 1024);
            assert_eq!(args.max_ingest_bytes, 128 * 1024 * 1024);
            assert_eq!(args.max_readers, 1024);
            assert_eq!(args.max_connections, 16_384);
            assert!(args.http_cors_origin.is_empty());
            assert_eq!(args.grace_seconds, 30);
            assert_eq!(args.log_format, LogFormat::Human);
            assert_eq!(Ok(args.log), log_filter("info"));
        }
        for args in [
            &["--listen", "[::]:1"][..],
            &["serve", "--listen", "[::]:1"],
        ] {
            assert_eq!(serve(args).listen.to_string(), "[::]:1");
        }
        assert!(parse(&["--listen", "[::]:1", "stats"]).is_err());
    }

    #[test]
    fn origins_are_a_list() {
        let args = serve(&["--http-cors-origin", "https://a.example,http://[::1]:8080"]);
        assert_eq!(
            args.http_cors_origin,
            ["https://a.example", "http://[::1]:8080"]
        );
        assert_eq!(serve(&["--http-cors-origin", "*"]).http_cors_origin, ["*"]);
    }

    #[test]
    fn limits_are_checked_by_name() {
        for (args, says) in [
            (
                &["--max-event-bytes", "1023"][..],
                "1023 is not in 1024..=16777216",
            ),
            (&["--max-readers", "0"], "0 is not in 1..=1000000"),
            (&["--listen", "localhost"], "--listen"),
            (
                &["--http-cors-origin", "https://a.example/"],
                "an origin is * or scheme://host[:port], without a path",
            ),
            (&["--http-cors-origin", "a.example"], "an origin is"),
            (
                &["--log", "verbose"],
                "'verbose' is not a level; a filter is a level (off, error, warn, info, debug, trace), \
                 target=level pairs, or both, with commas",
            ),
            (
                &["--max-event-bytes", "5000000"],
                "--max-request-bytes is 4194304; it must be at least --max-event-bytes, which is 5000000",
            ),
            (
                &["serve", "--max-ingest-bytes", "1048576"],
                "--max-ingest-bytes is 1048576; it must be at least --max-request-bytes, which is 4194304",
            ),
        ] {
            let error = parse(args).expect_err("out of limits").to_string();
            assert!(error.contains(says), "{error}");
            assert!(
                error.contains(args[args.len() - 2].trim_start_matches("serve")),
                "{error}"
            );
        }
    }

    #[test]
    fn commands_have_their_flags() {
        let list = parse(&["list", "--topic", "t", "--start", "latest", "--limit", "3"]);
        let Ok(Command::List(list)) = list else {
            panic!("{list:?}");
        };
        assert_eq!(
            (list.topic.as_str(), list.start, list.limit),
            ("t", Start::Latest, Some(3))
        );
        assert_eq!(list.server.server, "http://127.0.0.1:50051");
        assert!(parse(&["list", "--cursor", "c"]).is_ok());
        assert!(parse(&["list", "--cursor", "c", "--start", "latest"]).is_err());

        let publish = parse(&["publish", "--server", "a:1"]);
        let Ok(Command::Publish(publish)) = publish else {
            panic!("{publish:?}");
        };
        assert_eq!(
            (publish.file.as_os_str(), publish.batch_size),
            ("-".as_ref(), 256)
        );
    }
}

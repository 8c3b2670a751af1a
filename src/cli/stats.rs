//! `oncelog stats`: the counters of the server, as a table or as JSON.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use indicatif::{BinaryBytes, HumanCount, HumanDuration};
use tonic::Request;

use super::{CallError, Outcome, client_runtime, connect, output::Output};
use crate::{
    client::MESSAGE_BYTES_MAX,
    config::StatsArgs,
    json::stats::{Stats, TopicStats},
    proto::v1::{
        GetStatsRequest, GetStatsResponse, aggregator_service_client::AggregatorServiceClient,
    },
};

/// How long the server may take to reply.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often --watch asks for the counters.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(args: StatsArgs) -> Outcome {
    client_runtime()?.block_on(show(args))
}

async fn show(args: StatsArgs) -> Outcome {
    let server = &*args.server.server;
    let channel = connect(server).await?;
    let mut client =
        AggregatorServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut output = Output::new();
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    let mut last = None;
    loop {
        ticks.tick().await;
        let mut request = Request::new(GetStatsRequest {
            topic_prefix: args.topic_prefix.clone(),
            max_topics: args.max_topics,
        });
        request.set_timeout(TIMEOUT);
        let answer = client.get_stats(request).await;
        let stats = answer
            .map_err(|status| CallError::new(server, status))?
            .into_inner();
        let sample = Sample {
            at: Instant::now(),
            received: stats.received,
            stored: stats.unique_processed,
        };
        if args.json {
            output.line(&serde_json::to_vec(&as_json(&stats))?)?;
        } else {
            if args.watch {
                output.clear()?;
            }
            for line in table(server, &stats, last.as_ref().map(|last| sample.since(last))) {
                output.line(line.as_bytes())?;
            }
        }
        output.flush()?;
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        last = Some(sample);
    }
}

/// The counters in the form of `GET /stats`.
fn as_json(stats: &GetStatsResponse) -> Stats<'_> {
    Stats {
        received: stats.received,
        unique_processed: stats.unique_processed,
        duplicate_dropped: stats.duplicate_dropped,
        conflicts: stats.conflicts,
        rejected: stats.rejected,
        topics: stats.topics.iter().map(|topic| &*topic.topic).collect(),
        topic_count: stats.topic_count,
        topic_stats: stats
            .topics
            .iter()
            .map(|topic| TopicStats {
                topic: &topic.topic,
                unique_processed: topic.unique_processed,
                duplicate_dropped: topic.duplicate_dropped,
                last_received_at: topic.last_received_at.unwrap_or_default().to_string(),
            })
            .collect(),
        uptime_seconds: stats.uptime_seconds,
        durable_tail: stats.durable_tail,
        storage_bytes: stats.storage_bytes,
        server_version: &stats.server_version,
    }
}

/// The basis of rates.
struct Sample {
    at: Instant,
    received: u64,
    stored: u64,
}

/// Events per second.
struct Rates {
    received: f64,
    stored: f64,
}

impl Sample {
    fn since(&self, last: &Self) -> Rates {
        let seconds = (self.at - last.at).as_secs_f64().max(f64::EPSILON);
        // A crash of the server loses its latest counts, so counters can go back.
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        Rates {
            received: rate(self.received, last.received),
            stored: rate(self.stored, last.stored),
        }
    }
}

fn table(server: &str, stats: &GetStatsResponse, rates: Option<Rates>) -> Vec<String> {
    let uptime = HumanDuration(Duration::from_secs(stats.uptime_seconds));
    let mut lines = vec![
        format!("oncelog {} at {server}, up {uptime}", stats.server_version),
        String::new(),
    ];
    let rate = |of: fn(&Rates) -> f64| match &rates {
        Some(rates) => format!("  {:>10.0}/s", of(rates)),
        None => String::new(),
    };
    for (name, count, rate) in [
        ("received", stats.received, rate(|rates| rates.received)),
        ("stored", stats.unique_processed, rate(|rates| rates.stored)),
        ("duplicates", stats.duplicate_dropped, String::new()),
        ("  conflicts", stats.conflicts, String::new()),
        ("rejected", stats.rejected, String::new()),
        ("durable tail", stats.durable_tail, String::new()),
        ("topics", stats.topic_count, String::new()),
    ] {
        lines.push(format!("{name:<14}{:>16}{rate}", count_of(count)));
    }
    let storage = BinaryBytes(stats.storage_bytes).to_string();
    lines.push(format!("{:<14}{storage:>16}", "storage"));
    if stats.topics.is_empty() {
        return lines;
    }

    let names = stats.topics.iter().map(|topic| topic.topic.chars().count());
    let width = names.max().unwrap_or(0).max("TOPIC".len());
    lines.push(String::new());
    lines.push(format!(
        "{:<width$}{:>16}{:>16}  LAST RECEIVED",
        "TOPIC", "STORED", "DUPLICATES"
    ));
    for topic in &stats.topics {
        let last = topic.last_received_at.as_ref().map(ToString::to_string);
        lines.push(format!(
            "{:<width$}{:>16}{:>16}  {}",
            topic.topic,
            count_of(topic.unique_processed),
            count_of(topic.duplicate_dropped),
            last.as_deref().unwrap_or("-")
        ));
    }
    let listed = stats.topics.len() as u64;
    if listed < stats.topic_count {
        lines.push(format!(
            "{listed} of {} topics",
            count_of(stats.topic_count)
        ));
    }
    lines
}

/// With thousands separators.
fn count_of(count: u64) -> String {
    HumanCount(count).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::TopicStats;

    #[test]
    fn columns_are_aligned() {
        let topic = |name: &str, unique_processed| TopicStats {
            topic: name.to_owned(),
            unique_processed,
            duplicate_dropped: 7,
            last_received_at: Some(prost_types::Timestamp::default()),
        };
        let stats = GetStatsResponse {
            received: 1_234_567,
            uptime_seconds: 90,
            storage_bytes: 3 << 29,
            server_version: "1.2.3".to_owned(),
            topic_count: 3,
            topics: vec![topic("größe", 1), topic("a.long.topic", 1_000_000)],
            ..GetStatsResponse::default()
        };
        let rates = Rates {
            received: 1000.4,
            stored: 0.0,
        };
        let lines = table("http://s:1", &stats, Some(rates));
        assert_eq!(lines[0], "oncelog 1.2.3 at http://s:1, up 2 minutes");
        assert_eq!(lines[2], "received             1,234,567        1000/s");
        assert_eq!(lines[9], "storage               1.50 GiB");
        assert_eq!(
            lines[11..],
            [
                "TOPIC                 STORED      DUPLICATES  LAST RECEIVED",
                "größe                      1               7  1970-01-01T00:00:00Z",
                "a.long.topic       1,000,000               7  1970-01-01T00:00:00Z",
                "2 of 3 topics",
            ]
        );
    }
}

//! Random publishes, restarts and seals against a plain map.

use std::collections::BTreeMap;

use oncelog::{
    event::Sequence,
    index::IndexOptions,
    log::FileLogOptions,
    proto::v1::{self, Outcome},
};
use proptest::prelude::*;

use crate::support::{
    Counts, DataDir, PublishStream, TestServer, counters, event_with_data, get_event, list,
    list_request, list_responses, totals, try_publish,
};

const TOPICS: [&str; 3] = ["a", "ab", "b"];

/// topic, event id, content; not id 0, which is empty and so invalid.
type Sent = (usize, u8, u8);

#[derive(Clone, Debug)]
enum ModelOp {
    Publish(Vec<Vec<Sent>>),
    StreamingPublish(Vec<Vec<Sent>>),
    Restart,
    List { topic: usize, limit: u64 },
}

fn any_step() -> impl Strategy<Value = ModelOp> {
    let sent = (0..TOPICS.len(), 0..40u8, 0..2u8);
    let requests = || {
        let request = proptest::collection::vec(sent.clone(), 0..20);
        proptest::collection::vec(request, 0..5)
    };
    prop_oneof![
        4 => requests().prop_map(ModelOp::Publish),
        4 => requests().prop_map(ModelOp::StreamingPublish),
        1 => Just(ModelOp::Restart),
        2 => (0..TOPICS.len(), 1..9u64).prop_map(|(topic, limit)| ModelOp::List { topic, limit }),
    ]
}

fn event((topic, id, content): Sent) -> v1::Event {
    let id = if id == 0 {
        String::new()
    } else {
        id.to_string()
    };
    event_with_data(TOPICS[topic], id, vec![content; 40])
}

fn is_valid((_, id, _): Sent) -> bool {
    id != 0
}

/// What a server should hold.
#[derive(Default)]
struct Model {
    stored: BTreeMap<(usize, u8), (u8, Sequence)>,
    order: Vec<Sent>,
    counts: Counts,
}

impl Model {
    fn publish(&mut self, sent: Sent) -> (Outcome, Sequence) {
        if !is_valid(sent) {
            self.counts.rejected += 1;
            return (Outcome::Rejected, 0);
        }
        let (topic, id, content) = sent;
        match self.stored.get(&(topic, id)) {
            None => {
                self.counts.stored += 1;
                self.order.push(sent);
                let sequence = self.order.len() as Sequence;
                self.stored.insert((topic, id), (content, sequence));
                (Outcome::Stored, sequence)
            }
            Some((stored, sequence)) => {
                self.counts.duplicates += 1;
                if *stored == content {
                    (Outcome::Duplicate, *sequence)
                } else {
                    self.counts.conflicts += 1;
                    (Outcome::Conflict, *sequence)
                }
            }
        }
    }

    fn events(&self, topic: Option<usize>) -> Vec<(Sequence, v1::Event)> {
        let numbered = self.order.iter().zip(1..);
        let wanted = numbered.filter(|(sent, _)| topic.is_none_or(|topic| sent.0 == topic));
        wanted
            .map(|(sent, sequence)| (sequence, event(*sent)))
            .collect()
    }
}

fn plain(stored: Vec<v1::StoredEvent>) -> Vec<(Sequence, v1::Event)> {
    let events = stored.into_iter();
    events
        .map(|stored| (stored.sequence, stored.event.expect("an event")))
        .collect()
}

async fn start(data_dir: DataDir) -> TestServer {
    let mut options = data_dir.options();
    options.partition.index = IndexOptions {
        keys_per_generation: 10,
        merge_fanout: 2,
        ..IndexOptions::default()
    };
    options.partition.log = FileLogOptions {
        segment_bytes_min: 4096,
        segment_bytes_max: 8192,
        ..FileLogOptions::default()
    };
    TestServer::start_with(data_dir, options).await
}

async fn check(steps: Vec<ModelOp>) {
    let mut server = start(DataDir::new()).await;
    let mut model = Model::default();
    for step in steps {
        let client = &mut server.client().await;
        match step {
            ModelOp::Publish(requests) => {
                let valid = requests
                    .iter()
                    .take_while(|request| request.iter().all(|s| is_valid(*s)));
                let valid = valid.count();
                let before = model.counts;
                for sent in requests[..valid].iter().flatten() {
                    model.publish(*sent);
                }
                let sent = requests
                    .iter()
                    .map(|r| r.iter().map(|s| event(*s)).collect());
                let reply = try_publish(client, sent.collect()).await;
                if let Some(bad) = requests.get(valid) {
                    assert_eq!(
                        reply.expect_err("invalid").code(),
                        tonic::Code::InvalidArgument
                    );
                    model.counts.rejected += bad.len() as u64;
                } else {
                    let reply = totals(reply.expect("valid"));
                    assert_eq!(before + reply, model.counts);
                }
            }
            ModelOp::StreamingPublish(requests) => {
                let mut stream = PublishStream::open(client).await;
                for request in requests {
                    let expected: Vec<_> = request.iter().map(|s| model.publish(*s)).collect();
                    let reply = stream
                        .publish(request.into_iter().map(event).collect())
                        .await;
                    assert_eq!(reply, expected);
                }
            }
            ModelOp::Restart => server = start(server.stop().await).await,
            ModelOp::List { topic, limit } => {
                let mut seen = Vec::new();
                let mut request = v1::ListEventsRequest {
                    limit,
                    ..list_request(TOPICS[topic])
                };
                loop {
                    let responses = list_responses(client, request.clone()).await;
                    let events: Vec<_> = responses.iter().flat_map(|r| r.events.clone()).collect();
                    request.cursor = responses.last().expect("a response").cursor.clone();
                    if events.is_empty() {
                        break;
                    }
                    seen.extend(plain(events));
                }
                assert_eq!(seen, model.events(Some(topic)));
            }
        }
        let client = &mut server.client().await;
        assert_eq!(counters(client).await, model.counts);
    }
    let client = &mut server.client().await;
    assert_eq!(plain(list(client, "").await), model.events(None));
    for ((topic, id), (_, sequence)) in &model.stored {
        let stored = get_event(client, TOPICS[*topic], &id.to_string()).await;
        assert_eq!(stored.expect("stored").sequence, *sequence);
    }
    server.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_server_is_a_map(steps in proptest::collection::vec(any_step(), 1..14)) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(check(steps));
    }
}

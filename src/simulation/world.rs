//! World: the lives of a server, and of all who use it.
//!
//! Owns what happens next and what goes wrong, as the seed decides. The [model](super::model) judges the results.

mod checks;
mod damage;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use self::damage::is_damage;
use super::{
    Figures,
    chance::Chance,
    disk::{Faults, SimDisk},
    follower::Follower,
    get::{Get, Got},
    jobs::{self, SimJobs},
    lie::Lie,
    log::LateLog,
    model::{Dropped, Model, Name, Sent},
    submission::{Reply, Submission},
};
use crate::{
    event::Sequence,
    index::{IndexOptions, RunLimits},
    log::{FileLogOptions, ReadWindows},
    partition::{
        BatchLimits, Health, OpenError, Outcome, Partition, PartitionOptions, PublishError,
        ReadError, ReadLimits, Recovery, Rejection, SAVE_INTERVAL, Start, Threads, open_files,
        open_locked,
    },
    platform::Platform,
};

const DATA_DIR: &str = "/data";
/// The most requests in progress.
const REQUESTS_MAX: usize = 5;
/// The most requests that have long been looked up and are not yet submitted.
const HELD_MAX: usize = 3;
/// The most look-ups of single events in progress.
const GETS_MAX: usize = 3;
/// The size of most requests, and of the few that the writer does not sync itself.
const REQUEST_EVENTS_MAX: u64 = 8;
const LARGE_REQUEST_EVENTS: u64 = 70;
/// A life with more steps does not end.
const STEPS_MAX: usize = 50_000;

pub(super) struct World {
    disk: SimDisk,
    options: PartitionOptions,
    lie: Option<Lie>,
    /// How many appends may overlap; with none, the log in files is used directly.
    appends_max: usize,
    chance: Chance,
    model: Model,
    followers: Vec<Follower>,
    /// Events sent and not answered.
    unanswered: Vec<Sent>,
    topics: u64,
    /// How many names there are.
    names: u16,
    /// Whether this server has reported that it accepts no more events.
    has_failed: bool,
    /// What is known about the counters since the last life; nothing after a flipped bit.
    before: Option<Before>,
    figures: Figures,
}

struct Before {
    dropped: Dropped,
    /// Whether they were saved at the end.
    saved: bool,
    /// As of the last certain save of the counters.
    dropped_min: Dropped,
}

/// A server and the requests in progress.
struct Server {
    partition: Partition,
    threads: Threads,
    requests: Vec<Submission>,
    held: Vec<Submission>,
    gets: Vec<Get>,
    opened_with: Dropped,
    /// As of the last certain save of the counters in this life, if any.
    saved: Option<Dropped>,
}

impl World {
    pub fn new(mut chance: Chance, lie: Option<Lie>) -> Self {
        jobs::reset(Chance::new(chance.next()));
        let disk = SimDisk::new(Chance::new(chance.next()), lie);
        let topics = 2 + chance.below(6);
        let options = PartitionOptions {
            topics_max: if chance.percent(30) {
                1 + chance.place(topics as usize - 1)
            } else {
                100
            },
            log: FileLogOptions {
                segment_bytes_min: 4096,
                segment_bytes_max: 4096 << chance.below(3),
                retry_after: Duration::from_millis(500),
                windows: ReadWindows {
                    random_bytes: chance.up_to(2000),
                    sequential_bytes: chance.up_to(4000),
                    scan_bytes: chance.up_to(4000),
                },
                place_spacing_bytes: chance.below(2000),
                ..FileLogOptions::default()
            },
            index: IndexOptions {
                keys_per_generation: 4 + chance.place(30),
                merge_fanout: 2 + chance.place(2),
                merge_tiers: chance.up_to(4),
                frozen_max: chance.up_to(2),
                runs: RunLimits {
                    keys_max: chance.up_to(6),
                    bytes_full: chance.up_to(200),
                    positions_max: chance.up_to(5),
                },
            },
            batch: BatchLimits {
                events_full: chance.up_to(12),
                bytes_full: chance.up_to(6000),
                lone_events_max: chance.place(12),
            },
            tail_cache_bytes_max: chance.place(5000),
            reads: ReadLimits {
                chunk_bytes: chance.up_to(3000),
                chunk_bytes_max: chance.up_to(3000),
                small_chunk_bytes: chance.up_to(3000),
                positions_max: 1 + chance.up_to(6),
            },
            platform: Platform {
                disk: Arc::new(disk.clone()),
                jobs: Arc::new(SimJobs),
                time: jobs::time,
                random: jobs::random,
            },
            ..PartitionOptions::new(DATA_DIR)
        };
        let followers = (0..1 + chance.below(4)).map(|_| {
            let topic = chance.percent(60).then(|| chance.below(topics) as u8);
            let start = if chance.percent(80) {
                Start::Earliest
            } else {
                Start::Latest
            };
            Follower::new(topic, start)
        });
        Self {
            followers: followers.collect(),
            disk,
            options,
            lie,
            appends_max: chance.place(4),
            chance,
            model: Model::default(),
            unanswered: Vec::new(),
            topics,
            names: 0,
            has_failed: false,
            before: None,
            figures: Figures::default(),
        }
    }

    pub fn run(mut self) -> Figures {
        for _ in 0..1 + self.chance.below(5) {
            self.life();
            if self.chance.percent(15) {
                self.turn_a_bit();
            }
        }
        self.last_life();
        (self.figures.faults, self.figures.operations) = self.disk.counts();
        self.figures
    }

    fn life(&mut self) {
        let faults = self.faults();
        let from_the_start = self.chance.percent(40);
        if from_the_start {
            self.disk.set_faults(faults.clone());
        }
        let mut server = self.open();
        if !from_the_start {
            self.disk.set_faults(faults.clone());
        }
        for _ in 0..10 + self.chance.below(200) {
            if self.disk.has_crashed() {
                break;
            }
            self.step(&mut server);
        }
        let heals = Faults {
            capacity: None,
            fail_read_in: None,
            ..faults
        } == Faults::default();
        if heals && !self.disk.has_crashed() && self.chance.percent(30) {
            self.disk.set_faults(Faults::default());
            self.drain(&mut server);
        }
        self.end(server);
    }

    /// Chooses the faults of a life.
    fn faults(&mut self) -> Faults {
        let chance = &mut self.chance;
        let mut within =
            |percent, operations| chance.percent(percent).then(|| chance.below(operations));
        Faults {
            crash_in: within(60, 150),
            fail_write_in: within(12, 100),
            fail_sync_in: within(25, 40),
            fail_read_in: within(8, 60),
            fail_append_in: within(12, 20),
            capacity: within(20, 40_000).map(|bytes| self.disk.used_bytes() + bytes),
        }
    }

    /// Opens the server, again after each fault.
    fn open(&mut self) -> Server {
        loop {
            self.figures.lives += 1;
            jobs::turn_the_clock(&mut self.chance);
            match self.try_open() {
                Ok((partition, threads, _)) => {
                    let opened_with = self.check_opened(&partition);
                    return Server {
                        partition,
                        threads,
                        requests: Vec::new(),
                        held: Vec::new(),
                        gets: Vec::new(),
                        opened_with,
                        saved: None,
                    };
                }
                Err(error) => {
                    let is_excused = self.disk.has_crashed() || self.disk.has_faulted();
                    assert!(
                        is_excused && !is_damage(&error),
                        "the server does not start: {error}"
                    );
                    jobs::end();
                    self.restart();
                }
            }
        }
    }

    fn try_open(&mut self) -> Result<(Partition, Threads, Recovery), OpenError> {
        let files = |tail_min| open_files(&self.options, tail_min);
        if self.appends_max == 0 {
            return open_locked(&self.options, None, files);
        }
        let chance = Chance::new(self.chance.next());
        open_locked(&self.options, None, |tail_min| {
            let (disk, max) = (self.disk.clone(), self.appends_max);
            Ok(LateLog::new(files(tail_min)?, disk, chance, self.lie, max))
        })
    }

    /// The process is gone, and perhaps the power.
    fn restart(&mut self) {
        let power_lost = self.chance.percent(50);
        if self.disk.has_crashed() {
            self.figures.kills += u64::from(!power_lost);
            self.figures.power_losses += u64::from(power_lost);
        }
        self.disk.restart(power_lost);
    }

    /// Somebody does something.
    fn step(&mut self, server: &mut Server) {
        match self.chance.below(22) {
            0..=2 => {
                if server.requests.len() < REQUESTS_MAX {
                    self.send(server);
                }
                self.hold_or_release(server);
            }
            3..=9 => {
                if !server.requests.is_empty() {
                    let at = self.chance.place(server.requests.len());
                    self.go_on(server, at);
                }
            }
            10..=12 => {
                let at = self.chance.place(self.followers.len());
                self.follow(&server.partition, at);
            }
            13 => jobs::pass(Duration::from_millis(1 << self.chance.below(16))),
            14 if self.chance.percent(5) => self.disk.make_space(),
            15 if self.chance.percent(10) => self.wait_for_save(server),
            20 => self.get(server),
            21 if self.chance.percent(30) => self.forge(server),
            _ => _ = jobs::turn(),
        }
    }

    fn send(&mut self, server: &mut Server) {
        let count = match self.chance.below(40) {
            0 => LARGE_REQUEST_EVENTS,
            _ => 1 + self.chance.below(REQUEST_EVENTS_MAX),
        };
        let mut sent: Vec<Sent> = Vec::new();
        for _ in 0..count {
            let next = match self.chance.below(100) {
                0..45 => None,
                45..70 if !self.unanswered.is_empty() => {
                    let at = self.chance.place(self.unanswered.len());
                    Some(self.unanswered.swap_remove(at))
                }
                45..90 => self
                    .model
                    .stored(self.chance.next())
                    .map(|name| Sent { name, content: 0 }),
                90..95 => self.model.stored(self.chance.next()).map(|name| {
                    let content = self.chance.below(3) as u8;
                    Sent { name, content }
                }),
                _ => sent.last().copied(),
            };
            sent.push(next.unwrap_or_else(|| self.new_event()));
        }
        let rejection = if self.chance.percent(30) {
            Rejection::OfRequest
        } else {
            Rejection::OfEvent
        };
        self.begin(server, sent, rejection);
    }

    /// A slow publisher: much happens between its look-up and the decision, until it goes on. It gives up waiting for
    /// a reply, and sends the same again.
    fn hold_or_release(&mut self, server: &mut Server) {
        if server.held.len() < HELD_MAX && self.chance.percent(10) {
            if !server.requests.last().is_some_and(Submission::is_new) {
                return;
            }
            let at = server.requests.len() - 1;
            self.go_on(server, at);
            if let Some(request) = server.requests.pop_if(|request| request.is_looked_up()) {
                self.unanswered.extend(request.sent.iter().copied());
                server.held.push(request);
            }
        } else if !server.held.is_empty() && self.chance.percent(10) {
            let at = self.chance.place(server.held.len());
            server.requests.push(server.held.swap_remove(at));
        }
    }

    /// Somebody looks up an event by its key: a stored one, one in flight, or neither.
    fn get(&mut self, server: &mut Server) {
        if server.gets.len() < GETS_MAX && self.chance.percent(40) {
            let in_flight = server.requests.last().map(|request| request.sent[0].name);
            let name = match self.chance.below(4) {
                0 => Some(Name {
                    topic: self.chance.below(self.topics) as u8,
                    id: self.names + 1,
                }),
                1 => in_flight,
                _ => self.model.stored(self.chance.next()),
            };
            if let Some(name) = name {
                let known = self.model.place(name);
                server.gets.push(Get::begin(&server.partition, name, known));
            }
        }
        if !server.gets.is_empty() {
            let at = self.chance.place(server.gets.len());
            if let Some(got) = server.gets[at].step(&server.partition) {
                let get = server.gets.swap_remove(at);
                self.got(&get, got);
            }
        }
    }

    fn got(&mut self, get: &Get, got: Got) {
        let is_excused = self.disk.has_crashed() || self.disk.has_faulted();
        match got {
            Some(Ok(got)) => self.model.got(get.name, get.known, got.as_ref()),
            Some(Err(error)) => assert!(is_excused, "nothing is found: {error}"),
            None => assert!(is_excused, "a question is not answered"),
        }
    }

    fn forge(&mut self, server: &Server) {
        let at = self.chance.place(self.followers.len());
        if let Err(error) = self.followers[at].forge(&server.partition, &mut self.chance) {
            let is_excused = self.disk.has_crashed() || self.disk.has_faulted();
            assert!(
                is_excused,
                "a cursor cannot be held against the log: {error}"
            );
        }
    }

    /// Lets the interval pass after which the counters are saved.
    fn wait_for_save(&mut self, server: &mut Server) {
        jobs::settle();
        if self.disk.has_crashed() {
            return;
        }
        let dropped = Dropped::counted(&server.partition);
        let (faults, _) = self.disk.counts();
        jobs::pass(SAVE_INTERVAL);
        jobs::settle();
        let has_faulted = self.disk.counts().0 > faults;
        if !self.disk.has_crashed() && !has_faulted {
            server.saved = Some(dropped);
        }
    }

    fn new_event(&mut self) -> Sent {
        self.names += 1;
        // Some topics begin late.
        let topics = 1 + self.chance.below(self.topics);
        let name = Name {
            topic: self.chance.below(topics) as u8,
            id: self.names,
        };
        Sent { name, content: 0 }
    }

    fn begin(&mut self, server: &mut Server, sent: Vec<Sent>, rejection: Rejection) {
        self.figures.sent += sent.len() as u64;
        sent.iter().for_each(|sent| self.model.send(*sent));
        server
            .requests
            .push(Submission::begin(&server.partition, sent, rejection));
    }

    /// A request takes a step.
    fn go_on(&mut self, server: &mut Server, at: usize) {
        if let Some(answer) = server.requests[at].step(&server.partition) {
            let request = server.requests.swap_remove(at);
            self.answered(&server.partition, request.sent, request.asked_at, answer);
            self.check_health(&server.partition);
        }
    }

    fn answered(
        &mut self,
        partition: &Partition,
        sent: Vec<Sent>,
        asked_at: Sequence,
        answer: Reply,
    ) {
        // The topics that fill the limit are durable before a rejection is reported.
        let (_, topics) = partition.totals();
        match answer {
            Reply::Outcomes(outcomes) => {
                let is_beyond = outcomes.contains(&Outcome::TopicLimit);
                assert!(
                    !is_beyond || topics >= self.options.topics_max,
                    "{topics} topics are beyond the limit"
                );
                return self.model.answered(&sent, &outcomes, asked_at);
            }
            Reply::Error(PublishError::TopicLimit { .. }) => {
                let begun: BTreeSet<u8> = sent.iter().map(|sent| sent.name.topic).collect();
                assert!(
                    topics + begun.len() > self.options.topics_max,
                    "{topics} topics and {begun:?} are beyond the limit"
                );
                self.model.answered.rejected += sent.len() as u64;
                self.model.refused(&sent);
            }
            Reply::Error(error) => {
                let is_excused = self.disk.has_crashed() || self.disk.has_faulted();
                assert!(is_excused, "a request is refused: {error}");
                match error {
                    PublishError::Bug
                    | PublishError::Failed
                    | PublishError::Fenced
                    | PublishError::MaybeStored => self.has_failed = true,
                    PublishError::DiskFull
                    | PublishError::IndexBehind
                    | PublishError::IndexUnreadable
                    | PublishError::LogBehind
                    | PublishError::Stopping
                    | PublishError::TopicLimit { .. } => {}
                }
                if !matches!(error, PublishError::MaybeStored | PublishError::Bug) {
                    self.model.refused(&sent);
                }
            }
            Reply::None => {}
        }
        self.unanswered.extend(sent);
    }

    /// A reader takes a step. True if there is more to read.
    fn follow(&mut self, partition: &Partition, at: usize) -> bool {
        match self.followers[at].step(partition, &mut self.model, &mut self.chance) {
            Ok((events, is_behind)) => {
                self.figures.read += events;
                is_behind
            }
            Err(error) => {
                let is_excused = self.disk.has_crashed() || self.disk.has_faulted();
                let is_log_damage = matches!(&error, ReadError::LogDamaged(_));
                assert!(is_excused && !is_log_damage, "nothing is read: {error}");
                true
            }
        }
    }

    /// Resends until everything is answered.
    fn drain(&mut self, server: &mut Server) {
        server.requests.append(&mut server.held);
        for _ in 0..STEPS_MAX {
            if server.requests.len() < REQUESTS_MAX && !self.unanswered.is_empty() {
                let count = self.unanswered.len().min(REQUEST_EVENTS_MAX as usize);
                let sent = self.unanswered.split_off(self.unanswered.len() - count);
                self.begin(server, sent, Rejection::OfEvent);
            }
            let health = *server.partition.health().borrow();
            assert!(
                !matches!(health, Health::Failed(_)),
                "there is space, and it has failed"
            );
            if server.requests.is_empty() && health == Health::Serving {
                return;
            }
            for at in (0..server.requests.len()).rev() {
                self.go_on(server, at);
            }
            jobs::turn();
            jobs::pass(Duration::from_millis(20));
        }
        panic!("requests are not answered, or it does not heal");
    }

    /// The server stops, or is stopped.
    fn end(&mut self, server: Server) {
        let Server {
            partition,
            threads,
            mut requests,
            mut held,
            gets: _,
            opened_with,
            saved: saved_at,
        } = server;
        self.followers.iter_mut().for_each(Follower::disconnect);
        let stops = !self.disk.has_crashed() && self.chance.percent(50);
        let saved = if stops {
            let saved = threads.stop();
            let is_excused = self.disk.has_crashed() || self.disk.has_faulted();
            assert!(
                saved.is_ok() || is_excused,
                "the counters are not saved: {saved:?}"
            );
            // Events that it refused then may be stored anyway.
            let failed = matches!(*partition.health().borrow(), Health::Failed(_));
            assert!(
                failed || !self.has_failed,
                "it failed, and its health is good"
            );
            saved.is_ok() && !failed && !self.disk.has_crashed()
        } else {
            self.disk.crash();
            drop(threads);
            false
        };
        jobs::end();
        requests.append(&mut held);
        for request in requests {
            let (sent, asked_at, answer) = request.end(&partition);
            self.answered(&partition, sent, asked_at, answer);
        }
        let dropped = Dropped::counted(&partition);
        assert_eq!(
            dropped,
            opened_with.plus(&self.model.answered),
            "what was answered is counted once"
        );
        let dropped_min = match (saved, saved_at, self.before.take()) {
            (true, ..) => dropped.clone(),
            (false, Some(saved), _) => saved,
            (false, None, Some(before)) => before.dropped_min,
            (false, None, None) => Dropped::default(),
        };
        self.before = Some(Before {
            dropped,
            saved,
            dropped_min,
        });
        drop(partition);
        if saved {
            self.disk.set_faults(Faults::default());
            self.check_log();
        }
        self.restart();
    }

    /// Everything works again: all that was promised is there, and resends are recognized.
    fn last_life(&mut self) {
        let mut server = self.open();
        self.drain(&mut server);
        let known: Vec<Name> = self.model.names().collect();
        self.unanswered = known
            .iter()
            .map(|&name| Sent { name, content: 0 })
            .collect();
        self.drain(&mut server);
        for at in 0..self.followers.len() {
            while self.follow(&server.partition, at) {}
        }
        let all = self
            .read_all(&server.partition)
            .expect("everything can be read");
        self.check_all(&all, &server.partition);
        self.figures.stored = all.len() as u64;
        let dropped = Dropped::counted(&server.partition);
        drop(server.partition);
        server.threads.stop().expect("the counters are saved");
        jobs::end();
        self.check_log();
        self.restart();
        self.before = Some(Before {
            dropped_min: dropped.clone(),
            dropped,
            saved: true,
        });
        let server = self.open();
        let again = self
            .read_all(&server.partition)
            .expect("everything can be read");
        assert_eq!(all, again, "a restart changes the log");
        self.check_all(&again, &server.partition);
        drop(server.partition);
        server.threads.stop().expect("the counters are saved");
        jobs::end();
    }
}

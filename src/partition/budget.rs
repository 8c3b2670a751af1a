//! The ingest budget: the memory that requests may take, from their first bytes until their answers have left.
//!
//! Every edge takes it from here, as [`Share`]s that grow with the bytes that arrive, never with what a client
//! announces, and that give back by being dropped. The policy is in this file and nowhere else:
//!
//! - A connection may hold as much as it leaves free for all others. So however many connections take what they
//!   can, there is room for the next: `n` of them leave a part of `1 / (n + 1)`.
//! - A connection gathers only as many large requests at a time as fit into an eighth of the budget, but always
//!   one: many that are half there would wait for each other.
//! - Small requests have a lane beside the budget, an eighth of its size, that large ones cannot use.
//! - Whoever waits holds what it has. So that requests that are half there cannot stop each other, one share at a
//!   time may exceed the budget: it is finished, answered, and then the next may.
//!
//! - What was read from a connection and waits for its turn lies in a [`Hand`], which never waits: it has room or not.
//!
//! All together is therefore at most the budget, half as much beside it, and one request. Waiting is back-pressure;
//! how long a request may wait is up to the edge.

use std::{
    collections::BTreeMap,
    future::{Future as _, poll_fn},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

/// Requests of at most this many bytes have a lane of their own.
pub const SMALL_BYTES_MAX: usize = 64 * 1024;
/// The part of the budget that one connection may have promised to its large requests.
const CONNECTION_PART: usize = 8;
/// The size of the lane for small requests, as a part of the budget.
const LANE_PART: usize = 8;

/// The room for what waits in hands, as a part of the budget, and its least size in bytes.
const HANDS_PART: usize = 4;
const HANDS_BYTES_MIN: usize = 4 * 1024 * 1024;

/// The memory that requests may take. Cheap to clone.
#[derive(Clone)]
pub struct Budget(Arc<Ledger>);

struct Ledger {
    bytes_max: usize,
    state: Mutex<State>,
}

struct State {
    /// What nobody holds of the budget, and of the lane for small requests.
    free: usize,
    lane_free: usize,
    hands_free: usize,
    /// Whether a share exceeds the budget.
    exceeded: bool,
    /// Those who wait, by when they began to.
    waiters: BTreeMap<u64, Waiter>,
    tickets: u64,
}

struct Waiter {
    account: Account,
    want: Want,
    granted: Option<Grant>,
    waker: Waker,
}

/// What is waited for.
#[derive(Clone, Copy)]
enum Want {
    /// To begin to gather a large request of that many bytes.
    Admission(usize),
    /// That many bytes more.
    Growth { bytes: usize, small: bool },
}

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    Admitted,
    Budget,
    Lane,
    /// Beyond the budget.
    Excess,
}

/// What one connection holds. Cheap to clone.
#[derive(Clone, Default)]
pub struct Account(Arc<Held>);

/// Changed under the lock of the budget only.
#[derive(Default)]
struct Held {
    budget: AtomicUsize,
    lane: AtomicUsize,
    hands: AtomicUsize,
    /// What its large requests that are being gathered will hold.
    promised: AtomicUsize,
}

/// A part of the budget. Dropped, it goes back.
pub struct Share {
    budget: Budget,
    account: Account,
    /// How large the request is as far as it is known: decides whether it is small.
    expected: usize,
    promised: usize,
    held: usize,
    lane: usize,
    excess: usize,
    /// What of it an answer takes, once the events are gone.
    answer: usize,
}

impl Budget {
    /// A budget of `bytes_max` bytes, and its lane.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Ledger {
            bytes_max,
            state: Mutex::new(State {
                free: bytes_max,
                lane_free: bytes_max / LANE_PART,
                hands_free: (bytes_max / HANDS_PART).max(HANDS_BYTES_MIN),
                exceeded: false,
                waiters: BTreeMap::new(),
                tickets: 0,
            }),
        }))
    }

    /// An empty share, for a request of `expected` bytes that arrives on a connection.
    pub fn share(&self, account: &Account, expected: usize) -> Share {
        Share {
            budget: self.clone(),
            account: account.clone(),
            expected,
            promised: 0,
            held: 0,
            lane: 0,
            excess: 0,
            answer: 0,
        }
    }

    /// An empty hand, for a stream of requests on a connection.
    pub fn hand(&self, account: &Account) -> Hand {
        Hand {
            budget: self.clone(),
            account: account.clone(),
            bytes: 0,
        }
    }

    /// The bytes that all shares hold.
    pub fn held(&self) -> usize {
        let state = self.lock();
        let lane = self.0.bytes_max / LANE_PART - state.lane_free;
        self.0.bytes_max - state.free + lane
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock panics half-way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `want` can be taken from now.
    fn find(&self, state: &State, account: &Held, want: Want) -> Option<Grant> {
        let connection_max = self.0.bytes_max / CONNECTION_PART;
        let held = account.budget.load(Relaxed);
        match want {
            Want::Admission(bytes) => {
                let promised = account.promised.load(Relaxed);
                let room = connection_max.min(state.free.saturating_add(held) / 2);
                (promised == 0 || promised + bytes <= room).then_some(Grant::Admitted)
            }
            Want::Growth { bytes, small } => {
                if held + bytes <= state.free.saturating_sub(bytes) {
                    return Some(Grant::Budget);
                }
                let lane_max = self.0.bytes_max / LANE_PART / CONNECTION_PART;
                let in_lane = account.lane.load(Relaxed) + bytes;
                if small && in_lane <= lane_max.min(state.lane_free.saturating_sub(bytes)) {
                    return Some(Grant::Lane);
                }
                (!state.exceeded).then_some(Grant::Excess)
            }
        }
    }

    /// Takes what `grant` says.
    fn take(&self, state: &mut State, account: &Held, want: Want, grant: Grant) {
        match (want, grant) {
            (Want::Admission(bytes), _) => _ = account.promised.fetch_add(bytes, Relaxed),
            (Want::Growth { bytes, .. }, Grant::Budget) => {
                state.free -= bytes;
                account.budget.fetch_add(bytes, Relaxed);
            }
            (Want::Growth { bytes, .. }, Grant::Lane) => {
                state.lane_free -= bytes;
                account.lane.fetch_add(bytes, Relaxed);
            }
            (Want::Growth { .. }, Grant::Admitted | Grant::Excess) => state.exceeded = true,
        }
    }

    /// Lets those go on that can, the longest waiting first.
    fn serve(&self, state: &mut State) {
        if state.waiters.is_empty() {
            return;
        }
        let mut waiters = std::mem::take(&mut state.waiters);
        for waiter in waiters.values_mut().filter(|w| w.granted.is_none()) {
            if let Some(grant) = self.find(state, &waiter.account.0, waiter.want) {
                self.take(state, &waiter.account.0, waiter.want, grant);
                waiter.granted = Some(grant);
                waiter.waker.wake_by_ref();
            }
        }
        state.waiters = waiters;
    }

    async fn acquire(&self, account: &Account, want: Want) -> Grant {
        let mut place = Place {
            budget: self,
            ticket: None,
        };
        poll_fn(|cx| place.poll(cx, account, want)).await
    }
}

/// A place among those who wait.
struct Place<'a> {
    budget: &'a Budget,
    ticket: Option<u64>,
}

impl Place<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, account: &Account, want: Want) -> Poll<Grant> {
        let mut state = self.budget.lock();
        let Some(ticket) = self.ticket else {
            if let Some(grant) = self.budget.find(&state, &account.0, want) {
                self.budget.take(&mut state, &account.0, want, grant);
                return Poll::Ready(grant);
            }
            let ticket = state.tickets;
            state.tickets += 1;
            let waiter = Waiter {
                account: account.clone(),
                want,
                granted: None,
                waker: cx.waker().clone(),
            };
            state.waiters.insert(ticket, waiter);
            self.ticket = Some(ticket);
            return Poll::Pending;
        };
        let waiter = state.waiters.get_mut(&ticket).expect("it waits");
        let Some(grant) = waiter.granted else {
            waiter.waker.clone_from(cx.waker());
            return Poll::Pending;
        };
        state.waiters.remove(&ticket);
        self.ticket = None;
        Poll::Ready(grant)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else {
            return;
        };
        let mut state = self.budget.lock();
        let waiter = state.waiters.remove(&ticket).expect("it waits");
        let account = &waiter.account.0;
        match (waiter.granted, waiter.want) {
            (None, _) => return,
            (Some(_), Want::Admission(bytes)) => _ = account.promised.fetch_sub(bytes, Relaxed),
            (Some(Grant::Lane), Want::Growth { bytes, .. }) => {
                state.lane_free += bytes;
                account.lane.fetch_sub(bytes, Relaxed);
            }
            (Some(Grant::Budget), Want::Growth { bytes, .. }) => {
                state.free += bytes;
                account.budget.fetch_sub(bytes, Relaxed);
            }
            (Some(Grant::Excess | Grant::Admitted), Want::Growth { .. }) => state.exceeded = false,
        }
        self.budget.serve(&mut state);
    }
}

impl Share {
    /// The bytes it covers.
    pub fn bytes(&self) -> usize {
        self.held + self.lane + self.excess
    }

    /// What it is a part of.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Makes it cover `bytes` if that takes no waiting; returns whether it does.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let grown = std::pin::pin!(self.grow(bytes));
        grown
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    /// Makes it cover `bytes`; waits while others hold too much. What it covers already it keeps.
    pub async fn grow(&mut self, bytes: usize) {
        let Some(more) = bytes.checked_sub(self.bytes()).filter(|more| *more > 0) else {
            return;
        };
        let small = self.expected.max(bytes) <= SMALL_BYTES_MAX;
        if !small && self.promised == 0 {
            let promise = self.expected.max(bytes);
            let budget = self.budget.clone();
            let admission = Want::Admission(promise);
            budget.acquire(&self.account, admission).await;
            self.promised = promise;
        }
        if self.excess > 0 {
            self.excess += more;
            return;
        }
        let want = Want::Growth { bytes: more, small };
        match self.budget.acquire(&self.account, want).await {
            Grant::Budget => self.held += more,
            Grant::Lane => self.lane += more,
            Grant::Excess | Grant::Admitted => self.excess += more,
        }
    }

    /// Gives back what it covers beyond `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let mut surplus = self.bytes().saturating_sub(bytes);
        let mut give = |part: &mut usize| {
            let given = surplus.min(*part);
            *part -= given;
            surplus -= given;
            given
        };
        let excess = give(&mut self.excess);
        let held = give(&mut self.held);
        let lane = give(&mut self.lane);
        let promised = self.promised.saturating_sub(bytes);
        if excess + held + lane + promised == 0 {
            return;
        }
        self.promised -= promised;
        let account = &self.account.0;
        let mut state = self.budget.lock();
        account.promised.fetch_sub(promised, Relaxed);
        account.budget.fetch_sub(held, Relaxed);
        account.lane.fetch_sub(lane, Relaxed);
        state.free += held;
        state.lane_free += lane;
        if excess > 0 {
            // What is left of a request that is answered is little: the next need not wait until its answer has left.
            if self.excess <= state.free {
                state.free -= self.excess;
                account.budget.fetch_add(self.excess, Relaxed);
                self.held += std::mem::take(&mut self.excess);
            }
            state.exceeded = self.excess > 0;
        }
        self.budget.serve(&mut state);
    }

    /// Says how large the request is, once that is known.
    pub fn expect(&mut self, bytes: usize) {
        self.expected = self.expected.max(bytes);
    }

    /// Says that the request is there whole: the connection may gather the next.
    pub(super) fn arrived(&mut self) {
        let promised = std::mem::take(&mut self.promised);
        if promised > 0 {
            let mut state = self.budget.lock();
            self.account.0.promised.fetch_sub(promised, Relaxed);
            self.budget.serve(&mut state);
        }
    }

    /// Says how many of its bytes are for the answer, beside the outcomes: they stay when the events are gone.
    pub fn set_answer(&mut self, bytes: usize) {
        self.answer = bytes;
    }

    /// Gives back what the events took, and keeps what the answer takes.
    pub(super) fn keep_answer(&mut self, outcomes_bytes: usize) {
        self.shrink(outcomes_bytes + self.answer);
    }

    /// Takes over what another share covers, of the same connection.
    pub fn merge(&mut self, mut other: Self) {
        for (own, others) in [
            (&mut self.promised, &mut other.promised),
            (&mut self.held, &mut other.held),
            (&mut self.lane, &mut other.lane),
            (&mut self.excess, &mut other.excess),
            (&mut self.answer, &mut other.answer),
        ] {
            *own += std::mem::take(others);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// What was read of a connection and nobody has taken. Dropped, it is empty.
pub struct Hand {
    budget: Budget,
    account: Account,
    bytes: usize,
}

impl Hand {
    /// Makes it hold `bytes`. Returns whether there is room; what it held before it holds still if not.
    pub fn hold(&mut self, bytes: usize) -> bool {
        if bytes == self.bytes {
            return true;
        }
        let account = &self.account.0;
        let mut state = self.budget.lock();
        if let Some(more) = bytes.checked_sub(self.bytes) {
            if account.hands.load(Relaxed) + more > state.hands_free.saturating_sub(more) {
                return false;
            }
            state.hands_free -= more;
            account.hands.fetch_add(more, Relaxed);
        } else {
            state.hands_free += self.bytes - bytes;
            account.hands.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    const BYTES_MAX: usize = 1024 * 1024;
    const LARGE: usize = 256 * 1024;

    /// Takes the excess, which is one share's at a time.
    fn take_excess(budget: &Budget) -> Share {
        let mut share = budget.share(&Account::default(), 4 * BYTES_MAX);
        assert!(share.try_grow(4 * BYTES_MAX));
        assert_eq!(budget.held(), 0, "it is beyond the budget");
        share
    }

    #[test]
    fn a_connection_leaves_as_much_as_it_holds() {
        let budget = Budget::new(BYTES_MAX);
        let _excess = take_excess(&budget);
        let mut taken = Vec::new();
        for connections in 1..=10 {
            let account = Account::default();
            loop {
                let mut share = budget.share(&account, SMALL_BYTES_MAX + 1);
                if !share.try_grow(1024) {
                    break;
                }
                taken.push(share);
            }
            let free = budget.lock().free;
            assert!(
                free >= BYTES_MAX / (2 << connections),
                "{connections}: {free}"
            );
        }
        taken.clear();
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_connection_gathers_few_large_requests_at_a_time() {
        let budget = Budget::new(BYTES_MAX);
        let account = Account::default();
        let mut first = budget.share(&account, LARGE);
        assert!(first.try_grow(1), "one is always admitted");
        let mut second = budget.share(&account, LARGE);
        assert!(!second.try_grow(1));
        let mut elsewhere = budget.share(&Account::default(), LARGE);
        assert!(elsewhere.try_grow(1));
        let mut waiting = Box::pin(second.grow(1));
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn small_requests_have_a_lane() {
        let budget = Budget::new(BYTES_MAX);
        let _excess = take_excess(&budget);
        let mut taken = Vec::new();
        loop {
            let mut share = budget.share(&Account::default(), LARGE);
            if !share.try_grow(1024) {
                break;
            }
            taken.push(share);
        }
        let mut small = budget.share(&Account::default(), 1024);
        assert!(small.try_grow(1024));
        assert_eq!(budget.lock().lane_free, BYTES_MAX / LANE_PART - 1024);
        drop(small);
        assert_eq!(budget.lock().lane_free, BYTES_MAX / LANE_PART);
    }

    #[test]
    fn shares_that_are_half_there_are_finished_one_after_another() {
        let budget = Budget::new(BYTES_MAX);
        let mut half: Vec<_> = (0..20)
            .map(|_| budget.share(&Account::default(), LARGE))
            .collect();
        for share in &mut half {
            assert!(share.grow(BYTES_MAX / 40).now_or_never().is_some());
        }
        let mut waiting: Vec<_> = half
            .into_iter()
            .map(|mut share| {
                Box::pin(async move {
                    share.grow(LARGE).await;
                    share
                })
            })
            .collect();
        // Each of them is dropped as soon as it is whole.
        for _ in 0..40 {
            waiting.retain_mut(|share| share.now_or_never().is_none());
        }
        assert!(waiting.is_empty(), "{} are left", waiting.len());
        assert_eq!(budget.held(), 0);
        assert!(!budget.lock().exceeded);
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl std::task::Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn waiters_wake_when_there_is_room() {
        let budget = Budget::new(BYTES_MAX);
        let excess = take_excess(&budget);
        let mut waiting = budget.share(&Account::default(), 2 * BYTES_MAX);
        let wakes = Arc::<Wakes>::default();
        let mut grown = Box::pin(waiting.grow(2 * BYTES_MAX));
        let waker = Waker::from(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        assert!(grown.as_mut().poll(&mut cx).is_pending());
        assert_eq!(wakes.0.load(Relaxed), 0);
        drop(excess);
        assert_eq!(wakes.0.load(Relaxed), 1);
        assert!(grown.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn an_untaken_grant_goes_back() {
        let budget = Budget::new(BYTES_MAX);
        let _excess = take_excess(&budget);
        let new = || budget.share(&Account::default(), LARGE);
        let mut held: Vec<_> = (0..3).map(|_| new()).collect();
        assert!(held.iter_mut().all(|share| share.try_grow(LARGE)));
        let mut late = new();
        let mut grown = Box::pin(late.grow(LARGE));
        assert!((&mut grown).now_or_never().is_none());
        held.pop();
        assert_eq!(budget.held(), 3 * LARGE, "it is granted");
        drop(grown);
        drop(late);
        assert_eq!(budget.held(), 2 * LARGE);
    }

    #[test]
    fn a_hand_holds_what_there_is_room_for() {
        let budget = Budget::new(BYTES_MAX);
        let account = Account::default();
        let mut hand = budget.hand(&account);
        assert!(hand.hold(HANDS_BYTES_MIN / 2));
        assert!(!budget.hand(&account).hold(1));
        let mut other = budget.hand(&Account::default());
        assert!(other.hold(HANDS_BYTES_MIN / 4));
        assert!(!hand.hold(HANDS_BYTES_MIN));
        assert!(hand.hold(0));
        drop(other);
        assert_eq!(budget.lock().hands_free, HANDS_BYTES_MIN);
    }

    #[derive(Clone, Debug)]
    enum ShareOp {
        Grow(usize),
        Shrink(usize),
        Poll,
        Drop,
    }

    fn any_step() -> impl Strategy<Value = (usize, ShareOp)> {
        let step = prop_oneof![
            4 => (1..LARGE).prop_map(ShareOp::Grow),
            1 => (0..LARGE).prop_map(ShareOp::Shrink),
            4 => Just(ShareOp::Poll),
            2 => Just(ShareOp::Drop),
        ];
        (0..8usize, step)
    }

    type Growing = std::pin::Pin<Box<dyn Future<Output = Share>>>;

    enum Slot {
        Idle(Share),
        Growing(Growing),
    }

    proptest! {
        /// Whatever is taken, waited for, given back and given up: shares add up to what is held, and when all have
        /// gone, nothing is held, promised or waited for.
        #[test]
        fn shares_add_up(
            expected in proptest::collection::vec(0..LARGE, 8),
            steps in proptest::collection::vec(any_step(), 0..200),
        ) {
            const CONNECTIONS: usize = 3;
            let budget = Budget::new(BYTES_MAX / 4);
            let accounts: Vec<_> = (0..CONNECTIONS).map(|_| Account::default()).collect();
            let new = |at: usize| budget.share(&accounts[at % CONNECTIONS], expected[at]);
            let mut slots: Vec<_> = (0..8).map(|at| Some(Slot::Idle(new(at)))).collect();
            for (at, step) in steps {
                let slot = slots[at].take().expect("one at a time");
                slots[at] = Some(match (slot, step) {
                    (Slot::Idle(mut share), ShareOp::Grow(bytes)) => Slot::Growing(Box::pin(async move {
                        share.grow(bytes).await;
                        assert!(share.bytes() >= bytes);
                        share
                    })),
                    (Slot::Idle(mut share), ShareOp::Shrink(bytes)) => {
                        share.shrink(bytes);
                        assert!(share.bytes() <= bytes);
                        Slot::Idle(share)
                    }
                    (Slot::Growing(mut growing), ShareOp::Poll | ShareOp::Grow(_) | ShareOp::Shrink(_)) => {
                        match (&mut growing).now_or_never() {
                            Some(share) => Slot::Idle(share),
                            None => Slot::Growing(growing),
                        }
                    }
                    (slot, ShareOp::Drop) => {
                        drop(slot);
                        Slot::Idle(new(at))
                    }
                    (idle @ Slot::Idle(_), ShareOp::Poll) => idle,
                });
                prop_assert!(budget.held() <= BYTES_MAX / 4 + BYTES_MAX / 4 / LANE_PART);
            }
            drop(slots);
            prop_assert_eq!(budget.held(), 0);
            let state = budget.lock();
            prop_assert!(state.waiters.is_empty() && !state.exceeded);
            for account in &accounts {
                let held = &account.0;
                for part in [&held.budget, &held.lane, &held.promised, &held.hands] {
                    prop_assert_eq!(part.load(Relaxed), 0);
                }
            }
        }
    }
}

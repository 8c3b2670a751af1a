//! The ingest budget: the memory that requests may take, from their first bytes until their responses have
//! been sent.
//!
//! Every edge takes memory from here, as [`Share`]s that grow with the bytes received, never with what a
//! client announces, and that release it when dropped. This file alone has the policy:
//!
//! - A connection may hold at most half, and less when others hold some ([`connection_bytes_max`]). So however
//!   many connections take all they can, there is room for the next: `n` of them leave a part of `1 / (n + 1)`.
//! - A connection gathers only as many large requests at a time as fit into an eighth of the budget, but always
//!   one: many half-received requests would wait for each other.
//! - Small requests have a lane beside the budget, an eighth of its size, that large ones cannot use.
//! - A waiting share keeps what it holds. So that half-received requests cannot deadlock, one share at a time may
//!   exceed the budget: it is finished and answered, and then the next may. A connection that holds its part may
//!   keep one such response beyond it, and must send that before it may exceed the budget again.
//!
//! - Bytes read from a connection that wait their turn lie in a [`Hand`], which never waits: it has room or not.
//!
//! So the total is at most the budget, half as much beside it, and one request. Waiting is back-pressure; each edge
//! decides how long a request may wait.

mod hand;

use std::{
    collections::BTreeMap,
    future::{Future as _, poll_fn},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

pub use self::hand::Hand;

/// Requests of at most this many bytes use the lane for small ones.
pub const SMALL_BYTES_MAX: usize = 64 * 1024;
/// The part of the budget that one connection's large requests may have been promised.
const CONNECTION_PART: usize = 8;
/// The size of the lane for small requests, as a part of the budget.
const LANE_PART: usize = 8;

/// The room for all hands, as a part of the budget, and its minimum in bytes.
const HANDS_PART: usize = 4;
const HANDS_BYTES_MIN: usize = 4 * 1024 * 1024;

/// How much of `bytes_max` a connection may hold when `available` of it are free or its own.
///
/// Chosen so that `n` connections that hold all they may leave `1 / (n + 1)`, in whatever order they took it: the
/// `n`-th finds `1 / n` and leaves `1 / (n + 1)`.
pub(super) fn connection_bytes_max(bytes_max: usize, available: usize) -> usize {
    let (max, available) = (bytes_max as u128, available as u128);
    let part = available * available / (max + available);
    usize::try_from(part).expect("less than what is available")
}

/// The memory that requests may take. Cheap to clone.
#[derive(Clone)]
pub struct Budget(Arc<Ledger>);

struct Ledger {
    bytes_max: usize,
    state: Mutex<State>,
}

struct State {
    /// The free part of the budget, and of the lane for small requests.
    free: usize,
    lane_free: usize,
    hands_free: usize,
    /// Whether a share exceeds the budget.
    exceeded: bool,
    /// By ticket, in the order in which they began to wait.
    waiters: BTreeMap<u64, Waiter>,
    tickets: u64,
}

struct Waiter {
    account: Account,
    want: Want,
    granted: Option<Grant>,
    waker: Waker,
}

/// A request for memory.
#[derive(Clone, Copy)]
enum Want {
    /// Permission to start gathering a large request of this many bytes.
    Admission(usize),
    /// This many more bytes.
    Growth { bytes: usize, small: bool },
}

/// The source of granted bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    Admitted,
    Budget,
    Lane,
    /// Beyond the budget.
    Excess,
}

/// The memory that one connection holds. Cheap to clone.
#[derive(Clone, Default)]
pub struct Account(Arc<Held>);

/// Changed only under the budget's lock.
#[derive(Default)]
struct Held {
    budget: AtomicUsize,
    lane: AtomicUsize,
    hands: AtomicUsize,
    /// What the large requests being gathered will hold.
    promised: AtomicUsize,
    /// Responses that took it beyond its part: their requests exceeded the budget.
    over: AtomicUsize,
}

/// A part of the budget; released when dropped.
pub struct Share {
    budget: Budget,
    account: Account,
    /// The size of the request as far as known; decides whether it is small.
    expected: usize,
    promised: usize,
    held: usize,
    lane: usize,
    excess: usize,
    /// The part kept for the response once the events are gone.
    answer: usize,
    /// How many responses it covers that took the connection beyond its part.
    over: usize,
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
            over: 0,
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

    /// The bytes held by all shares.
    pub fn held(&self) -> usize {
        let state = self.lock();
        let lane = self.0.bytes_max / LANE_PART - state.lane_free;
        self.0.bytes_max - state.free + lane
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock panics.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source that can grant `want` now.
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
                if held + bytes <= connection_bytes_max(self.0.bytes_max, state.free + held) {
                    return Some(Grant::Budget);
                }
                let lane_max = self.0.bytes_max / LANE_PART / CONNECTION_PART;
                let in_lane = account.lane.load(Relaxed) + bytes;
                if small && in_lane <= lane_max.min(state.lane_free.saturating_sub(bytes)) {
                    return Some(Grant::Lane);
                }
                let may_exceed = !state.exceeded && account.over.load(Relaxed) == 0;
                may_exceed.then_some(Grant::Excess)
            }
        }
    }

    /// Takes the bytes of `grant`.
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

    /// Grants what it can, the longest waiting first.
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

/// A place in the queue.
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

    /// The budget it is part of.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Grows to `bytes` if that is possible without waiting; returns whether it was.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let grown = std::pin::pin!(self.grow(bytes));
        grown
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    /// Grows to `bytes`; waits while others hold too much. Keeps what it has meanwhile.
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

    /// Releases all beyond `bytes`.
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
            // An answered request has little left: the next need not wait until its response has been sent. But if
            // the connection already holds its part, and its client has yet to read the response, it may not exceed
            // the budget again before that.
            if self.excess <= state.free {
                state.free -= self.excess;
                let held = account.budget.fetch_add(self.excess, Relaxed) + self.excess;
                self.held += std::mem::take(&mut self.excess);
                let part = connection_bytes_max(self.budget.0.bytes_max, state.free + held);
                if held > part && self.answer > 0 {
                    account.over.fetch_add(1, Relaxed);
                    self.over += 1;
                }
            }
            state.exceeded = self.excess > 0;
        }
        if self.held + self.lane + self.excess == 0 {
            account
                .over
                .fetch_sub(std::mem::take(&mut self.over), Relaxed);
        }
        self.budget.serve(&mut state);
    }

    /// Sets the size of the request, once known.
    pub fn expect(&mut self, bytes: usize) {
        self.expected = self.expected.max(bytes);
    }

    /// Marks the request as received whole: the connection may gather the next.
    pub(super) fn arrived(&mut self) {
        let promised = std::mem::take(&mut self.promised);
        if promised > 0 {
            let mut state = self.budget.lock();
            self.account.0.promised.fetch_sub(promised, Relaxed);
            self.budget.serve(&mut state);
        }
    }

    /// Sets how many bytes the response needs, beside the outcomes: they are kept when the events are gone.
    pub fn set_answer(&mut self, bytes: usize) {
        self.answer = bytes;
    }

    /// Releases the memory of the events, and keeps that of the response.
    pub(super) fn keep_answer(&mut self, outcomes_bytes: usize) {
        self.shrink(outcomes_bytes + self.answer);
    }

    /// Absorbs another share of the same connection.
    pub fn merge(&mut self, mut other: Self) {
        for (own, others) in [
            (&mut self.promised, &mut other.promised),
            (&mut self.held, &mut other.held),
            (&mut self.lane, &mut other.lane),
            (&mut self.excess, &mut other.excess),
            (&mut self.answer, &mut other.answer),
            (&mut self.over, &mut other.over),
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    const BYTES_MAX: usize = 1024 * 1024;
    const LARGE: usize = 256 * 1024;

    /// Takes the excess, which one share at a time may have.
    fn take_excess(budget: &Budget) -> Share {
        let mut share = budget.share(&Account::default(), 4 * BYTES_MAX);
        assert!(share.try_grow(4 * BYTES_MAX));
        assert_eq!(budget.held(), 0, "it is beyond the budget");
        share
    }

    #[test]
    fn connections_that_take_all_they_can_leave_their_part() {
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
                share.arrived();
                taken.push(share);
            }
            let free = budget.lock().free;
            let left = BYTES_MAX / (connections + 1);
            assert!(
                (left..=left + 4096).contains(&free),
                "{connections}: {free}"
            );
        }
        assert!(budget.held() > BYTES_MAX * 9 / 10);
        taken.clear();
        assert_eq!(budget.held(), 0);
    }

    /// Requests beyond the budget are finished one after another; their remains must not add up.
    #[test]
    fn unread_responses_of_requests_beyond_the_budget_do_not_add_up() {
        const RESPONSE: usize = 4096;
        let budget = Budget::new(BYTES_MAX);
        let mut taken = Vec::new();
        for connections in 1..=10 {
            let account = Account::default();
            let mut requests = 0;
            loop {
                let mut share = budget.share(&account, LARGE);
                if !share.try_grow(LARGE) {
                    break;
                }
                share.arrived();
                share.set_answer(RESPONSE);
                share.keep_answer(0);
                taken.push(share);
                requests += 1;
                assert!(requests <= BYTES_MAX / RESPONSE, "without end");
            }
            assert!(requests > 0, "one request may always exceed the budget");
            let free = budget.lock().free;
            let left = BYTES_MAX / (connections + 1) - connections * RESPONSE;
            assert!(free >= left, "{connections}: {free}, not {left}");
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
        let mut third = budget.share(&account, LARGE);
        assert!(!third.try_grow(1));
        second.arrived();
        assert!(third.try_grow(1), "the second is not gathered any more");
    }

    #[test]
    fn a_share_beyond_the_budget_shrinks_to_what_is_asked() {
        let budget = Budget::new(BYTES_MAX);
        let mut share = budget.share(&Account::default(), 4 * BYTES_MAX);
        for bytes in [LARGE, 3 * BYTES_MAX, 4 * BYTES_MAX] {
            assert!(share.try_grow(bytes));
            assert_eq!((share.bytes(), budget.held()), (bytes, LARGE));
        }
        let may_exceed = || {
            let mut other = budget.share(&Account::default(), 2 * BYTES_MAX);
            other.try_grow(2 * BYTES_MAX)
        };
        share.shrink(2 * BYTES_MAX);
        assert_eq!((share.bytes(), budget.held()), (2 * BYTES_MAX, LARGE));
        // Others that come and go do not change that.
        assert!(!may_exceed());
        assert!(!may_exceed());
        share.shrink(LARGE / 2);
        assert_eq!((share.bytes(), budget.held()), (LARGE / 2, LARGE / 2));
        assert!(may_exceed());
    }

    #[test]
    fn a_merged_share_holds_what_both_held_and_then_the_response() {
        let budget = Budget::new(BYTES_MAX);
        let account = Account::default();
        let [mut one, mut other] = [3000, 2000].map(|bytes| {
            let mut share = budget.share(&account, bytes);
            assert!(share.try_grow(bytes));
            share
        });
        one.set_answer(300);
        other.set_answer(200);
        one.merge(other);
        assert_eq!((one.bytes(), budget.held()), (5000, 5000));
        one.keep_answer(70);
        assert_eq!((one.bytes(), budget.held()), (570, 570));
        drop(one);
        assert_eq!(budget.held(), 0);
    }

    /// What a connection gathers at once is limited by its part, and by half of what is left.
    #[test]
    fn a_connection_gathers_what_fits_into_its_part() {
        const PROMISE: usize = 128 * 1024;
        let budget = Budget::new(8 * BYTES_MAX);
        let gathered = || {
            let account = Account::default();
            let mut shares = Vec::new();
            loop {
                let mut share = budget.share(&account, PROMISE);
                if !share.try_grow(1) {
                    break shares.len();
                }
                shares.push(share);
            }
        };
        assert_eq!(gathered(), 8 * BYTES_MAX / CONNECTION_PART / PROMISE);
        let mut excess = budget.share(&Account::default(), 64 * BYTES_MAX);
        assert!(excess.try_grow(64 * BYTES_MAX));
        let mut others = Vec::new();
        while budget.lock().free > 5 * PROMISE {
            let mut share = budget.share(&Account::default(), PROMISE);
            assert!(share.try_grow(1024));
            others.push(share);
        }
        assert_eq!(gathered(), 2);
    }

    /// A budget of which large requests have taken all they can, and the shares that did.
    fn exhausted() -> (Budget, Vec<Share>) {
        let budget = Budget::new(BYTES_MAX);
        let mut taken = vec![take_excess(&budget)];
        loop {
            let mut share = budget.share(&Account::default(), LARGE);
            if !share.try_grow(1024) {
                return (budget, taken);
            }
            taken.push(share);
        }
    }

    #[test]
    fn small_requests_have_a_lane() {
        let (budget, _taken) = exhausted();
        let held = budget.held();
        let mut small = budget.share(&Account::default(), 1024);
        assert!(small.try_grow(1024));
        assert_eq!(budget.lock().lane_free, BYTES_MAX / LANE_PART - 1024);
        assert_eq!(budget.held(), held + 1024);
        drop(small);
        assert_eq!(budget.lock().lane_free, BYTES_MAX / LANE_PART);
    }

    #[test]
    fn a_connection_has_a_part_of_the_lane() {
        const SMALL: usize = 1024;
        let (budget, _taken) = exhausted();
        let account = Account::default();
        let mut small = Vec::new();
        loop {
            let mut share = budget.share(&account, SMALL);
            if !share.try_grow(SMALL) {
                break;
            }
            small.push(share);
        }
        assert_eq!(small.len(), BYTES_MAX / LANE_PART / CONNECTION_PART / SMALL);
        // It waits for a place in its own part; what it does not take any more goes back.
        let mut waiting = budget.share(&account, SMALL);
        let mut grown = Box::pin(waiting.grow(SMALL));
        assert!((&mut grown).now_or_never().is_none());
        let lane_free = budget.lock().lane_free;
        small.pop();
        assert_eq!(budget.lock().lane_free, lane_free, "it is granted");
        drop(grown);
        assert_eq!(budget.lock().lane_free, lane_free + SMALL);
        let mut elsewhere = budget.share(&Account::default(), SMALL);
        assert!(elsewhere.try_grow(SMALL));
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
        // Each is dropped as soon as it is whole.
        for _ in 0..40 {
            waiting.retain_mut(|share| share.now_or_never().is_none());
        }
        assert!(waiting.is_empty(), "{} are left", waiting.len());
        assert_eq!(budget.held(), 0);
        assert!(!budget.lock().exceeded);
    }

    /// Counts its wake-ups.
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
        let mut held: Vec<_> = (0..2).map(|_| new()).collect();
        assert!(held.iter_mut().all(|share| share.try_grow(LARGE)));
        let mut late = new();
        let mut grown = Box::pin(late.grow(LARGE));
        assert!((&mut grown).now_or_never().is_none());
        held.pop();
        assert_eq!(budget.held(), 2 * LARGE, "it is granted");
        drop(grown);
        drop(late);
        assert_eq!(budget.held(), LARGE);
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
        /// Whatever is taken, awaited, released and abandoned: shares add up to what is held, and in the end
        /// nothing is held, promised or awaited.
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
                for part in [&held.budget, &held.lane, &held.promised, &held.hands, &held.over] {
                    prop_assert_eq!(part.load(Relaxed), 0);
                }
            }
        }
    }
}

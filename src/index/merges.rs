//! Merges: those in progress, so that no two take the same generation, and whether a seal must wait for one.
//!
//! Owns the mergers' claims. A claim is released after the merged generation is installed, so generations that
//! are unclaimed are in the view.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    IndexOptions,
    generation::Generation,
    parts::{Parts, View},
    tiers::{self, Described},
};
use crate::event::Sequence;

/// Shared by the mergers, the sealer and a rebuild.
pub(super) struct Merges {
    options: IndexOptions,
    parts: Arc<Parts>,
    state: Mutex<State>,
}

struct State {
    /// The ranges being merged.
    claimed: Vec<Range<Sequence>>,
    /// By tier: false while its merger waits after a failure, or has ended.
    able: Vec<bool>,
}

/// Adjacent generations that nobody else merges until this is dropped.
pub(super) struct Claim<'a> {
    merges: &'a Merges,
    parents: Vec<Arc<Generation>>,
}

impl Merges {
    pub(super) fn new(options: IndexOptions, parts: Arc<Parts>) -> Self {
        let state = Mutex::new(State {
            claimed: Vec::new(),
            able: vec![true; options.merge_tiers],
        });
        Self {
            options,
            parts,
            state,
        }
    }

    /// Claims the next generations to merge in `tier`, if any.
    pub(super) fn claim(&self, tier: usize) -> Option<Claim<'_>> {
        let mut state = self.state();
        // Only under the lock: what a claim covered before is installed now.
        let view = self.parts.view();
        let window = tiers::choose(&state.describe(&view), tier, self.options)?;
        let parents: Vec<_> = view
            .generations()
            .skip(window.start)
            .take(window.len())
            .cloned()
            .collect();
        state.claimed.push(range_of(&parents));
        Some(Claim {
            merges: self,
            parents,
        })
    }

    /// Records whether the merger of `tier` accepts work.
    pub(super) fn set_able(&self, tier: usize, able: bool) {
        self.state().able[tier] = able;
    }

    /// Whether the bound on generations is reached, and a merge that lowers their number is in progress or about to
    /// start. A merge that failed or cannot start keeps nobody waiting.
    pub(super) fn must_go_first(&self) -> bool {
        let state = self.state();
        let view = self.parts.view();
        let described = state.describe(&view);
        let keys = described.iter().map(|generation| generation.keys).sum();
        let is_due =
            |tier| state.able[tier] && tiers::choose(&described, tier, self.options).is_some();
        described.len() >= tiers::generations_max(keys, self.options)
            && (!state.claimed.is_empty() || (0..state.able.len()).any(is_due))
    }

    // No holder panics between two changes that belong together, so poison means nothing here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn describe(&self, view: &View) -> Vec<Described> {
        let describe = |generation: &Arc<Generation>| {
            let range = generation.range();
            let is_claimed = self
                .claimed
                .iter()
                .any(|claimed| claimed.start <= range.start && range.end <= claimed.end);
            Described {
                is_usable: !is_claimed && !generation.is_damaged(),
                keys: generation.key_count(),
                range,
            }
        };
        view.generations().map(describe).collect()
    }
}

impl Claim<'_> {
    /// At least two, in order.
    pub(super) fn parents(&self) -> &[Arc<Generation>] {
        &self.parents
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let range = range_of(&self.parents);
        self.merges.state().claimed.retain(|one| *one != range);
    }
}

fn range_of(parents: &[Arc<Generation>]) -> Range<Sequence> {
    let (Some(first), Some(last)) = (parents.first(), parents.last()) else {
        unreachable!("a merge has parents");
    };
    first.range().start..last.range().end
}

//! Tiers: which generations to merge next, and how many there can be.
//!
//! Owns the choice. A merge combines `fanout` adjacent generations of one tier into one of the next, so that each key
//! is written once per tier. Each tier is merged by itself: it gets one generation in the time in which the tier below
//! gets `fanout`. So while merging keeps up with sealing, a merge ends before `fanout` more have come, and a tier has
//! at most `2 * fanout`. Those of the last tier are full and grow no more.

use std::ops::Range;

use super::IndexOptions;
use crate::event::Sequence;

/// The properties that decide the choice.
pub(super) struct Described {
    pub(super) range: Range<Sequence>,
    pub(super) keys: u64,
    /// Neither damaged nor being merged.
    pub(super) is_usable: bool,
}

/// How many generations there may be for this many keys: `2 * fanout` for each merged tier, and the full ones.
/// Reached only while merging does not keep up with sealing; then seals wait for merges. Damaged generations and
/// their neighbours, which cannot be merged, come on top until the next start.
pub(super) fn generations_max(keys: u64, options: IndexOptions) -> usize {
    let full = keys / full_keys(options);
    2 * options.merge_fanout * options.merge_tiers + full as usize
}

/// The fewest keys of a full generation.
fn full_keys(options: IndexOptions) -> u64 {
    (options.merge_fanout as u64)
        .saturating_pow(options.merge_tiers as u32)
        .saturating_mul(options.keys_per_generation as u64)
}

/// The oldest usable generations to merge in `tier`, if there are enough.
pub(super) fn choose(
    generations: &[Described],
    tier: usize,
    options: IndexOptions,
) -> Option<Range<usize>> {
    let tiers = tiers(generations, options);
    let fanout = options.merge_fanout;
    (0..(generations.len() + 1).saturating_sub(fanout))
        .map(|from| from..from + fanout)
        .find(|window| {
            let generations = &generations[window.clone()];
            tiers[window.clone()].iter().all(|one| *one == Some(tier))
                && generations.iter().all(|generation| generation.is_usable)
                && generations
                    .windows(2)
                    .all(|pair| pair[0].range.end == pair[1].range.start)
        })
}

/// The tier in which each is merged; none for full ones. A generation counts as the highest tier between it and the
/// next full one: a small one that a rebuild left between larger ones is merged with them, because it would never meet
/// equals.
fn tiers(generations: &[Described], options: IndexOptions) -> Vec<Option<usize>> {
    let mut greatest = 0;
    let mut tiers: Vec<_> = generations
        .iter()
        .rev()
        .map(|generation| {
            if generation.keys >= full_keys(options) {
                greatest = 0;
                return None;
            }
            greatest = tier(generation.keys, options).max(greatest);
            Some(greatest)
        })
        .collect();
    tiers.reverse();
    tiers
}

/// How often `keys` can be divided by the fanout and still be `keys_per_generation` or more.
fn tier(keys: u64, options: IndexOptions) -> usize {
    (keys / options.keys_per_generation as u64)
        .checked_ilog(options.merge_fanout as u64)
        .unwrap_or(0) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options() -> IndexOptions {
        IndexOptions {
            keys_per_generation: 10,
            merge_fanout: 4,
            merge_tiers: 3,
            ..IndexOptions::default()
        }
    }

    /// By tier.
    fn chosen(keys: &[u64]) -> [Option<Range<usize>>; 3] {
        chosen_of(&described(keys))
    }

    fn chosen_of(generations: &[Described]) -> [Option<Range<usize>>; 3] {
        [0, 1, 2].map(|tier| choose(generations, tier, options()))
    }

    fn described(keys: &[u64]) -> Vec<Described> {
        let mut end = 1;
        keys.iter()
            .map(|&keys| {
                let first = end;
                end += keys;
                Described {
                    range: first..end,
                    keys,
                    is_usable: true,
                }
            })
            .collect()
    }

    #[test]
    fn equals_are_merged_oldest_first_and_each_tier_by_itself() {
        const NONE: [Option<Range<usize>>; 3] = [None, None, None];
        assert_eq!(chosen(&[]), NONE);
        assert_eq!(chosen(&[10, 11, 39]), NONE);
        assert_eq!(chosen(&[10, 11, 39, 12, 10]), [Some(0..4), None, None]);
        assert_eq!(chosen(&[40, 10, 11, 12]), NONE);
        assert_eq!(chosen(&[40, 10, 11, 12, 13]), [Some(1..5), None, None]);
        assert_eq!(
            chosen(&[40, 41, 42, 43, 10, 10, 10, 10]),
            [Some(4..8), Some(0..4), None]
        );
        assert_eq!(
            chosen(&[40, 41, 42, 43, 10, 10, 10]),
            [None, Some(0..4), None]
        );
        assert_eq!(chosen(&[160, 639, 160, 160, 160]), [None, None, Some(0..4)]);
    }

    #[test]
    fn a_small_rebuilt_generation_is_merged_with_its_neighbours() {
        assert_eq!(chosen(&[160, 10, 160, 10, 160]), [None, None, Some(0..4)]);
    }

    #[test]
    fn full_generations_are_left_alone_and_separate_merges() {
        assert_eq!(chosen(&[640; 9]), [None, None, None]);
        assert_eq!(
            chosen(&[10, 10, 640, 10, 10, 10, 10, 640]),
            [Some(3..7), None, None]
        );
    }

    #[test]
    fn gaps_and_unusable_generations_are_left_alone() {
        let mut generations = described(&[10, 10, 10, 10]);
        generations[2].is_usable = false;
        assert_eq!(chosen_of(&generations), [None, None, None]);
        let mut generations = described(&[10, 10, 10, 10]);
        generations[1].range.end -= 1;
        assert_eq!(chosen_of(&generations), [None, None, None]);
    }

    /// A merge that ends at a given time, counted in seals.
    struct Merging {
        range: Range<Sequence>,
        end: u64,
    }

    /// Simulates a history of `seals`: each tier merges by itself, and a merge of tier k takes `percent` of the time in
    /// which its keys are sealed. Returns the most generations there were beyond the full ones.
    fn most_generations(
        options: IndexOptions,
        seals: u64,
        percent: &mut impl Iterator<Item = u64>,
    ) -> usize {
        let mut generations: Vec<Described> = Vec::new();
        let mut merging: Vec<Option<Merging>> = (0..options.merge_tiers).map(|_| None).collect();
        let mut most = 0;
        for seal in 0..seals {
            let first = generations.last().map_or(1, |last| last.range.end);
            let keys = options.keys_per_generation as u64;
            generations.push(Described {
                range: first..first + keys,
                keys,
                is_usable: true,
            });
            for (tier, merge) in merging.iter_mut().enumerate() {
                if let Some(done) = merge.take_if(|merge| merge.end <= seal) {
                    let covered = |one: &Described| done.range.contains(&one.range.start);
                    let at = generations.iter().position(covered).expect("claimed");
                    generations.retain(|one| !covered(one));
                    let keys = done.range.end - done.range.start;
                    generations.insert(
                        at,
                        Described {
                            range: done.range,
                            keys,
                            is_usable: true,
                        },
                    );
                }
                if merge.is_none()
                    && let Some(window) = choose(&generations, tier, options)
                {
                    let parents = &mut generations[window];
                    let range = parents[0].range.start..parents[parents.len() - 1].range.end;
                    parents
                        .iter_mut()
                        .for_each(|parent| parent.is_usable = false);
                    let takes =
                        (range.end - range.start) / keys * percent.next().expect("endless") / 100;
                    *merge = Some(Merging {
                        range,
                        end: seal + takes,
                    });
                }
            }
            let full = generations
                .iter()
                .filter(|one| one.keys >= full_keys(options))
                .count();
            most = most.max(generations.len() - full);
            let sealed = (seal + 1) * keys;
            assert!(
                generations.len() <= generations_max(sealed, options),
                "seal {seal}: {}",
                generations.len()
            );
        }
        most
    }

    #[test]
    fn without_a_thread_for_each_tier_there_would_be_more() {
        // In the last tier, 256 are merged while 256 more come.
        let options = IndexOptions {
            merge_tiers: 4,
            ..options()
        };
        assert_eq!(generations_max(0, options), 32);
        assert_eq!(generations_max(256 * 10 * 7, options), 39);
        let most = most_generations(options, 10_000, &mut std::iter::repeat(95));
        assert!((20..=32).contains(&most), "{most}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Nobody waits while merging keeps up.
        #[test]
        fn there_are_never_more_than_the_bound(
            fanout in 2usize..6,
            merge_tiers in 1usize..5,
            percents in prop::collection::vec(0u64..100, 1..50),
        ) {
            let options = IndexOptions { merge_fanout: fanout, merge_tiers, ..options() };
            most_generations(options, 3_000, &mut percents.into_iter().cycle());
        }
    }
}

//! Bugs that can be planted in the store, to see that the simulation finds them.
//!
//! A place in the code asks `planted!(Name)`, which is false in every build but the simulation's.

use std::cell::Cell;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $bug:ident,)+) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $doc])+ $bug,)+
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$bug,)+];

            /// What it is, in a sentence.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$bug => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

bugs! {
    /// A batch is acknowledged before it is written and synced.
    AckBeforeSync,
    /// A batch is written and not synced.
    NoSync,
    /// The name of a new segment is not made durable.
    NoDirectorySync,
    /// The header of a new segment is not synced.
    NoHeaderSync,
    /// What follows the last whole batch is left when the log is opened.
    NoZeroing,
    /// The last batch is not made durable again when the log is opened.
    NoSyncAtOpen,
    /// A failed sync is tried again, and believed.
    SyncTriedAgain,
    /// Keys are sealed that are not durable.
    SealAheadOfLog,
    /// A reader resumes at the event of its cursor.
    CursorRepeats,
    /// A reader resumes one event too far.
    CursorSkips,
    /// What passes a filter is called a duplicate.
    FilterTrusted,
    /// A duplicate is acknowledged before the batch of its original is durable.
    DuplicateAckedEarly,
    /// A batch is counted before it is durable.
    CountedBeforeSync,
    /// Readers see a batch before it is durable.
    ShownBeforeSync,
    /// The keys of a batch that was refused stay in the index.
    RefusedKeysStay,
    /// What was sealed since a request was looked up is not looked into.
    LookedTooFar,
    /// A merge loses the last key of a generation.
    MergeLosesKey,
    /// The last batch of the log is not read into the index when it is opened.
    ReplayMissesBatch,
    /// A duplicate of another content is not told from one of the same.
    ConflictUnnoticed,
    /// The counters get their name before they are synced.
    CountersUnsynced,
    /// The events of a topic are believed without their checksum.
    EventsUnchecked,
    /// A run of keys is believed without its checksum.
    RunUnchecked,
    /// A log that ends before what other files know of it is opened all the same.
    TailForgotten,
    /// The index is not told of the first topic of a batch.
    SliceLost,
    /// What is in no batch of the syncer yet is not looked for.
    OwnBatchUnseen,
    /// A read that returns less than was asked for is taken for all of it.
    ShortReadBelieved,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug in what this thread does, in the place of the one before.
pub(super) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
pub(crate) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

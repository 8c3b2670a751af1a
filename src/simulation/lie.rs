//! Lies: operations that the disk or the log reports as done and did not do. The store must not survive them unnoticed:
//! each breaks a promise, and the simulation must see it.
//!
//! `mutants/` has bugs of the store itself.

macro_rules! lies {
    ($($(#[doc = $doc:literal])+ $lie:ident,)+) => {
        /// A lie of the platform below the store.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Lie {
            $($(#[doc = $doc])+ $lie,)+
        }

        impl Lie {
            /// All lies.
            pub const ALL: &[Self] = &[$(Self::$lie,)+];

            /// A description, in a sentence.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$lie => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

lies! {
    /// The sync of a batch does nothing.
    BatchUnsynced,
    /// The sync of a new segment's header does nothing.
    HeaderUnsynced,
    /// The sync of the log's directory does nothing: a new segment's name may be lost.
    NameUnsynced,
    /// The sync of the counters, before they get their name, does nothing.
    CountersUnsynced,
    /// A failed sync of a batch is retried, and the second reports as done what the first lost.
    SyncTriedAgain,
    /// The log reports a batch as stored before it is.
    AppendBelieved,
    /// A short read passes for a complete one.
    ShortReadBelieved,
}

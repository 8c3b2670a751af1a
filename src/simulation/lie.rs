//! Lies: what the disk or the log says it did and did not. The store must not survive them unnoticed: each is a promise broken, and
//! the simulation has to see it.
//!
//! Bugs of the store itself are in `mutants/`.

macro_rules! lies {
    ($($(#[doc = $doc:literal])+ $lie:ident,)+) => {
        /// A lie of what the store stands on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Lie {
            $($(#[doc = $doc])+ $lie,)+
        }

        impl Lie {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$lie,)+];

            /// What it is, in a sentence.
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
    /// The sync of the counters does nothing before they get their name.
    CountersUnsynced,
    /// A failed sync of a batch is tried again, and the second says it did what the first lost.
    SyncTriedAgain,
    /// The log says that it has a batch before it has.
    AppendBelieved,
    /// A read that returns less than was asked for says that it is all of it.
    ShortReadBelieved,
}

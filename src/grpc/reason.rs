//! The reasons of errors, which `google.rpc.ErrorInfo` carries to programs.
//!
//! `docs/errors.md` and the contract list them, and whether to send again. A reason never changes.

/// Declares each reason once.
macro_rules! reasons {
    ($($reason:ident = $name:literal,)*) => {
        /// Why a call failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Reason {
            $($reason,)*
        }

        impl Reason {
            /// All reasons.
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$reason,)*];

            /// The value of `ErrorInfo.reason`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }
        }
    };
}

reasons! {
    InvalidField = "INVALID_FIELD",
    CursorOfAnotherHistory = "CURSOR_OF_ANOTHER_HISTORY",
    InvalidEvent = "INVALID_EVENT",
    InvalidRequest = "INVALID_REQUEST",
    RequestCut = "REQUEST_CUT",
    RequestStalled = "REQUEST_STALLED",
    NoSuchEvent = "NO_SUCH_EVENT",
    TooManyTopics = "TOO_MANY_TOPICS",
    TooManyReaders = "TOO_MANY_READERS",
    TooManyCalls = "TOO_MANY_CALLS",
    DiskFull = "DISK_FULL",
    Overloaded = "OVERLOADED",
    ResponseNotRead = "RESPONSE_NOT_READ",
    LogBehind = "LOG_BEHIND",
    IndexBehind = "INDEX_BEHIND",
    LogUnreadable = "LOG_UNREADABLE",
    IndexUnreadable = "INDEX_UNREADABLE",
    StorageFailed = "STORAGE_FAILED",
    IndexDamaged = "INDEX_DAMAGED",
    ServerBug = "SERVER_BUG",
    Stopping = "STOPPING",
    LogDamaged = "LOG_DAMAGED",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_and_the_docs_list_every_reason() {
        const CONTRACT: &str = include_str!("../../proto/oncelog/v1/aggregator.proto");
        const DOCS: &str = include_str!("../../docs/errors.md");
        for reason in Reason::ALL {
            let name = reason.name();
            let row = CONTRACT
                .lines()
                .find(|line| line.starts_with(&format!("//   {name} ")));
            assert!(row.is_some(), "{name} is not in the contract");
            let row = DOCS
                .lines()
                .find(|line| line.starts_with(&format!("| `{name}` | `")));
            let row = row.unwrap_or_else(|| panic!("{name} is not in docs/errors.md"));
            let again = row.rsplit('|').nth(1).expect("a column").trim();
            assert!(
                again.starts_with("yes, ") || again.starts_with("no, "),
                "{row}"
            );
        }
        let rows = DOCS.lines().filter(|line| line.starts_with("| `"));
        let rows = rows.filter(|line| line.split('|').count() == 6);
        assert_eq!(rows.count(), Reason::ALL.len(), "and no other");
    }
}

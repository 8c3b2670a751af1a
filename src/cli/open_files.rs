//! The limit on open files, and how many connections it leaves room for.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files that the log, the index and readers of old events may have open beside the connections.
const FILES_RESERVED: u64 = 1024;

/// Raises this process's limit as far as allowed, and returns how many of `wanted` connections it leaves room
/// for.
pub(super) fn room_for_connections(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // If it cannot be raised, it stays.
    if setrlimit(Resource::Nofile, raised).is_ok() {
        limit = raised;
    }
    // None means no limit.
    limit.current.map_or(wanted, |files| within(files, wanted))
}

/// A limit too low for both is split in half.
fn within(files: u64, wanted: usize) -> usize {
    let left = files - FILES_RESERVED.min(files / 2);
    usize::try_from(left).map_or(wanted, |left| left.min(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_for_the_log() {
        assert_eq!(within(1 << 20, 16_384), 16_384);
        assert_eq!(within(17_408, 16_384), 16_384);
        assert_eq!(within(17_407, 16_384), 16_383);
        assert_eq!(within(1024, 16_384), 512);
        assert_eq!(within(u64::MAX, 10), 10);
    }

    #[test]
    fn the_limit_is_raised() {
        assert_eq!(room_for_connections(1), 1);
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}

//! The server's clock, as the log needs it: it never goes back.

use crate::{event::UnixNanos, platform::TimeSource};

/// A clock that never gives a time before the last one it gave or found in the log.
pub(super) struct Clock {
    source: TimeSource,
    last: UnixNanos,
}

impl Clock {
    pub fn new(source: TimeSource, last: UnixNanos) -> Self {
        Self { source, last }
    }

    pub fn now(&mut self) -> UnixNanos {
        self.last = self.last.max((self.source)());
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back() {
        assert_eq!(Clock::new(|| 5, 7).now(), 7);
        assert_eq!(Clock::new(|| 9, 7).now(), 9);
    }
}

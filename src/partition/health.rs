//! Whether a partition can store events, and the one place that logs a change of it.

use std::fmt::Display;

use tokio::sync::watch;

use super::PublishError;

/// Whether a partition can store events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Serving,
    /// Not at the moment: publishes are refused with an error like this one. Heals by itself, within seconds
    /// of its cause passing, whether or not anybody publishes. Reads go on.
    Refusing(PublishError),
    /// Not until a restart: publishes are refused with this error. Reads go on.
    Failed(PublishError),
}

/// Sets the health of a partition. Clones set the same.
#[derive(Clone)]
pub(super) struct Monitor(watch::Sender<Health>);

impl Monitor {
    pub fn new() -> Self {
        Self(watch::Sender::new(Health::Serving))
    }

    pub fn watch(&self) -> watch::Receiver<Health> {
        self.0.subscribe()
    }

    pub fn is_refusing(&self) -> bool {
        matches!(*self.0.borrow(), Health::Refusing(_))
    }

    /// Publishes are refused with `error`, until [`Monitor::heal`]. Logs the first cause only, not one for each
    /// publish.
    pub fn refuse(&self, error: PublishError, cause: &dyn Display) {
        if self.change(Health::Refusing(error), |now| now == Health::Serving) {
            tracing::error!(%cause, "no events are stored until this passes, which is tried again every second; \
                what was acknowledged is safe, and reads go on");
        }
    }

    /// The cause of refusals has passed.
    pub fn heal(&self) {
        if self.change(Health::Serving, |now| matches!(now, Health::Refusing(_))) {
            tracing::info!("events are stored again");
        }
    }

    /// Publishes are refused with `error` until a restart. Logs the first cause only.
    pub fn fail(&self, error: PublishError, cause: &dyn Display) {
        if self.change(Health::Failed(error), |now| {
            !matches!(now, Health::Failed(_))
        }) {
            tracing::error!(%cause, "no events are stored until the server is restarted; \
                what was acknowledged is safe, and reads go on");
        }
    }

    fn change(&self, to: Health, is_due: impl FnOnce(Health) -> bool) -> bool {
        self.0.send_if_modified(|now| {
            let is_due = is_due(*now);
            if is_due {
                *now = to;
            }
            is_due
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_passes_and_a_failure_stays() {
        let monitor = Monitor::new();
        let health = monitor.watch();
        monitor.heal();
        monitor.refuse(PublishError::DiskFull, &"full");
        monitor.refuse(PublishError::IndexBehind, &"a second cause is not another");
        assert_eq!(*health.borrow(), Health::Refusing(PublishError::DiskFull));
        monitor.heal();
        assert_eq!(*health.borrow(), Health::Serving);
        monitor.refuse(PublishError::DiskFull, &"full again");
        monitor.fail(PublishError::Bug, &"a panic");
        monitor.fail(PublishError::Failed, &"what follows from it");
        monitor.refuse(PublishError::DiskFull, &"full");
        monitor.heal();
        assert_eq!(*health.borrow(), Health::Failed(PublishError::Bug));
    }
}

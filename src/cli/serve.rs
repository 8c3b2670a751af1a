//! `oncelog serve`.

use super::Outcome;
use crate::config::ServeArgs;

pub(super) fn run(_: ServeArgs) -> Outcome {
    Err("this build has no server".into())
}

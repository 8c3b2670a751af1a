//! Gives memory back to the system once many connections have gone.
//!
//! glibc keeps what was freed between what is still used, for as long as the process lives: after ten thousand
//! connections that is hundreds of MiB. See malloc_trim(3).

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::sleep};
use tokio_util::sync::CancellationToken;

/// How often the connections are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// How many must have gone: it takes some milliseconds in which nothing can be allocated.
const GONE_MIN: usize = 200;

/// Works until the server stops. Of `places_max` places a connection holds one.
pub(super) async fn give_back(
    places: Arc<Semaphore>,
    places_max: usize,
    stopping: CancellationToken,
) {
    let mut most = 0;
    while stopping
        .run_until_cancelled(sleep(COUNT_INTERVAL))
        .await
        .is_some()
    {
        let open = places_max - places.available_permits();
        most = most.max(open);
        if most - open >= GONE_MIN {
            most = open;
            tokio::task::spawn_blocking(trim);
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(
    unsafe_code,
    reason = "the C library has it, and no library offers it as safe"
)]
fn trim() {
    // SAFETY: malloc_trim may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves, or cannot be told.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

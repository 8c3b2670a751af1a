//! Makes the C library release unused memory.
//!
//! glibc keeps freed memory between used pieces for the life of the process: after ten thousand connections, or one
//! client with large requests, that is hundreds of MiB. It also spreads allocations over an arena for each of the first
//! threads, up to eight per processor, and each arena keeps its own. See malloc_trim(3), mallopt(3).

use std::time::Duration;

use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

/// How often the memory is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);
/// How much must be free beyond the rest of last time: releasing it takes some milliseconds in which nothing can be
/// allocated.
const FREED_BYTES_MIN: usize = 32 * 1024 * 1024;

/// The arenas of the C library. With 16 of them, one rude client left 75 MiB that could not be released; with 2, at the
/// same speed, 10.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MAX: i32 = 2;

/// Limits the arenas of the C library. Call it at the start of a program that serves: existing arenas stay.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(
    unsafe_code,
    reason = "the C library has it, and no library offers it as safe"
)]
pub fn limit_arenas() {
    // SAFETY: mallopt may be called at any time, from any thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX) };
}

/// Other allocators have no such option.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn limit_arenas() {}

/// Runs until the server stops.
pub(super) async fn give_back(stopping: CancellationToken) {
    let mut left = 0;
    while stopping
        .run_until_cancelled(sleep(MEASURE_INTERVAL))
        .await
        .is_some()
    {
        let measured = spawn_blocking(move || trim(left)).await;
        left = measured.expect("measuring does not panic");
    }
}

/// Releases free memory if there is much more than `left`. Returns how much is left, in bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(
    unsafe_code,
    reason = "the C library has it, and no library offers it as safe"
)]
fn trim(left: usize) -> usize {
    let free = unused_bytes();
    if free < left + FREED_BYTES_MIN {
        // Memory that could not be released because it lay between used pieces may be free now.
        return left.min(free) / 4 * 3;
    }
    // SAFETY: malloc_trim may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
    let left = unused_bytes();
    tracing::debug!(free, left, "gave memory back");
    left
}

/// The resident memory of the process that it has not allocated, in bytes: free memory, and the program and its stacks.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(
    unsafe_code,
    reason = "the C library has it, and no library offers it as safe"
)]
fn unused_bytes() -> usize {
    // In KiB. See proc_pid_status(5).
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    let resident: usize = resident.and_then(|kib| kib.parse().ok()).unwrap_or(0);
    // SAFETY: mallinfo2 may be called at any time, from any thread.
    let allocated = unsafe { libc::mallinfo2() };
    let allocated = allocated.uordblks + allocated.hblkhd;
    (resident * 1024).saturating_sub(allocated)
}

/// Other allocators release memory by themselves, or cannot be asked to.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim(left: usize) -> usize {
    left
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Small pieces, of which enough stay that nothing between them is released by itself.
    #[test]
    fn freed_memory_is_given_back() {
        const PIECES: usize = 64 * 1024;
        const PIECE_BYTES: usize = 4096;
        let mut pieces: Vec<_> = (0..PIECES).map(|_| vec![1_u8; PIECE_BYTES]).collect();
        for (at, piece) in pieces.iter_mut().enumerate() {
            if at % 16 != 0 {
                *piece = Vec::new();
            }
        }
        let before = unused_bytes();
        assert!(before > PIECES * PIECE_BYTES / 2, "{before}");
        let left = trim(0);
        let given = before.saturating_sub(left);
        assert!(given > PIECES * PIECE_BYTES / 2, "{before}, then {left}");
        drop(pieces);
    }
}

//! The speed of the disk: the same bytes in the same groups, appended to a file that was filled with zeros
//! before, with a `fdatasync` for each group.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{Result, event::Events, recorder::Latency};

/// Events in a group: one request, and many requests together.
const GROUPS: [u64; 2] = [256, 4096];
/// The size of the file, and the most time for each part of the measurement.
const FILE_BYTES: u64 = 256 << 20;
const PART_MAX: Duration = Duration::from_millis(1500);

/// The figures of the disk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DiskFigures {
    pub append_256_per_second: f64,
    pub append_4096_per_second: f64,
    /// One event, written and synced.
    pub single: Latency,
}

/// Measures the disk below `dir`.
pub fn measure(dir: &Path, events: &Events) -> Result<DiskFigures> {
    let mut file = tempfile::tempfile_in(dir)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES / zeros.len() as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    let [append_256_per_second, append_4096_per_second] =
        GROUPS.map(|group| append(&file, events, group));
    let latencies_us = groups(&file, &encoded(events, 1))?;
    Ok(DiskFigures {
        append_256_per_second: append_256_per_second?,
        append_4096_per_second: append_4096_per_second?,
        single: Latency::of(latencies_us),
    })
}

fn append(file: &File, events: &Events, group: u64) -> Result<f64> {
    let began = Instant::now();
    let groups = groups(file, &encoded(events, group))?.len() as u64;
    Ok((groups * group) as f64 / began.elapsed().as_secs_f64())
}

fn encoded(events: &Events, count: u64) -> Vec<u8> {
    let mut group = Vec::new();
    (0..count).for_each(|number| events.put(number, &mut group));
    group
}

/// Writes the group again and again, to the end of the file or of the time; returns how long each took.
fn groups(file: &File, group: &[u8]) -> Result<Vec<u32>> {
    let began = Instant::now();
    let mut latencies_us = Vec::new();
    let mut at = 0;
    while at + group.len() as u64 <= FILE_BYTES && began.elapsed() < PART_MAX {
        let written = Instant::now();
        file.write_all_at(group, at)?;
        file.sync_data()?;
        latencies_us.push(u32::try_from(written.elapsed().as_micros())?);
        at += group.len() as u64;
    }
    Ok(latencies_us)
}

//! Messages that are small as they come, and large decompressed.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};

/// What a bomb has decompressed: sixteen requests' worth.
pub const BOMB_BYTES: usize = 64 * 1024 * 1024;

/// Zeros, by gzip: about 64 KiB.
pub fn gzip() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Into memory.
    encoder
        .write_all(&vec![0; BOMB_BYTES])
        .and_then(|()| encoder.finish())
        .expect("memory takes all")
}

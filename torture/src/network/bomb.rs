//! Messages that are small when sent, and large decompressed.

use std::{io::Write as _, sync::LazyLock};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};

/// The decompressed size of a bomb: sixteen requests' worth.
const BOMB_BYTES: usize = 64 * 1024 * 1024;
const ZSTD_LEVEL: i32 = 3;

static GZIP: LazyLock<Bytes> = LazyLock::new(|| {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(&vec![0; BOMB_BYTES]);
    let finished = written.and_then(|()| encoder.finish());
    finished.expect("memory takes all").into()
});

static ZSTD: LazyLock<Bytes> = LazyLock::new(|| {
    let compressed = zstd::bulk::compress(&vec![0; BOMB_BYTES], ZSTD_LEVEL);
    compressed.expect("memory takes all").into()
});

/// Zeros, by gzip: some 300 KiB. Takes a while the first time.
pub fn gzip() -> Bytes {
    GZIP.clone()
}

/// Zeros, by zstd: some 6 KiB.
pub fn zstd() -> Bytes {
    ZSTD.clone()
}

//! Compressed requests: gzip and zstd, within bounds known in advance.
//!
//! Sources: RFC 1952 (gzip), section 2.3.1 for the size at the end; RFC 8878 (zstd), section 3.1.1.1.2 for windows
//! and section 3.1.1.1.4 for the size at the beginning.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::bufread::GzDecoder;
use tonic::metadata::MetadataMap;
use zstd::zstd_safe;

/// The largest window a zstd frame may ask for, as a power of two: 8 MiB, which every decoder should support.
const WINDOW_LOG_MAX: u32 = 23;
/// The original size at the end of gzip.
const GZIP_SIZE_BYTES: usize = 4;

/// The compression of a stream's messages.
#[derive(Clone, Copy, Debug)]
pub(super) enum Encoding {
    Gzip,
    Zstd,
}

impl Encoding {
    /// The encoding that a call names, if any. Other encodings are refused before a handler is called.
    pub fn of(metadata: &MetadataMap) -> Option<Self> {
        match metadata.get("grpc-encoding")?.as_bytes() {
            b"gzip" => Some(Self::Gzip),
            b"zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// An upper bound on the size of the decompressed message; `None` if it does not declare one.
pub(super) fn decompressed_bytes_max(encoding: Encoding, message: &[u8]) -> Option<usize> {
    match encoding {
        Encoding::Gzip => {
            let size = message.last_chunk::<GZIP_SIZE_BYTES>()?;
            usize::try_from(u32::from_le_bytes(*size)).ok()
        }
        Encoding::Zstd => {
            let frame = zstd_safe::find_frame_compressed_size(message).ok()?;
            let size = zstd_safe::get_frame_content_size(message).ok()??;
            // Of several frames, only the first declares its size here.
            (frame == message.len()).then(|| usize::try_from(size).ok())?
        }
    }
}

/// The decompressed message, unless it has more than `bytes_max` bytes.
pub(super) fn decompress(
    encoding: Encoding,
    message: &[u8],
    bytes_max: usize,
) -> io::Result<Bytes> {
    match encoding {
        Encoding::Gzip => {
            let mut decoder = GzDecoder::new(message);
            let decompressed = read(&mut decoder, message.len(), bytes_max)?;
            if !decoder.get_ref().is_empty() {
                return Err(io::Error::other("bytes after the end of gzip"));
            }
            Ok(decompressed)
        }
        Encoding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(message)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            read(decoder, message.len(), bytes_max)
        }
    }
}

fn read(from: impl Read, bytes: usize, bytes_max: usize) -> io::Result<Bytes> {
    /// An estimate, so that few messages are copied as they grow.
    const RATIO: usize = 4;
    let mut decompressed = Vec::with_capacity((RATIO * bytes).min(bytes_max));
    from.take(bytes_max as u64 + 1)
        .read_to_end(&mut decompressed)?;
    if decompressed.len() > bytes_max {
        return Err(io::Error::other(format!(
            "more than {bytes_max} bytes when decompressed"
        )));
    }
    decompressed.shrink_to_fit();
    Ok(decompressed.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const BYTES_MAX: usize = 64 * 1024;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        zstd::encode_all(content, 3).expect("in memory")
    }

    #[test]
    fn a_message_round_trips() {
        let content = vec![7; BYTES_MAX];
        for (encoding, message) in [
            (Encoding::Gzip, gzip(&content)),
            (Encoding::Zstd, zstd(&content)),
        ] {
            let size = decompressed_bytes_max(encoding, &message);
            assert!(size.is_none_or(|size| size == BYTES_MAX), "{encoding:?}");
            let decompressed = decompress(encoding, &message, BYTES_MAX);
            assert_eq!(decompressed.expect("whole"), content);
        }
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let content = vec![0; 100 * BYTES_MAX];
        for (encoding, message) in [
            (Encoding::Gzip, gzip(&content)),
            (Encoding::Zstd, zstd(&content)),
        ] {
            let error = decompress(encoding, &message, BYTES_MAX).expect_err("too large");
            assert!(
                error.to_string().contains("more than 65536 bytes"),
                "{error}"
            );
        }
    }

    #[test]
    fn nothing_is_dropped_in_silence() {
        let mut message = gzip(b"content");
        message.extend_from_slice(b"more");
        assert!(decompress(Encoding::Gzip, &message, BYTES_MAX).is_err());
        let two = [zstd(b"one"), zstd(b"two")].concat();
        assert_eq!(decompressed_bytes_max(Encoding::Zstd, &two), None);
        let both = decompress(Encoding::Zstd, &two, BYTES_MAX);
        assert_eq!(both.expect("whole"), &b"onetwo"[..]);
    }
}

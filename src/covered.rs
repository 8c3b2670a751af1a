//! Bytes that keep a share of memory until they have been sent.

use bytes::Bytes;

struct Covered<T> {
    bytes: Bytes,
    _share: T,
}

impl<T> AsRef<[u8]> for Covered<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// `bytes`, which keep a share of any kind, if there is one, until the last of them is dropped.
pub(crate) fn covered<T: Send + 'static>(bytes: Bytes, share: Option<T>) -> Bytes {
    match share {
        Some(share) => Bytes::from_owner(Covered {
            bytes,
            _share: share,
        }),
        None => bytes,
    }
}

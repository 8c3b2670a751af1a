//! Secret: the random key of a data directory's hashes.
//!
//! Owns the file `secret` of the index and everything hashed with it. A publisher chooses keys and contents; under a
//! public hash it could choose two contents that count as the same, or keys that all share one place of a hash table.
//! Under SipHash-1-3 with a key that it never sees it cannot: the best known attack on collisions is guessing
//! (Dobraunig, Mendel and Schläffer, "Differential Cryptanalysis of SipHash", 2014), and a guess is right once in 2^64.
//!
//! The file is `magic, version (u32), the secret (two u64), CRC32C (u32) of all before`, little-endian. Every version
//! keeps the magic, the place of its version, and, in the last four bytes, a checksum of all before. A generation names
//! the secret it was built with; if the file is lost, a new secret is drawn and the generations are rebuilt.

use std::{fmt, io, path::Path};

use siphasher::sip::SipHasher13;

use super::{
    disk,
    error::{Fault, IndexOpenError, Trouble},
};
use crate::{
    event::Key,
    platform::{Disk, Platform},
};

const FILE: &str = "secret";
/// Its name until it is durable.
const NEW_FILE: &str = "secret.new";
const MAGIC: &[u8; 8] = b"olsecret";
const VERSION: u32 = 1;
const BYTES: usize = MAGIC.len() + 4 + 16 + 4;

/// The keyed hash of a key: its place in tables and filters. Never decides that two keys are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(pub(super) u64);

/// The secret of an index.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u64; 2]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Draws a new secret.
    pub(super) fn draw(platform: &Platform) -> Self {
        Self([(platform.random)(), (platform.random)()])
    }

    #[cfg(test)]
    pub(super) const fn of_halves(halves: [u64; 2]) -> Self {
        Self(halves)
    }

    /// The secret in the folder `dir`; damage if it is lost.
    pub(super) fn load(disk: &dyn Disk, dir: &Path) -> Result<Self, Trouble> {
        let path = dir.join(FILE);
        Self::parse(&disk.read(&path)?).map_err(|trouble| trouble.of(&path))
    }

    /// Saves it in the folder `dir`; durable on return.
    pub(super) fn save(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let (path, new) = (dir.join(FILE), dir.join(NEW_FILE));
        match disk.remove(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        disk.write_new(&new, &self.encode())?.sync_all()?;
        disk.rename(&new, &path)?;
        disk::sync_parent(disk, &path)
    }

    pub(super) fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let Self([low, high]) = self;
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&low.to_le_bytes());
        bytes[20..28].copy_from_slice(&high.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Trouble> {
        let damage = || Fault::new("the secret of the index does not match its checksum");
        let (content, crc) = bytes.split_last_chunk().ok_or_else(damage)?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(content) {
            return Err(damage().into());
        }
        let content = content.strip_prefix(MAGIC).ok_or_else(damage)?;
        let (version, content) = content.split_first_chunk().ok_or_else(damage)?;
        let version = u32::from_le_bytes(*version);
        if version > VERSION {
            return Err(Trouble::newer(version, VERSION));
        }
        let (low, content) = content.split_first_chunk().ok_or_else(damage)?;
        let (high, content) = content.split_first_chunk().ok_or_else(damage)?;
        if version != VERSION || !content.is_empty() {
            return Err(damage().into());
        }
        Ok(Self([low, high].map(|half| u64::from_le_bytes(*half))))
    }

    /// The hash of a key.
    pub fn key_hash(&self, key: &Key) -> KeyHash {
        self.hash_key(key.as_bytes())
    }

    pub(super) fn hash_key(&self, key: &[u8]) -> KeyHash {
        KeyHash(self.hash(key))
    }

    /// The hash of an event's canonical encoding: two events with the same key and different hashes are in
    /// conflict.
    pub fn content_hash(&self, encoded: &[u8]) -> u64 {
        self.hash(encoded)
    }

    /// Identifies the secret without revealing it.
    pub(super) fn name(&self) -> u64 {
        // Longer than any key, and not a canonical encoding: no event has this hash except by chance.
        self.hash(&[0; Key::BYTES_MAX + 1])
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        let Self([low, high]) = *self;
        SipHasher13::new_with_keys(low, high).hash(bytes)
    }
}

/// The secret in the folder `dir`, or the fault in it.
pub(super) fn load(disk: &dyn Disk, dir: &Path) -> Result<Result<Secret, Fault>, IndexOpenError> {
    match Secret::load(disk, dir) {
        Ok(secret) => Ok(Ok(secret)),
        Err(Trouble::Damage(fault)) => Ok(Err(fault)),
        Err(trouble) => Err(trouble.into_open_error(dir)),
    }
}

/// Gives the folder `dir` a new secret.
pub(super) fn draw(platform: &Platform, dir: &Path) -> io::Result<Secret> {
    let disk = &*platform.disk;
    let secret = Secret::draw(platform);
    secret.save(disk, dir)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher as _};

    use proptest::prelude::*;

    use super::*;
    use crate::platform::OsDisk;

    proptest! {
        #[test]
        fn any_secret_round_trips_and_damage_is_seen(
            halves: [u64; 2],
            at in 0..BYTES,
            flip in 1..=u8::MAX,
        ) {
            let secret = Secret(halves);
            let mut bytes = secret.encode();
            prop_assert_eq!(Secret::parse(&bytes).ok(), Some(secret));
            prop_assert!(Secret::parse(&bytes[..at]).is_err());
            bytes[at] ^= flip;
            prop_assert!(matches!(Secret::parse(&bytes), Err(Trouble::Damage(_))));
        }
    }

    #[test]
    fn a_newer_version_is_not_damage() {
        let mut bytes = Secret([1, 2]).encode().to_vec();
        bytes.truncate(BYTES - 4);
        bytes[8..12].copy_from_slice(&(VERSION + 1).to_le_bytes());
        bytes.extend_from_slice(b"what a later version adds");
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        assert!(matches!(
            Secret::parse(&bytes),
            Err(Trouble::Newer {
                version: 2,
                known: 1,
                ..
            })
        ));
    }

    /// Whole by its checksum, and written by no version.
    #[test]
    fn content_of_no_version_is_damage() {
        let with_crc = |mut bytes: Vec<u8>| {
            let crc = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            bytes
        };
        let known = &Secret([1, 2]).encode()[..BYTES - 4];
        assert!(Secret::parse(&with_crc(known.to_vec())).is_ok());
        let longer = with_crc([known, b"more"].concat());
        let mut older = known.to_vec();
        older[8..12].copy_from_slice(&0u32.to_le_bytes());
        for bytes in [longer, with_crc(older)] {
            assert!(matches!(Secret::parse(&bytes), Err(Trouble::Damage(_))));
        }
    }

    #[test]
    fn it_is_siphash_under_the_secret() {
        let message: Vec<u8> = (0..15).collect();
        // The standard library's hasher is SipHash-1-3 with a key of zeros.
        let mut zeroes = DefaultHasher::new();
        zeroes.write(&message);
        assert_eq!(Secret([0, 0]).content_hash(&message), zeroes.finish());
        // Hashes are stored in files: another function, or another order of the key, would turn duplicates into
        // conflicts.
        let secret = Secret([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        assert_eq!(secret.content_hash(&message), 0xd320_d86d_2a51_9956);
        assert_ne!(
            secret.content_hash(&message),
            Secret([0, 0]).content_hash(&message)
        );
        assert_ne!(secret.name(), Secret([1, 2]).name());
    }

    #[test]
    fn saving_replaces_the_previous_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let lost = Secret::load(&OsDisk, dir.path());
        assert!(matches!(lost, Err(Trouble::Damage(_))));
        std::fs::write(dir.path().join(NEW_FILE), "cut off").expect("written");
        for secret in [Secret([1, 2]), Secret([3, 4])] {
            secret.save(&OsDisk, dir.path()).expect("saved");
            assert_eq!(Secret::load(&OsDisk, dir.path()).ok(), Some(secret));
        }
    }
}

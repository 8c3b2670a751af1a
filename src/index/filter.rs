//! Filter: rules out most absent keys, from memory.
//!
//! A blocked Bloom filter: one 64-byte block per key, one bit in each of its eight words, so that a probe touches one
//! cache line. Owns the filter and its file. Never decides that a key is present. Keys are hashed under a
//! [secret](super::secret), so that nobody can choose keys that pass.

use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    path::Path,
};

use super::secret::KeyHash;
use crate::platform::{Disk, DiskReader, DiskWriter};

/// One cache line.
type Block = [u64; WORDS];
const WORDS: usize = 8;
const BLOCK_BITS: u64 = 512;
/// About 0.2 % of absent keys pass. Each of them costs a lookup, in each generation.
const BITS_PER_KEY: u64 = 14;
/// Six bits choose one of a word's 64.
const BIT_BITS: u32 = 6;
/// Any odd number with well-mixed bits (2^64 / golden ratio): the bits within a block must be independent of
/// those that chose the block.
const REMIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// The first bytes of the file: name and version of the format. After them: the number of blocks (u64), the blocks
/// (eight u64 each), and the CRC32C (u32) of everything before, little-endian. The
/// [manifest](super::manifest) of the generation decides which version it is.
const MAGIC: [u8; 8] = *b"olbloom2";
/// How much of the file is read or written at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// A set of key hashes that may answer yes for an absent hash, but never no for a present one.
pub(super) struct Filter {
    blocks: Box<[Block]>,
}

impl Filter {
    /// An empty filter, sized for `keys`.
    pub(super) fn with_capacity(keys: u64) -> Self {
        let blocks = (keys * BITS_PER_KEY).div_ceil(BLOCK_BITS).max(1);
        let blocks = usize::try_from(blocks).expect("a filter fits in memory");
        Self {
            blocks: vec![[0; WORDS]; blocks].into_boxed_slice(),
        }
    }

    /// Adds many hashes at once: each is in a different cache line, and their loads overlap.
    pub(super) fn insert(&mut self, hashes: &[KeyHash]) {
        for &KeyHash(hash) in hashes {
            let block = &mut self.blocks[block_of(hash, self.blocks.len())];
            for (word, bit) in block.iter_mut().zip(bits_of(hash)) {
                *word |= bit;
            }
        }
    }

    pub(super) fn may_contain(&self, KeyHash(hash): KeyHash) -> bool {
        let block = &self.blocks[block_of(hash, self.blocks.len())];
        block
            .iter()
            .zip(bits_of(hash))
            .all(|(word, bit)| word & bit != 0)
    }

    /// Writes it to a new file, without syncing.
    pub(super) fn save(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        let file = DiskWriter::new(disk.create(path)?);
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        self.write(&mut file)?;
        file.flush()
    }

    pub(super) fn write(&self, file: &mut impl Write) -> io::Result<()> {
        let mut crc = 0;
        let mut put = |bytes: &[u8]| {
            crc = crc32c::crc32c_append(crc, bytes);
            file.write_all(bytes)
        };
        put(&MAGIC)?;
        put(&(self.blocks.len() as u64).to_le_bytes())?;
        for block in &self.blocks {
            put(&encode(block))?;
        }
        file.write_all(&crc.to_le_bytes())
    }

    /// Loads a saved filter. A file that differs from the saved one gives [`io::ErrorKind::InvalidData`] or
    /// [`io::ErrorKind::UnexpectedEof`].
    pub(super) fn load(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        let file = DiskReader::new(disk.open_read(path)?)?;
        let len = file.file_bytes();
        Self::read(BufReader::with_capacity(BUFFER_BYTES, file), len)
    }

    /// Reads a filter from a file of `len` bytes.
    pub(super) fn read(mut file: impl Read, len: u64) -> io::Result<Self> {
        const HEADER_BYTES: u64 = 16;
        const CRC_BYTES: u64 = 4;
        let invalid = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut header = [0; HEADER_BYTES as usize];
        file.read_exact(&mut header)?;
        let mut crc = crc32c::crc32c(&header);
        let (magic, count) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(invalid("filter: not a filter of this version"));
        }
        let count = u64::from_le_bytes(count.try_into().expect("eight bytes"));
        let block_bytes = BLOCK_BITS / u64::from(u8::BITS);
        let expected = count
            .checked_mul(block_bytes)
            .and_then(|bytes| bytes.checked_add(HEADER_BYTES + CRC_BYTES));
        if count == 0 || expected != Some(len) {
            return Err(invalid("filter: wrong length"));
        }
        let mut blocks = Vec::with_capacity(count as usize);
        let mut bytes = [0; WORDS * 8];
        for _ in 0..count {
            file.read_exact(&mut bytes)?;
            crc = crc32c::crc32c_append(crc, &bytes);
            blocks.push(decode(&bytes));
        }
        let mut stored = [0; CRC_BYTES as usize];
        file.read_exact(&mut stored)?;
        if stored != crc.to_le_bytes() {
            return Err(invalid("filter: checksum does not match"));
        }
        Ok(Self {
            blocks: blocks.into_boxed_slice(),
        })
    }
}

/// Scales the hash to the number of blocks.
fn block_of(hash: u64, blocks: usize) -> usize {
    ((u128::from(hash) * blocks as u128) >> u64::BITS) as usize
}

/// One bit for each word of a block.
fn bits_of(hash: u64) -> [u64; WORDS] {
    let mut rest = hash.wrapping_mul(REMIX);
    std::array::from_fn(|_| {
        rest = rest.rotate_left(BIT_BITS);
        1 << (rest & ((1 << BIT_BITS) - 1))
    })
}

fn encode(block: &Block) -> [u8; WORDS * 8] {
    let mut bytes = [0; WORDS * 8];
    for (to, word) in bytes.chunks_exact_mut(8).zip(block) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8; WORDS * 8]) -> Block {
    let mut block = [0; WORDS];
    for (word, from) in block.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(from.try_into().expect("eight bytes"));
    }
    block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::platform::OsDisk;

    proptest! {
        #[test]
        fn a_member_passes_after_reading_too(
            hashes in prop::collection::vec(any::<u64>(), 0..100),
            capacity in 0..200u64,
            at in any::<prop::sample::Index>(),
            flip in 1..=u8::MAX,
        ) {
            let mut filter = Filter::with_capacity(capacity);
            let hashes: Vec<_> = hashes.into_iter().map(KeyHash).collect();
            filter.insert(&hashes);
            let mut bytes = Vec::new();
            filter.write(&mut bytes).expect("memory");
            let read = Filter::read(&*bytes, bytes.len() as u64).expect("whole");
            prop_assert!(hashes.iter().all(|hash| read.may_contain(*hash)));
            prop_assert_eq!(read.blocks, filter.blocks);
            let at = at.index(bytes.len());
            prop_assert!(Filter::read(&bytes[..at], at as u64).is_err());
            bytes[at] ^= flip;
            prop_assert!(Filter::read(&*bytes, bytes.len() as u64).is_err());
        }
    }

    fn hash(at: u64) -> KeyHash {
        KeyHash(xxh3_64(&at.to_le_bytes()))
    }

    fn filled(keys: u64) -> Filter {
        let mut filter = Filter::with_capacity(keys);
        (0..keys).for_each(|at| filter.insert(&[hash(at)]));
        filter
    }

    #[test]
    fn every_key_passes_and_few_others() {
        let keys = 40_000;
        let filter = filled(keys);
        assert!((0..keys).all(|at| filter.may_contain(hash(at))));
        let others = (keys..2 * keys).filter(|&at| filter.may_contain(hash(at)));
        let passed = others.count() as u64;
        assert!(passed * 250 < keys, "{passed} of {keys} absent keys pass");
    }

    #[test]
    fn saving_round_trips_and_damage_is_seen() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("filter");
        filled(500).save(&OsDisk, &path).expect("saved");
        let loaded = Filter::load(&OsDisk, &path).expect("loaded");
        assert_eq!(loaded.blocks, filled(500).blocks);

        let whole = std::fs::read(&path).expect("read");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, bytes).expect("written");
            assert!(Filter::load(&OsDisk, &path).is_err(), "byte {at}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).expect("written");
        assert!(Filter::load(&OsDisk, &path).is_err());
    }
}

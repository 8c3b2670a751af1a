//! Damage to the data derived from the log: the index and the counters.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use fastrand::Rng;

use crate::Result;

/// The most bytes that are flipped at a time.
const FLIPS_MAX: usize = 16;
const COUNTERS: &str = "counters.json";

/// Damages the index in one to three places, and describes each.
pub fn index(data_dir: &Path, random: &mut Rng) -> Result<Vec<String>> {
    let dir = data_dir.join("index");
    // Generations, and the secret of their hashes.
    let mut parts = Vec::new();
    for found in fs::read_dir(&dir)? {
        parts.push(found?.path());
    }
    parts.sort();
    let mut done = Vec::new();
    if parts.is_empty() {
        return Ok(done);
    }
    if random.u8(..8) == 0 {
        fs::remove_dir_all(&dir)?;
        done.push("index removed".to_owned());
        return Ok(done);
    }
    for _ in 0..random.usize(1..=3) {
        let part = &parts[random.usize(..parts.len())];
        let mut files = Vec::new();
        if part.is_file() {
            files.push(part.clone());
        } else if random.u8(..8) == 0 {
            if part.exists() {
                fs::remove_dir_all(part)?;
                done.push(format!("{} removed", name(part, &dir)));
            }
            continue;
        } else {
            files_below(part, &mut files)?;
        }
        files.sort();
        if !files.is_empty() {
            let path = &files[random.usize(..files.len())];
            done.push(format!("{} {}", name(path, &dir), file(path, random)?));
        }
    }
    Ok(done)
}

/// Damages the saved counters, and describes it. None if they were never saved.
pub fn counters(data_dir: &Path, random: &mut Rng) -> Result<Option<String>> {
    let path = data_dir.join(COUNTERS);
    if !path.exists() {
        return Ok(None);
    }
    let done = match random.u8(..3) {
        0 => {
            let text = fs::read_to_string(&path)?;
            let (before, after) = text
                .split_once("\"received\":")
                .ok_or("no received in the counters")?;
            fs::write(&path, format!("{before}\"received\":1{after}"))?;
            format!("{COUNTERS} contradicts itself")
        }
        1 => {
            fs::write(path.with_extension("json.new"), "{\"version\":")?;
            let done = file(&path, random)?;
            format!("{COUNTERS} {done}, half of a new one")
        }
        _ => format!("{COUNTERS} {}", file(&path, random)?),
    };
    Ok(Some(done))
}

/// Damages a file, and describes it.
fn file(path: &Path, random: &mut Rng) -> Result<String> {
    let len = fs::metadata(path)?.len();
    if len == 0 || random.u8(..5) == 0 {
        fs::remove_file(path)?;
        return Ok("removed".to_owned());
    }
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if random.u8(..4) == 0 {
        let kept = random.u64(..len);
        file.set_len(kept)?;
        return Ok(format!("cut to {kept} of {len} bytes"));
    }
    let (from, count) = (random.u64(..len), random.usize(1..=FLIPS_MAX));
    let mut bytes = vec![0; count.min((len - from) as usize)];
    file.read_exact_at(&mut bytes, from)?;
    bytes.iter_mut().for_each(|byte| *byte ^= random.u8(1..));
    file.write_all_at(&bytes, from)?;
    Ok(format!("{} bytes flipped at {from}", bytes.len()))
}

fn files_below(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for found in fs::read_dir(dir)? {
        let found = found?;
        if found.file_type()?.is_dir() {
            files_below(&found.path(), files)?;
        } else {
            files.push(found.path());
        }
    }
    Ok(())
}

fn name(path: &Path, dir: &Path) -> String {
    path.strip_prefix(dir).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_damaged_every_time() {
        let mut random = Rng::with_seed(3);
        for _ in 0..200 {
            let dir = tempfile::tempdir().expect("a directory");
            let index = dir.path().join("index");
            let file = index.join("1-2/sled/db");
            fs::create_dir_all(index.join("1-2/sled")).expect("created");
            fs::write(&file, [7; 100]).expect("written");
            let described = super::index(dir.path(), &mut random).expect("damaged");
            assert!(!described.is_empty());
            assert_ne!(
                fs::read(&file).unwrap_or_default(),
                [7; 100],
                "{described:?}"
            );
            let counters = dir.path().join(COUNTERS);
            let text = "{\"received\":5}";
            fs::write(&counters, text).expect("written");
            let described = super::counters(dir.path(), &mut random).expect("damaged");
            assert!(described.is_some());
            assert_ne!(fs::read(&counters).unwrap_or_default(), text.as_bytes());
        }
    }
}

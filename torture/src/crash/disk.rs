//! The place of data directories: a folder, or a small disk of its own.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::Result;

/// The size of a small disk.
const DISK_BYTES: u64 = 64 * 1024 * 1024;
/// How much of it the ballast leaves free.
const FREE_BYTES: u64 = 14 * 1024 * 1024;
const BALLAST: &str = "ballast";
static ZEROS: [u8; 1024 * 1024] = [0; 1024 * 1024];

/// A folder, removed when dropped; anything mounted on it is unmounted first.
pub struct Place {
    mount: Option<Mount>,
    dir: TempDir,
}

/// A file system, unmounted when dropped.
struct Mount {
    path: PathBuf,
    kind: &'static str,
}

impl Place {
    /// A new folder in `scratch`.
    pub fn folder(scratch: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("crash-")
            .tempdir_in(scratch)?;
        Ok(Self { mount: None, dir })
    }

    /// A separate small disk: ext4 in a file, or else a tmpfs. The error says why neither is possible.
    pub fn small_disk(scratch: &Path) -> Result<Self> {
        let mut place = Self::folder(scratch)?;
        let image = place.dir.path().join("image");
        let path = place.dir.path().join("disk");
        fs::create_dir(&path)?;
        let ext4 = || {
            File::create(&image)?.set_len(DISK_BYTES)?;
            // No space reserved for root: this runs as root, and would never find the disk full.
            run(Command::new("mkfs.ext4")
                .args(["-q", "-m", "0"])
                .arg(&image))?;
            run(Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &path]))
        };
        let tmpfs = || {
            let size = format!("size={DISK_BYTES}");
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(&path))
        };
        let kind = match ext4() {
            Ok(()) => "ext4 in a file",
            Err(why_no_ext4) => match tmpfs() {
                Ok(()) => "tmpfs",
                Err(why) => return Err(format!("{why_no_ext4}; {why}").into()),
            },
        };
        place.mount = Some(Mount { path, kind });
        Ok(place)
    }

    pub fn path(&self) -> &Path {
        match &self.mount {
            Some(mount) => &mount.path,
            None => self.dir.path(),
        }
    }

    /// The kind of disk.
    pub fn kind(&self) -> &'static str {
        self.mount.as_ref().map_or("a folder", |mount| mount.kind)
    }

    /// Takes most of the free space.
    pub fn take_space(&self) -> Result<()> {
        let mut ballast = File::create(self.path().join(BALLAST))?;
        loop {
            let free = rustix::fs::statvfs(self.path())?;
            let free = free.f_bavail * free.f_frsize;
            if free <= FREE_BYTES {
                return Ok(ballast.sync_all()?);
            }
            let bytes = (free - FREE_BYTES).min(ZEROS.len() as u64);
            ballast.write_all(&ZEROS[..bytes as usize])?;
            ballast.sync_data()?;
        }
    }

    /// Releases it.
    pub fn give_space(&self) -> Result<()> {
        Ok(fs::remove_file(self.path().join(BALLAST))?)
    }

    /// Keeps the folder, and returns its path.
    pub fn keep(self) -> Result<PathBuf> {
        let Self { mount, mut dir } = self;
        if let Some(mount) = &mount {
            run(Command::new("cp")
                .arg("-a")
                .arg(mount.path.join("data"))
                .arg(dir.path()))?;
        }
        drop(mount);
        dir.disable_cleanup(true);
        Ok(dir.path().to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.path)) {
            eprintln!("oncelog-torture: {error}");
        }
    }
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}", said.trim()).into())
}

//! Source trees: hashing one, and copying one.
//!
//! The hash is the SHA-256 of the text that `sha256sum` prints for the tree's files
//! in byte order of their paths, so it can be checked with nothing but coreutils
//! (the command is in `boehm-patch/upstream/README.md`). A pinned tree is plain
//! files and directories: links and devices are refused, not followed. Version
//! control data (`.git`) is no part of a source and is left out.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};

/// The paths of all files below `root`, relative to it, in byte order.
///
/// # Errors
/// [`ErrorKind::Io`], or [`ErrorKind::HashMismatch`] for anything that is neither a
/// plain file nor a directory.
pub(crate) fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        let full = root.join(&dir);
        let entries = fs::read_dir(&full).map_err(|e| Error::io("list", &full, &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("list", &full, &e))?;
            if dir.as_os_str().is_empty() && entry.file_name() == OsStr::new(".git") {
                continue;
            }
            let path = dir.join(entry.file_name());
            let kind = entry.file_type().map_err(|e| Error::io("look at", &entry.path(), &e))?;
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                found.push(path);
            } else {
                return Err(Error::new(
                    ErrorKind::HashMismatch,
                    format!("{} is neither a file nor a directory", entry.path().display()),
                )
                .remedy("build from a source tree without links or devices"));
            }
        }
    }
    found.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(found)
}

/// The SHA-256 of a whole tree, in hex.
///
/// # Errors
/// As [`files`], and [`ErrorKind::Io`] where a file cannot be read.
pub fn hash_tree(root: &Path) -> Result<String> {
    let mut manifest = Sha256::new();
    for path in files(root)? {
        let file = hash_file(&root.join(&path))?;
        manifest.update(file.as_bytes());
        manifest.update(b"  ./");
        manifest.update(path.as_os_str().as_bytes());
        manifest.update(b"\n");
    }
    Ok(hex(&manifest.finalize()))
}

/// The SHA-256 of one file, in hex.
///
/// # Errors
/// [`ErrorKind::Io`].
pub fn hash_file(path: &Path) -> Result<String> {
    let fail = |e: io::Error| Error::io("read", path, &e);
    let mut file = fs::File::open(path).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut chunk = [0_u8; 64 * 1024];
    loop {
        let n = file.read(&mut chunk).map_err(fail)?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&chunk[..n]);
    }
}

/// Copies the files of `from` into the new directory `to`, writable by the owner
/// whatever they were (cargo's cache may be read-only).
///
/// # Errors
/// As [`files`], and [`ErrorKind::Io`].
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for path in files(from)? {
        let target = to.join(&path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, &e))?;
        }
        let source = from.join(&path);
        let bytes = fs::read(&source).map_err(|e| Error::io("read", &source, &e))?;
        fs::write(&target, bytes).map_err(|e| Error::io("write", &target, &e))?;
        let from = fs::metadata(&source).map_err(|e| Error::io("look at", &source, &e))?;
        let mode = fs::Permissions::from_mode(from.permissions().mode() & 0o777 | 0o600);
        fs::set_permissions(&target, mode).map_err(|e| Error::io("set mode of", &target, &e))?;
    }
    Ok(())
}

/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(dir.path().join("b/deep")).expect("mkdir");
        fs::write(dir.path().join("b.c"), "int x;\n").expect("write");
        fs::write(dir.path().join("b/a.h"), "").expect("write");
        fs::write(dir.path().join("b/deep/.hidden"), [0, 255, 10]).expect("write");
        dir
    }

    #[test]
    fn hash_is_what_coreutils_say() {
        let dir = sample();
        let script = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum";
        let shell = Command::new("sh")
            .args(["-c", script])
            .current_dir(dir.path())
            .stderr(Stdio::inherit())
            .output()
            .expect("sh runs");
        let theirs = String::from_utf8_lossy(&shell.stdout);
        assert_eq!(hash_tree(dir.path()).expect("hash"), theirs.split(' ').next().unwrap_or(""));
    }

    #[test]
    fn any_change_changes_the_hash() {
        let dir = sample();
        let before = hash_tree(dir.path()).expect("hash");
        fs::write(dir.path().join("b/deep/.hidden"), [0, 254, 10]).expect("write");
        let byte = hash_tree(dir.path()).expect("hash");
        assert_ne!(before, byte);
        fs::rename(dir.path().join("b/a.h"), dir.path().join("b/c.h")).expect("rename");
        assert_ne!(byte, hash_tree(dir.path()).expect("hash"));
    }

    #[test]
    fn links_are_refused() {
        let dir = sample();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("symlink");
        let error = hash_tree(dir.path()).expect_err("a link is refused");
        assert!(error.to_string().contains("link is neither a file"), "{error}");
    }

    #[test]
    fn a_copy_hashes_alike_and_leaves_git_out() {
        let dir = sample();
        fs::create_dir(dir.path().join(".git")).expect("mkdir");
        fs::write(dir.path().join(".git/HEAD"), "x").expect("write");
        let copy = tempfile::tempdir().expect("temporary directory");
        copy_tree(dir.path(), copy.path()).expect("copy");
        assert_eq!(hash_tree(dir.path()).expect("hash"), hash_tree(copy.path()).expect("hash"));
        assert!(!copy.path().join(".git").exists());
    }
}

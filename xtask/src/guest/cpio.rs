//! Writing an initramfs: a cpio archive in the "newc" format (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`), uncompressed.
//!
//! Everything belongs to root. Directories above a file are made as they are needed.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// An archive being written.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// Adds a directory and those above it; `path` is absolute in the guest.
    pub(crate) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.names.contains(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a file with the permissions `mode`; the first of a name wins.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.leaf(path, REGULAR | (mode & 0o7777), content);
    }

    /// Adds a symbolic link; the first of a name wins.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.leaf(path, LINK, target.as_bytes());
    }

    /// Whether something of that name is there.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.names.contains(path.trim_matches('/'))
    }

    /// The archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn leaf(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_matches('/');
        if self.names.contains(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, mode, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.names.insert(name.to_owned());
        self.inode += 1;
        // Inode, mode, uid, gid, links, mtime, size, device (2), its own device (2), length of
        // the name with its NUL, checksum (unused).
        let size = u32::try_from(content.len()).expect("a file of an initramfs is below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a name is short");
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_directories_come_first() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", 0o755, b"12345");
        archive.link("/a/d", "b/c");
        archive.file("/a/b/c", 0o644, b"not this one");
        assert!(archive.contains("/a/b") && !archive.contains("/x"));
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        // Walk it as the kernel does.
        let (mut at, mut seen) = (0, Vec::new());
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]);
                usize::from_str_radix(text.expect("ASCII"), 16).expect("hexadecimal")
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&bytes[at + 110..at + 109 + name_size]).expect("ASCII");
            let content = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                break;
            }
            seen.push((name.to_owned(), mode, bytes[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
        let expected = [
            ("a", 0o040_755, &b""[..]),
            ("a/b", 0o040_755, b""),
            ("a/b/c", 0o100_755, b"12345"),
            ("a/d", 0o120_777, b"b/c"),
        ];
        let expected: Vec<_> =
            expected.iter().map(|(n, m, c)| ((*n).to_owned(), *m, c.to_vec())).collect();
        assert_eq!(seen, expected);
    }
}

//! The files that a guest sent out: each a line with its size and path, then its content.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Writes what the guest sent of `wanted` to `destinations`; returns what is missing.
pub(crate) fn extract(
    sent: &Path,
    nonce: &str,
    wanted: &[String],
    destinations: &[PathBuf],
) -> anyhow::Result<Vec<String>> {
    let bytes = fs::read(sent).with_context(|| format!("cannot read {}", sent.display()))?;
    let files = parse(&bytes, nonce);
    let mut problems = Vec::new();
    for (path, destination) in wanted.iter().zip(destinations) {
        match files.iter().find(|(name, _)| name == path) {
            Some((_, content)) => {
                fs::write(destination, content)
                    .with_context(|| format!("cannot write {}", destination.display()))?;
                println!("guest: {path} is now {}", destination.display());
            }
            None => problems.push(format!("the guest sent no {path}")),
        }
    }
    Ok(problems)
}

fn parse<'a>(mut bytes: &'a [u8], nonce: &str) -> Vec<(String, &'a [u8])> {
    let mark = format!("@{nonce} file ");
    let mut files = Vec::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&bytes[..end]);
        let header = line.strip_prefix(&mark).and_then(|rest| rest.split_once(' '));
        let rest = &bytes[end + 1..];
        let Some((size, path)) = header.and_then(|(s, p)| Some((s.parse::<usize>().ok()?, p)))
        else {
            bytes = rest;
            continue;
        };
        let Some(content) = rest.get(..size) else {
            break;
        };
        files.push((path.to_owned(), content));
        bytes = &rest[size..];
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_cut_by_their_size() {
        let sent =
            b"@5eed file 4 /a\n\n@\n\0@5eed missing /b\n@5eed file 0 /c\n@5eed file 9 /d\nshort";
        let files = parse(sent, "5eed");
        assert_eq!(files, [("/a".to_owned(), &b"\n@\n\0"[..]), ("/c".to_owned(), b"")]);
        assert!(parse(sent, "0000").is_empty());
    }
}

//! The patch series: reading it and applying it, exactly or not at all.
//!
//! `patch` is lenient by nature: it moves hunks and, given fuzz, ignores context. On
//! the pinned source both mean that the series was not made for it, so both are
//! refused. A checkout given by the user may move lines (offsets), never context.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::tool::Tool;

/// The choices of the patched collector that its variable `GC_BARCHAN_OFF` switches off, as boehm-patch/README.md
/// tells them.
pub const CHOICES: &[&str] = &[
    "serial-small",
    "lopsided",
    "share",
    "slices",
    "rate",
    "retention",
    "trial",
    "young-runs",
    "heat",
    "lift",
    "preclean",
    "background",
    "walks",
    "room",
    "populate",
    "requested",
    "idle",
    "batches",
    "apart",
    "refill",
];

/// How exactly a patch must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Every hunk at its line, with its whole context: for the pinned source.
    Exact,
    /// Every hunk with its whole context, at any line: for a checkout of the user's.
    Moved,
}

/// The patches below `dir`, in the order in which they apply: by name.
///
/// # Errors
/// [`ErrorKind::Missing`] if there is none.
pub fn patches(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if dir.is_dir() {
        let entries = fs::read_dir(dir).map_err(|e| Error::io("list", dir, &e))?;
        for entry in entries {
            let path = entry.map_err(|e| Error::io("list", dir, &e))?.path();
            if path.extension().is_some_and(|ext| ext == "patch") {
                found.push(path);
            }
        }
    }
    if found.is_empty() {
        return Err(Error::new(
            ErrorKind::Missing,
            format!("the patch series {} is empty", dir.display()),
        )
        .remedy("restore boehm-patch/series from version control"));
    }
    found.sort();
    Ok(found)
}

/// Applies one patch to the tree at `source`.
///
/// # Errors
/// [`ErrorKind::PatchRefused`] if it does not fit; the tree is then to be thrown away.
pub fn apply(source: &Path, patch: &Path, fit: Fit) -> Result<()> {
    let refused = |why: String| {
        Error::new(
            ErrorKind::PatchRefused,
            format!("{} does not apply to the collector's source", patch.display()),
        )
        .tried(why)
        .remedy("refresh the series against this source (boehm-patch/upstream/README.md)")
    };
    let said = Tool::new("patch")
        .args(["-p1", "--fuzz=0", "--no-backup-if-mismatch", "--forward", "--batch"])
        .arg("--reject-file=-")
        .arg("-i")
        .arg(patch)
        .dir(source)
        .run()
        .map_err(|e| match e.kind() {
            ErrorKind::ToolFailed => refused(e.to_string()),
            _ => e,
        })?;
    if fit == Fit::Exact && said.lines().any(|line| line.contains("(offset ")) {
        return Err(refused(format!("lines have moved:\n{said}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "\
From: Somebody <somebody@example.org>
Subject: [PATCH] change five

---
 f.c | 2 +-
diff --git a/f.c b/f.c
--- a/f.c
+++ b/f.c
@@ -2,7 +2,7 @@
 2
 3
 4
-5
+five
 6
 7
 8
";

    fn try_on(content: &str, fit: Fit) -> (Result<()>, String) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let patch = dir.path().join("0001-five.patch");
        fs::write(&patch, PATCH).expect("write");
        let source = dir.path().join("source");
        fs::create_dir(&source).expect("mkdir");
        fs::write(source.join("f.c"), content).expect("write");
        let result = apply(&source, &patch, fit);
        let names: Vec<_> = fs::read_dir(&source).expect("list").collect();
        assert_eq!(names.len(), 1, "patch leaves neither .orig nor .rej behind: {names:?}");
        (result, fs::read_to_string(source.join("f.c")).expect("read"))
    }

    #[test]
    fn an_exact_patch_applies() {
        let (result, content) = try_on("1\n2\n3\n4\n5\n6\n7\n8\n9\n", Fit::Exact);
        result.expect("the patch was made for this text");
        assert_eq!(content, "1\n2\n3\n4\nfive\n6\n7\n8\n9\n");
    }

    #[test]
    fn a_patch_that_would_need_fuzz_is_refused() {
        for fit in [Fit::Exact, Fit::Moved] {
            // The outermost line of context differs: default `patch` would take it.
            let (result, content) = try_on("1\nX\n3\n4\n5\n6\n7\n8\n9\n", fit);
            let error = result.expect_err("needs fuzz 1");
            assert_eq!(error.kind(), ErrorKind::PatchRefused);
            assert!(content.contains("\n5\n"), "nothing was applied");
        }
    }

    #[test]
    fn moved_lines_are_refused_on_the_pinned_source_only() {
        let moved = "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let error = try_on(moved, Fit::Exact).0.expect_err("one line further down");
        assert_eq!(error.kind(), ErrorKind::PatchRefused);
        assert!(error.to_string().contains("offset 1 line"), "{error}");
        try_on(moved, Fit::Moved).0.expect("a checkout may have moved lines");
    }

    #[test]
    fn an_applied_patch_is_refused() {
        let (result, _) = try_on("1\n2\n3\n4\nfive\n6\n7\n8\n9\n", Fit::Exact);
        assert_eq!(result.expect_err("already there").kind(), ErrorKind::PatchRefused);
    }

    #[test]
    fn the_series_is_sorted_and_an_empty_one_is_an_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(patches(dir.path()).expect_err("empty").kind(), ErrorKind::Missing);
        for name in ["0002-b.patch", "README.md", "0010-c.patch", "0001-a.patch"] {
            fs::write(dir.path().join(name), "").expect("write");
        }
        let names: Vec<_> = patches(dir.path())
            .expect("three")
            .iter()
            .filter_map(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
            .collect();
        assert_eq!(names, ["0001-a.patch", "0002-b.patch", "0010-c.patch"]);
    }
}

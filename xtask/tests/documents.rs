//! What the documents say about the code: the examples of the README compile and do what they say,
//! the tests that the specification names exist, and no link of a document leads nowhere.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The first code block of `language` in the README.
fn example(language: &str) -> String {
    let readme = read("README.md");
    let start = format!("```{language}\n");
    let (_, rest) = readme.split_once(&start).expect("the README has the example");
    rest.split_once("```").expect("and its end").0.to_owned()
}

// The same text as in the README: `the_rust_example_is_this_one` compares them.
#[rustfmt::skip]
mod readme {
use barchan::{PAGE_SIZE, PageRange, Tracker};

fn dirty_pages() -> Result<[u64; 1], Box<dyn std::error::Error>> {
    let len = 64 * PAGE_SIZE;
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    let heap = PageRange::new(start as usize, len)?;

    let tracker = Tracker::open()?; // the best source of this machine, or BARCHAN_TRACKER
    // SAFETY: the heap is private anonymous memory and stays mapped as long as the region.
    let region = unsafe { tracker.track(heap)? };
    region.arm(heap)?; // clean from here on
    // SAFETY: the page is ours.
    unsafe { start.cast::<u8>().add(5 * PAGE_SIZE).write_volatile(1) };

    let mut dirty = [0u64; 1];
    region.collect_and_reset(heap, &mut dirty)?; // reads and re-arms, losing no write between
    Ok(dirty) // bit 5 is set; other bits may be
}

    #[test]
    fn the_rust_example_works() {
        assert_ne!(dirty_pages().expect("it tracks")[0] & 1 << 5, 0);
    }
}

#[test]
fn the_rust_example_is_this_one() {
    assert!(include_str!("documents.rs").contains(&example("rust")), "they differ");
}

#[test]
fn the_c_example_compiles_without_a_warning() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let source = dir.path().join("example.c");
    std::fs::write(&source, example("c")).expect("write");
    let output = Command::new("cc")
        .args(["-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
        .arg("-I")
        .arg(root().join("crates/barchan-c/include"))
        .arg(&source)
        .output()
        .expect("cc starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_tests_that_the_specification_names_exist() {
    let mut named = 0;
    let documents = read("SPECIFICATION.md") + &read("docs/security-kmod.md");
    for token in documents.split('`') {
        if let Some((file, function)) = token.split_once(".rs::") {
            let file = format!("{file}.rs");
            let wanted = format!("fn {function}(");
            let text = read(&file);
            let at = text.find(&wanted).unwrap_or_else(|| panic!("no {wanted} in {file}"));
            // Attributes may stand between, a blank line ends them.
            let before = text[..at].rsplit("\n\n").next().unwrap_or_default();
            let attribute = before.contains("#[test]") || before.contains("proptest!");
            assert!(attribute, "{function} in {file} is no test");
            named += 1;
        }
    }
    assert!(named > 50, "only {named} found: has the form of the table changed?");
}

#[test]
fn the_selftests_of_the_module_that_are_named_exist() {
    for (document, prefix, least) in
        [("SPECIFICATION.md", "", 20), ("docs/security-kmod.md", "kmod/tests/", 20)]
    {
        let mut named = 0;
        for token in read(document).split('`') {
            let Some((file, function)) = token.split_once(".c::") else { continue };
            let text = read(&format!("{prefix}{file}.c"));
            let defined = text.contains(&format!("static void {function}(void)"));
            // In the table of the tests that are run, by name or with its group's prefix.
            let listed = text.contains(&format!("TEST({function})"))
                || text.contains(&format!(", {function} }},"));
            assert!(defined && listed, "{document}: {function} in {file}.c is no test");
            named += 1;
        }
        assert!(named >= least, "{document}: only {named} found");
    }
}

/// The anchor that a heading has: in lower case, spaces as hyphens, punctuation left out.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents: Vec<PathBuf> =
        [".", "docs", "docs/adr", "benches", "boehm-patch", "kmod", "workloads"]
            .iter()
            .flat_map(|folder| std::fs::read_dir(root().join(folder)).expect("a folder"))
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|end| end == "md"))
            .collect();
    documents.sort();
    let mut links = 0;
    for document in documents {
        let text = std::fs::read_to_string(&document).expect("a document");
        let name = document.display();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => document.clone(),
                file => document.parent().expect("a folder").join(file),
            };
            assert!(file.exists(), "{name}: no {target}");
            if !heading.is_empty() {
                let there = std::fs::read_to_string(&file).expect("a document");
                let found = there.lines().any(|l| l.starts_with('#') && anchor(l) == heading);
                assert!(found, "{name}: no heading {target}");
            }
            links += 1;
        }
    }
    assert!(links > 10, "only {links} links found");
}

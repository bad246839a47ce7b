//! What the integration tests share: memory, the trackers that this machine has, child processes.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use barchan::{PAGE_SIZE, PageRange, Region, Source, Tracker, bitmap};

/// Tests that need the process to themselves (soft-dirty resets are process-wide, forks copy
/// everything) run one at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sources to test, if not all: set for the run in guest mode.
const SOURCES: &str = "BARCHAN_TEST_SOURCES";

/// The trackers that this machine has; prints why each of the others is left out.
pub fn trackers() -> Vec<Tracker> {
    Source::ALL.into_iter().filter_map(tracker).collect()
}

/// Whether this is the run in guest mode.
pub fn is_in_guest_mode() -> bool {
    std::env::var_os(SOURCES).is_some()
}

/// Whether `source` is to be tested.
pub fn is_wanted(source: Source) -> bool {
    std::env::var(SOURCES).map_or(true, |names| names.split(',').any(|name| name == source.name()))
}

/// The tracker of `source`, or a printed reason.
pub fn tracker(source: Source) -> Option<Tracker> {
    if !is_wanted(source) {
        return None;
    }
    match Tracker::builder().source(source).open() {
        Ok(tracker) => Some(tracker),
        Err(why) => {
            assert!(
                !source.needs_guest_mode() || !is_in_guest_mode(),
                "in guest mode there is {source}: {why}"
            );
            println!("skipped: {why}");
            None
        }
    }
}

/// Runs this test program again in guest mode, with the sources that matter there: all its tests, but
/// those whose name has `in_guest_mode`.
pub fn again_in_guest_mode() {
    if is_in_guest_mode() {
        return; // It is that run.
    }
    if let Err(why) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        println!("skipped: no guest mode here: /dev/kvm: {why}");
        return;
    }
    let Some(library) = guest_mode_library() else { return };
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--skip", "in_guest_mode", "--nocapture", "--test-threads", "1"])
        .env("LD_PRELOAD", library)
        .env(SOURCES, "guest-pte,guest-tlb,guest-direct,pagemap-scan")
        .output()
        .expect("this program starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if said.contains("running without guest mode") {
        println!("skipped: no guest mode here: {said}");
        return;
    }
    println!("{said}");
    assert!(output.status.success(), "in guest mode: {}", output.status);
}

/// `libbarchan_dune.so`, built if it is not; `None`, and a line that says so, where it cannot be.
fn guest_mode_library() -> Option<std::path::PathBuf> {
    if !std::path::Path::new(env!("CARGO")).is_file() {
        println!("skipped: the guest-mode runtime is not here, nor cargo to build it");
        return None;
    }
    let program = std::env::current_exe().expect("this program");
    // target/debug/deps/program-0123
    let target = program.ancestors().nth(3).expect("it lies in the target directory");
    let built = std::process::Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "dune-preload"])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status()
        .expect("cargo starts");
    assert!(built.success(), "cargo build --release --package dune-preload: {built}");
    let library = target.join("release/libbarchan_dune.so");
    assert!(library.is_file(), "{}", library.display());
    Some(library)
}

/// Private anonymous pages, aligned to 2 MiB.
pub struct Memory {
    range: PageRange,
    whole: PageRange,
}

impl Memory {
    pub fn new(pages: usize) -> Self {
        const HUGE: usize = 2 << 20;
        let bytes = (pages * PAGE_SIZE).next_multiple_of(HUGE) + HUGE;
        // SAFETY: a new mapping replaces nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        let whole = PageRange::new(start as usize, bytes).expect("mmap gives pages");
        let aligned = whole.start().next_multiple_of(HUGE);
        let range = PageRange::new(aligned, pages * PAGE_SIZE).expect("pages");
        Self { range, whole }
    }

    /// As [`Self::new`], without huge pages, each page touched.
    pub fn touched(pages: usize) -> Self {
        let memory = Self::new(pages);
        memory.advise(0, pages, libc::MADV_NOHUGEPAGE).expect("MADV_NOHUGEPAGE");
        (0..pages).for_each(|page| memory.write(page));
        memory
    }

    pub fn range(&self) -> PageRange {
        self.range
    }

    pub fn page(&self, page: usize) -> *mut u8 {
        self.range.slice(page, 1).start() as *mut u8
    }

    /// Stores to `page`.
    pub fn write(&self, page: usize) {
        // SAFETY: the page is ours and writable, at most after a fault that is resolved.
        unsafe { self.page(page).add(100).write_volatile(page as u8 | 1) };
    }

    pub fn read(&self, page: usize) -> u8 {
        // SAFETY: the page is ours and readable.
        unsafe { self.page(page).add(100).read_volatile() }
    }

    pub fn advise(&self, first: usize, count: usize, advice: i32) -> Result<(), i32> {
        // SAFETY: the pages are ours; nobody minds what becomes of their contents.
        let done = unsafe { libc::madvise(self.page(first).cast(), count * PAGE_SIZE, advice) };
        if done == 0 { Ok(()) } else { Err(errno()) }
    }

    /// Maps new pages over old ones.
    pub fn replace(&self, first: usize, count: usize) {
        // SAFETY: the pages are ours.
        let new = unsafe {
            libc::mmap(
                self.page(first).cast(),
                count * PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        assert_eq!(new, self.page(first).cast());
    }

    /// Tracks all of it.
    pub fn track(&self, tracker: &Tracker) -> Region {
        self.track_part(tracker, 0, self.range.pages())
    }

    pub fn track_part(&self, tracker: &Tracker, first: usize, count: usize) -> Region {
        // SAFETY: private anonymous memory that outlives the region in every test.
        unsafe { tracker.track(self.range.slice(first, count)) }.expect("it can be tracked")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: ours, and no longer used.
        unsafe { libc::munmap(self.whole.start() as *mut _, self.whole.len_bytes()) };
    }
}

/// Has a page read-only by the program's own doing.
pub fn make_read_only(memory: &Memory, page: usize) {
    let at = memory.page(page).cast();
    // SAFETY: the page is the test's.
    assert_eq!(unsafe { libc::mprotect(at, PAGE_SIZE, libc::PROT_READ) }, 0);
}

pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The dirty pages of the whole region, reset.
pub fn collect(region: &Region) -> Vec<usize> {
    let range = region.range();
    let mut bits = vec![0; bitmap::words_for(range.pages())];
    // SAFETY: the tests that use this write from no other thread meanwhile.
    unsafe { region.collect_and_reset_stopped(range, &mut bits) }.expect("collecting");
    (0..range.pages()).filter(|&page| bitmap::get(&bits, page)).collect()
}

/// The dirty pages of the whole region, not reset.
pub fn peek(region: &Region) -> Vec<usize> {
    let range = region.range();
    let mut bits = vec![0; bitmap::words_for(range.pages())];
    region.peek(range, &mut bits).expect("peeking");
    (0..range.pages()).filter(|&page| bitmap::get(&bits, page)).collect()
}

/// `dirty` is exactly `pages`, or everything for the source that knows nothing.
#[track_caller]
pub fn assert_dirty(region: &Region, dirty: &[usize], pages: &[usize]) {
    if region.source() == Source::AllDirty {
        assert_eq!(dirty.len(), region.range().pages());
    } else {
        assert_eq!(dirty, pages, "{}", region.source());
    }
}

/// `dirty` has all of `pages`, and more is no mistake.
#[track_caller]
pub fn assert_covers(region: &Region, dirty: &[usize], pages: &[usize]) {
    for page in pages {
        assert!(dirty.contains(page), "{}: page {page} is missing in {dirty:?}", region.source());
    }
}

/// Runs `body` in a forked child (a raw `clone` if `raw`) and returns its wait status; a child that
/// hangs is killed by SIGALRM.
pub fn child_status(raw: bool, body: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child runs `body` on a copy of this thread and then exits without unwinding.
    unsafe {
        let pid = if raw {
            libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32
        } else {
            libc::fork()
        };
        assert!(pid >= 0, "fork: errno {}", errno());
        if pid == 0 {
            libc::alarm(60);
            let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            libc::_exit(if matches!(ok, Ok(true)) { 0 } else { 1 });
        }
        let mut status = -1;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    }
}

#[track_caller]
pub fn in_child(what: &str, body: impl FnOnce() -> bool) {
    let status = child_status(false, body);
    assert_eq!(status, 0, "{what}: the child's wait status is {status:#x}");
}

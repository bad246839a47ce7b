//! Counts of what guest mode cost: exits, faults, and each system call.
//!
//! One record a process, with relaxed counters. It is private memory, or, once [`record_in`] named a
//! directory, a file of that directory mapped shared: then it can be read whatever way the process
//! ends. A forked child has a record of its own. It says how much, not when.

use core::fmt::Write as _;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::host::{Exit, HostError, Step as _};
use crate::sys::text::Text;
use crate::{inside, protection, sys};

/// First bytes of a record.
const MAGIC: u64 = u64::from_le_bytes(*b"barchanD");
/// System calls that are counted one by one; others are one count more.
const CALLS: usize = 512;
/// Bytes of a program's name.
const NAME: usize = 32;

/// The record: what is in the file.
#[repr(C)]
struct Record {
    magic: AtomicU64,
    pid: AtomicU32,
    /// The privilege level at which SYSCALL arrives: 0, or 3 on a paravirtual host; 255: unknown.
    ring: AtomicU32,
    exits: AtomicU64,
    faults: AtomicU64,
    interrupted: AtomicU64,
    missing_pages: AtomicU64,
    signals: AtomicU64,
    protection_faults: AtomicU64,
    flushes: AtomicU64,
    calls: [AtomicU64; CALLS + 1],
    name: [AtomicU8; NAME],
}

static PRIVATE: Record = Record {
    magic: AtomicU64::new(0),
    pid: AtomicU32::new(0),
    ring: AtomicU32::new(255),
    exits: AtomicU64::new(0),
    faults: AtomicU64::new(0),
    interrupted: AtomicU64::new(0),
    missing_pages: AtomicU64::new(0),
    signals: AtomicU64::new(0),
    protection_faults: AtomicU64::new(0),
    flushes: AtomicU64::new(0),
    calls: [const { AtomicU64::new(0) }; CALLS + 1],
    name: [const { AtomicU8::new(0) }; NAME],
};
static CURRENT: AtomicPtr<Record> = AtomicPtr::new(core::ptr::null_mut());

/// Bytes of a path of a directory that can be kept.
const DIRECTORY: usize = 512;
static DIRECTORY_BYTES: [AtomicU8; DIRECTORY] = [const { AtomicU8::new(0) }; DIRECTORY];
static DIRECTORY_LEN: AtomicUsize = AtomicUsize::new(0);

/// The counts of a process at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The process.
    pub pid: u32,
    /// Its program's name, as the kernel has it.
    pub name: String,
    /// The privilege level at which SYSCALL arrives, if any call was made: 0, or 3 on a paravirtual host.
    pub syscall_ring: Option<u8>,
    /// Runs that ended, for whatever reason.
    pub exits: u64,
    /// Page faults that the monitor handled.
    pub faults: u64,
    /// Runs that a signal ended.
    pub interrupted: u64,
    /// Runs that ended because the host had no page where the tables had one.
    pub missing_pages: u64,
    /// Signals that were delivered to handlers.
    pub signals: u64,
    /// Faults that the program handled itself at ring 3 by the trackers that protect pages, up to the last exit.
    pub protection_faults: u64,
    /// Flushes of a CPU's TLB, whole or of a page, that the program asked for, up to the last exit.
    pub flushes: u64,
    /// System calls: number and count, the most frequent first.
    pub calls: Vec<(usize, u64)>,
}

impl Snapshot {
    /// Of this process.
    #[must_use]
    pub fn current() -> Self {
        Self::of(record())
    }

    /// Of what a file of [`record_in`] holds; `None` if it is no record.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Record>() {
            return None;
        }
        // SAFETY: as many bytes as a record, every pattern of which is one; copied, so aligned.
        let record = unsafe { bytes.as_ptr().cast::<Record>().read_unaligned() };
        (record.magic.load(Ordering::Relaxed) == MAGIC).then(|| Self::of(&record))
    }

    fn of(record: &Record) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut calls: Vec<_> = record.calls.iter().map(get).enumerate().collect();
        calls.retain(|(_, count)| *count > 0);
        calls.sort_by_key(|(nr, count)| (core::cmp::Reverse(*count), *nr));
        let name: Vec<u8> = record.name.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let ring = record.ring.load(Ordering::Relaxed);
        Self {
            pid: record.pid.load(Ordering::Relaxed),
            name: String::from_utf8_lossy(name).trim_end().to_owned(),
            syscall_ring: (ring < 4).then_some(ring as u8),
            exits: get(&record.exits),
            faults: get(&record.faults),
            interrupted: get(&record.interrupted),
            missing_pages: get(&record.missing_pages),
            signals: get(&record.signals),
            protection_faults: get(&record.protection_faults),
            flushes: get(&record.flushes),
            calls,
        }
    }
}

fn record() -> &'static Record {
    let current = CURRENT.load(Ordering::Acquire);
    // SAFETY: a mapping that is never taken away.
    if current.is_null() { &PRIVATE } else { unsafe { &*current } }
}

/// Keeps this process' record, and those of its forked children, in files of `directory` from now on.
///
/// # Errors
/// The path is too long, or a file cannot be made there.
pub fn record_in(directory: &[u8]) -> Result<(), HostError> {
    let too_long =
        HostError { step: "keeping counts: the path", errno: crate::Errno(libc::ENAMETOOLONG) };
    if directory.len() > DIRECTORY {
        return Err(too_long);
    }
    for (to, from) in DIRECTORY_BYTES.iter().zip(directory) {
        to.store(*from, Ordering::Relaxed);
    }
    DIRECTORY_LEN.store(directory.len(), Ordering::Release);
    open()
}

/// Of [`counted_inside`], what was the parent's, in a forked child.
static BEFORE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Faults of protected pages and flushes in this process and those that it is forked of.
fn counted_inside() -> [u64; 2] {
    [protection::all_faults(), inside::flushes()]
}

/// In a forked child: a record of its own.
pub(crate) fn renew() {
    for (before, count) in BEFORE.iter().zip(counted_inside()) {
        before.store(count, Ordering::Relaxed);
    }
    if DIRECTORY_LEN.load(Ordering::Acquire) > 0 {
        // The directory may be gone already; then nobody reads it.
        if open().is_err() {
            CURRENT.store(core::ptr::null_mut(), Ordering::Release);
        }
    }
}

/// Makes the file of this process and maps it. No heap, no lock.
fn open() -> Result<(), HostError> {
    let pid = sys::process_id();
    let mut fd = Err(crate::Errno(libc::EEXIST));
    // A process that executed another program has the same number.
    for attempt in 0..1000 {
        let mut path = Text::<{ DIRECTORY + 64 }>::new();
        let len = DIRECTORY_LEN.load(Ordering::Acquire);
        path.push(DIRECTORY_BYTES[..len].iter().map(|byte| byte.load(Ordering::Relaxed)));
        let _ = write!(path, "/{pid}-{attempt}.dune\0");
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let invalid = crate::Errno(libc::EINVAL);
        fd = core::ffi::CStr::from_bytes_until_nul(path.bytes())
            .map_err(|_| invalid)
            .and_then(|path| sys::open(path, flags));
        if fd != Err(crate::Errno(libc::EEXIST)) {
            break;
        }
    }
    let fd = fd.step("making a file for counts")?;
    let mapped = map(fd);
    sys::close(fd);
    let record = mapped.step("mapping a file for counts")? as *mut Record;
    CURRENT.store(record, Ordering::Release);
    let record = self::record();
    record.ring.store(255, Ordering::Relaxed);
    record.pid.store(pid as u32, Ordering::Relaxed);
    name(record);
    record.magic.store(MAGIC, Ordering::Release);
    Ok(())
}

/// Fills the file with zeros and maps it. A mapped page that its file system has no room for would be a SIGBUS, and a
/// write beyond the limit of a file's size a SIGXFSZ.
fn map(fd: i32) -> Result<u64, crate::Errno> {
    const LEN: usize = size_of::<Record>();
    static ZEROS: [u8; LEN] = [0; LEN];
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let asked = [0, u64::from(libc::RLIMIT_FSIZE), 0, &raw mut limit as u64, 0, 0];
    // SAFETY: room for the answer.
    unsafe { sys::call(libc::SYS_prlimit64, asked) }?;
    if limit.rlim_cur < LEN as u64 {
        return Err(crate::Errno(libc::EFBIG));
    }
    let zeros = [fd as u64, ZEROS.as_ptr() as u64, LEN as u64, 0, 0, 0];
    // SAFETY: as many bytes as said, which are only read.
    if unsafe { sys::call(libc::SYS_pwrite64, zeros) }? != LEN as u64 {
        return Err(crate::Errno(libc::ENOSPC));
    }
    let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let request = [0, LEN as u64, rights as u64, flags as u64, fd as u64, 0];
    // SAFETY: a file of our own, and a mapping of it at an address of the kernel's choice.
    unsafe { sys::call(libc::SYS_mmap, request) }
}

/// The program's name, as the kernel has it.
fn name(record: &Record) {
    let mut bytes = [0u8; NAME];
    if let Ok(fd) = sys::open(c"/proc/self/comm", libc::O_RDONLY) {
        let request = [fd as u64, bytes.as_mut_ptr() as u64, NAME as u64 - 1, 0, 0, 0];
        // SAFETY: the buffer is as long as said.
        let _ = unsafe { sys::raw(libc::SYS_read, request) };
        sys::close(fd);
    }
    for (to, from) in record.name.iter().zip(bytes) {
        to.store(from, Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn exit(exit: Exit) {
    let record = record();
    add(&record.exits);
    // Counted at ring 3, where the record may have no page.
    let [faults, flushes] = counted_inside();
    record.protection_faults.store(faults - BEFORE[0].load(Ordering::Relaxed), Ordering::Relaxed);
    record.flushes.store(flushes - BEFORE[1].load(Ordering::Relaxed), Ordering::Relaxed);
    match exit {
        Exit::Interrupted => add(&record.interrupted),
        Exit::NoMemory(_) => add(&record.missing_pages),
        _ => {}
    }
}

pub(crate) fn call(nr: u64, ring: u8) {
    let record = record();
    record.ring.store(u32::from(ring), Ordering::Relaxed);
    add(&record.calls[(nr as usize).min(CALLS)]);
}

pub(crate) fn page_fault() {
    add(&record().faults);
}

pub(crate) fn signal() {
    add(&record().signals);
}

/// Writes a message to standard error without a buffer, a lock or a heap.
pub fn report(message: core::fmt::Arguments<'_>) {
    sys::text::report(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_record_is_refused() {
        assert_eq!(Snapshot::parse(b""), None);
        assert_eq!(Snapshot::parse(&[0; size_of::<Record>()]), None);
    }

    #[test]
    fn counts_are_kept_in_a_file() {
        let directory = std::env::temp_dir().join(format!("barchan-stats-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        record_in(directory.as_os_str().as_encoded_bytes()).expect("a file");
        call(39, 3);
        call(39, 3);
        call(5_000, 3);
        page_fault();
        let file = std::fs::read_dir(&directory).expect("readable").next().expect("a file");
        let bytes = std::fs::read(file.expect("an entry").path()).expect("readable");
        let found = Snapshot::parse(&bytes).expect("a record");
        assert_eq!((found.pid, found.faults), (std::process::id(), 1));
        assert_eq!((found.calls, found.syscall_ring), (vec![(39, 2), (CALLS, 1)], Some(3)));
        std::fs::remove_dir_all(&directory).expect("gone");
    }
}

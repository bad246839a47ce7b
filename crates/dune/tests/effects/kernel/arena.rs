//! The arena: memory in which all that a call may write lies, compared byte by byte.

use std::ops::Range;

use dune::effects::{self, Capture, Coverage, ExitWords, File, Process, Unreadable, Why};

/// Bytes of the arena.
pub const BYTES: usize = 1 << 18;
/// Bytes left alone on both sides of everything that lies in it.
const GUARD: u64 = 192;

/// The running process, asked by system calls.
pub struct Native {
    pub exit_words: Option<ExitWords>,
}

impl Process for Native {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let remote = libc::iovec { iov_base: address as *mut _, iov_len: into.len() };
        // SAFETY: it writes to `into`; an address that cannot be read is an error.
        let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        if usize::try_from(read) == Ok(into.len()) { Ok(()) } else { Err(Unreadable) }
    }

    fn file(&self, fd: i32) -> File {
        // SAFETY: two structures of integers, which the calls fill.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            let mut fs: libc::statfs = std::mem::zeroed();
            if libc::fstat(fd, &mut stat) != 0 || libc::fstatfs(fd, &mut fs) != 0 {
                return File::Data; // the call will fail with EBADF
            }
            File::classify(stat.st_mode, stat.st_rdev, fs.f_type as u64)
        }
    }

    fn program_break(&self) -> Option<u64> {
        // SAFETY: 0 asks.
        Some(unsafe { libc::syscall(libc::SYS_brk, 0) } as u64)
    }

    fn exit_words(&self) -> Option<ExitWords> {
        self.exit_words
    }
}

/// What a call did.
pub struct Done {
    pub result: i64,
    /// Bytes that changed.
    pub changed: usize,
    /// Whether a place that it may write to was written by a call before.
    pub again: bool,
    pub coverage: Coverage,
}

/// One run of a case: an arena filled with a pattern, and what was called.
pub struct Run {
    pub base: u64,
    next: u64,
    /// The numbers of the calls that were made, with their results.
    pub calls: Vec<(i64, i64)>,
    pub process: Native,
    before: Vec<u8>,
    /// Which bytes some call has changed.
    ever: std::collections::BTreeSet<u64>,
    /// Ranges of calls whose effects last, and of the last call.
    lasting: Vec<Range<u64>>,
    latest: Vec<Range<u64>>,
}

impl Run {
    /// Maps an arena and fills it; with another `pattern` every byte is another.
    pub fn new(pattern: u8) -> Self {
        // SAFETY: a new mapping replaces nothing.
        let base = unsafe {
            let (prot, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let base = libc::mmap(std::ptr::null_mut(), BYTES + 4096, prot, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            // Behind it there is nothing.
            assert_eq!(libc::mprotect(base.add(BYTES), 4096, libc::PROT_NONE), 0);
            base
        };
        let base = base as u64;
        let mut mix = 0x9e37_79b9_7f4a_7c15_u64;
        for i in 0..BYTES as u64 {
            mix = mix.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i | 1);
            // SAFETY: within the mapping.
            unsafe { ((base + i) as *mut u8).write((mix >> 56) as u8 ^ pattern) };
        }
        Self {
            base,
            next: base + 4096 + GUARD,
            calls: Vec::new(),
            process: Native { exit_words: None },
            before: vec![0; BYTES],
            ever: std::collections::BTreeSet::new(),
            lasting: Vec::new(),
            latest: Vec::new(),
        }
    }

    /// A place of `bytes` bytes for a call to write to, holding the pattern.
    pub fn out(&mut self, bytes: usize) -> u64 {
        let at = self.next;
        self.next = (at + bytes as u64 + GUARD).next_multiple_of(64);
        assert!(self.next + 4096 < self.base + BYTES as u64, "the arena is full");
        at
    }

    /// Whole pages.
    pub fn pages(&mut self, count: usize) -> u64 {
        let at = self.next.next_multiple_of(4096);
        self.next = at + 4096 * count as u64 + GUARD;
        assert!(self.next + 4096 < self.base + BYTES as u64, "the arena is full");
        at
    }

    /// A place that holds `bytes`.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let at = self.out(bytes.len());
        self.set(at, bytes);
        at
    }

    /// A place that holds `words`.
    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    /// A place that holds an `int`.
    pub fn int(&mut self, value: i32) -> u64 {
        self.bytes(&value.to_le_bytes())
    }

    /// A string that ends with NUL.
    pub fn str(&mut self, text: &str) -> u64 {
        self.bytes(&[text.as_bytes(), b"\0"].concat())
    }

    pub fn set(&mut self, at: u64, bytes: &[u8]) {
        assert!(at >= self.base && at + bytes.len() as u64 <= self.base + BYTES as u64);
        // SAFETY: within the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        assert!(at >= self.base && at + len as u64 <= self.base + BYTES as u64);
        // SAFETY: within the mapping.
        (0..len as u64).map(|i| unsafe { ((at + i) as *const u8).read_volatile() }).collect()
    }

    pub fn get_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.get(at, 8).try_into().expect("eight bytes"))
    }

    pub fn get_i32(&self, at: u64) -> i32 {
        i32::from_le_bytes(self.get(at, 4).try_into().expect("four bytes"))
    }

    fn snapshot(&mut self) {
        // SAFETY: the whole mapping, which only calls made here change.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base as *const u8, self.before.as_mut_ptr(), BYTES);
        }
    }

    fn changed(&self) -> Vec<u64> {
        // SAFETY: as above.
        let now = unsafe { std::slice::from_raw_parts(self.base as *const u8, BYTES) };
        let chunks = now.chunks(1024).zip(self.before.chunks(1024)).zip(0u64..);
        let mut changed = Vec::new();
        for ((now, before), chunk) in chunks.filter(|((now, before), _)| now != before) {
            let pairs = now.iter().zip(before).zip(self.base + 1024 * chunk..);
            changed.extend(pairs.filter(|((a, b), _)| a != b).map(|(_, address)| address));
        }
        changed
    }

    /// Makes a call by `make` and compares what changed with what the table says.
    pub fn checked(
        &mut self,
        number: i64,
        args: &[u64],
        make: impl FnOnce(&[u64; 6]) -> i64,
    ) -> Done {
        let mut six = [0; 6];
        six[..args.len()].copy_from_slice(args);
        let name = effects::name(number as u64).unwrap_or("unknown");
        let effects = effects::of(number as u64, &six);
        let capture = Capture::<64>::before(&effects, &self.process);
        self.snapshot();
        let result = make(&six);
        let changed = self.changed();
        self.calls.push((number, result));
        let mut may = Vec::new();
        let mut after = Vec::new();
        let _ = capture.for_each(|written| may.push(pages_if_replaced(&written)));
        let coverage =
            capture.for_each_after(result, |written| after.push(pages_if_replaced(&written)));
        let _ = capture.for_each(|written| {
            if written.until != effects::Until::Return {
                self.lasting.push(written.range());
            }
        });
        if coverage == Coverage::Ranges {
            for byte in &changed {
                for (ranges, when) in [(&may, "before the call"), (&after, "by its result")] {
                    assert!(
                        ranges.iter().any(|range| range.contains(byte)),
                        "UNDER-REPORT: {name}({six:x?}) = {result} wrote {byte:#x} (one of {}), \
                         which the table does not name {when}: {ranges:x?}",
                        changed.len()
                    );
                }
            }
        }
        if effects.writes_nothing() {
            assert!(changed.is_empty(), "{name} writes");
        }
        let again = may.iter().any(|range| self.ever.range(range.clone()).next().is_some());
        self.ever.extend(&changed);
        self.latest = may;
        Done { result, changed: changed.len(), again, coverage }
    }

    /// Makes a call; its result, errors negative.
    pub fn call(&mut self, number: i64, args: &[u64]) -> i64 {
        let done = self.checked(number, args, |six| raw_call(number, six));
        let bounded = matches!(done.coverage, Coverage::Ranges);
        assert!(bounded, "{number} {args:x?}: {:?}", done.coverage);
        done.result
    }

    /// Makes a call that must succeed.
    pub fn ok(&mut self, number: i64, args: &[u64]) -> i64 {
        let result = self.call(number, args);
        let error = std::io::Error::from_raw_os_error(-result.min(0) as i32);
        assert!(result >= 0, "{:?}({args:x?}): {error}", effects::name(number as u64));
        result
    }

    /// Makes a call that must succeed and write.
    pub fn wrote(&mut self, number: i64, args: &[u64]) -> i64 {
        let done = self.checked(number, args, |six| raw_call(number, six));
        let name = effects::name(number as u64);
        let error = std::io::Error::from_raw_os_error(-done.result.min(0) as i32);
        assert!(done.result >= 0, "{name:?}({args:x?}): {error}");
        // A place that was written before may hold the same already.
        let first = !done.again && done.changed == 0;
        assert!(!first, "{name:?}({args:x?}) = {} wrote nothing", done.result);
        assert_eq!(done.coverage, Coverage::Ranges, "{name:?}");
        done.result
    }

    /// Makes a call that must fail with `error`.
    pub fn fails(&mut self, number: i64, args: &[u64], error: i32) {
        let result = self.call(number, args);
        assert_eq!(result, -i64::from(error), "{:?}({args:x?})", effects::name(number as u64));
    }

    /// Makes a call that the table does not bound.
    pub fn unbounded(&mut self, number: i64, args: &[u64], why: Why) -> i64 {
        let done = self.checked(number, args, |six| raw_call(number, six));
        if done.coverage != Coverage::Ranges || why != Why::Exits {
            assert_eq!(done.coverage, Coverage::Everything(why));
        }
        done.result
    }

    /// Waits for `done` while only what lasts may change.
    pub fn meanwhile(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !done(self) {
            assert!(std::time::Instant::now() < deadline, "{what} has not come");
            std::thread::yield_now();
        }
        for byte in self.changed() {
            let named = self.lasting.iter().chain(&self.latest).any(|range| range.contains(&byte));
            assert!(named, "UNDER-REPORT: {what} wrote {byte:#x}");
        }
    }

    /// Prints that the case, or a part of it, cannot be tried here.
    pub fn skip(&self, why: &str) {
        println!("skipped {why}");
    }
}

fn pages_if_replaced(written: &effects::Written) -> Range<u64> {
    let range = written.range();
    if written.how == effects::How::Replaced && !range.is_empty() {
        range.start & !4095..range.end.saturating_add(4095) & !4095
    } else {
        range
    }
}

/// One system call.
pub fn raw_call(number: i64, a: &[u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the convention of x86-64. What the calls of the cases do to memory happens in the arena, or
    // to what the case owns.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a[0],
            in("rsi") a[1],
            in("rdx") a[2],
            in("r10") a[3],
            in("r8") a[4],
            in("r9") a[5],
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

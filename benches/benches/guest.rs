//! What guest mode costs on this host: a report, by `cargo bench -p barchan-benches --bench guest`.
//!
//! Entering cannot be undone, so each part runs in a forked child of its own, which sends back what it
//! measured. A figure is the median of many repetitions; beside it is the same natively, where there is such
//! a thing. The kind of host is measured too: on an emulated one the figures are the emulator's.
#![allow(missing_docs)]

use std::hint::black_box;
use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dune::PAGE_SIZE as PAGE;
use dune::address_space::AddressSpace;
use dune::inside::Inside;
use dune_bench::clock::Rate;
use dune_bench::memory::Memory;
use dune_bench::{Means, faults};

/// A part that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(300);

type Part = fn(&mut Vec<(&'static str, f64)>);

fn main() {
    // `cargo test` starts benches to see whether they work; this one has its say under `cargo bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    if let Err(error) = dune::host::kvm::open() {
        println!("skipped: no guest mode here: {error}");
        return;
    }
    println!("{:<44} {:>14} {:>14}", "", "guest", "native");
    let kind = in_child(|| {
        let measured = dune::host::kind::measure().expect("guest mode");
        let kind = measured.kind.map_or("hidden", |kind| kind.name());
        vec![(kind, measured.enter_ns as f64)]
    });
    for (name, enter) in kind {
        println!("host: {name}");
        row("enter", Some(enter), None);
    }
    let parts: [(Part, bool); 9] = [
        (system_calls, true),
        (first_touch, true),
        (first_touches, true),
        (fault_handler, false),
        (native_fault, true),
        (dirty_bits, false),
        (private_spaces, false),
        (tasks, true),
        (compute, true),
    ];
    for (part, natively) in parts {
        let guest = in_child(|| {
            // SAFETY: the child has one thread.
            unsafe { dune::enter() }.expect("guest mode");
            let mut rows = Vec::new();
            part(&mut rows);
            rows
        });
        let native = if natively {
            in_child(|| {
                let mut rows = Vec::new();
                part(&mut rows);
                rows
            })
        } else {
            Vec::new()
        };
        for (name, ns) in guest {
            let same = native.iter().find(|(other, _)| *other == name).map(|(_, ns)| *ns);
            row(&name, Some(ns), same);
        }
    }
}

fn row(name: &str, guest: Option<f64>, native: Option<f64>) {
    println!("{name:<44} {:>14} {:>14}", time(guest), time(native));
}

fn time(ns: Option<f64>) -> String {
    match ns {
        None => "–".to_owned(),
        Some(ns) if ns < 1e3 => format!("{ns:.0} ns"),
        Some(ns) if ns < 1e6 => format!("{:.2} µs", ns / 1e3),
        Some(ns) => format!("{:.2} ms", ns / 1e6),
    }
}

/// Runs `body` in a forked child; names and nanoseconds come back through a pipe as lines.
fn in_child(body: impl FnOnce() -> Vec<(&'static str, f64)>) -> Vec<(String, f64)> {
    let mut pipe = [0; 2];
    // SAFETY: two descriptors go into the array; the child writes to one and leaves.
    let pid = unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        libc::fork()
    };
    if pid == 0 {
        let text: String = body().into_iter().map(|(name, ns)| format!("{name}\t{ns}\n")).collect();
        // SAFETY: bytes of ours; then the child ends.
        unsafe {
            libc::alarm(LIMIT.as_secs() as u32);
            libc::write(pipe[1], text.as_ptr().cast(), text.len());
            libc::_exit(0);
        }
    }
    let mut text = String::new();
    // SAFETY: the one end is closed, the other ours.
    let mut out = unsafe {
        libc::close(pipe[1]);
        std::fs::File::from(OwnedFd::from_raw_fd(pipe[0]))
    };
    let _ = out.read_to_string(&mut text);
    let mut status = 0;
    // SAFETY: our child.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    if status != 0 {
        println!("a part failed with status {status:#x}");
    }
    text.lines()
        .filter_map(|line| {
            let (name, ns) = line.split_once('\t')?;
            Some((name.to_owned(), ns.parse().ok()?))
        })
        .collect()
}

/// The median of `count` measurements of what `f` times.
fn median(count: usize, mut f: impl FnMut() -> Duration) -> f64 {
    let mut times: Vec<_> = (0..count).map(|_| f().as_nanos() as f64).collect();
    times.sort_by(f64::total_cmp);
    times[count / 2]
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

fn system_calls(rows: &mut Vec<(&'static str, f64)>) {
    let call = median(1001, || {
        timed(|| {
            // SAFETY: no arguments.
            unsafe { libc::syscall(libc::SYS_getppid) };
        })
    });
    rows.push(("system call (getppid)", call));
    let pair = median(101, || {
        timed(|| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            // Two calls and no more, which `Memory` would not do.
            // SAFETY: a new mapping at an address of the kernel's choice, written to and given back.
            unsafe {
                let start = libc::mmap(null_mut(), 256 * PAGE, rights, flags, -1, 0);
                assert_ne!(start, libc::MAP_FAILED);
                start.cast::<u8>().write_volatile(1);
                libc::munmap(start, 256 * PAGE);
            }
        })
    });
    rows.push(("mmap, one touch, munmap of 1 MiB", pair));
}

fn first_touch(rows: &mut Vec<(&'static str, f64)>) {
    let memory = Memory::map(4096).expect("memory");
    let all = timed(|| (0..4096).for_each(|page| memory.write(page)));
    rows.push(("first touch of a page", all.as_nanos() as f64 / 4096.0));
}

/// The same in a big mapping, in several orders: in a sequence pages may be made ahead.
fn first_touches(rows: &mut Vec<(&'static str, f64)>) {
    const PAGES: usize = 16_384;
    type Order = fn(usize) -> usize;
    let orders: [(_, usize, Order); 5] = [
        ("first touch in 64 MiB, page by page", PAGES, |n| n),
        ("… from the end on", PAGES, |n| PAGES - 1 - n),
        ("… of every 3rd page", PAGES / 3, |n| 3 * n),
        ("… of 5,000 pages at random", 5000, |n| n * 48_271 % (PAGES - 3)),
        ("… of a page every 2 MiB", PAGES / 512, |n| 512 * n),
    ];
    let mut push = |name, memory: Memory, count: usize, order: Order| {
        let all = timed(|| (0..count).for_each(|n| memory.write(order(n))));
        rows.push((name, all.as_nanos() as f64 / count as f64));
    };
    for (name, count, order) in orders {
        push(name, Memory::map(PAGES).expect("memory"), count, order);
    }
    let memory = Memory::map_plain(PAGES).expect("memory");
    push("… page by page, large pages allowed", memory, PAGES, |n| n);
}

/// Nanoseconds of a write to a protected page, its handler included.
fn handled_write(means: Means) -> f64 {
    let rate = Rate::start();
    let timed = faults::handled_write(means).expect("faults are handled");
    timed.ticks * 1e9 / rate.end()
}

fn fault_handler(rows: &mut Vec<(&'static str, f64)>) {
    let inside = Inside::current().expect("inside");
    rows.push(("write fault, handler at ring 3, unprotect", handled_write(Means::Guest)));
    rows.push(("flush of this CPU's TLB", median(101, || timed(|| inside.flush()))));
    let memory = Memory::touched(1).expect("memory");
    let page = median(101, || timed(|| inside.flush_page(memory.page(0))));
    rows.push(("flush of one page", page));
}

fn native_fault(rows: &mut Vec<(&'static str, f64)>) {
    rows.push(("write fault, SIGSEGV, mprotect", handled_write(Means::Linux)));
}

fn dirty_bits(rows: &mut Vec<(&'static str, f64)>) {
    let pages = (1 << 30) / PAGE;
    let inside = Inside::current().expect("inside");
    let memory = Memory::map(pages).expect("memory");
    let range = memory.range();
    inside.populate(range.clone()).expect("memory");
    (0..pages).for_each(|page| memory.write(page));
    let mut bits = vec![0u64; pages / 64];
    let first = timed(|| inside.collect(range.clone(), &mut bits).expect("a range").defer());
    rows.push(("scan and clear 1 GiB, all dirty", first.as_nanos() as f64));
    inside.flush_everywhere();
    let clean =
        median(11, || timed(|| inside.collect(range.clone(), &mut bits).expect("a range").defer()));
    rows.push(("scan 1 GiB, clean", clean));
    let some: Vec<_> = (0..pages).step_by(1021).collect();
    let write_back = timed(|| some.iter().for_each(|page| memory.write(*page)));
    rows.push(("write to a clean page", write_back.as_nanos() as f64 / some.len() as f64));
    static STOP: AtomicBool = AtomicBool::new(false);
    for (name, others) in [("shootdown, 2 CPUs", 1), ("shootdown, 4 CPUs", 3)] {
        STOP.store(false, Ordering::Relaxed);
        let spinning: Vec<_> = (0..others)
            .map(|_| {
                std::thread::spawn(|| {
                    while !STOP.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        rows.push((name, median(31, || timed(|| inside.flush_everywhere()))));
        STOP.store(true, Ordering::Relaxed);
        spinning.into_iter().for_each(|thread| thread.join().expect("it ends"));
    }
}

/// Entering a private space of which some entries are its own, and leaving it, with a load there; and making one.
fn private_spaces(rows: &mut Vec<(&'static str, f64)>) {
    const COUNT: usize = 2000;
    let inside = Inside::current().expect("inside");
    let memory = Memory::map(1024).expect("memory");
    let start = memory.range().start;
    let mut space = AddressSpace::new(inside).expect("a space");
    space.hide(start + 3 * PAGE..start + 4 * PAGE).expect("a range");
    let word = start as *const u64;
    // SAFETY: a word of the mapping, which is not hidden.
    let look = || unsafe { black_box(word.read_volatile()) };
    let ns = median(COUNT, || {
        timed(|| {
            let entered = space.enter(inside).expect("entered");
            look();
            drop(entered);
            look();
        })
    });
    rows.push(("private space: switch there and back", ns));
    let ns = median(COUNT / 20, || {
        timed(|| {
            let mut space = AddressSpace::new(inside).expect("a space");
            space.hide(start + 3 * PAGE..start + 4 * PAGE).expect("a range");
            let entered = space.enter(inside).expect("entered");
            look();
            drop(entered);
        })
    });
    rows.push(("private space: made, entered, left, freed", ns));
}

fn tasks(rows: &mut Vec<(&'static str, f64)>) {
    let thread = median(51, || {
        timed(|| std::thread::spawn(|| black_box(1)).join().map(drop).expect("it ends"))
    });
    rows.push(("thread created and joined", thread));
    let fork = median(21, || {
        timed(|| {
            // SAFETY: the child leaves at once.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    libc::_exit(0);
                }
                libc::waitpid(pid, null_mut(), 0);
            }
        })
    });
    rows.push(("fork, exit, wait", fork));
}

/// CPU-bound work over some memory: a sort, and a walk over a random cycle.
fn compute(rows: &mut Vec<(&'static str, f64)>) {
    let count = 1 << 20;
    let mut order: Vec<u32> = (0..count as u32).collect();
    let work = || {
        let mut random = 88_172_645_463_325_252u64;
        for index in (1..count).rev() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            order.swap(index, random as usize % (index + 1));
        }
        let mut at = 0;
        for _ in 0..count {
            at = order[at as usize % count] ^ 1;
        }
        black_box(at);
        order.sort_unstable();
    };
    let mut work = work;
    work();
    rows.push(("CPU-bound: shuffle, walk, sort of 4 MiB", median(9, || timed(&mut work))));
}

//! Mappings come, change and go; the guest sees each as the kernel does.

mod support;

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dune::PAGE_SIZE as PAGE;
use support::{End, ended_well, passes, run, run_to_enter};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// New private memory.
fn map(len: usize) -> *mut u8 {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(null_mut(), len, READ_WRITE, ANONYMOUS, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    start.cast()
}

#[test]
fn memory_that_was_unmapped_and_mapped_again_is_zero() {
    passes(|| {
        for round in 0..50usize {
            let len = (1 + round % 7) * 512 * 1024;
            let start = map(len);
            for page in (0..len).step_by(PAGE) {
                // SAFETY: in the mapping.
                unsafe {
                    assert_eq!(start.add(page).read_volatile(), 0, "round {round}, page {page:#x}");
                    start.add(page).write_volatile(1);
                }
            }
            // SAFETY: nobody uses it any more.
            assert_eq!(unsafe { libc::munmap(start.cast(), len) }, 0);
        }
    });
}

#[test]
fn unmapped_memory_faults() {
    let ended = run(|| {
        let start = map(4 * PAGE);
        // SAFETY: the last read faults, as it shall.
        unsafe {
            start.write_volatile(1);
            libc::munmap(start.cast(), 4 * PAGE);
            start.read_volatile();
        }
    });
    if let Some((end, text)) = ended {
        assert_eq!(end, End::Signal(libc::SIGSEGV), "{text}");
    }
}

#[test]
fn a_mapping_in_place_of_another_has_its_content_and_rights() {
    passes(|| {
        let start = map(16 * PAGE);
        // SAFETY: within the mapping; what was written before is replaced.
        unsafe {
            for page in 0..16 {
                start.add(page * PAGE).write_volatile(7);
            }
            let flags = ANONYMOUS | libc::MAP_FIXED;
            let middle: *mut c_void = start.add(4 * PAGE).cast();
            assert_eq!(libc::mmap(middle, 4 * PAGE, READ_WRITE, flags, -1, 0), middle);
            for page in 0..16 {
                let expected = if (4..8).contains(&page) { 0 } else { 7 };
                assert_eq!(start.add(page * PAGE).read_volatile(), expected, "page {page}");
            }
        }
    });
}

#[test]
fn moved_memory_keeps_its_content() {
    passes(|| {
        let (mut start, mut len) = (map(PAGE), PAGE);
        // SAFETY: always within the mapping as it is now.
        unsafe {
            start.write_volatile(42);
            for _ in 0..12 {
                let moved = libc::mremap(start.cast(), len, 2 * len, libc::MREMAP_MAYMOVE);
                assert_ne!(moved, libc::MAP_FAILED);
                (start, len) = (moved.cast(), 2 * len);
                assert_eq!(start.read_volatile(), 42);
                start.add(len - 1).write_volatile(1);
            }
            let moved = libc::mremap(start.cast(), len, PAGE, 0);
            assert_eq!(moved, start.cast());
            assert_eq!(start.read_volatile(), 42);
        }
    });
}

#[test]
fn the_break_moves_both_ways() {
    passes(|| {
        // SAFETY: the new memory is ours, and given back; nothing allocates between.
        unsafe {
            let before = libc::sbrk(0);
            let start = libc::sbrk(64 * PAGE as isize).cast::<u8>();
            assert_eq!(start, before.cast());
            start.add(63 * PAGE).write_volatile(9);
            assert_eq!(libc::sbrk(-64 * PAGE as isize), start.add(64 * PAGE).cast());
            assert_eq!(libc::sbrk(64 * PAGE as isize), start.cast());
            assert_eq!(start.add(63 * PAGE).read_volatile(), 0);
            libc::sbrk(-64 * PAGE as isize);
        }
    });
}

/// As allocators move it: up and down by a few pages, tens of MiB in all. What is written stays, what comes is zero, the
/// break is where it was put, and a child has its own.
#[test]
fn the_break_moves_in_many_small_steps() {
    fn all_zero(start: usize, end: usize) -> bool {
        // SAFETY: memory below the break.
        (start..end).step_by(8).all(|at| unsafe { (at as *const u64).read_volatile() } == 0)
    }
    passes(|| {
        // SAFETY: nothing else moves the break meanwhile: nothing is allocated.
        let set = |at: usize| unsafe { libc::syscall(libc::SYS_brk, at) } as usize;
        let first = set(0).next_multiple_of(PAGE);
        let (mut end, mut random) = (first, 7u64);
        assert_eq!(set(first), first);
        let mut most = 0;
        for step in 0..600 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pages = (random >> 33) as usize % 70;
            // Up more than down; now and then far down, or not to a page.
            let down = step % 5 == 4;
            let new = match step % 97 {
                96 => first + (end - first) / 2,
                50 => end + 100,
                _ if down => end.saturating_sub(pages * PAGE).max(first),
                _ => end + pages * PAGE,
            };
            assert_eq!(set(new), new, "step {step}");
            assert_eq!(set(0), new);
            if new > end {
                let page_of_end = end.next_multiple_of(PAGE);
                assert!(all_zero(page_of_end, new & !7), "step {step}: {:#x}", end - first);
                for at in (page_of_end..new & !(PAGE - 1)).step_by(PAGE) {
                    // SAFETY: below the break.
                    unsafe { (at as *mut u64).write_volatile(at as u64) };
                }
            }
            end = new.next_multiple_of(PAGE);
            assert_eq!(set(end), end);
            most = most.max(end - first);
            if step % 100 == 99 {
                for at in (first..end).step_by(PAGE) {
                    // SAFETY: below the break; partly written pages have what they had.
                    let found = unsafe { (at as *const u64).read_volatile() };
                    assert!(found == at as u64 || found == 0, "step {step}: {:#x}", at - first);
                }
                // SAFETY: the child moves its own break, and ends.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    let up = set(end + 3 * PAGE) == end + 3 * PAGE;
                    let zero = all_zero(end, end + 3 * PAGE);
                    let down = set(first + PAGE) == first + PAGE;
                    // SAFETY: as above.
                    unsafe { libc::_exit(i32::from(!(up && zero && down))) };
                }
                let mut status = 0;
                // SAFETY: a child of ours.
                assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
                assert_eq!(status, 0, "step {step}");
                assert_eq!(set(0), end);
            }
        }
        assert!(most > 10 << 20, "{most} bytes");
        // Somebody maps something right behind the break: it can go no further, and the mapping stays.
        let flags = ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping, where natively nothing is.
        unsafe {
            let at = libc::mmap((end + PAGE) as *mut c_void, PAGE, READ_WRITE, flags, -1, 0);
            assert_eq!(at as usize, end + PAGE);
            at.cast::<u64>().write_volatile(1);
            assert_eq!(set(end + 8 * PAGE), end, "it is in the way");
            assert_eq!(at.cast::<u64>().read_volatile(), 1);
        }
        assert_eq!(set(first), first);
    });
}

#[test]
fn shared_memory_is_shared_with_a_child() {
    passes(|| {
        // SAFETY: a new mapping; the child writes to it and leaves.
        unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let start = libc::mmap(null_mut(), PAGE, READ_WRITE, flags, -1, 0).cast::<u8>();
            let pid = libc::fork();
            if pid == 0 {
                start.write_volatile(77);
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
            assert_eq!((status, start.read_volatile()), (0, 77));
        }
    });
}

#[test]
fn discarded_memory_is_zero() {
    passes(|| {
        let start = map(64 * PAGE);
        // SAFETY: within the mapping.
        unsafe {
            for page in 0..64 {
                start.add(page * PAGE).write_volatile(3);
            }
            assert_eq!(libc::madvise(start.cast(), 32 * PAGE, libc::MADV_DONTNEED), 0);
            for page in 0..64 {
                let expected = if page < 32 { 0 } else { 3 };
                assert_eq!(start.add(page * PAGE).read_volatile(), expected, "page {page}");
            }
        }
    });
}

#[test]
fn a_file_mapping_shows_the_file() {
    passes(|| {
        // SAFETY: a file of our own, mapped and read within its length.
        unsafe {
            let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
            let text = b"a page of a file";
            assert_eq!(libc::write(fd, text.as_ptr().cast(), text.len()), text.len() as isize);
            let private = libc::mmap(null_mut(), PAGE, READ_WRITE, libc::MAP_PRIVATE, fd, 0);
            let shared = libc::mmap(null_mut(), PAGE, READ_WRITE, libc::MAP_SHARED, fd, 0);
            let read = |p: *mut c_void, n| p.cast::<u8>().add(n).read_volatile();
            assert_eq!((read(private, 0), read(shared, 2)), (b'a', b'p'));
            shared.cast::<u8>().write_volatile(b'A');
            let mut byte = 0u8;
            assert_eq!(libc::pread(fd, (&raw mut byte).cast(), 1, 0), 1);
            assert_eq!((byte, read(private, 0)), (b'A', b'A'));
            private.cast::<u8>().write_volatile(b'x');
            assert_eq!((read(shared, 0), read(private, 0)), (b'A', b'x'));
        }
    });
}

#[test]
fn threads_may_map_and_unmap_while_others_fault() {
    passes(|| {
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                scope.spawn(move || {
                    // By the time that it takes: KVM lets a CPU that faults wait for each invalidation by
                    // another, and spins if that one is preempted. Few processors, and slow ones, get over
                    // some hundred pages a second then.
                    let start = std::time::Instant::now();
                    for round in 0..60 {
                        if round >= 2 && start.elapsed() > std::time::Duration::from_secs(8) {
                            break;
                        }
                        let len = (1 + (thread + round) % 5) * 300 * 1024;
                        let start = map(len);
                        for page in (0..len).step_by(PAGE) {
                            // SAFETY: in the mapping.
                            unsafe {
                                assert_eq!(start.add(page).read_volatile(), 0);
                                start.add(page).write_volatile(thread as u8 + 1);
                            }
                        }
                        // SAFETY: in the mapping, which then goes.
                        unsafe {
                            let last = start.add((len - 1) / PAGE * PAGE);
                            assert_eq!(last.read_volatile(), thread as u8 + 1);
                            libc::munmap(start.cast(), len);
                        }
                    }
                });
            }
        });
    });
}

/// A thread that is new has a CPU that is new: its descriptors and its fault stack are first used while others
/// map and unmap.
#[test]
fn threads_begin_while_others_map_and_unmap() {
    passes(|| {
        let (stop, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
        let rounds = 24;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let start = map(64 * PAGE);
                        for page in 0..64 {
                            // SAFETY: in the mapping.
                            unsafe { start.add(page * PAGE).write_volatile(1) };
                        }
                        // SAFETY: nobody uses it any more.
                        assert_eq!(unsafe { libc::munmap(start.cast(), 64 * PAGE) }, 0);
                    }
                });
            }
            // They wait for the last: each gets a CPU of its own.
            for _ in 0..rounds {
                scope.spawn(|| {
                    let own = map(16 * PAGE);
                    // SAFETY: in the mapping.
                    unsafe { own.add(15 * PAGE).write_volatile(1) };
                    begun.fetch_add(1, Ordering::Relaxed);
                    while begun.load(Ordering::Relaxed) < rounds {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                });
            }
            while begun.load(Ordering::Relaxed) < rounds {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

/// Which pages of `start` on are there, as the kernel tells.
fn resident(start: *mut u8, pages: usize) -> usize {
    let mut there = vec![0u8; pages];
    // SAFETY: one byte for each page of a mapping.
    let done = unsafe { libc::mincore(start.cast(), pages * PAGE, there.as_mut_ptr()) };
    assert_eq!(done, 0);
    there.iter().filter(|byte| **byte & 1 != 0).count()
}

/// Where the host shadows page tables, a first touch is dear: small new memory comes with its pages. Not once the
/// program makes pages itself, and not what is big or a stack.
#[test]
fn small_new_memory_has_its_pages_where_tables_are_shadowed() {
    use dune::host::kind::{HostKind, measure};
    let ended = run_to_enter(|| {
        let shadowed = measure().expect("guest mode").kind == Some(HostKind::Paravirtual);
        let expected = |pages| if shadowed { pages } else { 0 };
        assert_eq!(resident(map(64 * PAGE), 64), expected(64));
        assert_eq!(resident(map(65 * PAGE), 65), 0, "more than 256 KiB");
        // SAFETY: a new mapping; the break goes up by new memory, and stays.
        unsafe {
            let flags = ANONYMOUS | libc::MAP_STACK;
            let stack = libc::mmap(null_mut(), 16 * PAGE, READ_WRITE, flags, -1, 0);
            assert_eq!(resident(stack.cast(), 16), 0, "a stack");
            let start = (libc::sbrk(0) as usize).next_multiple_of(PAGE);
            assert_eq!(libc::brk((start + 32 * PAGE) as *mut c_void), 0);
            assert_eq!(resident(start as *mut u8, 32), expected(32));
            // Refused or not, it was asked for.
            libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
            assert_eq!(resident(map(64 * PAGE), 64), 0, "somebody else may make them");
        }
    });
    ended_well(ended);
}

/// Big new memory that is written to from its beginning on comes with its pages there: few faults, and at no time
/// more pages than twice what was written. What is written to here and there gets no page more.
#[test]
fn big_new_memory_gets_the_pages_that_it_needs() {
    use dune::host::kind::{HostKind, measure};
    const PAGES: usize = 8192;
    let ended = run_to_enter(|| {
        // The kernel would make 512 at a time.
        // SAFETY: a setting of this process.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }, 0);
        let shadowed = measure().expect("guest mode").kind == Some(HostKind::Paravirtual);
        let write = |start: *mut u8, page: usize| {
            // SAFETY: in a mapping of that many pages.
            unsafe { start.add(page * PAGE).write_volatile(page as u8 | 1) };
        };
        let start = map(PAGES * PAGE);
        let before = dune::stats::Snapshot::current().faults;
        let mut ahead = 0;
        for page in 0..PAGES / 2 {
            write(start, page);
            if page % 97 == 0 || page.is_power_of_two() {
                let there = resident(start, PAGES);
                assert!(there <= 2 * (page + 1), "{there} pages after {} writes", page + 1);
                assert!(there <= page + 1 + 512, "{there} pages after {} writes", page + 1);
                ahead = ahead.max(there - page - 1);
            }
        }
        let faults = dune::stats::Snapshot::current().faults - before;
        assert_eq!(ahead > 200, shadowed, "{ahead} pages ahead");
        assert!(faults < 40, "{faults} faults for {} pages", PAGES / 2);
        for page in 0..PAGES {
            // SAFETY: in the mapping.
            let found = unsafe { start.add(page * PAGE).read_volatile() };
            assert_eq!(found, if page < PAGES / 2 { page as u8 | 1 } else { 0 }, "page {page}");
        }
        // Every 3rd page; every 64th; from the end on; at random.
        let sparse: [fn(usize) -> usize; 4] =
            [|n| n * 3, |n| n * 64, |n| PAGES - 1 - n, |n| n * 48_271 % 8191];
        for order in sparse {
            let start = map(PAGES * PAGE);
            let mut written = std::collections::BTreeSet::new();
            for page in (0..1000).map(order).filter(|page| *page < PAGES) {
                write(start, page);
                written.insert(page);
            }
            assert_eq!(resident(start, PAGES), written.len());
        }
        // Given back and had again, it is zero; and so is what it was moved over.
        // SAFETY: a mapping of ours that is as long, whose content nobody needs.
        unsafe {
            assert_eq!(libc::madvise(start.cast(), PAGES * PAGE, libc::MADV_DONTNEED), 0);
            (0..64).for_each(|page| write(start, page));
            assert_eq!(libc::munmap(start.add(32 * PAGE).cast(), 32 * PAGE), 0);
            let flags = ANONYMOUS | libc::MAP_FIXED;
            let again = start.add(32 * PAGE);
            let map = libc::mmap(again.cast(), 32 * PAGE, READ_WRITE, flags, -1, 0);
            assert_eq!(map, again.cast());
            assert_eq!(resident(again, 32), 0);
            write(start, 32);
            assert_eq!(start.add(31 * PAGE).read_volatile(), 31);
            assert_eq!(start.add(33 * PAGE).read_volatile(), 0);
        }
    });
    ended_well(ended);
}

/// What a new userfaultfd with these flags says to these features: 0, an error's number, or -1 if none is given.
fn features_are_answered(flags: i32, features: u64) -> i32 {
    #[repr(C)]
    struct Api {
        api: u64,
        features: u64,
        ioctls: u64,
    }
    let mut api = Api { api: 0xaa, features, ioctls: 0 };
    // SAFETY: a descriptor of ours, closed again, and the structure that UFFDIO_API takes.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, flags | libc::O_CLOEXEC) as i32;
        if fd < 0 {
            return -1;
        }
        let done = libc::ioctl(fd, 0xc018_aa3f, &raw mut api);
        let answer = if done == 0 { 0 } else { *libc::__errno_location() };
        assert_eq!(libc::close(fd), 0);
        answer
    }
}

/// The kernel makes the pages of a guest, so who answers faults of user mode only would not be asked, and the
/// thread would never go on.
#[test]
fn userfaultfd_for_user_mode_only_answers_no_faults() {
    const USER_MODE_ONLY: i32 = 1;
    const ANSWERED: [u64; 2] = [0, 1]; // missing pages; and write-protected ones
    const ASYNC: u64 = 1 << 15;
    let all_features = [ANSWERED[0], ANSWERED[1], ASYNC];
    let natively = |flags| all_features.map(|features| features_are_answered(flags, features));
    let (all, user_only) = (natively(0), natively(USER_MODE_ONLY));
    if user_only[0] != 0 {
        println!("skipped: no userfaultfd here ({user_only:?})");
        return;
    }
    passes(|| {
        for _ in 0..2 {
            for features in ANSWERED {
                assert_eq!(
                    features_are_answered(USER_MODE_ONLY, features),
                    libc::EINVAL,
                    "{features:#x}"
                );
            }
            assert_eq!(
                features_are_answered(USER_MODE_ONLY, ASYNC),
                user_only[2],
                "nobody is asked"
            );
            // The same descriptor's number.
            assert_eq!(natively(0), all, "the kernel's faults too");
        }
    });
}

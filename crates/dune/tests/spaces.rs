//! Private address spaces: what is hidden, what is shared, and who is in one.

mod support;
#[path = "support/touch.rs"]
mod touch;

use std::ops::Range;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use dune::PAGE_SIZE as PAGE;
use dune::address_space::{AddressSpace, SpaceError, is_private, tables_in_use};
use dune::inside::Inside;
use dune::paging::Rights;
use support::{End, passes};
use touch::{ACCERR, Faulted, MAPERR, call, catch_faults, map, map_aligned, read, word, write};

/// Bytes that a table maps.
const BLOCK: usize = 2 << 20;
const BLOCK_PAGES: usize = BLOCK / PAGE;

fn pages(start: usize, first: usize, count: usize) -> Range<usize> {
    start + first * PAGE..start + (first + count) * PAGE
}

fn hidden(address: usize) -> Faulted {
    Faulted { address, code: ACCERR }
}

/// Passes in guest mode, with faults caught.
fn passes_inside(body: fn(Inside)) {
    passes(|| {
        catch_faults();
        body(Inside::current().expect("inside"));
    });
}

fn space(inside: Inside) -> AddressSpace {
    AddressSpace::new(inside).expect("a space")
}

/// How a forked child ends that does this.
fn child(act: impl FnOnce() -> bool) -> End {
    // SAFETY: the child acts and ends, and nothing else.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::_exit(i32::from(!act()));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        support::end(status)
    }
}

#[test]
fn what_is_hidden_faults_with_its_address_and_the_main_space_is_as_before() {
    passes_inside(|inside| {
        let start = map_aligned(3 * BLOCK_PAGES, BLOCK);
        for at in (start..start + 3 * BLOCK).step_by(PAGE) {
            word(at).store(at as u64, Ordering::Relaxed);
        }
        // A part of a block, a whole one, and a bit of the next.
        let gone = [pages(start, 7, 2), start + BLOCK..start + 2 * BLOCK + PAGE];
        let mut space = space(inside);
        gone.iter().for_each(|range| space.hide(range.clone()).expect("a range"));
        for round in 0..3u64 {
            let entered = space.enter(inside).expect("entered");
            assert!(is_private(inside));
            for at in (start..start + 3 * BLOCK).step_by(PAGE) {
                let is_gone = gone.iter().any(|range| range.contains(&at));
                let expected = if is_gone { Err(hidden(at)) } else { Ok(at as u64 + round) };
                assert_eq!(read(at), expected, "{:#x}", at - start);
                if is_gone {
                    assert_eq!(write(at + 8, 1), Err(hidden(at + 8)));
                } else {
                    assert_eq!(write(at, at as u64 + round + 1), Ok(()));
                }
            }
            drop(entered);
            assert!(!is_private(inside));
            for at in (start..start + 3 * BLOCK).step_by(PAGE) {
                let is_gone = gone.iter().any(|range| range.contains(&at));
                let expected = at as u64 + round + u64::from(!is_gone);
                assert_eq!(word(at).load(Ordering::Relaxed), expected);
                word(at).store(at as u64 + round + 1, Ordering::Relaxed);
            }
        }
    });
}

/// Natively a fault at such a place ends the process; so it does here.
#[test]
fn without_a_handler_a_hidden_page_ends_the_process() {
    let ended = support::run(|| {
        let inside = Inside::current().expect("inside");
        let start = map(4);
        let mut space = space(inside);
        space.hide(pages(start, 1, 1)).expect("a range");
        let _entered = space.enter(inside).expect("entered");
        word(start).store(1, Ordering::Relaxed);
        word(start + PAGE).store(1, Ordering::Relaxed);
    });
    if let Some((end, text)) = ended {
        assert_eq!(end, End::Signal(libc::SIGSEGV), "{text}");
    }
}

#[test]
fn what_may_only_be_read_shows_what_others_write() {
    passes_inside(|inside| {
        let start = map_aligned(2 * BLOCK_PAGES, BLOCK);
        let mut space = space(inside);
        // Entries of the space's own in the first block, the main table in the second.
        space.read_only(pages(start, 3, 5)).expect("a range");
        space.read_only(start + BLOCK..start + 2 * BLOCK).expect("a range");
        let limited = [start + 4 * PAGE, start + BLOCK + 9 * PAGE];
        for (round, touched_first) in [(1, false), (2, true), (3, false)] {
            for at in limited {
                word(at).store(round, Ordering::Relaxed);
                let entered = space.enter(inside).expect("entered");
                if !touched_first {
                    assert_eq!(write(at, 99), Err(hidden(at)));
                }
                assert_eq!(read(at), Ok(round));
                assert_eq!(write(at, 99), Err(hidden(at)));
                // From another thread, which is in the main space, while this one has a translation.
                drop(entered);
                let go = Arc::new(Barrier::new(2));
                let other = Arc::clone(&go);
                let thread = std::thread::spawn(move || {
                    other.wait();
                    word(at).store(round + 100, Ordering::Relaxed);
                    other.wait();
                });
                let entered = space.enter(inside).expect("entered");
                assert_eq!(read(at), Ok(round));
                go.wait();
                go.wait();
                assert_eq!(read(at), Ok(round + 100));
                drop(entered);
                thread.join().expect("it ends");
            }
        }
        assert_eq!(write(limited[0], 5), Ok(()));
    });
}

#[test]
fn what_may_not_be_executed_is_not() {
    passes_inside(|inside| {
        let start = map_aligned(2 * BLOCK_PAGES, BLOCK);
        let code = [start + PAGE, start + 2 * PAGE, start + BLOCK + PAGE];
        for at in code {
            word(at).store(0xc3, Ordering::Relaxed);
        }
        let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: memory of ours.
        assert_eq!(unsafe { libc::mprotect(start as *mut _, 2 * BLOCK, rights) }, 0);
        code.iter().for_each(|at| assert_eq!(call(*at), Ok(())));
        let mut space = space(inside);
        let data = Rights { write: true, execute: false };
        space.limit_to(pages(start, 1, 1), data).expect("a range");
        space.limit_to(start + BLOCK..start + 2 * BLOCK, data).expect("a range");
        let entered = space.enter(inside).expect("entered");
        assert_eq!(code.map(call), [Err(hidden(code[0])), Ok(()), Err(hidden(code[2]))]);
        code.iter().for_each(|at| assert_eq!(write(at + 8, 3), Ok(())));
        drop(entered);
        code.iter().for_each(|at| assert_eq!(call(*at), Ok(())));
    });
}

/// No space gives a right that the mapping has not; and where nothing is mapped, the fault says so.
#[test]
fn a_space_gives_no_right_that_the_mapping_has_not() {
    passes_inside(|inside| {
        let start = map(8);
        // SAFETY: memory of ours.
        unsafe {
            assert_eq!(libc::mprotect((start + PAGE) as *mut _, PAGE, libc::PROT_READ), 0);
            assert_eq!(libc::mprotect((start + 2 * PAGE) as *mut _, PAGE, libc::PROT_NONE), 0);
            assert_eq!(libc::munmap((start + 3 * PAGE) as *mut _, PAGE), 0);
        }
        let mut space = space(inside);
        space.hide(pages(start, 7, 1)).expect("a range");
        space.hide(pages(start, 3, 1)).expect("a range");
        let _entered = space.enter(inside).expect("entered");
        assert_eq!(read(start + PAGE), Ok(0));
        assert_eq!(write(start + PAGE, 1), Err(hidden(start + PAGE)));
        assert_eq!(read(start + 2 * PAGE), Err(hidden(start + 2 * PAGE)));
        let nothing = start + 3 * PAGE;
        assert_eq!(read(nothing), Err(Faulted { address: nothing, code: MAPERR }));
        assert_eq!(read(8), Err(Faulted { address: 8, code: MAPERR }));
        assert_eq!(write(start + 4 * PAGE, 1), Ok(()));
    });
}

/// Tables of every level that appear later, by a touch in one space, are there in all.
#[test]
fn what_is_first_touched_in_one_space_is_there_in_all() {
    passes_inside(|inside| {
        let near = map_aligned(4 * BLOCK_PAGES, BLOCK);
        let mut space = space(inside);
        space.hide(pages(near, 5, 1)).expect("a range");
        let fixed = |at: usize| {
            let (rights, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            );
            // SAFETY: a new mapping where nothing is.
            let start = unsafe { libc::mmap(at as *mut _, 64 * PAGE, rights, flags, -1, 0) };
            assert_eq!(start as usize, at);
            at
        };
        // Another block, another GiB, another 512 GiB; each first here, and first there.
        let far = 0x3000_0000_0000;
        let entered = space.enter(inside).expect("entered");
        let first_there: Vec<_> =
            [near + BLOCK, fixed(far), fixed(far + (1 << 30)), fixed(far + (1 << 40))].into();
        for at in &first_there {
            assert_eq!(write(at + 3 * PAGE, *at as u64), Ok(()));
        }
        drop(entered);
        for at in &first_there {
            assert_eq!(read(at + 3 * PAGE), Ok(*at as u64));
        }
        let first_here =
            [near + 2 * BLOCK, near + 9 * PAGE, fixed(far + (1 << 41)), fixed(far + (2 << 30))];
        for at in first_here {
            assert_eq!(write(at, at as u64), Ok(()));
        }
        let entered = space.enter(inside).expect("entered");
        for at in first_here {
            assert_eq!(read(at), Ok(at as u64));
            assert_eq!(write(at, 7), Ok(()));
        }
        drop(entered);
        first_here.iter().for_each(|at| assert_eq!(read(*at), Ok(7)));
    });
}

/// Large pages of the main space stay what they are, and are small ones where a part of one is hidden.
#[test]
fn a_part_of_a_large_page_can_be_hidden() {
    passes_inside(|inside| {
        let start = map_aligned(6 * BLOCK_PAGES, BLOCK) + BLOCK;
        let made = inside.populate_large(start..start + 4 * BLOCK).expect("memory");
        assert!(made >= 3, "{made}");
        let is_large = |block: usize| inside.entry(start + block * BLOCK).is_none();
        let mut space = space(inside);
        space.hide(pages(start, BLOCK_PAGES + 3, 1)).expect("a range");
        space.read_only(start + 2 * BLOCK..start + 3 * BLOCK).expect("a range");
        let before: Vec<_> = (0..4).map(is_large).collect();
        let entered = space.enter(inside).expect("entered");
        for page in (0..4 * BLOCK_PAGES).step_by(3) {
            let at = start + page * PAGE;
            let (block, in_block) = (page / BLOCK_PAGES, page % BLOCK_PAGES);
            let expected = match block {
                1 if in_block == 3 => Err(hidden(at)),
                2 => Err(hidden(at)),
                _ => Ok(()),
            };
            assert_eq!(write(at, page as u64), expected, "page {page}");
        }
        drop(entered);
        assert_eq!((0..4).map(is_large).collect::<Vec<_>>(), before, "nothing is split for it");
        for page in (0..4 * BLOCK_PAGES).step_by(3) {
            let lost = page / BLOCK_PAGES == 2 || page == BLOCK_PAGES + 3;
            let expected = if lost { 0 } else { page as u64 };
            assert_eq!(read(start + page * PAGE), Ok(expected));
        }
        // A part of one goes: so it does in the space, and what is left is there.
        // SAFETY: memory of ours.
        unsafe {
            libc::munmap((start + BLOCK + 9 * PAGE) as *mut _, PAGE);
            libc::munmap((start + 3 * BLOCK + 9 * PAGE) as *mut _, PAGE);
        }
        let _entered = space.enter(inside).expect("entered");
        for block in [1, 3] {
            let at = start + block * BLOCK + 9 * PAGE;
            assert_eq!(read(at), Err(Faulted { address: at, code: MAPERR }));
            assert_eq!(write(at + PAGE, 5), Ok(()));
        }
    });
}

/// The main space puts a large page in the place of an empty table that a private space has linked: it is a table
/// again once somebody wants it there.
#[test]
fn a_large_page_in_place_of_a_table_that_a_space_shares_is_found() {
    passes_inside(|inside| {
        let start = map_aligned(4 * BLOCK_PAGES, BLOCK) + BLOCK;
        let mut space = space(inside);
        // In the same GiB, in another block.
        space.hide(pages(start, 1, 1)).expect("a range");
        let block = start + BLOCK;
        for round in 0..5u64 {
            let entered = space.enter(inside).expect("entered");
            assert_eq!(write(block + 9 * PAGE, round), Ok(()));
            drop(entered);
            assert_eq!(read(block + 9 * PAGE), Ok(round));
            // SAFETY: memory of ours goes, and comes again.
            unsafe {
                let (rights, flags) = (
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                );
                assert_eq!(libc::munmap(block as *mut _, BLOCK), 0);
                let again = libc::mmap(block as *mut _, BLOCK, rights, flags, -1, 0);
                assert_eq!(again as usize, block);
                // No such rights: nothing changes, but entries that were made at once are gone.
                assert_eq!(libc::mprotect(again, BLOCK, 0x400), -1);
            }
            let made = inside.populate_large(block..block + BLOCK).expect("memory");
            assert_eq!(made, 1, "round {round}");
            assert!(inside.entry(block).is_none(), "it is a large page");
            let entered = space.enter(inside).expect("entered");
            assert_eq!(read(block + 9 * PAGE), Ok(0));
            assert_eq!(write(block + 3 * PAGE, round + 1), Ok(()));
            drop(entered);
            assert_eq!(read(block + 3 * PAGE), Ok(round + 1));
        }
    });
}

/// Handlers may need what is hidden. They return to where the program was.
#[test]
fn handlers_run_in_the_main_space_and_return_to_the_private_one() {
    static SECRET: AtomicUsize = AtomicUsize::new(0);
    static SEEN: AtomicU64 = AtomicU64::new(0);
    extern "C" fn look(_: i32) {
        let at = SECRET.load(Ordering::Relaxed);
        SEEN.fetch_add(word(at).load(Ordering::Relaxed), Ordering::Relaxed);
    }
    passes_inside(|inside| {
        let start = map(4);
        SECRET.store(start + PAGE, Ordering::Relaxed);
        word(start + PAGE).store(5, Ordering::Relaxed);
        // SAFETY: a handler of its type.
        unsafe {
            for signal in [libc::SIGUSR1, libc::SIGALRM] {
                libc::signal(signal, look as extern "C" fn(i32) as usize);
            }
        }
        let mut space = space(inside);
        space.hide(pages(start, 1, 1)).expect("a range");
        let entered = space.enter(inside).expect("entered");
        for round in 1..10 {
            // SAFETY: a signal with a handler.
            unsafe { libc::raise(libc::SIGUSR1) };
            assert_eq!(SEEN.load(Ordering::Relaxed), 5 * round);
            assert!(is_private(inside));
            assert_eq!(read(start + PAGE), Err(hidden(start + PAGE)));
        }
        // And those that come at any instruction.
        support::tick(std::time::Duration::from_micros(500));
        SEEN.store(0, Ordering::Relaxed);
        while SEEN.load(Ordering::Relaxed) < 5 * 50 {
            assert_eq!(read(start + PAGE), Err(hidden(start + PAGE)));
            assert_eq!(write(start, 3), Ok(()));
        }
        drop(entered);
        assert_eq!(read(start + PAGE), Ok(5));
    });
}

/// Who leaves a handler by a jump is in the main space, and the space is free again.
#[test]
fn a_handler_that_does_not_return_stays_in_the_main_space() {
    passes_inside(|inside| {
        let start = map(2);
        let mut space = space(inside);
        space.hide(pages(start, 1, 1)).expect("a range");
        for _ in 0..3 {
            let entered = space.enter(inside).expect("entered");
            // SAFETY: `jumped` is reached through the handler, on this very stack.
            let seen = unsafe { fault_and_jump(start + PAGE) };
            assert_eq!(seen, Some(false), "not private where the jump ends");
            drop(entered);
            assert!(!is_private(inside));
            space.read_only(pages(start, 0, 1)).expect("nobody is in the space");
            catch_faults();
        }
    });

    /// Faults in the space; the handler does not return, but goes on here. Whether the thread is in a private space.
    unsafe fn fault_and_jump(address: usize) -> Option<bool> {
        static STATE: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn jump(_: i32) {
            let inside = Inside::current().expect("inside");
            STATE.store(1 + usize::from(is_private(inside)), Ordering::Relaxed);
            // SAFETY: the frame of `attempt` below is still there: it has R15 and all that it must restore.
            unsafe { back_to(BACK.load(Ordering::Relaxed)) }
        }
        static BACK: AtomicUsize = AtomicUsize::new(0);
        unsafe fn back_to(frame: usize) -> ! {
            // SAFETY: RSP, RBP, RBX and where to go, saved below.
            unsafe {
                std::arch::asm!(
                    "mov rsp, [{f}]", "mov rbp, [{f} + 8]", "mov rbx, [{f} + 16]", "jmp [{f} + 24]",
                    f = in(reg) frame, options(noreturn)
                )
            }
        }
        let mut frame = [0u64; 4];
        BACK.store(frame.as_mut_ptr() as usize, Ordering::Relaxed);
        // SAFETY: a handler that goes on at label 2, with the stack as it was; SIGSEGV stays open.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = jump as extern "C" fn(i32) as usize;
            action.sa_flags = libc::SA_NODEFER;
            libc::sigaction(libc::SIGSEGV, &raw const action, null_mut());
            std::arch::asm!(
                "mov [rsi], rsp",
                "mov [rsi + 8], rbp",
                "mov [rsi + 16], rbx",
                "lea rax, [rip + 2f]",
                "mov [rsi + 24], rax",
                "mov rax, [rdi]",
                "2:",
                inout("rdi") address => _,
                inout("rsi") frame.as_mut_ptr() => _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
                clobber_abi("C"),
            );
        }
        match STATE.swap(0, Ordering::Relaxed) {
            0 => None,
            state => Some(state == 2),
        }
    }
}

#[test]
fn a_thread_begins_in_the_space_of_its_creator() {
    passes_inside(|inside| {
        let start = map(4);
        word(start + PAGE).store(3, Ordering::Relaxed);
        let mut space = space(inside);
        space.hide(pages(start, 1, 1)).expect("a range");
        let (go, end) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
        let (other, stop) = (Arc::clone(&go), Arc::clone(&end));
        let entered = space.enter(inside).expect("entered");
        let thread = std::thread::spawn(move || {
            let inside = Inside::current().expect("inside");
            other.wait();
            let mut rounds = 0;
            while !stop.load(Ordering::Acquire) || rounds < 3 {
                assert!(is_private(inside));
                assert_eq!(read(start + PAGE), Err(hidden(start + PAGE)));
                rounds += 1;
            }
        });
        drop(entered);
        go.wait();
        assert_eq!(read(start + PAGE), Ok(3), "the thread is there, not this one");
        assert_eq!(space.show(pages(start, 1, 1)), Err(SpaceError::Occupied));
        let tables = tables_in_use();
        // The handle goes, and the thread is where it was; when it ends, the tables are free.
        drop(space);
        assert_eq!(tables_in_use(), tables);
        end.store(true, Ordering::Release);
        thread.join().expect("it ends");
        // The thread is joined as the kernel lets it go, which is after it has left.
        assert_eq!(tables_in_use(), 0);
        // Children that share memory, and exec: in the main space again.
        let space = self::space(inside);
        let entered = space.enter(inside).expect("entered");
        let output = std::process::Command::new("echo").arg("ok").output().expect("echo runs");
        assert_eq!(output.stdout, b"ok\n");
        assert!(is_private(inside));
        drop(entered);
        drop(space);
        assert_eq!(tables_in_use(), 0);
    });
}

#[test]
fn a_child_is_in_the_same_space_with_memory_of_its_own() {
    passes_inside(|inside| {
        let start = map(8);
        let own = start + 2 * PAGE;
        word(start + PAGE).store(3, Ordering::Relaxed);
        word(own).store(1, Ordering::Relaxed);
        let (mut space, mut other) = (space(inside), space(inside));
        space.hide(pages(start, 1, 1)).expect("a range");
        other.hide(pages(start, 2, 1)).expect("a range");
        let entered = space.enter(inside).expect("entered");
        assert_eq!(write(own, 2), Ok(()));
        let mut pipe = [0; 2];
        // SAFETY: two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        // SAFETY: the child looks, and ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let mut byte = 0u8;
            // SAFETY: a byte of ours; it comes once the parent has written to the page.
            unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) };
            let same = is_private(inside)
                && read(start + PAGE) == Err(hidden(start + PAGE))
                && read(own) == Ok(2)
                && write(own, 50) == Ok(());
            drop(entered);
            let left = !is_private(inside) && read(start + PAGE) == Ok(3) && read(own) == Ok(50);
            let entered = other.enter(inside);
            let others = entered.is_ok() && read(own) == Err(hidden(own));
            drop(entered);
            let deeper = child(|| read(own) == Ok(50)) == End::Exit(0);
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!(same && left && others && deeper))) };
        }
        // The page is the child's too until one of them writes.
        assert_eq!(write(own, 9), Ok(()));
        // SAFETY: a byte of ours, and a child of ours.
        unsafe {
            libc::write(pipe[1], b"x".as_ptr().cast(), 1);
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
            assert_eq!(support::end(status), End::Exit(0));
        }
        assert_eq!(read(own), Ok(9));
        assert_eq!(read(start + PAGE), Err(hidden(start + PAGE)));
        drop(entered);
        assert_eq!(read(own), Ok(9));
    });
}

#[test]
fn limits_change_while_nobody_is_in_the_space() {
    passes_inside(|inside| {
        let start = map(16);
        let at = |page: usize| start + page * PAGE;
        let mut space = space(inside);
        space.hide(pages(start, 2, 4)).expect("a range");
        let seen = |space: &AddressSpace| {
            let _entered = space.enter(inside).expect("entered");
            (0..8).map(|page| (read(at(page)).is_ok(), write(at(page), 0).is_ok())).collect()
        };
        let (no, ro, rw) = ((false, false), (true, false), (true, true));
        let found: Vec<_> = seen(&space);
        assert_eq!(found, [rw, rw, no, no, no, no, rw, rw]);
        space.read_only(pages(start, 3, 2)).expect("a range");
        let found: Vec<_> = seen(&space);
        assert_eq!(found, [rw, rw, no, ro, ro, no, rw, rw]);
        space.show(pages(start, 0, 4)).expect("a range");
        space.hide(pages(start, 7, 1)).expect("a range");
        let found: Vec<_> = seen(&space);
        assert_eq!(found, [rw, rw, rw, rw, ro, no, rw, no]);
    });
}

#[test]
fn spaces_are_entered_one_within_another() {
    passes_inside(|inside| {
        let start = map(4);
        let (mut outer, mut inner) = (space(inside), space(inside));
        outer.hide(pages(start, 1, 1)).expect("a range");
        inner.hide(pages(start, 2, 1)).expect("a range");
        let seen = || [1, 2].map(|page| read(start + page * PAGE).is_ok());
        let first = outer.enter(inside).expect("entered");
        assert_eq!(seen(), [false, true]);
        let second = inner.enter(inside).expect("entered");
        assert_eq!(seen(), [true, false]);
        let again = inner.enter(inside).expect("entered");
        drop(again);
        assert_eq!(seen(), [true, false]);
        drop(second);
        assert_eq!(seen(), [false, true]);
        drop(first);
        assert_eq!(seen(), [true, true]);
        // In the wrong order: where the last says.
        let first = outer.enter(inside).expect("entered");
        let second = inner.enter(inside).expect("entered");
        drop(first);
        assert_eq!(seen(), [true, true]);
        drop(second);
        drop(inner);
        assert!(is_private(inside), "the outer one, which was before");
        outer.hide(pages(start, 3, 1)).expect_err("it is occupied, by this thread");
    });
}

#[test]
fn what_cannot_be_done_is_said() {
    passes_inside(|inside| {
        let start = map(300);
        let mut space = space(inside);
        assert_eq!(space.hide(start + 1..start + PAGE), Err(SpaceError::Range));
        assert_eq!(space.hide(start..start + 5), Err(SpaceError::Range));
        #[allow(clippy::reversed_empty_ranges, reason = "this is what must be refused")]
        let backwards = start + PAGE..start;
        assert_eq!(space.hide(backwards), Err(SpaceError::Range));
        assert_eq!(space.hide(1 << 47..(1 << 47) + PAGE), Err(SpaceError::Range));
        assert_eq!(space.hide(0..1 << 47), Err(SpaceError::Reserved));
        space.hide(start..start).expect("nothing is nothing");
        for n in 0..64 {
            space.hide(pages(start, 2 * n, 1)).expect("a range");
        }
        assert_eq!(space.hide(pages(start, 200, 1)), Err(SpaceError::Full));
        space.hide(pages(start, 0, 128)).expect("fewer ranges than before");
        let entered = space.enter(inside).expect("entered");
        assert_eq!(read(start + 5 * PAGE), Err(hidden(start + 5 * PAGE)));
        assert_eq!(read(start + 200 * PAGE), Ok(0));
        drop(entered);
        let text = SpaceError::Occupied.to_string();
        assert!(text.contains("while none is"), "{text}");
    });
}

/// The documentation says it: limits bind instructions, and not what the kernel does for the program.
#[test]
fn system_calls_go_by_the_rights_of_the_process() {
    passes_inside(|inside| {
        let start = map(4);
        word(start + PAGE).store(77, Ordering::Relaxed);
        let mut space = space(inside);
        space.hide(pages(start, 1, 1)).expect("a range");
        let mut pipe = [0; 2];
        // SAFETY: two descriptors, and words of ours.
        unsafe {
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            let _entered = space.enter(inside).expect("entered");
            assert_eq!(libc::write(pipe[1], (start + PAGE) as *const _, 8), 8);
            assert_eq!(libc::read(pipe[0], start as *mut _, 8), 8);
        }
        assert_eq!(read(start), Ok(77));
    });
}

#[test]
fn many_spaces_each_hide_their_own() {
    passes_inside(|inside| {
        const COUNT: usize = 256;
        let start = map(2 * COUNT);
        let mut spaces: Vec<_> = (0..COUNT).map(|_| space(inside)).collect();
        assert_eq!(AddressSpace::new(inside).err(), Some(SpaceError::Full));
        for (n, space) in spaces.iter_mut().enumerate() {
            space.hide(pages(start, 2 * n, 1)).expect("a range");
        }
        for (n, space) in spaces.iter().enumerate().step_by(5) {
            let _entered = space.enter(inside).expect("entered");
            let own = start + 2 * n * PAGE;
            assert_eq!(read(own), Err(hidden(own)));
            let another = start + 2 * ((n + 1) % COUNT) * PAGE;
            assert_eq!(write(another, n as u64), Ok(()));
        }
        let most = tables_in_use();
        assert!(most >= 3 * COUNT / 5, "{most}");
        spaces.truncate(COUNT / 2);
        assert!(tables_in_use() < most);
        let again = space(inside);
        drop(again);
        drop(spaces);
        assert_eq!(tables_in_use(), 0);
    });
}

/// What is freed is used again: neither memory nor address space is lost by spaces that come and go. And nothing of an
/// earlier life is left in a table, for whatever it is used: not in what the host makes of it either.
#[test]
fn tables_of_spaces_that_are_gone_are_used_again_and_hold_nothing() {
    fn writable_bytes() -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        let sizes = maps.lines().filter(|line| line.contains(" rw-p ")).map(|line| {
            let (start, end) =
                line.split(' ').next().and_then(|r| r.split_once('-')).expect("a range");
            let number = |text| usize::from_str_radix(text, 16).expect("an address");
            number(end) - number(start)
        });
        sizes.sum()
    }
    passes_inside(|inside| {
        let start = map_aligned(3 * BLOCK_PAGES, BLOCK);
        let at = |page: usize| start + page * PAGE;
        for page in 0..3 * BLOCK_PAGES {
            word(at(page)).store(page as u64, Ordering::Relaxed);
        }
        let mut before = 0;
        for round in 0..150 {
            if round == 10 {
                before = writable_bytes();
            }
            // Now these, now those: each table is once one that shows a page, and then one that hides it.
            let gone = [round % 7 + 1, BLOCK_PAGES + round % 3, 2 * BLOCK_PAGES + round % 2];
            let mut space = space(inside);
            for page in &gone[..1 + round % 3] {
                space.hide(pages(start, *page, 1)).expect("a range");
            }
            let entered = space.enter(inside).expect("entered");
            for page in (0..12)
                .chain(BLOCK_PAGES..BLOCK_PAGES + 4)
                .chain(2 * BLOCK_PAGES..2 * BLOCK_PAGES + 3)
            {
                let is_gone = gone[..1 + round % 3].contains(&page);
                let expected = if is_gone { Err(hidden(at(page))) } else { Ok(page as u64) };
                assert_eq!(read(at(page)), expected, "round {round}, page {page}");
                if !is_gone {
                    assert_eq!(write(at(page), page as u64), Ok(()));
                }
            }
            drop(entered);
            drop(space);
            assert_eq!(tables_in_use(), 0);
        }
        let more = writable_bytes().saturating_sub(before);
        assert!(more < 512 << 10, "{more} bytes more than before");
    });
}

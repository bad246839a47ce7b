//! The rules: single calls with known answers, and what must hold for any call with any arguments.

use std::collections::BTreeMap;
use std::ops::Range;

use dune::effects::{
    self, Capture, Coverage, ExitWords, File, How, Process, Unreadable, Until, Why, Written,
};
use proptest::prelude::*;

/// A process with a little memory, byte by byte.
#[derive(Clone, Debug, Default)]
struct Fake {
    memory: BTreeMap<u64, u8>,
    file: Option<File>,
    program_break: Option<u64>,
    exit_words: Option<ExitWords>,
}

impl Fake {
    fn with(mut self, address: u64, words: &[u64]) -> Self {
        for (i, byte) in words.iter().flat_map(|word| word.to_le_bytes()).enumerate() {
            self.memory.insert(address + i as u64, byte);
        }
        self
    }
}

impl Process for Fake {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        for (i, byte) in into.iter_mut().enumerate() {
            let at = address.checked_add(i as u64).ok_or(Unreadable)?;
            *byte = *self.memory.get(&at).ok_or(Unreadable)?;
        }
        Ok(())
    }

    fn file(&self, _: i32) -> File {
        self.file.unwrap_or(File::Data)
    }

    fn program_break(&self) -> Option<u64> {
        self.program_break
    }

    fn exit_words(&self) -> Option<ExitWords> {
        self.exit_words
    }
}

fn evaluate(process: &Fake, number: libc::c_long, args: &[u64]) -> (Vec<Written>, Coverage) {
    let mut six = [0; 6];
    six[..args.len()].copy_from_slice(args);
    let mut all = Vec::new();
    let effects = effects::of(number as u64, &six);
    let coverage = effects.for_each_written(process, |written| all.push(written));
    (all, coverage)
}

/// The ranges that are not empty, in order.
fn ranges(process: &Fake, number: libc::c_long, args: &[u64]) -> Vec<Range<u64>> {
    let (all, coverage) = evaluate(process, number, args);
    assert_eq!(coverage, Coverage::Ranges);
    let mut ranges: Vec<_> =
        all.iter().map(Written::range).filter(|range| !range.is_empty()).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    ranges
}

fn why(process: &Fake, number: libc::c_long, args: &[u64]) -> Why {
    match evaluate(process, number, args).1 {
        Coverage::Everything(why) => why,
        Coverage::Ranges => panic!("ranges only"),
    }
}

#[test]
fn a_buffer_is_as_long_as_its_argument_and_not_cut_by_the_result() {
    let (all, coverage) = evaluate(&Fake::default(), libc::SYS_read, &[3, 0x1000, 100]);
    assert_eq!(coverage, Coverage::Ranges);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].range(), 0x1000..0x1064);
    for result in [-4, 0, 5, 100] {
        assert_eq!(
            all[0].after(result).range(),
            0x1000..0x1064,
            "direct I/O may have written more"
        );
    }
}

#[test]
fn a_result_cuts_where_the_kernel_copies_once() {
    let (all, _) = evaluate(&Fake::default(), libc::SYS_readlink, &[1, 0x1000, 100]);
    assert_eq!(all[0].after(7).range(), 0x1000..0x1007);
    assert_eq!(all[0].after(0).range(), 0x1000..0x1000);
    assert_eq!(all[0].after(-14).range(), 0x1000..0x1064, "a fault may come half-way");
    let (all, _) = evaluate(&Fake::default(), libc::SYS_getgroups, &[10, 0x1000]);
    assert_eq!(all[0].after(3).range(), 0x1000..0x100c);
}

#[test]
fn only_the_half_of_a_register_that_counts_counts() {
    let high = 0xdead_beef_0000_0000;
    let process = Fake::default();
    assert_eq!(ranges(&process, libc::SYS_poll, &[0x1000, high | 2]), [0x1000..0x1010]);
    assert_eq!(ranges(&process, libc::SYS_getdents64, &[3, 0x1000, high | 9]), [0x1000..0x1009]);
    // −1 as an `int` is refused.
    assert_eq!(ranges(&process, libc::SYS_epoll_wait, &[3, 0x1000, 0xffff_ffff]), []);
}

#[test]
fn ranges_end_at_the_end_of_the_address_space() {
    let all = ranges(&Fake::default(), libc::SYS_read, &[3, 0x1000, u64::MAX]);
    assert_eq!(all, [0x1000..u64::MAX]);
}

#[test]
fn vectors_are_followed() {
    let process = Fake::default().with(0x100, &[0x5000, 8, 0x6000, 16]);
    assert_eq!(ranges(&process, libc::SYS_readv, &[3, 0x100, 2]), [0x5000..0x5008, 0x6000..0x6010]);
    assert_eq!(why(&process, libc::SYS_readv, &[3, 0x100, 3]), Why::Unreadable);
    assert_eq!(why(&process, libc::SYS_readv, &[3, 0x100, 1025]), Why::TooMany);
    assert_eq!(ranges(&process, libc::SYS_writev, &[3, 0x100, 2]), []);
}

#[test]
fn a_message_is_followed_to_all_its_parts() {
    let header = [0x2000, 16, 0x3000, 1, 0x4000, 64, 0];
    let process = Fake::default().with(0x100, &header).with(0x3000, &[0x5000, 8]);
    let expected = [0x100..0x138, 0x2000..0x2080, 0x4000..0x4040, 0x5000..0x5008];
    assert_eq!(ranges(&process, libc::SYS_recvmsg, &[3, 0x100, 0]), expected);
    let mut with_length = expected.to_vec();
    with_length.insert(1, 0x100..0x140);
    assert_eq!(ranges(&process, libc::SYS_recvmmsg, &[3, 0x100, 1, 0, 0])[1..], with_length);
}

#[test]
fn the_file_decides_whether_a_write_may_write_elsewhere() {
    let with = |file| Fake { file: Some(file), ..Fake::default() };
    let write = [3, 0x1000, 8];
    assert_eq!(ranges(&with(File::Data), libc::SYS_write, &write), []);
    assert_eq!(why(&with(File::Proc), libc::SYS_write, &write), Why::File);
    assert_eq!(why(&with(File::Unknown), libc::SYS_write, &write), Why::File);
    assert_eq!(why(&with(File::Unknown), libc::SYS_read, &write), Why::File);
    // Into one's own memory, at the offset.
    let pwrite = [3, 0x1000, 8, 0x7000];
    assert_eq!(ranges(&with(File::Proc), libc::SYS_pwrite64, &pwrite), [0x7000..0x7008]);
    let process = with(File::Proc).with(0x100, &[1, 8, 2, 4]);
    let pwritev = [3, 0x100, 2, 0x7000];
    assert_eq!(ranges(&process, libc::SYS_pwritev, &pwritev), [0x7000..0x700c]);
    assert_eq!(why(&process, libc::SYS_pwritev2, &[3, 0x100, 2, u64::MAX]), Why::File);
}

#[test]
fn files_are_told_apart() {
    let char_device =
        |major: u64, minor| File::classify(0o020_666, major << 8 | minor, 0x0102_1994);
    assert_eq!(char_device(1, 3), File::Data, "/dev/null");
    assert_eq!(char_device(1, 1), File::Unknown, "/dev/mem");
    assert_eq!(char_device(136, 0), File::Data, "a terminal");
    assert_eq!(char_device(21, 0), File::Unknown, "SCSI generic");
    assert_eq!(File::classify(0o100_644, 0, 0xef53), File::Data);
    assert_eq!(File::classify(0o100_644, 0, 0x9fa0), File::Proc);
    assert_eq!(File::classify(0o010_600, 0, 0x5049_5045), File::Data);
    assert_eq!(File::classify(0o600, 0, 0x0904_1934), File::Data, "eventfd");
    assert_eq!(File::classify(0, 0, 0), File::Unknown);
}

#[test]
fn socket_options_with_pointers_are_not_bounded() {
    let process = Fake::default().with(0x100, &[24]);
    let get = |level: u64, option: u64| [3, level, option, 0x5000, 0x100];
    assert_eq!(ranges(&process, libc::SYS_getsockopt, &get(1, 3)), [0x100..0x104, 0x5000..0x5018]);
    // SO_GET_FILTER counts instructions.
    assert_eq!(ranges(&process, libc::SYS_getsockopt, &get(1, 26))[1], 0x5000..0x50c0);
    // With pointers: TCP_ZEROCOPY_RECEIVE, MPTCP_FULL_INFO, ebtables, SCTP. With counts: TCP_AO_GET_KEYS, IP_MSFILTER,
    // MCAST_MSFILTER. Not heard of yet: one of each level that had such.
    let unbounded = [
        (6, 35),
        (284, 4),
        (0, 129),
        (41, 129),
        (132, 1),
        (6, 41),
        (0, 41),
        (0, 48),
        (41, 48),
        (0, 63),
        (1, 200),
        (6, 200),
        (284, 200),
    ];
    for (level, option) in unbounded {
        let found = why(&process, libc::SYS_getsockopt, &get(level, option));
        assert_eq!(found, Why::UnknownOperation, "{level} {option}");
    }
    // L2CAP_LM, and TCP_CORK, without room.
    let process = Fake::default().with(0x100, &[0]);
    assert_eq!(ranges(&process, libc::SYS_getsockopt, &get(6, 3))[1], 0x5000..0x5004);
    let set = |level: u64, option: u64| [3, level, option, 0x5000, 32];
    assert_eq!(ranges(&process, libc::SYS_setsockopt, &set(1, 2)), []);
    assert_eq!(ranges(&process, libc::SYS_setsockopt, &set(41, 32)), [0x5000..0x5020]);
    // iptables' replace, an AF_XDP umem.
    assert_eq!(why(&process, libc::SYS_setsockopt, &set(0, 64)), Why::UnknownOperation);
    assert_eq!(why(&process, libc::SYS_setsockopt, &set(41, 64)), Why::UnknownOperation);
    let xdp = why(&process, libc::SYS_setsockopt, &set(283, 4));
    assert_eq!(xdp, Why::Registered);
    assert!(xdp.lasts());
}

#[test]
fn what_cannot_be_told_says_so() {
    let process = Fake::default();
    assert_eq!(why(&process, 463, &[]), Why::UnknownCall);
    assert_eq!(why(&process, 400, &[]), Why::UnknownCall);
    assert_eq!(why(&process, -1, &[]), Why::UnknownCall);
    assert_eq!(why(&process, libc::SYS_ioctl, &[3, 0xc0de, 0]), Why::Ioctl);
    assert_eq!(why(&process, libc::SYS_prctl, &[9999]), Why::UnknownOperation);
    assert_eq!(why(&process, libc::SYS_futex, &[0, 99]), Why::UnknownOperation);
    assert_eq!(why(&process, libc::SYS_bpf, &[]), Why::Bpf);
    assert!(why(&process, libc::SYS_io_uring_setup, &[]).lasts());
    assert_eq!(why(&process, libc::SYS_brk, &[0x5000]), Why::SizeUnknown);
    assert_eq!(why(&process, libc::SYS_exit, &[]), Why::Exits);
    assert_eq!(why(&process, libc::SYS_restart_syscall, &[]), Why::Restarts);
}

#[test]
fn pages_that_come_and_go_are_replaced() {
    let process = Fake { program_break: Some(0x9000), ..Fake::default() };
    let one = |number, args: &[u64]| {
        let (all, coverage) = evaluate(&process, number, args);
        assert_eq!(coverage, Coverage::Ranges);
        assert!(all.iter().all(|written| written.how == How::Replaced));
        all
    };
    assert_eq!(one(libc::SYS_brk, &[0xb000])[0].range(), 0x9000..0xb000);
    assert_eq!(one(libc::SYS_brk, &[0x8000])[0].range(), 0x8000..0x9000);
    assert!(one(libc::SYS_brk, &[0]).is_empty());
    assert_eq!(one(libc::SYS_munmap, &[0x1000, 0x2000])[0].range(), 0x1000..0x3000);
    assert_eq!(one(libc::SYS_madvise, &[0x1000, 0x2000, 4])[0].range(), 0x1000..0x3000);
    assert!(one(libc::SYS_madvise, &[0x1000, 0x2000, 14]).is_empty());
    assert!(!one(libc::SYS_madvise, &[0x1000, 0x2000, 200]).is_empty(), "advice not known");
    assert_eq!(one(libc::SYS_madvise, &[0x1000, 0x2000, 8])[1].until, Until::Completion);
    // Where a mapping goes is known afterwards.
    let mapped = one(libc::SYS_mmap, &[0, 0x2000, 3, 0x22])[0];
    assert_eq!(mapped.range(), 0..0);
    assert_eq!(mapped.after(0x7000).range(), 0x7000..0x9000);
    assert_eq!(mapped.after(-12).range(), 0..0);
    assert_eq!(one(libc::SYS_mmap, &[0x1000, 0x2000, 3, 0x32])[0].range(), 0x1000..0x3000);
    let moved = one(libc::SYS_mremap, &[0x1000, 0x1000, 0x3000, 3, 0x8000]);
    assert_eq!(moved[0].range(), 0x1000..0x4000);
    assert_eq!(moved[1].range(), 0x8000..0xb000);
}

#[test]
fn threads_are_followed_beyond_the_call() {
    // pthread_create's flags: CLONE_VM, PARENT_SETTID, CHILD_CLEARTID among them.
    let (all, _) = evaluate(&Fake::default(), libc::SYS_clone, &[0x3d_0f00, 0, 0x100, 0x200, 0]);
    let found: Vec<_> = all.iter().map(|w| (w.range().start, w.until)).collect();
    assert_eq!(found, [(0x100, Until::Return), (0x200, Until::ThreadExits)]);
    // fork's: the child has a copy.
    assert_eq!(ranges(&Fake::default(), libc::SYS_clone, &[0x120_0011, 0, 0, 0x200]), []);
    let block = [0x100 | 0x1000 | 0x10_0000 | 0x100_0000, 0x10, 0x20, 0x30, 0, 0, 0, 0];
    let (all, _) = evaluate(&Fake::default().with(0x100, &block), libc::SYS_clone3, &[0x100, 88]);
    let found: Vec<_> = all.iter().map(|w| (w.range().start, w.until)).collect();
    assert_eq!(found, [(0x10, Until::Return), (0x30, Until::Return), (0x20, Until::ChildStarts)]);
    let (all, _) = evaluate(&Fake::default(), libc::SYS_rseq, &[0x100, 32, 0, 0]);
    assert_eq!((all[0].range(), all[0].until), (0x100..0x120, Until::Unregistered));
}

#[test]
fn a_thread_that_exits_writes_its_robust_list() {
    let exit_words = Some(ExitWords { clear_child_tid: 0x10, robust_list: 0x100 });
    // Two locks whose words are 8 after their entries, the second with priority inheritance; one being taken.
    let process = Fake { exit_words, ..Fake::default() }
        .with(0x100, &[0x200, 8, 0x400])
        .with(0x200, &[0x301])
        .with(0x300, &[0x100]);
    let expected = [0x10..0x14, 0x208..0x20c, 0x308..0x30c, 0x408..0x40c];
    assert_eq!(ranges(&process, libc::SYS_exit, &[0]), expected);
    // A list that bites its tail ends where the kernel ends it.
    let process = process.with(0x300, &[0x200]);
    assert_eq!(ranges(&process, libc::SYS_exit, &[0]).len(), 2048 + 2);
}

#[test]
fn an_exec_that_failed_has_written_nothing() {
    let effects = effects::of(libc::SYS_execve as u64, &[0; 6]);
    let capture = Capture::<4>::before(&effects, &Fake::default());
    assert_eq!(capture.coverage(), Coverage::Everything(Why::Exits));
    assert_eq!(capture.for_each_after(-2, |_| {}), Coverage::Ranges);
    assert_eq!(capture.for_each_after(0, |_| {}), Coverage::Everything(Why::Exits));
}

#[test]
fn what_was_refused_does_not_last() {
    let process = Fake::default()
        .with(0x100, &[0x1000])
        .with(0x1000, &[0, 0, 0, 0x5000, 64, 0, 0, 0])
        .with(0x200, &[0; 15])
        .with(0x300, &[0x5000, 0x2000])
        .with(0x400, &[0x2000])
        .with(0x2000, &[0, 0, 7, 0x6000, 1025, 0, 0, 0]);
    let lasts_in = |process: &Fake, number: libc::c_long, args: [u64; 6], result: i32| {
        Capture::<4>::before(&effects::of(number as u64, &args), process)
            .lasts_after(i64::from(result))
    };
    let lasts = |number, args, result| lasts_in(&process, number, args, result);
    let (setup, rseq) = ([4, 0x200, 0, 0, 0, 0], [0x100, 32, 0, 0, 0, 0]);
    for error in [libc::EPERM, libc::ENOSYS] {
        assert!(!lasts(libc::SYS_io_uring_setup, setup, -error));
        assert!(!lasts(libc::SYS_rseq, rseq, -error));
        // They speak of an earlier ring, and of memory that was handed over before.
        assert!(lasts(libc::SYS_io_uring_enter, [3, 0, 0, 0, 0, 0], -error));
        assert!(lasts(libc::SYS_setsockopt, [3, 283, 4, 0x5000, 32, 0], -error));
    }
    assert!(lasts(libc::SYS_io_uring_setup, setup, 3));
    assert!(lasts(libc::SYS_io_uring_setup, setup, -libc::EFAULT), "a ring may have been made");
    assert!(lasts(libc::SYS_rseq, rseq, 0));
    // The first of two blocks was taken, the first of two mappings freed.
    assert!(lasts(libc::SYS_io_submit, [7, 1, 0x100, 0, 0, 0], -libc::EAGAIN));
    assert!(lasts(libc::SYS_madvise, [0x5000, 0x2000, 8, 0, 0, 0], -libc::EINVAL));
    assert!(lasts(libc::SYS_process_madvise, [3, 0x300, 1, 8, 0, 0], 0x2000));
    assert!(!lasts(libc::SYS_process_madvise, [3, 0x300, 1, 4, 0, 0], 0x2000));
    // Requests that cannot be told, or seen by us while another thread maps them, end later too.
    assert!(lasts(libc::SYS_io_submit, [7, 1025, 0x100, 0, 0, 0], 1025));
    assert!(lasts(libc::SYS_io_submit, [7, 1, 0x9000, 0, 0, 0], 1));
    assert!(lasts(libc::SYS_io_submit, [7, 1, 0x400, 0, 0, 0], 1), "too many buffers");
    let unknown = Fake { file: Some(File::Unknown), ..process.clone() };
    assert!(lasts_in(&unknown, libc::SYS_io_submit, [7, 1, 0x100, 0, 0, 0], 1));
    assert!(!lasts(libc::SYS_read, [3, 0x5000, 64, 0, 0, 0], 64));
    // Others know when a thread has exited.
    assert!(!lasts(libc::SYS_set_tid_address, [0x5000, 0, 0, 0, 0, 0], 9));
}

#[test]
fn asynchronous_reads_name_their_buffers() {
    let pread = [0, 0, 0, 0x5000, 64, 0, 0, 0];
    let pwrite = [0, 0, 1, 0x6000, 64, 0, 0, 0];
    let process =
        Fake::default().with(0x100, &[0x1000, 0x2000]).with(0x1000, &pread).with(0x2000, &pwrite);
    let (all, coverage) = evaluate(&process, libc::SYS_io_submit, &[7, 2, 0x100]);
    assert_eq!(coverage, Coverage::Ranges);
    let lasting: Vec<_> =
        all.iter().filter(|w| w.until == Until::Completion).map(Written::range).collect();
    assert_eq!(lasting, [0x5000..0x5040]);
    let keys: Vec<_> =
        all.iter().filter(|w| w.until == Until::Return).map(|w| w.range().start).collect();
    assert_eq!(keys, [0x1008, 0x2008]);
}

/// Numbers, mostly of calls; arguments that are often small, often in the fake memory.
fn call() -> impl Strategy<Value = (u64, [u64; 6])> {
    let argument = prop_oneof![
        any::<u64>(),
        0u64..80,
        0x1000u64..0x1400,
        0u64..2,
        Just(u64::MAX),
        (0u64..64).prop_map(|bit| 1 << bit),
    ];
    let number = prop_oneof![20 => 0u64..470, 1 => any::<u64>()];
    (number, [(); 6].map(|()| argument.clone()))
}

fn process() -> impl Strategy<Value = Fake> {
    let word = prop_oneof![0x1000u64..0x1400, 0u64..40, any::<u64>()];
    let file = prop_oneof![Just(File::Data), Just(File::Proc), Just(File::Unknown)];
    (
        prop::collection::vec(word, 0..100),
        file,
        prop::option::of(any::<u64>()),
        prop::option::of((any::<u64>(), 0x1000u64..0x1200)),
    )
        .prop_map(|(words, file, program_break, exit)| {
            let exit_words = exit
                .map(|(clear_child_tid, robust_list)| ExitWords { clear_child_tid, robust_list });
            Fake { file: Some(file), program_break, exit_words, ..Fake::default() }
                .with(0x1000, &words)
        })
}

fn covered(range: &Range<u64>, by: &[Range<u64>]) -> bool {
    range.is_empty() || by.iter().any(|r| r.start <= range.start && range.end <= r.end)
}

fn capture_covers<const N: usize>(effects: &effects::Effects, process: &Fake, result: i64) {
    let mut all = Vec::new();
    let coverage = effects.for_each_written(process, |written| all.push(written));
    let capture = Capture::<N>::before(effects, process);
    if capture.coverage() == Coverage::Ranges {
        assert_eq!(coverage, Coverage::Ranges);
    } else if capture.coverage() != coverage {
        assert_eq!(capture.coverage(), Coverage::Everything(Why::TooMany));
        return;
    } else if N == 0 {
        return;
    }
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let _ = capture.for_each(|written| before.push(written.range()));
    let _ = capture.for_each_after(result, |written| after.push(written.range()));
    assert!(before.len() <= N);
    for written in all {
        assert!(covered(&written.range(), &before), "{written:?} is not in {before:?}");
        let late = written.after(result).range();
        assert!(covered(&late, &after), "{written:?} after {result} is not in {after:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_call_is_evaluated_and_a_capture_of_any_size_covers_it(
        (number, args) in call(), process in process(), result in -5000i64..5000,
    ) {
        let effects = effects::of(number, &args);
        capture_covers::<0>(&effects, &process, result);
        capture_covers::<1>(&effects, &process, result);
        capture_covers::<3>(&effects, &process, result);
        capture_covers::<64>(&effects, &process, result);
    }

    #[test]
    fn a_result_never_makes_a_range_longer(
        (number, args) in call(), process in process(), result in any::<i64>(),
    ) {
        let _ = effects::of(number, &args).for_each_written(&process, |written| {
            let (before, after) = (written.range(), written.after(result).range());
            if !before.is_empty() {
                assert!(covered(&after, &[before]), "{written:?}");
            }
        });
    }

    #[test]
    fn what_does_not_read_memory_does_not(
        (number, args) in call(), file in prop_oneof![Just(File::Data), Just(File::Proc)],
    ) {
        struct NoMemory(File);
        impl Process for NoMemory {
            fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Unreadable> {
                panic!("it reads")
            }
            fn file(&self, _: i32) -> File {
                self.0
            }
        }
        let effects = effects::of(number, &args);
        if !effects.reads_memory() {
            let mut written = 0;
            let coverage = effects.for_each_written(&NoMemory(file), |_| written += 1);
            prop_assert!(!effects.writes_nothing() || written == 0 && coverage == Coverage::Ranges);
        }
    }
}

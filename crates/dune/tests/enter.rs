//! Entering, and that the program goes on as it was.

mod support;

use dune::host::kind::{self, HostKind};
use support::{End, ended_well, passes, run, run_to_enter};

#[test]
fn a_system_call_has_its_result() {
    let parent = std::process::id();
    passes(move || {
        assert!(dune::entered());
        // SAFETY: no arguments.
        let (pid, ppid) = unsafe { (libc::getpid(), libc::getppid()) };
        assert_eq!(pid as u32, std::process::id());
        assert_eq!(ppid as u32, parent);
    });
}

#[test]
fn output_and_exit_status_are_the_programs() {
    let Some((end, text)) = run(|| {
        use std::io::Write as _;
        writeln!(std::io::stdout(), "hello from ring {}", 3).expect("standard output");
        // SAFETY: ends the child.
        unsafe { libc::_exit(7) };
    }) else {
        return;
    };
    assert_eq!((end, text.as_str()), (End::Exit(7), "hello from ring 3\n"));
}

#[test]
fn a_failed_call_says_why() {
    passes(|| {
        // SAFETY: a bad descriptor is an error.
        let result = unsafe { libc::close(12_345) };
        let error = std::io::Error::last_os_error().raw_os_error();
        assert_eq!((result, error), (-1, Some(libc::EBADF)));
        let error = std::fs::read("/no/such/file").expect_err("it is not there");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    });
}

#[test]
fn a_second_enter_is_refused() {
    passes(|| {
        // SAFETY: nothing happens.
        let again = unsafe { dune::enter() };
        assert_eq!(again, Err(dune::EnterError::Entered));
    });
}

#[test]
fn the_kind_of_host_is_known_although_the_guest_has_no_virtualization() {
    let ended = run_to_enter(|| {
        let hardware = kind::hardware();
        let measured = kind::measure().expect("guest mode");
        assert_eq!(measured.hardware, hardware);
        let paravirtual = measured.syscall_ring == 3;
        let wanted = if paravirtual { Some(HostKind::Paravirtual) } else { hardware };
        assert!(wanted.is_some(), "ring 0 is real, on a processor without virtualization");
        assert_eq!(measured.kind, wanted);
    });
    ended_well(ended);
}

#[test]
fn memory_grows_and_keeps_its_content() {
    passes(|| {
        let mut blocks: Vec<Vec<u64>> = Vec::new();
        for n in 0..200u64 {
            blocks.push((0..5000).map(|i| i * n).collect());
        }
        for (n, block) in blocks.iter().enumerate() {
            assert!(block.iter().enumerate().all(|(i, value)| *value == (i * n) as u64));
        }
    });
}

#[test]
fn a_mapping_that_grows_down_grows() {
    passes(|| {
        const PAGE: usize = dune::PAGE_SIZE;
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN,
        );
        // Room below, then the mapping at its upper end.
        // SAFETY: new memory; what is written is in what was reserved here.
        unsafe {
            let room = libc::mmap(
                std::ptr::null_mut(),
                1024 * PAGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(room, libc::MAP_FAILED);
            libc::munmap(room, 1024 * PAGE);
            let top = room.cast::<u8>().add(1023 * PAGE);
            let fixed = flags | libc::MAP_FIXED_NOREPLACE;
            let stack = libc::mmap(top.cast(), PAGE, prot, fixed, -1, 0);
            assert_eq!(stack, top.cast());
            for page in 1..200 {
                top.sub(page * PAGE).write_volatile(page as u8);
            }
            assert_eq!(top.sub(77 * PAGE).read_volatile(), 77);
        }
    });
}

#[test]
fn clocks_go_on() {
    passes(|| {
        let (wall, start) = (std::time::SystemTime::now(), std::time::Instant::now());
        std::thread::sleep(std::time::Duration::from_millis(30));
        let (slept, wall) = (start.elapsed(), wall.elapsed().expect("time goes on"));
        assert!(slept.as_millis() >= 30 && slept.as_secs() < 60, "{slept:?}");
        assert!(wall.as_millis() >= 29 && wall.as_secs() < 60, "{wall:?}");
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a timespec of ours; past the vDSO, by the kernel.
        unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_REALTIME, &raw mut now) };
        let vdso =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let difference = vdso.as_secs() as i64 - now.tv_sec;
        assert!((0..60).contains(&difference), "the vDSO and the kernel differ by {difference} s");
    });
}

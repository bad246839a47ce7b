//! Each row, by each of its means: measured in a process of its own, or refused with a reason.

use dune_bench::{Error, Means, Row, measure};

/// What `measure` came to in a forked child: ticks and exits, or why it cannot be had here.
fn in_child(row: Row, means: Means) -> Result<(f64, f64), String> {
    let mut pipe = [0; 2];
    // SAFETY: two descriptors go into the array; the child has one thread, reports and ends.
    let child = unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        libc::fork()
    };
    if child == 0 {
        let text = match measure(row, means) {
            Ok(sample) => format!("{} {}", sample.ticks, sample.exits.unwrap_or(-1.0)),
            Err(Error::Unavailable(why)) => format!("!{why}"),
            Err(Error::Failed(why)) => format!("?{why}"),
        };
        // SAFETY: bytes of ours; then the child ends.
        unsafe {
            libc::write(pipe[1], text.as_ptr().cast(), text.len());
            libc::_exit(0);
        }
    }
    let mut status = 0;
    let mut bytes = [0_u8; 512];
    // SAFETY: descriptors of ours, our child, a buffer as long as said.
    let len = unsafe {
        libc::close(pipe[1]);
        let len = libc::read(pipe[0], bytes.as_mut_ptr().cast(), bytes.len());
        libc::close(pipe[0]);
        libc::waitpid(child, &raw mut status, 0);
        len
    };
    assert_eq!(status, 0, "{row:?} by {means:?} ended with {status:#x}");
    let text = String::from_utf8_lossy(&bytes[..usize::try_from(len).expect("read")]).into_owned();
    if let Some(why) = text.strip_prefix('?') {
        panic!("{row:?} by {means:?} failed: {why}");
    }
    if let Some(why) = text.strip_prefix('!') {
        return Err(why.to_owned());
    }
    let (ticks, exits) = text.split_once(' ').expect("two numbers");
    Ok((ticks.parse().expect("a number"), exits.parse().expect("a number")))
}

/// Which of the native figures there must be on any Linux of the last years.
fn must_be(means: Means) -> bool {
    means == Means::Linux
}

#[test]
fn each_row_is_measured_natively() {
    for row in Row::ALL {
        for means in row.means().iter().filter(|means| means.is_native()) {
            match in_child(row, *means) {
                Ok((ticks, exits)) => {
                    assert!(ticks > 0.0, "{row:?} by {means:?}: {ticks}");
                    assert!(exits < 0.0, "{row:?} by {means:?} has no exits to count");
                }
                Err(why) if must_be(*means) => panic!("{row:?} by {means:?}: {why}"),
                Err(why) => println!("skipped: {row:?} by {means:?}: {why}"),
            }
        }
    }
}

#[test]
fn intercepting_costs_more_than_calling_and_a_run_more_than_a_trap() {
    let cost = |row| in_child(row, Means::Linux).expect("native").0;
    let (call, two_stops, one_stop) = (cost(Row::Getpid), cost(Row::Ptrace), cost(Row::Sysemu));
    assert!(two_stops > one_stop && one_stop > call, "{two_stops} {one_stop} {call}");
    let (trap, run) = (cost(Row::Trap), cost(Row::Appel1));
    assert!(run > 50.0 * trap, "a run is 100 traps, with a little less than that for noise");
}

#[test]
fn each_row_is_measured_in_guest_mode() {
    if let Err(error) = dune::host::kvm::open() {
        println!("skipped: no guest mode here: {error}");
        return;
    }
    for row in Row::ALL {
        let (ticks, exits) = in_child(row, Means::Guest).expect("guest mode works");
        assert!(ticks > 0.0, "{row:?}: {ticks}");
        match row {
            // The program does these itself, at ring 3.
            Row::Trap | Row::PageWalk => assert!(exits < 0.5, "{row:?}: {exits} exits"),
            // Its entries may have been made with the mapping: then the host alone handles the fault.
            Row::PageFault => assert!(exits < 3.0, "{row:?}: {exits} exits"),
            Row::Appel1 | Row::Appel2 => assert!(exits < 50.0, "{row:?}: {exits} exits a run"),
            _ => assert!(exits >= 0.9, "{row:?}: {exits} exits"),
        }
    }
}

#[test]
fn a_row_by_means_that_it_has_not_is_refused() {
    let why = in_child(Row::Getpid, Means::Userfaultfd).expect_err("not measured so");
    assert_eq!(why, "getpid is not measured by userfaultfd");
}

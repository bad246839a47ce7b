//! The table has every system call.

use std::collections::BTreeMap;

use dune::effects;
use syscalls::Sysno;

/// What the table answers for a name that a header has; the names of two numbers changed with time.
fn same(ours: &str, theirs: &str) -> bool {
    ours == theirs || (ours, theirs) == ("umount2", "umount")
}

fn check(calls: &BTreeMap<u64, String>, origin: &str) {
    // The gap that other architectures filled; what is there came after 6.12.
    let gap = 336..424;
    let up_to_last: Vec<_> =
        calls.range(..=effects::LAST_KNOWN).filter(|(number, _)| !gap.contains(*number)).collect();
    assert!(up_to_last.len() >= 340, "{origin}: only {} calls found", up_to_last.len());
    for (number, theirs) in up_to_last {
        let ours = effects::name(*number);
        let ours = ours.unwrap_or_else(|| panic!("{origin}: no row for {number}, {theirs}"));
        assert!(same(ours, theirs), "{origin}: {number} is {theirs}, not {ours}");
    }
}

#[test]
fn every_call_of_a_crate_that_lists_them_is_there() {
    let calls: BTreeMap<u64, String> =
        Sysno::iter().map(|call| (call.id() as u64, call.name().to_owned())).collect();
    assert!(calls.contains_key(&effects::LAST_KNOWN), "the list ends before Linux 6.12 does");
    check(&calls, "crate syscalls");
    // And nothing that is not in the list: each row of ours is one of theirs.
    for number in 0..=effects::LAST_KNOWN {
        if effects::name(number).is_some() && !calls.contains_key(&number) {
            // 6.11 added it, for the trampoline of the kernel's own return probes.
            assert_eq!(effects::name(number), Some("uretprobe"), "{number}");
        }
    }
}

#[test]
fn every_call_of_the_installed_kernel_headers_is_there() {
    let paths = ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"];
    let Some(text) = paths.iter().find_map(|path| std::fs::read_to_string(path).ok()) else {
        println!("skipped: no {}: install linux-libc-dev", paths[0]);
        return;
    };
    let calls: BTreeMap<u64, String> = text
        .lines()
        .filter_map(|line| {
            let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
            Some((number.trim().parse().ok()?, name.to_owned()))
        })
        .collect();
    check(&calls, "linux-libc-dev");
}

#[test]
fn all_numbers_in_between_are_unknown_or_have_a_row() {
    let rows = (0..=effects::LAST_KNOWN).filter(|n| effects::name(*n).is_some()).count();
    // 0 to 335 and 424 to 462.
    assert_eq!(rows, 336 + 39);
    assert_eq!(effects::LAST_KNOWN, 462);
}

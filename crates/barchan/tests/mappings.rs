//! What the program and the kernel do to mappings (discard, replace, move, split, swap, huge
//! pages, resizing of regions), one test each, on every source that this machine has.

mod common;

use barchan::{PAGE_SIZE, Source};
use common::{Memory, alone, assert_covers, assert_dirty, collect, peek, trackers};

#[test]
fn untouched_pages_are_clean_once_armed_where_the_kernel_can() {
    let _alone = alone();
    let Some(tracker) = common::tracker(Source::PagemapScan) else { return };
    // Empty page-table entries beside a used one, and whole tables that are not there.
    let memory = Memory::new(4 * 512);
    memory.advise(0, 4 * 512, libc::MADV_NOHUGEPAGE).expect("MADV_NOHUGEPAGE");
    memory.write(700);
    let region = memory.track(&tracker);
    assert_eq!(collect(&region).len(), 4 * 512);
    assert_eq!(collect(&region), []);
    [2, 701, 1500].into_iter().for_each(|page| memory.write(page));
    assert_eq!(collect(&region), [2, 701, 1500]);
}

#[test]
fn discarded_pages_are_dirty() {
    let _alone = alone();
    for tracker in trackers() {
        for (advice, name) in [(libc::MADV_DONTNEED, "DONTNEED"), (libc::MADV_FREE, "FREE")] {
            // More than a page table's worth (2 MiB), which the kernel may free as a whole.
            let memory = Memory::touched(3 * 512);
            let region = memory.track(&tracker);
            collect(&region);
            memory.advise(100, 1000, advice).expect("madvise");
            let dropped: Vec<usize> = (100..1100).filter(|&page| memory.read(page) == 0).collect();
            if !tracker.source().sees_discards() {
                region.remapped(memory.range().slice(100, 1000)).expect("remapped");
            }
            assert_covers(&region, &peek(&region), &dropped);
            assert_covers(&region, &collect(&region), &dropped);
            [100, 600, 1099].into_iter().for_each(|page| memory.write(page));
            assert_covers(&region, &collect(&region), &[100, 600, 1099]);
            println!("{}: MADV_{name} dropped {} pages", tracker.source(), dropped.len());
        }
    }
}

#[test]
fn a_replaced_mapping_is_dirty_and_tracked_again() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(100);
        let region = memory.track(&tracker);
        collect(&region);
        memory.write(90);
        memory.replace(20, 4);
        region.remapped(memory.range().slice(20, 4)).expect("remapped");
        assert_covers(&region, &collect(&region), &[20, 21, 22, 23, 90]);
        memory.write(22);
        assert_covers(&region, &collect(&region), &[22]);
    }
}

#[test]
fn an_unannounced_replacement_costs_exactness_and_loses_nothing() {
    let _alone = alone();
    for tracker in trackers().into_iter().filter(|tracker| tracker.source().sees_discards()) {
        let memory = Memory::touched(100);
        let region = memory.track(&tracker);
        collect(&region);
        // Both sides: the kernel resets what lies before the obstacle and forgets the report.
        [3, 90].into_iter().for_each(|page| memory.write(page));
        memory.replace(20, 4);
        assert_covers(&region, &collect(&region), &[3, 20, 21, 22, 23, 90]);
        // Touched, since before Linux 6.4 an untouched page cannot be armed.
        (20..24).for_each(|page| memory.write(page));
        collect(&region);
        [1, 21, 99].into_iter().for_each(|page| memory.write(page));
        let dirty = collect(&region);
        assert_covers(&region, &dirty, &[1, 21, 99]);
        assert_dirty(&region, &dirty, &[1, 21, 99]);
    }
}

#[test]
fn pages_moved_in_by_mremap_are_dirty() {
    let _alone = alone();
    for tracker in trackers() {
        let (memory, other) = (Memory::touched(50), Memory::touched(4));
        let region = memory.track(&tracker);
        collect(&region);
        let bytes = 4 * PAGE_SIZE;
        // SAFETY: both ranges are the test's own; the old one is mapped again below.
        let moved = unsafe {
            libc::mremap(
                other.page(0).cast(),
                bytes,
                bytes,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                memory.page(10),
            )
        };
        assert_eq!(moved, memory.page(10).cast());
        other.replace(0, 4);
        region.remapped(memory.range().slice(10, 4)).expect("remapped");
        assert_covers(&region, &collect(&region), &[10, 11, 12, 13]);
        memory.write(12);
        assert_covers(&region, &collect(&region), &[12]);
    }
}

/// Kernels leave the protection in the entries of pages that are moved, to where nobody has registered them; stores that
/// come then go through it.
#[test]
fn pages_that_were_armed_elsewhere_are_dirty_when_tracked() {
    let _alone = alone();
    for source in [Source::PagemapScan, Source::Userfaultfd] {
        let Some(tracker) = common::tracker(source) else { continue };
        let (armed, memory) = (Memory::touched(4), Memory::touched(4));
        let before = armed.track(&tracker);
        collect(&before);
        let bytes = 4 * PAGE_SIZE;
        // SAFETY: both ranges are the test's own; the old one is mapped again below.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(armed.page(0).cast(), bytes, bytes, flags, memory.page(0))
        };
        assert_eq!(moved, memory.page(0).cast());
        armed.replace(0, 4);
        before.remapped(armed.range()).expect("remapped");
        memory.write(2);
        let region = memory.track(&tracker);
        assert_eq!(collect(&region), [0, 1, 2, 3], "{source}");
        memory.write(2);
        assert_eq!(collect(&region), [2], "{source}");
    }
}

#[test]
fn protections_of_the_program_do_not_hide_writes() {
    let _alone = alone();
    for tracker in trackers().into_iter().filter(|t| t.source() != Source::Mprotect) {
        let memory = Memory::touched(50);
        let region = memory.track(&tracker);
        collect(&region);
        for prot in [libc::PROT_READ, libc::PROT_NONE] {
            // SAFETY: the pages are the test's, and not touched in between.
            unsafe {
                let at = memory.page(20).cast();
                assert_eq!(libc::mprotect(at, 4 * PAGE_SIZE, prot), 0);
                let back = libc::PROT_READ | libc::PROT_WRITE;
                assert_eq!(libc::mprotect(at, 4 * PAGE_SIZE, back), 0);
            }
            memory.write(21);
            assert_covers(&region, &collect(&region), &[21]);
        }
    }
}

#[test]
fn a_region_may_consist_of_several_mappings() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(300);
        // A different advice makes a mapping of its own.
        memory.advise(100, 50, libc::MADV_DONTDUMP).expect("MADV_DONTDUMP");
        let region = memory.track(&tracker);
        region.arm(memory.range()).expect("arming");
        collect(&region);
        [50, 99, 100, 149, 150, 299].into_iter().for_each(|page| memory.write(page));
        assert_dirty(&region, &collect(&region), &[50, 99, 100, 149, 150, 299]);
        region.disarm(memory.range()).expect("disarming");
        region.arm(memory.range().slice(90, 100)).expect("arming");
        let expected: Vec<usize> = (0..90).chain(190..300).collect();
        assert_dirty(&region, &peek(&region), &expected);
        memory.write(120);
        assert_covers(&region, &collect(&region), &[120]);
    }
}

#[test]
fn growth_and_shrinking_keep_what_is_known() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(400);
        let mut region = memory.track_part(&tracker, 100, 100);
        collect(&region);
        memory.write(150);
        for (first, count) in [(100, 200), (50, 250), (120, 60)] {
            let bounds = memory.range().slice(first, count);
            // SAFETY: the pages are the test's.
            unsafe { region.resize(bounds) }.expect("resizing");
            assert_eq!(region.range(), bounds);
            let expected: Vec<usize> = (first..first + count)
                .filter(|page| *page == 150 || !(100..200).contains(page))
                .map(|page| page - first)
                .collect();
            assert_dirty(&region, &peek(&region), &expected);
        }
        (100..200).for_each(|page| memory.write(page));
        assert_dirty(&region, &collect(&region), &(0..60).collect::<Vec<_>>());
        // Disjoint from what it was: all new.
        // SAFETY: the pages are the test's.
        unsafe { region.resize(memory.range().slice(300, 70)) }.expect("resizing");
        assert_eq!(peek(&region).len(), 70);
        drop(region);
        (0..400).for_each(|page| memory.write(page));
    }
}

#[test]
fn huge_pages_are_split_or_reported_whole() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::new(2048);
        memory.advise(0, 2048, libc::MADV_HUGEPAGE).expect("MADV_HUGEPAGE");
        (0..2048).for_each(|page| memory.write(page));
        let region = memory.track(&tracker);
        collect(&region);
        memory.write(600);
        let dirty = collect(&region);
        assert_covers(&region, &dirty, &[600]);
        println!("{}: one store in a huge page reports {}", tracker.source(), dirty.len());
        if tracker.source() == Source::PagemapScan {
            assert_eq!(dirty, [600], "the first write splits an armed huge page");
        }
        // Armed in part.
        region.disarm(memory.range()).expect("disarming");
        region.arm(memory.range().slice(1030, 2)).expect("arming");
        assert_covers(&region, &peek(&region), &[1029, 1032]);
        memory.write(1031);
        assert_covers(&region, &peek(&region), &[1029, 1031, 1032]);
        // Dropped and touched again as huge pages.
        memory.advise(0, 2048, libc::MADV_DONTNEED).expect("MADV_DONTNEED");
        if !tracker.source().sees_discards() {
            region.remapped(memory.range()).expect("remapped");
        }
        (0..2048).for_each(|page| memory.write(page));
        assert_eq!(collect(&region).len(), 2048);
    }
}

#[test]
fn swapped_pages_keep_their_dirt() {
    let _alone = alone();
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() < 2 {
        println!("skipped: this machine has no swap (/proc/swaps is empty)");
        return;
    }
    for tracker in trackers() {
        let memory = Memory::touched(100);
        let region = memory.track(&tracker);
        collect(&region);
        (0..50).for_each(|page| memory.write(page));
        memory.advise(0, 100, libc::MADV_PAGEOUT).expect("MADV_PAGEOUT");
        assert_covers(&region, &collect(&region), &(0..50).collect::<Vec<_>>());
        memory.write(70);
        assert_covers(&region, &collect(&region), &[70]);
    }
}

#[test]
fn all_of_this_in_guest_mode() {
    common::again_in_guest_mode();
}

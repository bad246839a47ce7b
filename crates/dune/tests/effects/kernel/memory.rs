//! Memory: mappings that come and go, and questions about them.

use dune::effects::Why;

use super::Case;
use super::arena::{Run, raw_call};

pub const CASES: &[Case] = &[
    ("replaced pages", replaced),
    ("advice", advice),
    ("questions", questions),
    ("policies", policies),
    ("locks and protections", protections),
    ("the heap", heap),
];

fn replaced(r: &mut Run) {
    let pages = r.pages(8);
    // MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED; the length is rounded up.
    assert_eq!(r.wrote(libc::SYS_mmap, &[pages, 5000, 3, 0x32, u64::MAX, 0]), pages as i64);
    let new = r.ok(libc::SYS_mmap, &[0, 8192, 3, 0x22, u64::MAX, 0]) as u64;
    assert!(new < r.base || new > r.base + super::arena::BYTES as u64);
    // Onto the arena, and within it.
    r.wrote(libc::SYS_mremap, &[new, 8192, 8192, 3, pages + 8192]);
    // What leaves a hole is mended before the arena is compared.
    let mend = |hole: u64| {
        let args = [hole, 4096, 3, 0x32, u64::MAX, 0];
        assert_eq!(raw_call(libc::SYS_mmap, &args), hole as i64);
    };
    let (pages, hole) = (pages + 8192, pages + 12288);
    for (call, args) in [
        (libc::SYS_mremap, vec![pages, 8192, 4096, 0, 0]),
        (libc::SYS_munmap, vec![hole, 4000]),
        (libc::SYS_mremap, vec![hole, 4096, 4096, 3, new]),
    ] {
        let done = r.checked(call, &args, |six| {
            let result = raw_call(call, six);
            mend(hole);
            result
        });
        assert!(done.result >= 0, "{}", done.result);
    }
    let other = r.ok(libc::SYS_mmap, &[0, 4096, 3, 0x22, u64::MAX, 0]) as u64;
    r.ok(libc::SYS_munmap, &[other, 4096]);
    r.fails(libc::SYS_mmap, &[pages, 4096, 3, 0x10_0022, u64::MAX, 0], libc::EEXIST);
    r.call(libc::SYS_remap_file_pages, &[pages, 4096, 0, 0, 0]);
    r.call(453, &[0, 4096, 0]);
}

fn advice(r: &mut Run) {
    let pages = r.pages(4);
    r.wrote(libc::SYS_madvise, &[pages, 5000, libc::MADV_DONTNEED as u64]);
    let pages = r.pages(4);
    // What changes nothing.
    for advice in [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 25] {
        r.call(libc::SYS_madvise, &[pages, 4096, advice]);
    }
    r.call(libc::SYS_madvise, &[pages, 8192, libc::MADV_FREE as u64]);
    // MADV_GUARD_INSTALL, of Linux 6.13, and its undoing.
    r.checked(libc::SYS_madvise, &[pages, 8192, 102], |six| {
        let result = raw_call(libc::SYS_madvise, six);
        raw_call(libc::SYS_madvise, &[pages, 8192, 103, 0, 0, 0]);
        result
    });
    let pidfd = r.call(libc::SYS_pidfd_open, &[std::process::id().into(), 0]);
    let vector = r.words(&[pages, 8192]);
    for advice in [libc::MADV_COLD, libc::MADV_DONTNEED] {
        r.call(libc::SYS_process_madvise, &[pidfd as u64, vector, 1, advice as u64, 0]);
    }
}

fn questions(r: &mut Run) {
    let to = r.out(64);
    r.wrote(libc::SYS_mincore, &[r.base, 5 * 4096 + 1, to]);
    r.ok(libc::SYS_msync, &[r.base, 4096, 1]);
}

fn policies(r: &mut Run) {
    let (mode, mask) = (r.out(4), r.out(512));
    let result = r.call(libc::SYS_get_mempolicy, &[mode, mask, 1024, 0, 0]);
    if result < 0 {
        r.skip("memory policies: the kernel has none");
    }
    for bits in [1u64, 64, 65, 1000, 4096, 40_000] {
        let (mode, mask) = (r.out(4), r.out(5200));
        r.call(libc::SYS_get_mempolicy, &[mode, mask, bits, 0, 4]);
    }
    let page = r.pages(2);
    r.call(libc::SYS_get_mempolicy, &[mode, 0, 0, page, 3]);
    let pages = r.words(&[page, page + 4096]);
    let status = r.out(64);
    r.call(libc::SYS_move_pages, &[0, 2, pages, 0, status, 0]);
    r.call(libc::SYS_set_mempolicy, &[0, 0, 0]);
    r.call(libc::SYS_mbind, &[page, 4096, 0, 0, 0, 0]);
    r.call(libc::SYS_migrate_pages, &[0, 64, mask, mask]);
    r.call(450, &[page, 4096, 0, 0]);
}

fn protections(r: &mut Run) {
    let page = r.pages(1);
    r.ok(libc::SYS_mprotect, &[page, 4096, 1]);
    r.ok(libc::SYS_mprotect, &[page, 4096, 3]);
    let key = r.call(libc::SYS_pkey_alloc, &[0, 0]);
    r.call(libc::SYS_pkey_mprotect, &[page, 4096, 3, u64::MAX]);
    r.call(libc::SYS_pkey_free, &[key as u64]);
    r.call(libc::SYS_mlock, &[page, 4096]);
    r.call(libc::SYS_mlock2, &[page, 4096, 1]);
    r.call(libc::SYS_munlock, &[page, 4096]);
    r.call(libc::SYS_mlockall, &[1]);
    r.call(libc::SYS_munlockall, &[]);
    r.call(462, &[page, 4096, 0]);
}

fn heap(r: &mut Run) {
    let now = r.ok(libc::SYS_brk, &[0]) as u64;
    let grown = r.ok(libc::SYS_brk, &[now + 8192]) as u64;
    assert_eq!(grown, now + 8192);
    r.ok(libc::SYS_brk, &[now]);
    let id = r.ok(libc::SYS_shmget, &[0, 8192, 0o1600]) as u64;
    let there = r.ok(libc::SYS_shmat, &[id, 0, 0]) as u64;
    r.unbounded(libc::SYS_shmdt, &[there], Why::SizeUnknown);
    let pages = r.pages(2);
    // SHM_REMAP onto the arena.
    r.unbounded(libc::SYS_shmat, &[id, pages, 0o40_000], Why::SizeUnknown);
    r.ok(libc::SYS_shmctl, &[id, 0, 0]);
}

//! The threads that write: stores, system calls, discards.

use std::sync::atomic::Ordering::{Relaxed, Release};

use barchan::Source;

use crate::Shared;
use crate::ground::{Ground, PAGES};

/// xorshift64*: reproducible, and without a dependency.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 32) as usize % bound
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Descriptors through which the kernel is made to write.
struct Pipes {
    pipe: [i32; 2],
    pair: [i32; 2],
}

impl Pipes {
    fn new() -> Self {
        let (mut pipe, mut pair) = ([0; 2], [0; 2]);
        // SAFETY: both arrays take two descriptors.
        unsafe {
            assert_eq!(libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC), 0);
            let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
            assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()), 0);
        }
        Self { pipe, pair }
    }

    /// Has the kernel store `stamp` (or something random) at `at`; whether it did.
    fn kernel_write(&self, way: usize, at: *mut u64, stamp: u64) -> bool {
        let bytes = stamp.to_ne_bytes();
        let from = bytes.as_ptr().cast();
        // SAFETY: `at` is a slot of the ground, which takes any 8 bytes.
        unsafe {
            match way {
                0 => {
                    assert_eq!(libc::write(self.pipe[1], from, 8), 8);
                    let done = libc::read(self.pipe[0], at.cast(), 8) == 8;
                    if !done {
                        let mut drain = [0u8; 8];
                        assert_eq!(libc::read(self.pipe[0], drain.as_mut_ptr().cast(), 8), 8);
                    }
                    done
                }
                1 => {
                    assert_eq!(libc::send(self.pair[1], from, 8, 0), 8);
                    let done = libc::recv(self.pair[0], at.cast(), 8, 0) == 8;
                    if !done {
                        let mut drain = [0u8; 8];
                        libc::recv(self.pair[0], drain.as_mut_ptr().cast(), 8, libc::MSG_DONTWAIT);
                    }
                    done
                }
                _ => libc::getrandom(at.cast(), 8, 0) == 8,
            }
        }
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        for fd in self.pipe.into_iter().chain(self.pair) {
            // SAFETY: opened by `new`.
            unsafe { libc::close(fd) };
        }
    }
}

/// Stores at most this often before looking at the flags.
const BATCH: u64 = 512;

/// One writer. Most stores go to a window of pages that moves on, so that reports have clean pages
/// too; a few go anywhere.
pub fn write(shared: &Shared, source: Source, thread: usize) {
    let ground = &shared.ground;
    let mut random = Random::new(thread as u64 + 1);
    let pipes = Pipes::new();
    let mut stamp = (thread as u64 + 1) << 48;
    while !shared.stop.load(Relaxed) {
        if shared.pause.load(Relaxed) {
            shared.parked.fetch_add(1, Release);
            while shared.pause.load(Relaxed) && !shared.stop.load(Relaxed) {
                std::thread::yield_now();
            }
            shared.parked.fetch_sub(1, Relaxed);
            continue;
        }
        let window = random.below(PAGES - 32);
        for _ in 0..BATCH {
            stamp += 1;
            let page =
                if random.one_in(256) { random.below(PAGES) } else { window + random.below(32) };
            ground.stamp(page, thread, stamp);
        }
        shared.writes.fetch_add(BATCH, Relaxed);
        for way in 0..3 {
            stamp += 1;
            let slot = ground.slot(random.below(PAGES), thread);
            if pipes.kernel_write(way, slot, stamp) {
                shared.kernel_writes.fetch_add(1, Relaxed);
            } else {
                shared.refused.fetch_add(1, Relaxed);
            }
        }
        if random.one_in(200) && source.sees_discards() {
            shared.discards.fetch_add(1, Relaxed);
            discard(ground, &mut random);
        }
    }
}

/// Drops the contents of some pages, unannounced.
fn discard(ground: &Ground, random: &mut Random) {
    let first = random.below(PAGES - 16);
    ground.memory.advise(first, 1 + random.below(15), libc::MADV_DONTNEED).expect("MADV_DONTNEED");
}

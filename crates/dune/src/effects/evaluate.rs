//! The evaluation of a row: what every rule uses, and the rules that fit in a line.

use super::table::{Item, Width};
use super::written::Cut;
use super::{Coverage, How, Process, Until, Why, Written};

/// Elements of an array in user memory that one evaluation looks at; the kernel's limit for `iovec`
/// is `UIO_MAXIOV`, 1,024, and beyond it refuses.
pub(super) const MOST_ELEMENTS: u64 = 1024;

/// One evaluation.
pub(super) struct Evaluation<'a, P: ?Sized, F> {
    pub(super) args: &'a [u64; 6],
    pub(super) process: &'a P,
    f: F,
    pub(super) why: Option<Why>,
}

/// Evaluates `items`.
pub(super) fn run<P: Process + ?Sized>(
    items: &[Item],
    args: &[u64; 6],
    process: &P,
    f: impl FnMut(Written),
) -> Coverage {
    let mut evaluation = Evaluation { args, process, f, why: None };
    for item in items {
        evaluation.item(*item);
    }
    evaluation.why.map_or(Coverage::Ranges, Coverage::Everything)
}

/// Whether the ranges of `item` depend on user memory.
pub(super) fn reads_memory(item: &Item) -> bool {
    use Item::*;
    matches!(
        item,
        SizedBy { .. }
            | Iov { .. }
            | WriteVectorAt
            | ProcessMadvise
            | IoSubmit
            | Recvmsg
            | Recvmmsg
            | Getsockopt
            | Ptrace
            | Keyctl
            | Clone3
            | Exits
    )
}

impl<P: Process + ?Sized, F: FnMut(Written)> Evaluation<'_, P, F> {
    fn item(&mut self, item: Item) {
        match item {
            Item::Fixed { at, bytes } => self.stored(self.arg(at), u64::from(bytes)),
            Item::Sized { at, len, width, unit, cut } => {
                let bytes = self.length(len, width).saturating_mul(u64::from(unit));
                let cut = if cut { Cut::Items(unit) } else { Cut::Whole };
                self.emit(Written { cut, ..stored(self.arg(at), bytes) });
            }
            Item::SizedBy { at, length, bytes } => {
                if let Some(len) = self.u32_at(self.arg(length)) {
                    self.stored(self.arg(at), u64::from(len));
                }
                self.stored(self.arg(length), u64::from(bytes));
            }
            Item::Lasting { at, bytes, until } => self.lasting(self.arg(at), bytes.into(), until),
            Item::Replaced { at, len } => self.replaced(self.arg(at), self.arg(len)),
            Item::Iov { at, count } => {
                self.iovec(self.arg(at), self.arg(count), |this, base, len| {
                    this.stored(base, len);
                });
            }
            Item::Unknown(why) => self.unknown(why),
            Item::Read(_)
            | Item::Write(_)
            | Item::WriteAt { .. }
            | Item::WriteVectorAt
            | Item::Ioctl
            | Item::Fcntl
            | Item::Sysfs
            | Item::FdSets
            | Item::IoSubmit => self.file(item),
            Item::Brk
            | Item::Mmap
            | Item::Mremap
            | Item::Madvise
            | Item::ProcessMadvise
            | Item::MapShadowStack
            | Item::Mincore
            | Item::NodeMask
            | Item::Shmat => self.mapping(item),
            Item::Recvmsg | Item::Recvmmsg | Item::Setsockopt | Item::Getsockopt => {
                self.socket(item);
            }
            Item::Shmctl
            | Item::Semctl
            | Item::Msgctl
            | Item::Msgrcv
            | Item::Prctl
            | Item::ArchPrctl
            | Item::Ptrace
            | Item::Keyctl
            | Item::Seccomp => self.control(item),
            Item::Futex | Item::Clone | Item::Clone3 | Item::Rseq | Item::Exits => {
                self.thread(item);
            }
        }
    }

    /// Argument `index`, counted from 0.
    pub(super) fn arg(&self, index: u8) -> u64 {
        self.args.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Argument `index` as an `int`.
    pub(super) fn int(&self, index: u8) -> i32 {
        self.arg(index) as i32
    }

    fn length(&self, index: u8, width: Width) -> u64 {
        let arg = self.arg(index);
        match width {
            Width::U32 => u64::from(arg as u32),
            Width::I32 => u64::try_from(arg as i32).unwrap_or(0),
            Width::U64 => arg,
            Width::I64 => u64::try_from(arg as i64).unwrap_or(0),
        }
    }

    pub(super) fn emit(&mut self, written: Written) {
        (self.f)(written);
    }

    /// The call stores to `bytes` bytes from `start` on.
    pub(super) fn stored(&mut self, start: u64, bytes: u64) {
        self.emit(stored(start, bytes));
    }

    /// As [`Self::stored`], for longer than the call.
    pub(super) fn lasting(&mut self, start: u64, bytes: u64, until: Until) {
        self.emit(Written { until, ..stored(start, bytes) });
    }

    /// The call replaces the pages from `start` on.
    pub(super) fn replaced(&mut self, start: u64, bytes: u64) {
        self.emit(Written { how: How::Replaced, ..stored(start, bytes) });
    }

    /// What the call writes cannot be told. The first reason is kept, but one that lasts goes before.
    pub(super) fn unknown(&mut self, why: Why) {
        if self.why.is_none_or(|first| why.lasts() && !first.lasts()) {
            self.why = Some(why);
        }
    }

    /// Reads the `u64` at `address`; if it cannot be read, everything is dirty.
    pub(super) fn u64_at(&mut self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// As [`Self::u64_at`].
    pub(super) fn u32_at(&mut self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    pub(super) fn read(&mut self, address: u64, into: &mut [u8]) -> Option<()> {
        let result = self.process.read(address, into);
        if result.is_err() {
            self.unknown(Why::Unreadable);
        }
        result.ok()
    }

    /// Calls `f` with base and length of each of the `count` elements of the array at `array`.
    pub(super) fn iovec(&mut self, array: u64, count: u64, f: impl Fn(&mut Self, u64, u64)) {
        if count > MOST_ELEMENTS {
            return self.unknown(Why::TooMany);
        }
        for i in 0..count {
            let element = array.saturating_add(16 * i);
            let Some(base) = self.u64_at(element) else { return };
            let Some(len) = self.u64_at(element.saturating_add(8)) else { return };
            f(self, base, len);
        }
    }
}

fn stored(start: u64, bytes: u64) -> Written {
    Written { start, bytes, cut: Cut::Whole, how: How::Stored, until: Until::Return }
}

//! Calls on files: devices behind `read` and `write`, `ioctl`, `fcntl`, descriptor sets, and
//! asynchronous I/O.

use super::evaluate::{Evaluation, MOST_ELEMENTS};
use super::table::Item;
use super::{File, Process, Until, Why, Written};

impl<P: Process + ?Sized, F: FnMut(Written)> Evaluation<'_, P, F> {
    pub(super) fn file(&mut self, item: Item) {
        match item {
            // The memory of a process, and any file of procfs, reads into the buffer only.
            Item::Read(fd) if self.file_of(fd) == File::Unknown => self.unknown(Why::File),
            // At the file's own offset, which is not known here.
            Item::Write(fd) if self.file_of(fd) != File::Data => self.unknown(Why::File),
            Item::WriteAt { fd, buffer } => self.write_at(fd, buffer),
            Item::WriteVectorAt => self.write_vector_at(),
            Item::Ioctl => self.ioctl(),
            Item::Fcntl => self.fcntl(),
            // Option 2 copies the name of a file system, whose length is the kernel's affair.
            Item::Sysfs if self.int(0) == 2 => self.unknown(Why::SizeUnknown),
            Item::FdSets => self.fd_sets(),
            Item::IoSubmit => self.io_submit(),
            _ => {}
        }
    }

    fn file_of(&self, argument: u8) -> File {
        self.process.file(self.int(argument))
    }

    /// `pwrite64(fd, buffer, count, offset)`: if the file is this process' memory, the offset is an
    /// address; if it is another file of procfs, marking that range costs nothing but exactness.
    fn write_at(&mut self, fd: u8, buffer: u8) {
        match self.file_of(fd) {
            File::Data => {}
            File::Proc => self.stored(self.arg(buffer + 2), self.arg(buffer + 1)),
            File::Unknown => self.unknown(Why::File),
        }
    }

    /// `pwritev(fd, iov, count, low, high)`: on x86-64 the offset is all in `low`; −1 is the file's
    /// own, for `pwritev2`.
    fn write_vector_at(&mut self) {
        match self.file_of(0) {
            File::Data => {}
            File::Proc if self.arg(3) != u64::MAX => {
                // The buffers go there one after the other: each may start where those before it end.
                let total = core::cell::Cell::new(0u64);
                self.iovec(self.arg(1), self.arg(2), |_, _, len| {
                    total.set(total.get().saturating_add(len));
                });
                self.stored(self.arg(3), total.get());
            }
            File::Proc | File::Unknown => self.unknown(Why::File),
        }
    }

    /// `ioctl(fd, command, argument)`. Commands are numbers that each driver chooses, so one that is
    /// known says nothing as long as the file is not. Known are those that the kernel takes before any
    /// driver sees them (`do_vfs_ioctl`), and on files of which we know the kind those of terminals.
    fn ioctl(&mut self) {
        const FIONCLEX: u32 = 0x5450;
        const FIOCLEX: u32 = 0x5451;
        const FIONBIO: u32 = 0x5421;
        const FIOASYNC: u32 = 0x5452;
        const TCGETS: u32 = 0x5401;
        const TCSETS: u32 = 0x5402;
        const TCSETSF: u32 = 0x5404;
        const TIOCGPGRP: u32 = 0x540f;
        const TIOCSPGRP: u32 = 0x5410;
        const TIOCGWINSZ: u32 = 0x5413;
        const TIOCSWINSZ: u32 = 0x5414;
        const FIONREAD: u32 = 0x541b;
        match self.arg(1) as u32 {
            FIONCLEX | FIOCLEX | FIONBIO | FIOASYNC => {}
            command if self.file_of(0) == File::Data => match command {
                // `struct termios` of the kernel, 36 bytes; `termios2` has 44.
                TCGETS => self.stored(self.arg(2), 44),
                TIOCGWINSZ => self.stored(self.arg(2), 8),
                TIOCGPGRP | FIONREAD => self.stored(self.arg(2), 4),
                TCSETS..=TCSETSF | TIOCSPGRP | TIOCSWINSZ => {}
                _ => self.unknown(Why::Ioctl),
            },
            _ => self.unknown(Why::Ioctl),
        }
    }

    /// `fcntl(fd, command, argument)`.
    fn fcntl(&mut self) {
        let bytes = match self.arg(1) as u32 {
            // F_GETLK, F_OFD_GETLK: struct flock.
            5 | 36 => 32,
            // F_GETOWN_EX, F_GETOWNER_UIDS, F_GET_RW_HINT, F_GET_FILE_RW_HINT.
            16 | 17 | 1035 | 1037 => 8,
            // F_DUPFD to F_SETLKW, F_SETOWN to F_GETSIG, F_SETOWN_EX, F_OFD_SETLK(W), and all of the
            // Linux-specific ones up to F_SET_FILE_RW_HINT.
            0..=4 | 6..=11 | 15 | 37 | 38 | 1024..=1034 | 1036 | 1038 => return,
            _ => return self.unknown(Why::UnknownOperation),
        };
        self.stored(self.arg(2), bytes);
    }

    /// `select(n, in, out, exceptional, timeout)`: each set in whole words of 64 bits; the kernel
    /// lowers `n` to the size of the descriptor table.
    fn fd_sets(&mut self) {
        let bytes = u64::try_from(self.int(0)).unwrap_or(0).div_ceil(64) * 8;
        for set in 1..=3 {
            self.stored(self.arg(set), bytes);
        }
    }

    /// `io_submit(context, count, blocks)`. What cannot be told of it is written some time later, too.
    fn io_submit(&mut self) {
        self.requests();
        if self.why.is_some() {
            self.unknown(Why::Submitted);
        }
    }

    /// Those of `io_submit`: the kernel stores a key in each block, and fills the buffers of reads some time later.
    /// It stops at a pointer that it cannot read, having taken those before.
    fn requests(&mut self) {
        const PREAD: u16 = 0;
        const PWRITE: u16 = 1;
        const FSYNC: u16 = 2;
        const FDSYNC: u16 = 3;
        const POLL: u16 = 5;
        const NOOP: u16 = 6;
        const PREADV: u16 = 7;
        const PWRITEV: u16 = 8;
        let count = u64::try_from(self.arg(1) as i64).unwrap_or(0);
        if count > MOST_ELEMENTS {
            return self.unknown(Why::TooMany);
        }
        for i in 0..count {
            let Some(block) = self.u64_at(self.arg(2).saturating_add(8 * i)) else { return };
            // aio_key, and aio_rw_flags beside it.
            self.stored(block.saturating_add(8), 8);
            // aio_lio_opcode, aio_reqprio, aio_fildes; aio_buf; aio_nbytes.
            let Some(first) = self.u64_at(block.saturating_add(16)) else { return };
            let Some(buffer) = self.u64_at(block.saturating_add(24)) else { return };
            let Some(bytes) = self.u64_at(block.saturating_add(32)) else { return };
            let file = self.process.file((first >> 32) as i32);
            match first as u16 {
                PREAD if file != File::Unknown => self.lasting(buffer, bytes, Until::Completion),
                PREADV if file != File::Unknown => {
                    self.iovec(buffer, bytes, |this, base, len| {
                        this.lasting(base, len, Until::Completion);
                    });
                }
                PWRITE | PWRITEV if file == File::Data => {}
                PREAD | PREADV | PWRITE | PWRITEV => self.unknown(Why::File),
                FSYNC | FDSYNC | POLL | NOOP => {}
                _ => self.unknown(Why::UnknownOperation),
            }
        }
    }
}

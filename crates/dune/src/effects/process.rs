//! What an evaluation must know of the process that makes the call.

/// The memory was not readable at that address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// The calling process, as an evaluation sees it.
///
/// Only [`read`](Self::read) is required. The defaults of the others are the answers of one who does not
/// know, and make evaluations say [`Everything`](super::Coverage::Everything).
///
/// None of it may allocate, lock or panic where evaluations run in trap code.
pub trait Process {
    /// Reads `into.len()` bytes of user memory, all or none.
    ///
    /// # Errors
    /// If any of them cannot be read. It must not fault.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable>;

    /// What `fd` is. It must hold for the whole call: if another thread may close and reopen it
    /// meanwhile, say [`File::Unknown`].
    fn file(&self, fd: i32) -> File {
        let _ = fd;
        File::Unknown
    }

    /// The end of the heap (what `brk(0)` returns) before the call.
    fn program_break(&self) -> Option<u64> {
        None
    }

    /// What the kernel writes when the calling thread exits.
    fn exit_words(&self) -> Option<ExitWords> {
        None
    }
}

/// What a thread has registered to be written when it exits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitWords {
    /// The address given to `set_tid_address` or with `CLONE_CHILD_CLEARTID`; 0: none.
    pub clear_child_tid: u64,
    /// The address given to `set_robust_list`; 0: none.
    pub robust_list: u64,
}

/// Where the operations of an open file may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// To the buffers that a call is given, and nowhere else: regular files, directories, pipes, sockets,
    /// terminals, block devices, `/dev/null` and its like, event, timer and signal descriptors.
    Data,
    /// A file of procfs: reads write to their buffers only, but it may be the memory of this process
    /// (`/proc/PID/mem`), which a write then changes at the file's offset.
    Proc,
    /// Not known, or a device that takes pointers (SCSI generic, RDMA verbs, `/dev/mem`).
    Unknown,
}

const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;
/// `PROC_SUPER_MAGIC`.
const PROC: u64 = 0x9fa0;
/// `DEBUGFS_MAGIC`: drivers put there what they like.
const DEBUGFS: u64 = 0x6462_6720;
/// `ANON_INODE_FS_MAGIC`: event, timer, signal, epoll, inotify and userfault descriptors; perf
/// events and virtual machines, which are driven by `ioctl` and `mmap`.
const ANON_INODE: u64 = 0x0904_1934;

impl File {
    /// From what `fstat` and `fstatfs` say of it: `st_mode`, `st_rdev`, `f_type`.
    #[must_use]
    pub fn classify(st_mode: u32, st_rdev: u64, f_type: u64) -> Self {
        match st_mode & S_IFMT {
            S_IFREG | S_IFDIR | S_IFLNK if f_type == PROC => Self::Proc,
            S_IFREG | S_IFDIR | S_IFLNK if f_type == DEBUGFS => Self::Unknown,
            S_IFREG | S_IFDIR | S_IFLNK | S_IFIFO | S_IFSOCK | S_IFBLK => Self::Data,
            S_IFCHR => match (major(st_rdev), minor(st_rdev)) {
                // null, zero, full, random, urandom, kmsg; not mem, kmem and port (1, 2, 4).
                (1, 3 | 5 | 7 | 8 | 9 | 11)
                // Consoles and serial lines, the controlling terminal and ptmx, pseudo-terminals.
                | (4 | 5 | 136..=143, _) => Self::Data,
                _ => Self::Unknown,
            },
            0 if f_type == ANON_INODE => Self::Data,
            _ => Self::Unknown,
        }
    }
}

/// As glibc's `gnu_dev_major`.
fn major(device: u64) -> u64 {
    device >> 8 & 0xfff | device >> 32 & 0xffff_f000
}

/// As glibc's `gnu_dev_minor`.
fn minor(device: u64) -> u64 {
    device & 0xff | device >> 12 & 0xffff_ff00
}

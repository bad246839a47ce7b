//! What the kernel has mapped where, asked of the kernel.
//!
//! Why not a copy kept from the program's system calls: the kernel is the truth, and a copy goes wrong
//! where the kernel decides (growing stacks, shmat, failed calls, io_destroy). Linux 6.11 answers for
//! one address (`PROCMAP_QUERY`); before, the whole of `/proc/self/maps` is read and kept until a
//! call changes mappings.

use crate::host::{HostError, Step as _};
use crate::sys::{self, Errno};

use super::arena;

/// A mapping of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vma {
    pub(crate) start: u64,
    pub(crate) end: u64,
    flags: u64,
}

const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;
const SHARED: u64 = 8;
const FILE: u64 = 0x20;

impl Vma {
    pub(crate) fn readable(self) -> bool {
        self.flags & READ != 0
    }

    pub(crate) fn writable(self) -> bool {
        self.flags & WRITE != 0
    }

    pub(crate) fn executable(self) -> bool {
        self.flags & EXECUTE != 0
    }

    /// Whether pages may be missing though the mapping is there: behind the end of a file.
    pub(crate) fn may_end(self) -> bool {
        self.flags & (FILE | SHARED) != 0
    }
}

/// `struct procmap_query` of Linux 6.11.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev: [u32; 2],
    name_and_build_id_size: [u32; 2],
    name_and_build_id: [u64; 2],
}

/// Asks the kernel.
pub(crate) struct Vmas {
    fd: i32,
    /// Whether the kernel answers for one address.
    by_address: bool,
    /// How many records of [`arena::VMAS`] are right; 0 if none.
    known: usize,
}

impl Vmas {
    pub(crate) const NONE: Self = Self { fd: -1, by_address: true, known: 0 };

    /// Opens the list of this process.
    pub(crate) fn open() -> Result<Self, HostError> {
        let low = sys::open(c"/proc/self/maps", libc::O_RDONLY).step("opening /proc/self/maps")?;
        let fd = crate::host::kvm::raise(low);
        sys::close(low);
        let mut vmas = Self { fd: fd?, by_address: true, known: 0 };
        if vmas.ask(0).is_err() {
            vmas.by_address = false;
        }
        Ok(vmas)
    }

    pub(crate) fn owns(&self, fd: i32) -> bool {
        self.fd == fd
    }

    /// Closes a list that belongs to the parent of this process.
    pub(crate) fn abandon(&mut self) {
        sys::close(self.fd);
    }

    /// Mappings have changed, or are about to.
    pub(crate) fn forget(&mut self) {
        self.known = 0;
    }

    /// The mapping at `address`.
    pub(crate) fn at(&mut self, address: u64) -> Option<Vma> {
        self.from(address).filter(|vma| vma.start <= address)
    }

    /// The mapping at `address`, or else the next one above.
    pub(crate) fn from(&mut self, address: u64) -> Option<Vma> {
        if self.by_address {
            return self.ask(address).ok();
        }
        let found = self.find(address);
        if found.is_some_and(|vma| vma.start <= address) {
            return found;
        }
        // The kernel may have made it since, or will, if it is a stack that grows: then one reading
        // of the list does.
        sys::readable(address as usize);
        self.read_all();
        self.find(address)
    }

    fn ask(&self, address: u64) -> Result<Vma, Errno> {
        const PROCMAP_QUERY: u64 = 0xc068_6611;
        const COVERING_OR_NEXT: u64 = 0x10;
        let mut query = Query {
            size: size_of::<Query>() as u64,
            query_flags: COVERING_OR_NEXT,
            query_addr: address,
            ..Query::default()
        };
        loop {
            // SAFETY: `struct procmap_query`, whose size is in its first field.
            match unsafe { sys::ioctl(self.fd, PROCMAP_QUERY, &raw mut query as u64) } {
                Err(Errno(libc::EINTR)) => {}
                Err(errno) => return Err(errno),
                Ok(_) => break,
            }
        }
        let mut flags = query.vma_flags & (READ | WRITE | EXECUTE | SHARED);
        if query.inode != 0 || query.dev != [0, 0] {
            flags |= FILE;
        }
        Ok(Vma { start: query.vma_start, end: query.vma_end, flags })
    }

    fn find(&self, address: u64) -> Option<Vma> {
        let records = records(self.known);
        records.get(records.partition_point(|vma| vma.end <= address)).copied()
    }

    /// Reads the whole list.
    fn read_all(&mut self) {
        let mut parser = Parser { line: [0; 128], len: 0, count: 0 };
        let mut buffer = [0u8; 4096];
        let mut position = 0u64;
        loop {
            let request =
                [self.fd as u64, buffer.as_mut_ptr() as u64, buffer.len() as u64, position, 0, 0];
            // SAFETY: the buffer is as long as said.
            match unsafe { sys::call(libc::SYS_pread64, request) } {
                Err(Errno(libc::EINTR)) => {}
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    position += read;
                    parser.feed(&buffer[..read as usize]);
                }
            }
        }
        self.known = parser.count;
    }
}

/// The first `count` records.
fn records(count: usize) -> &'static mut [Vma] {
    // SAFETY: the part is mapped, aligned, and used only here, under the lock of the space. Zero bytes
    // are a valid record.
    unsafe { core::slice::from_raw_parts_mut(arena::VMAS.start() as *mut Vma, count) }
}

/// Takes `/proc/self/maps` in pieces, and keeps the start of each line.
struct Parser {
    line: [u8; 128],
    len: usize,
    count: usize,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let capacity = arena::VMAS.len / size_of::<Vma>();
                if let Some(vma) = parse(&self.line[..self.len]).filter(|_| self.count < capacity) {
                    self.count += 1;
                    records(self.count)[self.count - 1] = vma;
                }
                self.len = 0;
            } else if self.len < self.line.len() {
                self.line[self.len] = byte;
                self.len += 1;
            }
        }
    }
}

/// One line: `start-end perms offset device inode path`.
fn parse(line: &[u8]) -> Option<Vma> {
    let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let mut addresses = fields.next()?.split(|byte| *byte == b'-').map(hexadecimal);
    let (start, end) = (addresses.next()??, addresses.next()??);
    let permissions = fields.next()?;
    let mut flags = 0;
    for (letter, flag) in [(b'r', READ), (b'w', WRITE), (b'x', EXECUTE), (b's', SHARED)] {
        if permissions.contains(&letter) {
            flags |= flag;
        }
    }
    let _offset = fields.next()?;
    let device = fields.next()?;
    if device != b"00:00" || fields.next()? != b"0" {
        flags |= FILE;
    }
    Some(Vma { start, end, flags })
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_list_are_read() {
        let line = b"7f00aa000000-7f00aa021000 rw-p 00000000 00:00 0   [stack]";
        let vma = parse(line).expect("a line");
        assert_eq!((vma.start, vma.end), (0x7f00_aa00_0000, 0x7f00_aa02_1000));
        assert!(vma.readable() && vma.writable() && !vma.executable() && !vma.may_end());
        let vma = parse(b"00400000-00401000 r-xs 00001000 fd:01 77 /bin/x").expect("a line");
        assert!(vma.executable() && !vma.writable() && vma.may_end());
        assert_eq!(parse(b"nonsense"), None);
    }
}

//! `/proc/thread-self/maps`, read without the heap, for where no other call says what is mapped.

use super::syscall;
use crate::{Errno, PAGE_SIZE, PageRange};

/// Calls `f` with the parts of `range` that are mapped read-only and private, as memory that mprotect has armed is.
///
/// # Errors
/// If the file cannot be read, or `f`'s.
pub(crate) fn each_read_only(
    range: PageRange,
    mut f: impl FnMut(PageRange) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let fd = syscall::open(c"/proc/thread-self/maps", libc::O_RDONLY)?;
    let result = each_line(fd, |line| match parse(line) {
        Some(part) => {
            let part = part.intersection(&range);
            if part.is_empty() { Ok(()) } else { f(part) }
        }
        None => Ok(()),
    });
    // SAFETY: opened above.
    unsafe { syscall::close(fd) };
    result
}

/// Calls `f` with the beginning of each line: as much as the addresses and the rights take, and no path.
fn each_line(fd: i32, mut f: impl FnMut(&[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
    let mut buffer = [0u8; PAGE_SIZE];
    let mut line = [0u8; 40];
    let mut len = 0;
    loop {
        // SAFETY: a live buffer of that length.
        let n = unsafe { syscall::read_to(fd, buffer.as_mut_ptr() as usize, buffer.len()) }?;
        if n == 0 {
            return Ok(());
        }
        for &byte in &buffer[..n] {
            if byte == b'\n' {
                f(&line[..len])?;
                len = 0;
            } else if let Some(place) = line.get_mut(len) {
                *place = byte;
                len += 1;
            }
        }
    }
}

/// The range of a line `start-end r--p ...`; `None` if the rights are others.
fn parse(line: &[u8]) -> Option<PageRange> {
    let line = core::str::from_utf8(line).ok()?;
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    (rest.starts_with("r--p") && start <= end).then(|| PageRange::between(start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_between_holes_and_other_rights() {
        let bytes = 12 * PAGE_SIZE;
        let start = syscall::mmap_anonymous(bytes, libc::PROT_READ, 0).expect("12 pages");
        let range = PageRange::between(start, start + bytes);
        // SAFETY: the pages are the test's, and nobody touches them.
        unsafe {
            syscall::munmap(range.slice(3, 2).start(), 2 * PAGE_SIZE);
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            syscall::mprotect(range.slice(7, 1), rights).expect("mprotect");
        }
        let mut found = Vec::new();
        let done = each_read_only(range.slice(1, 10), |part| {
            found.push(part);
            Ok(())
        });
        assert_eq!(done, Ok(()));
        assert_eq!(found, [range.slice(1, 2), range.slice(5, 2), range.slice(8, 3)]);
        assert_eq!(each_read_only(range, |_| Err(Errno(5))), Err(Errno(5)));
        // SAFETY: the test's own; what is unmapped already is none of it.
        unsafe { syscall::munmap(start, bytes) };
    }
}

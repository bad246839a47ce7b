//! The kernel, as thin as it gets: system calls without `errno`, fork detection, descriptors that
//! know whether they are ours, a lock that no suspended thread can hold, anonymous memory, the list of
//! mappings, and the two ioctl families of write tracking.
//!
//! Nothing here knows what a region or a dirty page is.

pub(crate) mod epoch;
pub(crate) mod lock;
pub(crate) mod mapping;
pub(crate) mod maps;
pub(crate) mod own;
pub(crate) mod pagemap;
pub(crate) mod syscall;
pub(crate) mod uffd;

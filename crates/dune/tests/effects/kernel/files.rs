//! Files: reading, writing, asking about them.

use dune::effects::Why;

use super::Case;
use super::arena::Run;

pub const CASES: &[Case] = &[
    ("read", read),
    ("vectors", vectors),
    ("own memory", own_memory),
    ("stat", stat),
    ("directories", directories),
    ("links", links),
    ("attributes", attributes),
    ("names", names),
    ("extended attributes", extended_attributes),
    ("copies", copies),
    ("pipes", pipes),
    ("descriptors", descriptors),
    ("handles", handles),
    ("ioctl", ioctl),
    ("mounts", mounts),
];

const CWD: u64 = libc::AT_FDCWD as i64 as u64;
const RDWR_CREAT: u64 = (libc::O_RDWR | libc::O_CREAT) as u64;

/// A file of `bytes` bytes, open for reading and writing.
pub fn file(r: &mut Run, name: &str, bytes: usize) -> u64 {
    let path = r.str(name);
    let fd = r.ok(libc::SYS_open, &[path, RDWR_CREAT, 0o644]) as u64;
    let data = r.bytes(&vec![0x5a; bytes]);
    assert_eq!(r.ok(libc::SYS_write, &[fd, data, bytes as u64]), bytes as i64);
    r.ok(libc::SYS_lseek, &[fd, 0, 0]);
    fd
}

fn close(r: &mut Run, fd: u64) {
    r.ok(libc::SYS_close, &[fd]);
}

fn read(r: &mut Run) {
    let fd = file(r, "f", 1000);
    let to = r.out(4096);
    assert_eq!(r.wrote(libc::SYS_read, &[fd, to, 100]), 100);
    // Short, at the end, past the end.
    assert_eq!(r.wrote(libc::SYS_read, &[fd, to, 4096]), 900);
    assert_eq!(r.ok(libc::SYS_read, &[fd, to, 4096]), 0);
    assert_eq!(r.wrote(libc::SYS_pread64, &[fd, to, 4096, 500]), 500);
    r.fails(libc::SYS_read, &[9999, to, 8], libc::EBADF);
    // Half of the buffer is not there: the result counts what was copied.
    let end = r.base + super::arena::BYTES as u64;
    let result = r.call(libc::SYS_pread64, &[fd, end - 100, 600, 0]);
    assert!(result == 100 || result == -i64::from(libc::EFAULT), "{result}");
    for special in ["/dev/zero", "/dev/urandom", "/proc/self/status", "/proc/self/maps"] {
        let path = r.str(special);
        let special = r.ok(libc::SYS_open, &[path, 0]) as u64;
        r.wrote(libc::SYS_read, &[special, to, 4000]);
        close(r, special);
    }
    r.ok(libc::SYS_fsync, &[fd]);
    r.ok(libc::SYS_fdatasync, &[fd]);
    r.ok(libc::SYS_ftruncate, &[fd, 10]);
    r.call(libc::SYS_fallocate, &[fd, 0, 0, 8192]);
    r.ok(libc::SYS_readahead, &[fd, 0, 4096]);
    r.ok(libc::SYS_fadvise64, &[fd, 0, 0, 1]);
    r.ok(libc::SYS_sync_file_range, &[fd, 0, 0, 2]);
    r.ok(libc::SYS_flock, &[fd, 2]);
    r.wrote(libc::SYS_getrandom, &[to, 300, 0]);
    // Direct reads, where the file system has them.
    let path = r.str("f");
    let direct = r.call(libc::SYS_open, &[path, libc::O_DIRECT as u64]);
    if direct >= 0 {
        let page = r.pages(1);
        r.call(libc::SYS_read, &[direct as u64, page, 4096]);
        close(r, direct as u64);
    }
    close(r, fd);
}

fn vectors(r: &mut Run) {
    let fd = file(r, "f", 500);
    let (a, b, c) = (r.out(10), r.out(200), r.out(400));
    let vector = r.words(&[a, 10, b, 200, c, 400]);
    assert_eq!(r.wrote(libc::SYS_readv, &[fd, vector, 3]), 500);
    assert_eq!(r.wrote(libc::SYS_preadv, &[fd, vector, 2, 100, 0]), 210);
    assert_eq!(r.wrote(libc::SYS_preadv2, &[fd, vector, 3, 0, 0, 0]), 500);
    assert_eq!(r.ok(libc::SYS_writev, &[fd, vector, 2]), 210);
    assert_eq!(r.ok(libc::SYS_pwritev, &[fd, vector, 2, 0, 0]), 210);
    assert_eq!(r.ok(libc::SYS_pwritev2, &[fd, vector, 2, 0, 0, 0]), 210);
    assert_eq!(r.ok(libc::SYS_pwrite64, &[fd, a, 10, 3]), 10);
    r.ok(libc::SYS_readv, &[fd, vector, 0]);
    // The kernel copies the array first, so it may be read into itself.
    let own = r.words(&[0, 0, 0, 0]);
    r.set(
        own,
        &[own.to_le_bytes(), 32u64.to_le_bytes(), own.to_le_bytes(), 8u64.to_le_bytes()].concat(),
    );
    assert_eq!(r.wrote(libc::SYS_preadv, &[fd, own, 2, 0, 0]), 40);
    close(r, fd);
}

fn own_memory(r: &mut Run) {
    let path = r.str("/proc/self/mem");
    let fd = r.ok(libc::SYS_open, &[path, libc::O_RDWR as u64]) as u64;
    let (from, to) = (r.bytes(&[1, 2, 3, 4, 5, 6, 7, 8]), r.out(64));
    let result = r.call(libc::SYS_pwrite64, &[fd, from, 8, to]);
    if result != 8 {
        return r.skip("/proc/self/mem cannot be written");
    }
    assert_eq!(r.get(to, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    let vector = r.words(&[from, 4, from, 8]);
    r.call(libc::SYS_pwritev, &[fd, vector, 2, to + 16, 0]);
    assert_eq!(r.wrote(libc::SYS_pread64, &[fd, to, 32, from]), 32);
    r.ok(libc::SYS_lseek, &[fd, to + 40, 0]);
    assert_eq!(r.unbounded(libc::SYS_write, &[fd, from, 8], Why::File), 8);
    assert_eq!(r.get(to + 40, 4), [1, 2, 3, 4]);
    close(r, fd);
    // process_vm_writev on oneself.
    let pid = u64::from(std::process::id());
    let remote = r.words(&[to, 5, to + 32, 6]);
    assert_eq!(r.wrote(libc::SYS_process_vm_writev, &[pid, vector, 2, remote, 2, 0]), 11);
    assert_eq!(r.wrote(libc::SYS_process_vm_readv, &[pid, remote, 2, vector, 2, 0]), 11);
}

fn stat(r: &mut Run) {
    let fd = file(r, "f", 10);
    let path = r.str("f");
    let to = r.out(512);
    r.wrote(libc::SYS_stat, &[path, to]);
    let to = r.out(512);
    r.wrote(libc::SYS_fstat, &[fd, to]);
    let to = r.out(512);
    r.wrote(libc::SYS_lstat, &[path, to]);
    let to = r.out(512);
    r.wrote(libc::SYS_newfstatat, &[CWD, path, to, 0]);
    let to = r.out(512);
    r.wrote(libc::SYS_statx, &[CWD, path, 0, 0xfff, to]);
    let to = r.out(512);
    r.wrote(libc::SYS_statfs, &[path, to]);
    let to = r.out(512);
    r.wrote(libc::SYS_fstatfs, &[fd, to]);
    let absent = r.str("absent");
    r.fails(libc::SYS_stat, &[absent, to], libc::ENOENT);
    r.fails(libc::SYS_stat, &[path, 8], libc::EFAULT);
    // SAFETY: an integer structure that stat fills.
    let device = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd as i32, &mut stat);
        stat.st_dev
    };
    let to = r.out(128);
    r.call(libc::SYS_ustat, &[device, to]);
    let range = r.words(&[0, 4096]);
    let to = r.out(128);
    let number = 451;
    r.call(number, &[fd, range, to, 0]);
    for (call, args) in [
        (libc::SYS_access, vec![path, 0]),
        (libc::SYS_faccessat, vec![CWD, path, 0]),
        (libc::SYS_faccessat2, vec![CWD, path, 0, 0]),
        (libc::SYS_chmod, vec![path, 0o600]),
        (libc::SYS_fchmod, vec![fd, 0o600]),
        (libc::SYS_fchmodat, vec![CWD, path, 0o600]),
        (libc::SYS_truncate, vec![path, 5]),
        (libc::SYS_utime, vec![path, 0]),
        (libc::SYS_utimes, vec![path, 0]),
        (libc::SYS_utimensat, vec![CWD, path, 0, 0]),
        (libc::SYS_futimesat, vec![CWD, path, 0]),
        (libc::SYS_syncfs, vec![fd]),
        (libc::SYS_umask, vec![0o22]),
    ] {
        r.ok(call, &args);
    }
    r.call(452, &[CWD, path, 0o600, 0]);
    close(r, fd);
}

fn directories(r: &mut Run) {
    let name = r.str("d");
    r.ok(libc::SYS_mkdir, &[name, 0o755]);
    for i in 0..20 {
        let path = r.str(&format!("d/a file with a name {i:0i$}"));
        let fd = r.ok(libc::SYS_openat, &[CWD, path, RDWR_CREAT, 0o644]) as u64;
        close(r, fd);
    }
    for call in [libc::SYS_getdents64, libc::SYS_getdents] {
        let fd = r.ok(libc::SYS_open, &[name, libc::O_DIRECTORY as u64]) as u64;
        let to = r.out(4096);
        r.fails(call, &[fd, to, 3], libc::EINVAL);
        while r.ok(call, &[fd, to, 200]) > 0 {}
        r.ok(libc::SYS_lseek, &[fd, 0, 0]);
        r.wrote(call, &[fd, to, 4096]);
        r.ok(libc::SYS_fchdir, &[fd]);
        close(r, fd);
        let up = r.str("..");
        r.ok(libc::SYS_chdir, &[up]);
    }
    let to = r.out(4096);
    r.wrote(libc::SYS_getcwd, &[to, 4096]);
    r.fails(libc::SYS_getcwd, &[to, 2], libc::ERANGE);
    let nested = r.str("d/e");
    r.ok(libc::SYS_mkdirat, &[CWD, nested, 0o755]);
    r.ok(libc::SYS_rmdir, &[nested]);
}

fn links(r: &mut Run) {
    let fd = file(r, "f", 10);
    close(r, fd);
    let [f, s, h, g] = ["f", "s", "h", "g"].map(|name| r.str(name));
    r.ok(libc::SYS_symlink, &[f, s]);
    let to = r.out(256);
    assert_eq!(r.wrote(libc::SYS_readlink, &[s, to, 256]), 1);
    assert_eq!(r.wrote(libc::SYS_readlinkat, &[CWD, s, to, 256]), 1);
    r.fails(libc::SYS_readlink, &[f, to, 256], libc::EINVAL);
    let exe = r.str("/proc/self/exe");
    assert_eq!(r.wrote(libc::SYS_readlink, &[exe, to, 10]), 10);
    for (call, args) in [
        (libc::SYS_link, vec![f, h]),
        (libc::SYS_rename, vec![h, g]),
        (libc::SYS_renameat, vec![CWD, g, CWD, h]),
        (libc::SYS_renameat2, vec![CWD, h, CWD, g, 0]),
        (libc::SYS_linkat, vec![CWD, f, CWD, h, 0]),
        (libc::SYS_unlinkat, vec![CWD, h, 0]),
        (libc::SYS_unlink, vec![g]),
        (libc::SYS_unlink, vec![s]),
        (libc::SYS_symlinkat, vec![f, CWD, s]),
        (libc::SYS_unlink, vec![s]),
        (libc::SYS_mknod, vec![h, u64::from(libc::S_IFIFO | 0o600), 0]),
        (libc::SYS_mknodat, vec![CWD, g, u64::from(libc::S_IFIFO | 0o600), 0]),
        (libc::SYS_unlink, vec![h]),
        (libc::SYS_unlink, vec![g]),
        (libc::SYS_unlink, vec![f]),
    ] {
        r.ok(call, &args);
    }
}

fn attributes(r: &mut Run) {
    let fd = file(r, "f", 10);
    let path = r.str("f");
    let same = u64::from(u32::MAX);
    for (call, args) in [
        (libc::SYS_chown, vec![path, same, same]),
        (libc::SYS_fchown, vec![fd, same, same]),
        (libc::SYS_lchown, vec![path, same, same]),
        (libc::SYS_fchownat, vec![CWD, path, same, same, 0]),
    ] {
        r.ok(call, &args);
    }
    close(r, fd);
}

fn names(r: &mut Run) {
    let fd = file(r, "f", 10);
    close(r, fd);
    let path = r.str("f");
    let how = r.words(&[0, 0, 0]);
    let fd = r.ok(libc::SYS_openat2, &[CWD, path, how, 24]) as u64;
    close(r, fd);
    let bigger = r.words(&[0, 0, 0, 1]);
    r.fails(libc::SYS_openat2, &[CWD, path, bigger, 32], libc::E2BIG);
    let new = r.str("new");
    let fd = r.ok(libc::SYS_creat, &[new, 0o644]) as u64;
    close(r, fd);
    let fd = r.ok(libc::SYS_memfd_create, &[new, 0]) as u64;
    close(r, fd);
    let fd = r.ok(libc::SYS_inotify_init, &[]) as u64;
    close(r, fd);
    let fd = r.ok(libc::SYS_inotify_init1, &[libc::IN_NONBLOCK as u64]) as u64;
    let here = r.str(".");
    let watch = r.ok(libc::SYS_inotify_add_watch, &[fd, here, 0xfff]) as u64;
    let fd2 = file(r, "watched", 1);
    close(r, fd2);
    let to = r.out(1024);
    r.wrote(libc::SYS_read, &[fd, to, 1024]);
    r.ok(libc::SYS_inotify_rm_watch, &[fd, watch]);
    close(r, fd);
    let fan = r.call(libc::SYS_fanotify_init, &[0, 0]);
    if fan >= 0 {
        r.ok(libc::SYS_fanotify_mark, &[fan as u64, 1, 1, CWD, here]);
        close(r, fan as u64);
    } else {
        r.fails(libc::SYS_fanotify_mark, &[9999, 1, 1, CWD, here], libc::EBADF);
    }
    r.call(libc::SYS_memfd_secret, &[0]);
}

fn extended_attributes(r: &mut Run) {
    let fd = file(r, "f", 10);
    let path = r.str("f");
    let name = r.str("user.barchan");
    let value = r.bytes(b"a value of some length");
    if r.call(libc::SYS_setxattr, &[path, name, value, 22, 0]) < 0 {
        return r
            .skip("extended attributes: the temporary directory's file system has none for users");
    }
    r.ok(libc::SYS_lsetxattr, &[path, name, value, 22, 0]);
    r.ok(libc::SYS_fsetxattr, &[fd, name, value, 22, 0]);
    let to = r.out(300);
    assert_eq!(r.wrote(libc::SYS_getxattr, &[path, name, to, 300]), 22);
    assert_eq!(r.ok(libc::SYS_getxattr, &[path, name, to, 0]), 22);
    r.fails(libc::SYS_getxattr, &[path, name, to, 5], libc::ERANGE);
    let to = r.out(300);
    r.wrote(libc::SYS_lgetxattr, &[path, name, to, 300]);
    let to = r.out(300);
    r.wrote(libc::SYS_fgetxattr, &[fd, name, to, 300]);
    let to = r.out(300);
    r.wrote(libc::SYS_listxattr, &[path, to, 300]);
    let to = r.out(300);
    r.wrote(libc::SYS_llistxattr, &[path, to, 300]);
    let to = r.out(300);
    r.wrote(libc::SYS_flistxattr, &[fd, to, 300]);
    r.ok(libc::SYS_removexattr, &[path, name]);
    r.ok(libc::SYS_setxattr, &[path, name, value, 22, 0]);
    r.ok(libc::SYS_lremovexattr, &[path, name]);
    r.ok(libc::SYS_setxattr, &[path, name, value, 22, 0]);
    r.ok(libc::SYS_fremovexattr, &[fd, name]);
    close(r, fd);
}

fn copies(r: &mut Run) {
    let from = file(r, "f", 1000);
    let to = file(r, "g", 0);
    let offset = r.words(&[10]);
    assert_eq!(r.wrote(libc::SYS_sendfile, &[to, from, offset, 100]), 100);
    assert_eq!(r.get_u64(offset), 110);
    let (a, b) = (r.words(&[20]), r.words(&[500]));
    assert_eq!(r.wrote(libc::SYS_copy_file_range, &[from, a, to, b, 100, 0]), 100);
    let ends = r.out(8);
    r.wrote(libc::SYS_pipe2, &[ends, libc::O_NONBLOCK as u64]);
    let (read, write) = (r.get_i32(ends) as u64, r.get_i32(ends + 4) as u64);
    let offset = r.words(&[0]);
    assert_eq!(r.wrote(libc::SYS_splice, &[from, offset, write, 0, 64, 0]), 64);
    let ends = r.out(8);
    r.wrote(libc::SYS_pipe, &[ends]);
    let (read2, write2) = (r.get_i32(ends) as u64, r.get_i32(ends + 4) as u64);
    assert_eq!(r.ok(libc::SYS_tee, &[read, write2, 64, 0]), 64);
    let offset = r.words(&[0]);
    assert_eq!(r.wrote(libc::SYS_splice, &[read, 0, to, offset, 64, 0]), 64);
    // vmsplice out of a pipe copies to the buffers; into one it reads them.
    let (a, b) = (r.out(40), r.out(40));
    let vector = r.words(&[a, 40, b, 40]);
    assert_eq!(r.wrote(libc::SYS_vmsplice, &[read2, vector, 2, 0]), 64);
    assert_eq!(r.ok(libc::SYS_vmsplice, &[write2, vector, 2, 0]), 80);
    for fd in [from, to, read, write, read2, write2] {
        close(r, fd);
    }
}

fn pipes(r: &mut Run) {
    let ends = r.out(8);
    r.wrote(libc::SYS_pipe2, &[ends, libc::O_NONBLOCK as u64]);
    let (read, write) = (r.get_i32(ends) as u64, r.get_i32(ends + 4) as u64);
    let to = r.out(4096);
    r.fails(libc::SYS_read, &[read, to, 4096], libc::EAGAIN);
    r.ok(libc::SYS_write, &[write, to, 100]);
    assert_eq!(r.ok(libc::SYS_read, &[read, to, 4096]), 100);
    r.ok(libc::SYS_fcntl, &[read, libc::F_GETPIPE_SZ as u64]);
    close(r, read);
    close(r, write);
}

fn descriptors(r: &mut Run) {
    let fd = file(r, "f", 10);
    let copy = r.ok(libc::SYS_dup, &[fd]) as u64;
    r.ok(libc::SYS_dup2, &[fd, 200]);
    r.ok(libc::SYS_dup3, &[fd, 201, 0]);
    r.ok(libc::SYS_close_range, &[200, 201, 0]);
    let lock = r.words(&[1, 0, 10, 0]); // F_WRLCK, SEEK_SET; from 0, 10 bytes
    r.wrote(libc::SYS_fcntl, &[fd, libc::F_GETLK as u64, lock]);
    let lock = r.words(&[1, 0, 10, 0]);
    r.ok(libc::SYS_fcntl, &[fd, libc::F_SETLK as u64, lock]);
    let lock = r.words(&[1, 0, 10, 0]);
    r.wrote(libc::SYS_fcntl, &[fd, libc::F_OFD_GETLK as u64, lock]);
    let owner = r.out(16);
    r.wrote(libc::SYS_fcntl, &[fd, 16, owner]);
    r.ok(libc::SYS_fcntl, &[fd, 15, owner]);
    let users = r.out(16);
    r.call(libc::SYS_fcntl, &[fd, 17, users]);
    let hint = r.out(16);
    r.wrote(libc::SYS_fcntl, &[fd, 1035, hint]);
    for command in [libc::F_GETFD, libc::F_GETFL, libc::F_GETOWN, libc::F_GETLEASE] {
        r.ok(libc::SYS_fcntl, &[fd, command as u64]);
    }
    let event = r.ok(libc::SYS_eventfd2, &[3, 0]) as u64;
    let to = r.out(64);
    assert_eq!(r.wrote(libc::SYS_read, &[event, to, 64]), 8);
    close(r, event);
    let event = r.ok(libc::SYS_eventfd, &[3]) as u64;
    for fd in [event, copy, fd] {
        close(r, fd);
    }
    r.ok(libc::SYS_sync, &[]);
    let pid = u64::from(std::process::id());
    let pidfd = r.call(libc::SYS_pidfd_open, &[pid, 0]);
    if pidfd >= 0 {
        let got = r.call(libc::SYS_pidfd_getfd, &[pidfd as u64, 1, 0]);
        if got >= 0 {
            close(r, got as u64);
        }
        r.ok(libc::SYS_pidfd_send_signal, &[pidfd as u64, 0, 0, 0]);
        r.call(libc::SYS_process_mrelease, &[pidfd as u64, 0]);
        close(r, pidfd as u64);
    }
    r.call(libc::SYS_kcmp, &[pid, pid, 0, 1, 1]);
    r.unbounded(libc::SYS_sysfs, &[2, 0, to], Why::SizeUnknown);
    r.call(libc::SYS_sysfs, &[3, 0, 0]);
}

fn handles(r: &mut Run) {
    let fd = file(r, "f", 10);
    close(r, fd);
    let path = r.str("f");
    let handle = r.out(200);
    r.set(handle, &128u32.to_le_bytes());
    let mount = r.out(16);
    let result = r.call(libc::SYS_name_to_handle_at, &[CWD, path, handle, mount, 0]);
    if result < 0 {
        r.skip("file handles: the temporary directory's file system has none");
    } else {
        let fd = r.call(libc::SYS_open_by_handle_at, &[CWD, handle, 0]);
        if fd >= 0 {
            close(r, fd as u64);
        }
    }
    let handle = r.out(200);
    r.set(handle, &0u32.to_le_bytes());
    r.call(libc::SYS_name_to_handle_at, &[CWD, path, handle, mount, 0]);
    r.call(libc::SYS_open_by_handle_at, &[CWD, handle, 0]);
}

fn ioctl(r: &mut Run) {
    let fd = file(r, "f", 10);
    let to = r.out(128);
    for command in [libc::FIOCLEX, libc::FIONCLEX] {
        r.ok(libc::SYS_ioctl, &[fd, command]);
    }
    let on = r.int(1);
    r.ok(libc::SYS_ioctl, &[fd, libc::FIONBIO, on]);
    r.wrote(libc::SYS_ioctl, &[fd, libc::FIONREAD, to]);
    r.fails(libc::SYS_ioctl, &[fd, libc::TCGETS, to], libc::ENOTTY);
    r.unbounded(libc::SYS_ioctl, &[fd, 0x1234, to], Why::Ioctl);
    close(r, fd);
    let path = r.str("/dev/ptmx");
    let tty = r.call(libc::SYS_open, &[path, libc::O_RDWR as u64 | libc::O_NOCTTY as u64]);
    if tty < 0 {
        return r.skip("terminals: /dev/ptmx cannot be opened");
    }
    let tty = tty as u64;
    let to = r.out(128);
    r.wrote(libc::SYS_ioctl, &[tty, libc::TCGETS, to]);
    r.ok(libc::SYS_ioctl, &[tty, libc::TCSETS, to]);
    let to = r.out(128);
    r.wrote(libc::SYS_ioctl, &[tty, libc::TIOCGWINSZ, to]);
    r.ok(libc::SYS_ioctl, &[tty, libc::TIOCSWINSZ, to]);
    let to = r.out(128);
    r.wrote(libc::SYS_ioctl, &[tty, libc::FIONREAD, to]);
    close(r, tty);
}

fn mounts(r: &mut Run) {
    const STATMOUNT: i64 = 457;
    const LISTMOUNT: i64 = 458;
    // LSMT_ROOT, all of it.
    let request = r.words(&[24, u64::MAX, 0]);
    let to = r.out(2048);
    let count = r.call(LISTMOUNT, &[request, to, 256, 0]);
    if count <= 0 {
        r.skip("statmount and listmount: the kernel has none, or refuses");
    } else {
        let id = r.get_u64(to);
        let request = r.words(&[24, id, 0x3f]);
        let to = r.out(4096);
        r.call(STATMOUNT, &[request, to, 4096, 0]);
        r.call(STATMOUNT, &[request, to, 16, 0]);
    }
    r.call(STATMOUNT, &[request, to, 8, 0]);
    let fs = r.str("no such file system");
    r.fails(libc::SYS_fsopen, &[fs, 0], libc::ENODEV);
    let here = r.str(".");
    let tree = r.call(libc::SYS_open_tree, &[CWD, here, 0]);
    if tree >= 0 {
        close(r, tree as u64);
    }
    r.call(libc::SYS_fspick, &[CWD, here, 0]);
    r.fails(libc::SYS_fsmount, &[9999, 0, 0], libc::EBADF);
    r.fails(libc::SYS_fsconfig, &[9999, 1, here, here, 0], libc::EBADF);
    let attributes = r.words(&[0, 0, 0, 0]);
    r.call(libc::SYS_mount_setattr, &[CWD, here, 0, attributes, 32]);
    r.call(libc::SYS_move_mount, &[9999, here, 9999, here, 0]);
    let nowhere = r.str("/no/such/directory");
    r.fails(libc::SYS_mount, &[here, nowhere, fs, 0, 0], libc::ENOENT);
    r.fails(libc::SYS_umount2, &[nowhere, 0], libc::ENOENT);
    r.fails(libc::SYS_pivot_root, &[nowhere, nowhere], libc::ENOENT);
    r.fails(libc::SYS_chroot, &[nowhere], libc::ENOENT);
    r.fails(libc::SYS_swapon, &[nowhere, 0], libc::ENOENT);
    r.call(libc::SYS_swapoff, &[nowhere]);
    r.call(libc::SYS_acct, &[nowhere]);
    let quota = r.out(512);
    // Q_GETFMT of user quotas.
    r.call(libc::SYS_quotactl, &[0x8000_0400, nowhere, 0, quota]);
    r.fails(443, &[9999, 0x8000_0400, 0, quota], libc::EBADF);
}

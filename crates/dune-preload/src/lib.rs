//! `libbarchan_dune.so`: preloaded (`LD_PRELOAD`), it moves a program into guest mode before `main`.
//!
//! Children that the program executes load it again by the environment that they inherit, and enter
//! for themselves. Without a virtual machine the program runs as it would have, with a line that says
//! so. It brings its own allocator: a heap of the C library's may be locked where the monitor
//! runs, so not even by mistake may the monitor use it.

mod heap;

use core::ffi::c_char;

#[global_allocator]
static HEAP: heap::Bump = heap::Bump;

/// What the dynamic linker calls once the libraries are in place.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

/// What other libraries of the process look up, to reach the dirty bits (`dune_abi`).
///
/// # Safety
/// `why` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_dune_dirty_bits(
    version: u32,
    why: *mut *const c_char,
) -> *const dune_abi::DirtyBits {
    const _: dune_abi::Lookup = barchan_dune_dirty_bits;
    match dune::dirty_bits::table(version) {
        Ok(table) => table,
        Err(reason) => {
            if !why.is_null() {
                // SAFETY: the caller's promise.
                unsafe { why.write(reason.as_ptr()) };
            }
            core::ptr::null()
        }
    }
}

/// The directory for counts, for `barchan run --dune`.
const DIRECTORY: &std::ffi::CStr = c"BARCHAN_DUNE_DIR";

/// The ring at which the program shall run, "0" or "3" (`barchan run --dune --ring`).
const RING: &std::ffi::CStr = c"BARCHAN_DUNE_RING";
/// The exit code of a program that is there and could not be started, as shells have it.
const NOT_STARTED: i32 = 126;

extern "C" fn constructor() {
    // SAFETY: the variable's value is a C string that nobody changes while the program has not begun.
    let directory = unsafe {
        let value = libc::getenv(DIRECTORY.as_ptr());
        (!value.is_null()).then(|| std::ffi::CStr::from_ptr(value).to_bytes())
    };
    if let Some(directory) = directory {
        // Whoever wanted the counts may be gone: no reason not to run.
        let _ = dune::stats::record_in(directory);
    }
    // SAFETY: as above.
    let ring = unsafe {
        let value = libc::getenv(RING.as_ptr());
        if value.is_null() {
            Some(dune::Ring::Three)
        } else {
            dune::Ring::parse(std::ffi::CStr::from_ptr(value).to_bytes())
        }
    };
    let Some(ring) = ring else {
        dune::stats::report(format_args!("barchan: BARCHAN_DUNE_RING: there are rings 0 and 3\n"));
        // SAFETY: the program has not begun.
        unsafe { libc::_exit(NOT_STARTED) }
    };
    // SAFETY: 1. The program has not begun, so there is one thread, or a library's own that handles no
    // signals. 2. Whoever preloads this library wants guest mode. 3. Whoever asks for ring 0 knows the program.
    let Err(error) = (unsafe { dune::enter_at(ring) }) else { return };
    if ring == dune::Ring::Zero {
        // A program that is to use privileged instructions cannot do without.
        dune::stats::report(format_args!("barchan: {error}\n"));
        // SAFETY: the program has not begun.
        unsafe { libc::_exit(NOT_STARTED) }
    }
    dune::stats::report(format_args!("barchan: {error}; running without guest mode\n"));
}

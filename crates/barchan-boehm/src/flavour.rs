//! The flavours of the collector and the cmake flags that each is built with.
//!
//! All flavours share one set of flags: those of Debian's package (threads,
//! parallel marking, thread-local allocation, unmapping, fork handling, C++, cords,
//! gcj and disclaim; no large configuration, no redirected malloc; the compiler's
//! atomics in place of libatomic_ops), so that a comparison between two of them
//! compares the dirty bits and nothing else. What differs between flavours is in
//! [`Strategy`] and shows in [`Flavour::name`].

use std::fmt;

/// What a flavour does about dirty bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// The pinned upstream as it is. On x86-64 that is synchronous userfaultfd, or
    /// mprotect when `GC_USE_GETWRITEWATCH=0` is in the environment.
    Stock,
    /// The pinned upstream with soft-dirty bits compiled in. Upstream holds either
    /// userfaultfd or soft-dirty, never both: hence a library of its own.
    StockSoftDirty,
    /// The pinned upstream with Barchan's series applied.
    Patched,
}

/// What the collector, or the compiler for it, checks while it runs. Slow, but for the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Checks {
    /// Nothing.
    None,
    /// The collector's own assertions (`GC_ASSERTIONS`).
    Assertions,
    /// Data races, by the compiler's ThreadSanitizer; what is linked to it, or runs with it, has
    /// to be compiled so as well.
    ThreadSanitizer,
}

/// One way to build the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flavour {
    /// The source of dirty bits.
    pub strategy: Strategy,
    /// What is checked.
    pub checks: Checks,
}

/// Flags that every flavour gets, as `-D` arguments of cmake.
const COMMON: &[&str] = &[
    "CMAKE_BUILD_TYPE=Release",
    "CMAKE_INSTALL_LIBDIR=lib",
    "enable_threads=ON",
    "enable_parallel_mark=ON",
    "enable_thread_local_alloc=ON",
    "enable_munmap=ON",
    "enable_handle_fork=ON",
    "enable_cplusplus=ON",
    "enable_throw_bad_alloc_library=ON",
    "build_cord=ON",
    "enable_gcj_support=ON",
    "enable_disclaim=ON",
    "enable_java_finalization=ON",
    "enable_atomic_uncollectable=ON",
    "enable_large_config=OFF",
    "enable_redirect_malloc=OFF",
    "enable_gc_debug=OFF",
    "enable_docs=OFF",
    "with_libatomic_ops=OFF",
    "without_libatomic_ops=OFF",
];

/// Compiler flags in the place of cmake's `-O3 -DNDEBUG`: those of Debian's build; and functions begin with a line
/// of the cache, since where the hot loops happen to lie changed with every patch, and times with it by up to 5 %.
const OPTIMISATION: &str =
    "-O2 -g -fstack-protector-strong -D_FORTIFY_SOURCE=2 -falign-functions=64";

/// Compiler flags for [`Checks::ThreadSanitizer`].
const THREAD_SANITIZER: &str = "-fsanitize=thread -fno-omit-frame-pointer";

impl Flavour {
    /// The pinned upstream as it is.
    pub const STOCK: Self = Self { strategy: Strategy::Stock, checks: Checks::None };
    /// The pinned upstream, built for soft-dirty bits.
    pub const STOCK_SOFT_DIRTY: Self =
        Self { strategy: Strategy::StockSoftDirty, checks: Checks::None };
    /// The patched collector.
    pub const PATCHED: Self = Self { strategy: Strategy::Patched, checks: Checks::None };
    /// The patched collector, for programs that ThreadSanitizer checks.
    pub const PATCHED_THREAD_SANITIZER: Self =
        Self { strategy: Strategy::Patched, checks: Checks::ThreadSanitizer };

    /// The same flavour with the collector's own assertions on or off.
    #[must_use]
    pub fn with_assertions(self, assertions: bool) -> Self {
        let checks = if assertions { Checks::Assertions } else { Checks::None };
        Self { checks, ..self }
    }

    /// The name of the flavour and of its directory.
    #[must_use]
    pub fn name(self) -> &'static str {
        match (self.strategy, self.checks) {
            (Strategy::Stock, Checks::None) => "stock",
            (Strategy::Stock, Checks::Assertions) => "stock-assertions",
            (Strategy::Stock, Checks::ThreadSanitizer) => "stock-thread-sanitizer",
            (Strategy::StockSoftDirty, Checks::None) => "stock-soft-dirty",
            (Strategy::StockSoftDirty, Checks::Assertions) => "stock-soft-dirty-assertions",
            (Strategy::StockSoftDirty, Checks::ThreadSanitizer) => {
                "stock-soft-dirty-thread-sanitizer"
            }
            (Strategy::Patched, Checks::None) => "patched",
            (Strategy::Patched, Checks::Assertions) => "patched-assertions",
            (Strategy::Patched, Checks::ThreadSanitizer) => "patched-thread-sanitizer",
        }
    }

    /// Whether the series is applied and Barchan's library linked in.
    #[must_use]
    pub fn is_patched(self) -> bool {
        self.strategy == Strategy::Patched
    }

    /// The cmake definitions (without `-D`) that make this flavour, paths excepted.
    #[must_use]
    pub fn definitions(self) -> Vec<String> {
        let mut flags: Vec<String> = COMMON.iter().map(|s| (*s).to_owned()).collect();
        flags.push(format!("CMAKE_C_FLAGS_RELEASE={OPTIMISATION}"));
        flags.push(format!("CMAKE_CXX_FLAGS_RELEASE={OPTIMISATION}"));
        if self.checks == Checks::ThreadSanitizer {
            for language in ["C", "CXX"] {
                flags.push(format!("CMAKE_{language}_FLAGS={THREAD_SANITIZER}"));
            }
            // Upstream compiles C with -fexceptions; GCC's sanitizer then wants C++'s personality.
            flags.push("CMAKE_EXE_LINKER_FLAGS=-Wl,--no-as-needed -lstdc++".to_owned());
        }
        let on_off = if self.checks == Checks::Assertions { "ON" } else { "OFF" };
        flags.push(format!("enable_gc_assertions={on_off}"));
        match self.strategy {
            Strategy::Stock => {}
            Strategy::StockSoftDirty => flags.push("CFLAGS_EXTRA=-DNO_UFFDWP_VDB".to_owned()),
            Strategy::Patched => flags.push("enable_barchan=ON".to_owned()),
        }
        flags
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours_differ_only_in_what_their_name_says() {
        let stock = Flavour::STOCK.definitions();
        let mut patched = Flavour::PATCHED.definitions();
        patched.retain(|flag| !flag.starts_with("enable_barchan"));
        assert_eq!(stock, patched);

        let mut soft = Flavour::STOCK_SOFT_DIRTY.definitions();
        soft.retain(|flag| !flag.starts_with("CFLAGS_EXTRA"));
        assert_eq!(stock, soft);

        let checked = Flavour::STOCK.with_assertions(true).definitions();
        let different: Vec<_> = stock.iter().zip(&checked).filter(|(a, b)| a != b).collect();
        assert_eq!(different.len(), 1);
        assert_eq!(different[0].1, "enable_gc_assertions=ON");

        let mut raced = Flavour::PATCHED_THREAD_SANITIZER.definitions();
        raced.retain(|flag| !flag.contains("-fsanitize=thread") && !flag.contains("-lstdc++"));
        assert_eq!(Flavour::PATCHED.definitions(), raced);
    }
}

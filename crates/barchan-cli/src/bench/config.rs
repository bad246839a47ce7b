//! The configurations of the benchmark: collector, mode, source of dirty bits.
//!
//! How the collectors are told what to do, as read from the sources of 8.2.2 and of the
//! pinned 8.3.0-dev: `GC_ENABLE_INCREMENTAL` turns dirty bits on, `GC_PAUSE_TIME_TARGET`
//! is the time limit of a pause, and 999999 means none, which makes the mode purely
//! generational. `GC_USE_GETWRITEWATCH=0` selects mprotect; anything else the other
//! source that was compiled in: soft-dirty in 8.2.2; userfaultfd in the pinned one, which
//! needs a build of its own for soft-dirty. A source that the kernel lacks makes both fall
//! back to mprotect without a word, hence the check in [`super::preflight`].

use std::fmt;
use std::str::FromStr;

use barchan_boehm::{Checks, Flavour, Strategy};
use serde::{Deserialize, Serialize};

use crate::guest;

/// A collector to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Collector {
    /// The release that the distribution installed.
    Debian,
    /// The upstream that is patched, unpatched.
    Pinned,
    /// The patched collector.
    Barchan,
}

/// What the collector does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// The whole heap each time, one marker.
    Full,
    /// The whole heap each time, several markers.
    FullParallel,
    /// Dirty bits, no time limit.
    Generational,
    /// Dirty bits, a time limit for each pause.
    Incremental,
}

/// Where the dirty bits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DirtySource {
    /// No dirty bits: the full modes.
    None,
    /// mprotect and SIGSEGV.
    Mprotect,
    /// Synchronous userfaultfd.
    Userfaultfd,
    /// Soft-dirty bits of the kernel.
    SoftDirty,
    /// The best that Barchan's library finds on this machine.
    Best,
    /// Barchan's pagemap-scan, natively.
    PagemapScan,
    /// Barchan's guest-pte: the D bits of the guest's page tables, in guest mode.
    GuestPte,
    /// Barchan's guest-pml: the processor's log of written pages.
    GuestPml,
    /// Barchan's guest-tlb: protection in those tables, single pages flushed.
    GuestTlb,
    /// Barchan's guest-direct: protection in those tables, everything flushed.
    GuestDirect,
}

/// One configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Config {
    /// The collector.
    pub(crate) collector: Collector,
    /// The mode.
    pub(crate) mode: Mode,
    /// The source of dirty bits.
    pub(crate) dirty: DirtySource,
}

impl Collector {
    /// All, in the order of reports.
    pub(crate) const ALL: [Self; 3] = [Self::Debian, Self::Pinned, Self::Barchan];

    /// The name in configurations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Pinned => "pinned",
            Self::Barchan => "barchan",
        }
    }

    /// Whether this is what others are compared with.
    pub(crate) fn is_baseline(self) -> bool {
        self != Self::Barchan
    }
}

impl Mode {
    /// All, in the order of reports.
    pub(crate) const ALL: [Self; 4] =
        [Self::Full, Self::FullParallel, Self::Generational, Self::Incremental];

    /// The name in configurations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::FullParallel => "full-parallel",
            Self::Generational => "generational",
            Self::Incremental => "incremental",
        }
    }

    /// Whether the mode needs dirty bits.
    pub(crate) fn needs_dirty_bits(self) -> bool {
        matches!(self, Self::Generational | Self::Incremental)
    }
}

impl DirtySource {
    /// The name in configurations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mprotect => "mprotect",
            Self::Userfaultfd => "userfaultfd",
            Self::SoftDirty => "soft-dirty",
            Self::Best => "best",
            Self::PagemapScan => "pagemap-scan",
            Self::GuestPte => "guest-pte",
            Self::GuestPml => "guest-pml",
            Self::GuestTlb => "guest-tlb",
            Self::GuestDirect => "guest-direct",
        }
    }

    /// Whether it is to be had in guest mode only.
    pub(crate) fn needs_guest_mode(self) -> bool {
        matches!(self, Self::GuestPte | Self::GuestPml | Self::GuestTlb | Self::GuestDirect)
    }

    /// What the workloads report for it, where the collector tells.
    pub(crate) fn reported_as(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Best => None,
            Self::PagemapScan => Some("pagemap-scan"),
            // The collector has no name for it; the library's own is asked for in `paper::collector`.
            Self::GuestPte | Self::GuestPml | Self::GuestTlb | Self::GuestDirect => Some("default"),
            Self::Mprotect => Some("mprotect"),
            Self::Userfaultfd => Some("uffdwp"),
            Self::SoftDirty => Some("soft"),
        }
    }
}

impl Config {
    /// All configurations, in the order of reports: by mode, then by collector.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for mode in Mode::ALL {
            for collector in Collector::ALL {
                let sources: &[DirtySource] = match (mode.needs_dirty_bits(), collector) {
                    (false, _) => &[DirtySource::None],
                    (true, Collector::Debian) => &[DirtySource::Mprotect, DirtySource::SoftDirty],
                    (true, Collector::Pinned) => {
                        &[DirtySource::Mprotect, DirtySource::Userfaultfd, DirtySource::SoftDirty]
                    }
                    (true, Collector::Barchan) => &[DirtySource::Best],
                };
                all.extend(sources.iter().map(|&dirty| Self { collector, mode, dirty }));
            }
        }
        all
    }

    /// The flavour that has to be built for it; `None` for the distribution's collector.
    pub(crate) fn flavour(self) -> Option<Flavour> {
        let strategy = match (self.collector, self.dirty) {
            (Collector::Debian, _) => return None,
            (Collector::Pinned, DirtySource::SoftDirty) => Strategy::StockSoftDirty,
            (Collector::Pinned, _) => Strategy::Stock,
            (Collector::Barchan, _) => Strategy::Patched,
        };
        Some(Flavour { strategy, checks: Checks::None })
    }

    /// The collector's environment; `markers` applies to every mode but `full`.
    pub(crate) fn environment(self, markers: u32, pause_ms: u32) -> Vec<(String, String)> {
        let markers = if self.mode == Mode::Full { 1 } else { markers };
        let mut env = vec![("GC_MARKERS", markers.to_string())];
        if self.mode.needs_dirty_bits() {
            let limit = if self.mode == Mode::Generational { 999_999 } else { pause_ms };
            env.push(("GC_ENABLE_INCREMENTAL", "1".to_owned()));
            env.push(("GC_PAUSE_TIME_TARGET", limit.to_string()));
        }
        match self.dirty {
            DirtySource::Mprotect => env.push(("GC_USE_GETWRITEWATCH", "0".to_owned())),
            DirtySource::Userfaultfd | DirtySource::SoftDirty => {
                env.push(("GC_USE_GETWRITEWATCH", "1".to_owned()));
            }
            DirtySource::PagemapScan
            | DirtySource::GuestPte
            | DirtySource::GuestPml
            | DirtySource::GuestTlb
            | DirtySource::GuestDirect => {
                let name = self.dirty.name();
                env.push(("BARCHAN_TRACKER", name.to_owned()));
                env.extend(guest::variable_of(name).map(|(name, value)| (name, value.to_owned())));
            }
            DirtySource::None | DirtySource::Best => {}
        }
        env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (collector, mode) = (self.collector.name(), self.mode.name());
        match self.dirty {
            DirtySource::None | DirtySource::Best => f.pad(&format!("{collector}/{mode}")),
            dirty => f.pad(&format!("{collector}/{mode}/{}", dirty.name())),
        }
    }
}

/// What `--config` takes: parts of a configuration's name, separated by slashes; one that ends with `-` is the beginning
/// of a part.
#[derive(Clone, Debug)]
pub(crate) struct Selector(Vec<String>);

impl Selector {
    /// The selector that `text` is, if it matches one of the configurations.
    pub(crate) fn among(text: &str, configs: &[Config]) -> Option<Self> {
        let selector = Self(text.split('/').map(str::to_owned).collect());
        configs.iter().any(|config| selector.matches(*config)).then_some(selector)
    }

    /// Whether each part is one of the configuration's.
    pub(crate) fn matches(&self, config: Config) -> bool {
        let name = config.to_string();
        let is =
            |own: &str, part: &str| own == part || part.ends_with('-') && own.starts_with(part);
        self.0.iter().all(|part| name.split('/').any(|own| is(own, part)))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::among(text, &Config::all()).ok_or_else(|| {
            "no configuration has these parts; `barchan bench --list` shows all".to_owned()
        })
    }
}

/// The configurations that any of the selectors matches; all of them for none.
pub(crate) fn select(selectors: &[Selector]) -> Vec<Config> {
    let mut all = Config::all();
    all.retain(|c| selectors.is_empty() || selectors.iter().any(|s| s.matches(*c)));
    all
}

/// Those for a program of the user's: what the distribution has, and what could be had instead.
pub(crate) fn for_programs() -> Vec<Config> {
    let mut all = Config::all();
    all.retain(|config| match config.collector {
        Collector::Debian => matches!(config.dirty, DirtySource::None | DirtySource::Mprotect),
        Collector::Pinned => false,
        Collector::Barchan => true,
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(selector: &str) -> Vec<String> {
        let selector = selector.parse().expect("a valid selector");
        select(&[selector]).iter().map(Config::to_string).collect()
    }

    #[test]
    fn parts_of_names_select() {
        assert_eq!(named("debian/full"), ["debian/full"]);
        assert_eq!(named("pinned/generational/userfaultfd"), ["pinned/generational/userfaultfd"]);
        assert_eq!(named("full"), ["debian/full", "pinned/full", "barchan/full"]);
        assert_eq!(named("barchan").len(), 4);
        assert_eq!(named("soft-").len(), 4, "both modes of both stock collectors");
        assert!("generational-".parse::<Selector>().is_err());
        assert!("no-such".parse::<Selector>().is_err());
        assert!("debian/userfaultfd".parse::<Selector>().is_err());
        assert!("".parse::<Selector>().is_err());
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Config::all().iter().map(Config::to_string).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(count, 6 + 2 * 6);
    }

    #[test]
    fn settings_are_alike_on_all_sides_but_for_the_source() {
        let of = |config: Config| {
            let mut env = config.environment(2, 5);
            env.retain(|(name, _)| name != "GC_USE_GETWRITEWATCH");
            env
        };
        for mode in Mode::ALL {
            let mut all = Config::all();
            all.retain(|config| config.mode == mode);
            assert!(all.iter().all(|config| of(*config) == of(all[0])), "{mode:?}");
        }
    }
}

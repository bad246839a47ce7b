//! The paper's own figures: Belay et al., Dune: Safe User-level Access to Privileged CPU Features, OSDI
//! 2012, Tables 2, 3 and 6; and its parameters, as section 6 gives them.
//!
//! Its machine, a Xeon of 2012 on Linux 3.0, is not this one: figures are for comparing ratios.

use dune_bench::Row;

/// A row of Tables 2 and 3, in cycles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    /// On Linux.
    pub(crate) linux: f64,
    /// In Dune.
    pub(crate) dune: f64,
}

/// What the paper has for a row.
pub(crate) fn operation(row: Row) -> Operation {
    let (linux, dune) = match row {
        Row::Getpid => (138.0, 895.0),
        Row::PageFault => (2_687.0, 5_093.0),
        Row::PageWalk => (36.0, 86.0),
        Row::Ptrace => (27_317.0, 1_091.0),
        Row::Sysemu => (13_592.0, 180.0),
        Row::Trap => (2_821.0, 587.0),
        Row::Appel1 => (701_413.0, 94_496.0),
        Row::Appel2 => (684_909.0, 94_854.0),
    };
    Operation { linux, dune }
}

/// A column of Table 6.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// Name of the workload here.
    pub(crate) name: &'static str,
    /// Collections.
    pub(crate) collections: f64,
    /// Allocated, in the paper's MB.
    pub(crate) allocated_mb: f64,
    /// Boehm's collector in incremental mode on Linux, in milliseconds.
    pub(crate) normal_ms: f64,
    /// Its direct port to Dune.
    pub(crate) direct_ms: f64,
    /// With control of the TLB.
    pub(crate) tlb_ms: f64,
    /// With dirty bits.
    pub(crate) dirty_ms: f64,
}

/// A figure of a column.
pub(crate) type Figure = fn(&Workload) -> f64;

/// Table 6.
pub(crate) const TABLE_6: [Workload; 4] = [
    Workload {
        name: "gcbench",
        collections: 542.0,
        allocated_mb: 938.0,
        normal_ms: 1_224.0,
        direct_ms: 1_176.0,
        tlb_ms: 933.0,
        dirty_ms: 888.0,
    },
    Workload {
        name: "list",
        collections: 33_971.0,
        allocated_mb: 15_257.0,
        normal_ms: 15_983.0,
        direct_ms: 16_884.0,
        tlb_ms: 14_234.0,
        dirty_ms: 11_760.0,
    },
    Workload {
        name: "hashmap",
        collections: 161.0,
        allocated_mb: 10_352.0,
        normal_ms: 14_160.0,
        direct_ms: 13_715.0,
        tlb_ms: 11_124.0,
        dirty_ms: 8_391.0,
    },
    Workload {
        name: "xml",
        collections: 10.0,
        allocated_mb: 1_753.0,
        normal_ms: 6_663.0,
        direct_ms: 7_930.0,
        tlb_ms: 7_474.0,
        dirty_ms: 6_675.0,
    },
];

/// Ten of the XML documents, one after the other: the time of dirty bits over that of Boehm's collector on
/// Linux, by the paper's text ("a 12.8% improvement"), which has no times of it.
pub(crate) const TEN_DOCUMENTS: (&str, f64) = ("xml-ten-150", 1.0 - 0.128);

#[cfg(test)]
mod tests {
    use super::*;

    /// The gains that the paper's text names, which its tables must come to.
    #[test]
    fn the_figures_agree_with_the_papers_text() {
        let gain = |of: fn(&Workload) -> f64| {
            TABLE_6.map(|w| ((1.0 - of(&w) / w.normal_ms) * 1000.0).round() / 10.0)
        };
        assert_eq!(gain(|w| w.dirty_ms), [27.5, 26.4, 40.7, -0.2]);
        assert_eq!(gain(|w| w.tlb_ms), [23.8, 10.9, 21.4, -12.2]);
        assert_eq!(gain(|w| w.direct_ms)[3], -19.0);
        let ratio = |row| operation(row).linux / operation(row).dune;
        assert!((7.0..7.6).contains(&ratio(Row::Appel1)), "about 7.5 times");
        assert!((7.0..7.6).contains(&ratio(Row::Appel2)));
    }
}

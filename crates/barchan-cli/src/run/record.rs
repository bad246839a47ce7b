//! The records that the preloaded object leaves behind, one for each process with a
//! collector in it.
//!
//! Mirrors `struct record` of `preload/summary.c`; magic, version and size are checked, so
//! that an object of another build is refused, not misread.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Bytes before the list of pauses.
const FIXED_BYTES: usize = 8 + 4 + 4 + 25 * 8 + 32 + 64 + 1024;
/// How many pauses the list holds at most.
const MOST_LISTED: u64 = 1 << 20;

/// What the collector of one process did.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    /// The process.
    pub(crate) pid: u64,
    /// Its name.
    pub(crate) program: String,
    /// The collector's version.
    pub(crate) gc_version: String,
    /// The file that it was loaded from; `None` if its path is too long to be noted.
    pub(crate) gc_library: Option<PathBuf>,
    /// Seconds from the start to the last event, or to the end of a normal exit.
    pub(crate) seconds: f64,
    /// Collections begun.
    pub(crate) collections: u64,
    /// Stops of the world.
    pub(crate) pauses: u64,
    /// How many of them the percentiles are of: the first ones, as many as there was room for.
    pub(crate) pauses_listed: u64,
    /// Median pause.
    pub(crate) pause_p50_ms: Option<f64>,
    /// 99th percentile of the pauses.
    pub(crate) pause_p99_ms: Option<f64>,
    /// Longest pause.
    pub(crate) pause_max_ms: Option<f64>,
    /// All pauses together.
    pub(crate) pause_sum_ms: f64,
    /// Largest heap at the end of a pause or of the program.
    pub(crate) heap_peak_bytes: u64,
    /// Whether the collector was incremental (or generational) at last.
    pub(crate) incremental: bool,
    /// The source of dirty bits, as the collector tells; `None` if it does not.
    pub(crate) source: Option<String>,
    /// Counters of the patched collector.
    pub(crate) dirty_bits: Option<DirtyBits>,
    /// The process ended while the world was stopped.
    pub(crate) died_in_pause: bool,
}

/// Counters of the patched collector.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DirtyBits {
    /// Scans for dirty pages.
    pub(crate) scans: u64,
    /// Time they took.
    pub(crate) scan_us: u64,
    /// Pages looked at.
    pub(crate) pages_scanned: u64,
    /// Pages found dirty.
    pub(crate) pages_dirty: u64,
    /// Pages armed.
    pub(crate) pages_armed: u64,
    /// Pages whose protection was lifted in advance.
    pub(crate) pages_disarmed: u64,
    /// Calls that armed them.
    pub(crate) arm_runs: u64,
    /// Time these took.
    pub(crate) arm_us: u64,
    /// First writes to armed pages, as far as the scans tell.
    pub(crate) faults: u64,
    /// What one of them costs, as measured at the start.
    pub(crate) fault_ns: u64,
    /// Collections that were full since partial ones were found to cost more.
    pub(crate) full_preferred: u64,
}

/// Takes fixed-size fields off the front of a record.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*head))
    }

    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*head))
    }

    fn text(&mut self, bytes: usize) -> Option<String> {
        let (head, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        let text = head.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// All records in a directory, that of process `pid` first, then by pauses.
pub(crate) fn read_all(dir: &Path, pid: u64) -> Vec<Summary> {
    let mut summaries: Vec<Summary> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| read(&entry.ok()?.path()))
        .collect();
    summaries.sort_by_key(|s| (s.pid != pid, std::cmp::Reverse(s.pauses), s.pid));
    summaries
}

/// Whether the collector was loaded from `dir`, where that is known.
pub(crate) fn is_from(summary: &Summary, dir: &Path) -> bool {
    summary.gc_library.as_deref().is_none_or(|library| is_in(library, dir))
}

/// Whether a file lies in `dir`, by whatever name.
pub(crate) fn is_in(file: &Path, dir: &Path) -> bool {
    let found = file.parent().and_then(|dir| dir.canonicalize().ok());
    found.is_some() && found == dir.canonicalize().ok()
}

/// Reads one record; `None` for a file that is none (a process that died while making it).
pub(crate) fn read(path: &Path) -> Option<Summary> {
    let file = File::open(path).ok()?;
    let mut bytes = [0_u8; FIXED_BYTES];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let mut summary = parse(&bytes)?;
    let listed = summary.pauses_listed.min(MOST_LISTED) as usize;
    let mut list = vec![0_u8; listed * 8];
    file.read_exact_at(&mut list, FIXED_BYTES as u64).ok()?;
    let mut pauses: Vec<u64> = list
        .chunks_exact(8)
        .filter_map(|chunk| chunk.try_into().ok().map(u64::from_ne_bytes))
        .collect();
    pauses.sort_unstable();
    summary.pause_p50_ms = percentile_ms(&pauses, 50);
    summary.pause_p99_ms = percentile_ms(&pauses, 99);
    Some(summary)
}

/// Nearest rank: the smallest pause that at least `percent` of all do not exceed.
fn percentile_ms(sorted_ns: &[u64], percent: usize) -> Option<f64> {
    let rank = (sorted_ns.len() * percent).div_ceil(100);
    sorted_ns.get(rank.checked_sub(1)?).map(|ns| *ns as f64 / 1e6)
}

/// What stands before the list of pauses.
fn parse(bytes: &[u8]) -> Option<Summary> {
    let mut f = Fields(bytes);
    if f.text(8)? != "BARCHAN" || f.u32()? != 3 || f.u32()? as usize != FIXED_BYTES {
        return None;
    }
    let pid = f.u64()?;
    let (begin_ns, last_ns, stop_ns) = (f.u64()?, f.u64()?, f.u64()?);
    let (collections, heap_peak_bytes) = (f.u64()?, f.u64()?);
    let (pauses, pauses_listed) = (f.u64()?, f.u64()?);
    let (pause_sum_ns, pause_max_ns) = (f.u64()?, f.u64()?);
    let (vdb, incremental, version) = (f.u64()?, f.u64()?, f.u64()?);
    let has_stats = f.u64()? != 0;
    let stats = DirtyBits {
        scans: f.u64()?,
        scan_us: f.u64()?,
        pages_scanned: f.u64()?,
        pages_dirty: f.u64()?,
        pages_armed: f.u64()?,
        pages_disarmed: f.u64()?,
        arm_runs: f.u64()?,
        arm_us: f.u64()?,
        faults: f.u64()?,
        fault_ns: f.u64()?,
        full_preferred: f.u64()?,
    };
    let source_name = f.text(32)?;
    let program = f.text(64)?;
    let library = f.text(1024)?;
    let source = if has_stats && !source_name.is_empty() {
        Some(source_name)
    } else {
        vdb_name(vdb).map(str::to_owned)
    };
    Some(Summary {
        pid,
        program,
        gc_version: format!("{}.{}.{}", version >> 16, version >> 8 & 0xff, version & 0xff),
        gc_library: (!library.is_empty()).then(|| library.into()),
        seconds: last_ns.saturating_sub(begin_ns) as f64 / 1e9,
        collections,
        pauses,
        pauses_listed,
        pause_p50_ms: None,
        pause_p99_ms: None,
        pause_max_ms: (pauses > 0).then_some(pause_max_ns as f64 / 1e6),
        pause_sum_ms: pause_sum_ns as f64 / 1e6,
        heap_peak_bytes,
        incremental: incremental != 0,
        source,
        dirty_bits: has_stats.then_some(stats),
        died_in_pause: stop_ns != 0,
    })
}

/// bdwgc's `GC_VDB_` constants.
fn vdb_name(vdb: u64) -> Option<&'static str> {
    match vdb {
        0x00 => Some("none"),
        0x01 => Some("mprotect"),
        0x02 => Some("manual"),
        0x04 => Some("default"),
        0x40 => Some("soft-dirty"),
        0x80 => Some("userfaultfd"),
        0x100 => Some("pagemap-scan"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let pauses: Vec<u64> = (1..=200).map(|ms| ms * 1_000_000).collect();
        assert_eq!(percentile_ms(&pauses, 50), Some(100.0));
        assert_eq!(percentile_ms(&pauses, 99), Some(198.0));
        assert_eq!(percentile_ms(&[5_000_000], 50), Some(5.0));
        assert_eq!(percentile_ms(&[], 50), None);
    }

    #[test]
    fn other_files_are_refused() {
        assert!(parse(&[]).is_none());
        assert!(parse(&[0; FIXED_BYTES]).is_none());
        let mut bytes = vec![0; FIXED_BYTES];
        bytes[..8].copy_from_slice(b"BARCHAN\0");
        bytes[8..12].copy_from_slice(&3_u32.to_ne_bytes());
        assert!(parse(&bytes).is_none(), "the size is missing");
        bytes[12..16].copy_from_slice(&(FIXED_BYTES as u32).to_ne_bytes());
        let summary = parse(&bytes).expect("an empty record");
        assert_eq!((summary.pauses, summary.pause_max_ms), (0, None));
    }
}

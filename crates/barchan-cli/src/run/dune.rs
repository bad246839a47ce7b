//! What guest mode cost the program, for `barchan run --dune`.

use std::ffi::OsStr;
use std::path::Path;

use dune::stats::Snapshot;

/// System calls that are named in the summary.
const NAMED: usize = 6;

/// The records of all processes, those of `pid` first, then by exits.
pub(crate) fn read(directory: &Path, pid: u32) -> Vec<Snapshot> {
    let mut processes: Vec<Snapshot> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Snapshot::parse(&std::fs::read(entry.ok()?.path()).ok()?))
        .collect();
    processes.sort_by_key(|p| (p.pid != pid, std::cmp::Reverse(p.exits)));
    processes
}

fn calls(process: &Snapshot) -> u64 {
    process.calls.iter().map(|(_, count)| count).sum()
}

fn name(nr: usize) -> String {
    dune::effects::name(nr as u64).map_or_else(|| format!("call {nr}"), str::to_owned)
}

/// The summary.
pub(super) fn render(program: &OsStr, processes: &[Snapshot]) -> String {
    let program = Path::new(program).display();
    let mut out = String::new();
    if processes.is_empty() {
        out.push_str(&format!(
            "barchan: {program} left no record of guest mode: it is linked statically, or runs with \
             other rights, or there is no room for the record in {}, or it said why above.\n",
            std::env::temp_dir().display()
        ));
        return out;
    }
    if processes.iter().all(|process| process.exits == 0) {
        out.push_str("  guest mode   not entered, as was said above: the program ran without it\n");
        return out;
    }
    let sum = |f: fn(&Snapshot) -> u64| processes.iter().map(f).sum::<u64>();
    out.push_str(&format!(
        "  guest mode   {} process{}, {} exits: {} system calls, {} page faults, {} signals, \
         {} interruptions\n",
        processes.len(),
        if processes.len() == 1 { "" } else { "es" },
        sum(|p| p.exits),
        sum(calls),
        sum(|p| p.faults),
        sum(|p| p.signals),
        sum(|p| p.interrupted),
    ));
    let mut most = std::collections::BTreeMap::<usize, u64>::new();
    for (nr, count) in processes.iter().flat_map(|p| &p.calls) {
        *most.entry(*nr).or_default() += count;
    }
    let mut most: Vec<_> = most.into_iter().collect();
    most.sort_by_key(|(nr, count)| (std::cmp::Reverse(*count), *nr));
    let named: Vec<_> =
        most.iter().take(NAMED).map(|(nr, count)| format!("{} {count}", name(*nr))).collect();
    out.push_str(&format!("  most called  {}\n", named.join(", ")));
    out
}

/// The summary for machines.
pub(super) fn to_json(processes: &[Snapshot]) -> serde_json::Value {
    processes
        .iter()
        .map(|process| {
            let calls: serde_json::Map<_, _> =
                process.calls.iter().map(|(nr, count)| (name(*nr), (*count).into())).collect();
            serde_json::json!({
                "pid": process.pid,
                "program": process.name,
                "exits": process.exits,
                "page_faults": process.faults,
                "missing_pages": process.missing_pages,
                "signals": process.signals,
                "interrupted": process.interrupted,
                "system_calls": calls,
            })
        })
        .collect()
}

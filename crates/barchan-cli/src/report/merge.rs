//! Several reports as one: measurements that were made one after the other, on one machine and under
//! the same conditions.

use std::path::PathBuf;

use barchan_boehm::{Error, ErrorKind, Result};

use crate::bench::model::{Any, Report};

/// Reads the files; more than one are merged.
pub(super) fn read(files: &[PathBuf]) -> Result<Any> {
    if let [file] = files {
        return Report::read(file);
    }
    let mut merged: Option<Report> = None;
    for file in files {
        let refused = |why: String| {
            Error::new(ErrorKind::BadResult, "these reports cannot be drawn as one")
                .tried(format!("{}: {why}", file.display()))
                .remedy("draw it alone: barchan report FILE.json")
        };
        let Any::Plain(report) = Report::read(file)? else {
            return Err(refused("it is one of `barchan bench paper`".to_owned()));
        };
        match &mut merged {
            None => merged = Some(*report),
            Some(all) => add(all, *report).map_err(refused)?,
        }
    }
    merged.map(|report| Any::Plain(Box::new(report))).ok_or_else(|| {
        Error::new(ErrorKind::BadResult, "no report was named").remedy("barchan report FILE.json")
    })
}

/// Adds a report to another one, or says why it cannot be.
fn add(all: &mut Report, more: Report) -> std::result::Result<(), String> {
    let differ = |what: &str| Err(format!("{what} of it is not that of the first"));
    if (&all.machine.cpu, all.machine.cores) != (&more.machine.cpu, more.machine.cores)
        || all.machine.kernel != more.machine.kernel
    {
        return differ("the machine");
    }
    for info in more.collectors {
        match all.collectors.iter().find(|known| known.collector == info.collector) {
            Some(known) if known.description != info.description => return differ("a collector"),
            Some(_) => {}
            None => all.collectors.push(info),
        }
    }
    if all.rounds != more.rounds {
        return differ("the number of rounds");
    }
    if (all.quick, all.pause_ms, all.markers) != (more.quick, more.pause_ms, more.markers) {
        return differ("a setting (sizes, limit of pauses or markers)");
    }
    for info in more.workloads {
        match all.workloads.iter_mut().find(|known| known.name == info.name) {
            Some(known) if known.command != info.command => return differ("a workload's command"),
            // Either may be from before what it needs was installed.
            Some(known) if info.unavailable.is_none() => known.unavailable = None,
            Some(_) => {}
            None => all.workloads.push(info),
        }
    }
    for run in &more.runs {
        if all.runs.iter().any(|known| known.workload == run.workload && known.config == run.config)
        {
            return Err(format!("{} on {} is in both", run.config, run.workload));
        }
    }
    for info in more.configs {
        match all.configs.iter_mut().find(|known| known.name == info.name) {
            Some(known) if known.environment != info.environment => {
                return differ("a configuration's environment");
            }
            Some(known) if known.unavailable.is_some() => *known = info,
            Some(_) => {}
            None => all.configs.push(info),
        }
    }
    // Baselines first, as in a benchmark that measures all of them; settings keep their order.
    all.configs.sort_by_key(|info| (info.config.mode, info.config.collector));
    all.runs.extend(more.runs);
    all.command = format!("{}\n{}", all.command, more.command);
    all.duration_s += more.duration_s;
    all.interrupted |= more.interrupted;
    if more.started < all.started {
        all.started = more.started;
    }
    if all.machine.commit != more.machine.commit {
        let commits = [all.machine.commit.take(), more.machine.commit];
        all.machine.commit = Some(commits.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

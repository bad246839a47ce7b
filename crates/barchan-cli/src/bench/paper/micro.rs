//! Tables 2 and 3: every row by every means, each in a process of its own, in interleaved rounds.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use barchan_boehm::Result;
use dune_bench::{Error, Means, Row};
use serde::{Deserialize, Serialize};

use super::model::{Guest, Micro, MicroOutcome, MicroRun, MicroSample};
use crate::bench::progress::{Key, Progress};
use crate::cli::PaperProbeArgs;
use crate::guest;

/// What a process that measured says: a sample, why there can be none here, or what went wrong.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Said {
    Sample(MicroSample),
    Why(String),
    Wrong(String),
}

/// `barchan paper-probe`
pub(crate) fn probe(args: &PaperProbeArgs) -> Result<ExitCode> {
    guest::print_json(&match dune_bench::measure(args.row, args.means) {
        Ok(sample) => Said::Sample(sample.into()),
        Err(Error::Unavailable(why)) => Said::Why(why),
        Err(Error::Failed(why)) => Said::Wrong(why),
    })
}

/// All rounds; whether ^C has ended them early.
pub(super) fn measure(rounds: u32, guest: &Guest, stop: &AtomicBool) -> (Micro, bool) {
    let mut micro = Micro::default();
    let mut left = std::collections::VecDeque::from(schedule(rounds));
    let mut progress = Progress::new(left.len());
    while let Some((round, row, means)) = left.pop_front() {
        let keys: Vec<Key> = std::iter::once((round, row, means))
            .chain(left.iter().copied())
            .map(|(_, row, means)| key(row, means))
            .collect();
        progress.begin(&format!("round {round}: {} by {}", row.name(), means.name()), &keys);
        let begin = Instant::now();
        let outcome = match &guest.why {
            Some(why) if means == Means::Guest => MicroOutcome::Unavailable { why: why.clone() },
            _ => outcome(row, means),
        };
        if stop.load(Ordering::Relaxed) {
            progress.finish();
            return (micro, true); // the process got the ^C too
        }
        progress.end(key(row, means), begin.elapsed());
        if let MicroOutcome::Failed { why } = &outcome {
            progress.say(&format!("FAILED {} by {}: {why}", row.name(), means.name()));
        }
        if matches!(outcome, MicroOutcome::Unavailable { .. }) {
            let before = left.len();
            left.retain(|&(_, r, m)| (r, m) != (row, means));
            progress.skip(before - left.len());
        }
        let (row, means) = (row.name().to_owned(), means.name().to_owned());
        micro.runs.push(MicroRun { row, means, round, outcome });
    }
    progress.finish();
    (micro, false)
}

fn outcome(row: Row, means: Means) -> MicroOutcome {
    match guest::run(&["paper-probe", row.name(), means.name()], &[]) {
        Ok(Said::Sample(sample)) => MicroOutcome::Measured { sample },
        Ok(Said::Why(why)) => MicroOutcome::Unavailable { why },
        Ok(Said::Wrong(why)) | Err(why) => MicroOutcome::Failed { why },
    }
}

fn key(row: Row, means: Means) -> Key {
    (row as usize, means as usize)
}

/// The order of all measurements. The means of a row begin one further in each round.
fn schedule(rounds: u32) -> Vec<(u32, Row, Means)> {
    let mut order = Vec::new();
    for round in 1..=rounds {
        for row in Row::ALL {
            let means = row.means();
            let first = round as usize - 1;
            order.extend((0..means.len()).map(|i| (round, row, means[(first + i) % means.len()])));
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_every_row_by_every_means_and_the_order_rotates() {
        let each: usize = Row::ALL.iter().map(|row| row.means().len()).sum();
        let order = schedule(3);
        assert_eq!(order.len(), 3 * each);
        for round in 1..=3 {
            let mut keys: Vec<_> =
                order.iter().filter(|run| run.0 == round).map(|run| key(run.1, run.2)).collect();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), each, "round {round}");
        }
        let firsts: Vec<_> = (1..=3)
            .filter_map(|round| order.iter().find(|run| (run.0, run.1) == (round, Row::Trap)))
            .map(|run| run.2)
            .collect();
        assert_eq!(firsts, Row::Trap.means());
    }
}

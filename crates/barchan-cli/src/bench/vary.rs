//! `--vary`: each configuration under several values of one environment variable, and what
//! follows from it.
//!
//! Two questions are asked that way. With `GC_FREE_SPACE_DIVISOR`, which trades heap for time:
//! how fast is each collector *in the same heap*? With `GC_BARCHAN_OFF`, which switches off
//! single choices of the patched collector: what is each of them good for?

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::config::{Collector, Config, Mode};
use super::summary::{Cell, Row};

/// Variables that the benchmark sets itself.
const OWN: [&str; 4] =
    ["GC_MARKERS", "GC_ENABLE_INCREMENTAL", "GC_PAUSE_TIME_TARGET", "GC_USE_GETWRITEWATCH"];

/// What `--vary` takes: a variable and its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vary(Vec<Setting>);

/// The variable with one of the values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    /// The variable's name.
    pub(crate) variable: String,
    /// Its value; `None` leaves it unset.
    pub(crate) value: Option<String>,
}

impl Vary {
    /// The settings, in the order in which they were given.
    pub(crate) fn settings(&self) -> impl Iterator<Item = Setting> + '_ {
        self.0.iter().cloned()
    }
}

impl fmt::Display for Vary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<&str> =
            self.0.iter().map(|setting| setting.value.as_deref().unwrap_or("")).collect();
        let variable = self.0.first().map_or("", |setting| &setting.variable);
        write!(f, "{variable}={}", values.join(","))
    }
}

impl FromStr for Vary {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (variable, values) =
            text.split_once('=').ok_or("it should be VARIABLE=VALUE,VALUE,...")?;
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if variable.is_empty() || !variable.chars().all(fits) {
            return Err(format!("{variable:?} is no name of an environment variable"));
        }
        if !variable.starts_with("GC_") && !variable.starts_with("BARCHAN_") {
            return Err(format!(
                "{variable} is not the collector's: GC_... or BARCHAN_... it should be"
            ));
        }
        if OWN.contains(&variable) {
            return Err(format!("{variable} is set by the benchmark, for each configuration"));
        }
        let mut settings: Vec<Setting> = Vec::new();
        for value in values.split(',') {
            let value = (!value.is_empty()).then(|| value.to_owned());
            let setting = Setting { variable: variable.to_owned(), value };
            if settings.contains(&setting) {
                return Err(format!("{setting} is there twice"));
            }
            settings.push(setting);
        }
        if settings.len() < 2 {
            return Err("two values or more, please; an empty one leaves the variable unset".into());
        }
        Ok(Self(settings))
    }
}

impl Setting {
    /// Whether the value is a name: one that has no place on an axis, as a number has.
    pub(crate) fn is_a_name(&self) -> bool {
        self.value.as_ref().is_some_and(|value| value.parse::<f64>().is_err())
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => f.pad(&format!("{}={value}", self.variable)),
            None => f.pad(&format!("{} unset", self.variable)),
        }
    }
}

/// One configuration's time over its peak heap, a point for each setting.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// The configuration.
    pub(crate) config: Config,
    /// By peak heap, the smallest first.
    pub(crate) points: Vec<Point>,
}

/// Medians of one setting.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    /// The setting.
    pub(crate) setting: Setting,
    /// Peak heap.
    pub(crate) heap_mb: f64,
    /// Wall time.
    pub(crate) seconds: f64,
}

/// Heaps grow in steps: one that is larger by no more than this is the same heap.
const SAME_HEAP: f64 = 1.02;

impl Curve {
    /// The least time in a heap of at most so many MB; linear between two neighbouring points. `None` if
    /// every setting needs a larger heap.
    pub(crate) fn seconds_within(&self, heap_mb: f64) -> Option<f64> {
        let fits = |point: &&Point| point.heap_mb <= heap_mb * SAME_HEAP;
        let measured = self.points.iter().filter(fits).map(|point| point.seconds);
        let between = self.points.windows(2).filter_map(|pair| {
            let (low, high) = (&pair[0], &pair[1]);
            let inside = low.heap_mb < heap_mb && heap_mb < high.heap_mb;
            inside.then(|| {
                let part = (heap_mb - low.heap_mb) / (high.heap_mb - low.heap_mb);
                low.seconds + part * (high.seconds - low.seconds)
            })
        });
        measured.chain(between).min_by(f64::total_cmp)
    }
}

/// The curves of one workload's rows, in the order of the configurations; configurations without
/// a setting have none, nor has any if a value is a name: names are no steps from one heap to another.
pub(crate) fn curves(rows: &[Row<'_>]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    if rows.iter().any(|row| row.info().setting.as_ref().is_some_and(Setting::is_a_name)) {
        return curves;
    }
    for row in rows {
        let (Some(cell), Some(setting)) = (row.cell(), &row.info().setting) else { continue };
        let point = Point {
            setting: setting.clone(),
            heap_mb: cell.heap_peak_mb.median,
            seconds: cell.total_s.median,
        };
        match curves.iter_mut().find(|curve| curve.config == cell.config) {
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve { config: cell.config, points: vec![point] }),
        }
    }
    for curve in &mut curves {
        curve.points.sort_by(|a, b| a.heap_mb.total_cmp(&b.heap_mb));
    }
    curves
}

/// A point of the patched collector's beside the baselines in the same heap.
#[derive(Clone, Debug)]
pub(crate) struct AtEqualHeap {
    /// The configuration.
    pub(crate) config: Config,
    /// The point.
    pub(crate) point: Point,
    /// The fastest baseline in the same mode within that heap, and its time.
    pub(crate) same_mode: Option<(Config, f64)>,
    /// The fastest baseline in a full mode, one marker or several.
    pub(crate) full: Option<(Config, f64)>,
}

/// Every point of the patched collector with its rivals; empty if no baseline was measured.
pub(crate) fn at_equal_heap(curves: &[Curve]) -> Vec<AtEqualHeap> {
    let fastest = |heap_mb: f64, fits: &dyn Fn(Mode) -> bool| {
        curves
            .iter()
            .filter(|curve| curve.config.collector.is_baseline() && fits(curve.config.mode))
            .filter_map(|curve| Some((curve.config, curve.seconds_within(heap_mb)?)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
    };
    if !curves.iter().any(|curve| curve.config.collector.is_baseline()) {
        return Vec::new();
    }
    curves
        .iter()
        .filter(|curve| curve.config.collector == Collector::Barchan)
        .flat_map(|curve| curve.points.iter().map(|point| (curve.config, point)))
        .map(|(config, point)| AtEqualHeap {
            config,
            point: point.clone(),
            same_mode: fastest(point.heap_mb, &|mode| mode == config.mode),
            full: fastest(point.heap_mb, &|mode| !mode.needs_dirty_bits()),
        })
        .collect()
}

/// A setting of one configuration over the same configuration with the variable unset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AgainstUnset<'a> {
    /// The setting's numbers.
    pub(crate) cell: &'a Cell,
    /// Those with the variable unset.
    pub(crate) unset: &'a Cell,
    /// The setting.
    pub(crate) setting: &'a Setting,
}

/// Every setting that has a partner with the variable unset.
pub(crate) fn against_unset<'a>(rows: &'a [Row<'a>]) -> Vec<AgainstUnset<'a>> {
    let measured =
        || rows.iter().filter_map(|row| Some((row.cell()?, row.info().setting.as_ref()?)));
    measured()
        .filter(|(_, setting)| setting.value.is_some())
        .filter_map(|(cell, setting)| {
            let (unset, _) =
                measured().find(|(other, at)| at.value.is_none() && other.config == cell.config)?;
            Some(AgainstUnset { cell, unset, setting })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::config::DirtySource;

    fn config(collector: Collector, mode: Mode) -> Config {
        Config { collector, mode, dirty: DirtySource::None }
    }

    fn curve(config: Config, points: &[(f64, f64)]) -> Curve {
        let points = points.iter().map(|&(heap_mb, seconds)| Point {
            setting: Setting { variable: "V".to_owned(), value: Some(format!("{heap_mb}")) },
            heap_mb,
            seconds,
        });
        Curve { config, points: points.collect() }
    }

    #[test]
    fn variables_and_values_are_checked() {
        let vary: Vary = "GC_BARCHAN_OFF=,heat,lift".parse().expect("valid");
        let settings: Vec<_> = vary.settings().map(|s| s.to_string()).collect();
        assert_eq!(
            settings,
            ["GC_BARCHAN_OFF unset", "GC_BARCHAN_OFF=heat", "GC_BARCHAN_OFF=lift"]
        );
        assert_eq!(vary.to_string(), "GC_BARCHAN_OFF=,heat,lift");
        let wrong = ["", "GC_A", "GC_A=", "GC_A=1", "GC_A=1,1", "GC_A=,1,", "=1,2", "GC_ =1,2"];
        for wrong in wrong.into_iter().chain(["PATH=1,2", "GC_MARKERS=1,2"]) {
            assert!(wrong.parse::<Vary>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn time_within_a_heap_is_interpolated_and_never_beyond_what_was_measured() {
        let curve =
            curve(config(Collector::Debian, Mode::Full), &[(10.0, 4.0), (20.0, 2.0), (40.0, 3.0)]);
        assert_eq!(curve.seconds_within(9.0), None);
        assert_eq!(curve.seconds_within(10.0), Some(4.0));
        assert_eq!(curve.seconds_within(15.0), Some(3.0));
        assert_eq!(curve.seconds_within(20.0), Some(2.0));
        assert_eq!(curve.seconds_within(100.0), Some(2.0), "a smaller heap may be the faster");
        assert_eq!(curve.seconds_within(19.7), Some(2.0), "2 % are the same heap");
    }

    #[test]
    fn rivals_are_the_fastest_in_the_same_heap() {
        let curves = [
            curve(config(Collector::Debian, Mode::Full), &[(10.0, 4.0), (20.0, 2.0)]),
            curve(config(Collector::Pinned, Mode::FullParallel), &[(12.0, 3.0)]),
            curve(config(Collector::Debian, Mode::Generational), &[(30.0, 5.0)]),
            curve(config(Collector::Barchan, Mode::Generational), &[(11.0, 3.0), (30.0, 1.0)]),
        ];
        let found = at_equal_heap(&curves);
        assert_eq!(found.len(), 2);
        assert!(found[0].same_mode.is_none(), "it needs a larger heap");
        assert_eq!(found[0].full.map(|(c, s)| (c.collector, s)), Some((Collector::Debian, 3.8)));
        assert_eq!(found[1].same_mode.map(|(_, s)| s), Some(5.0));
        assert_eq!(found[1].full.map(|(_, s)| s), Some(2.0));
        assert!(at_equal_heap(&curves[3..]).is_empty(), "no baseline");
    }
}

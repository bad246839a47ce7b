//! The table and the HTML page: for a benchmark that just ended, and for `barchan report`,
//! which draws those of an earlier one again.

mod figures;
mod grid;
pub(crate) mod html;
mod merge;
pub(crate) mod paper;
pub(crate) mod paper_html;
mod paper_plot;
mod plot;
mod switches;
pub(crate) mod table;
mod vary;

use std::fmt::{self, Write as _};
use std::process::ExitCode;

use barchan_boehm::Result;

use crate::bench::model::Any;
use crate::cli::ReportArgs;
use crate::{note, write_file};

/// Runs the subcommand.
pub(crate) fn command(args: &ReportArgs) -> Result<ExitCode> {
    let (text, page) = match merge::read(&args.files)? {
        Any::Plain(report) => (table::render(&report), html::render(&report)),
        Any::Paper(report) => (paper::render(&report), paper_html::render(&report)),
    };
    crate::print(&text)?;
    if let Some(path) = &args.html {
        write_file(path, &page)?;
        note(format_args!("report: {}", path.display()));
    }
    if let Some(dir) = &args.figures {
        let count = figures::write(&page, dir)?;
        note(format_args!("figures: {count} in {}", dir.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Appends to a text or a page; writing to a String cannot fail.
fn put(text: &mut String, what: fmt::Arguments<'_>) {
    let _ = text.write_fmt(what);
}

/// [`put`] and the end of the line.
fn line(text: &mut String, what: fmt::Arguments<'_>) {
    put(text, what);
    text.push('\n');
}

/// A number with as many decimals as three digits need.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// A number, or a dash for one that was not measured.
pub(crate) fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), number)
}

/// A count, or a dash for one that was not made.
fn count(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0}"))
}

/// A whole number with its thousands apart.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if value <= -0.5 { format!("-{out}") } else { out }
}

/// A ratio of times as people say it.
pub(crate) fn speed(ratio: f64) -> String {
    if (0.995..1.005).contains(&ratio) {
        "as fast".to_owned()
    } else if ratio < 1.0 {
        format!("{:.2}× faster", 1.0 / ratio)
    } else {
        format!("{:.2}× slower", ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(number(1234.5), "1234");
        assert_eq!(number(12.345), "12.3");
        assert_eq!(number(0.123), "0.12");
        assert_eq!(maybe(None), "–");
    }

    #[test]
    fn thousands_are_apart() {
        let texts = [0.4, 999.0, 1000.0, 1_234_567.4, -12_345.0].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567", "-12,345"]);
    }

    #[test]
    fn ratios_are_put_in_words() {
        assert_eq!(speed(0.5), "2.00× faster");
        assert_eq!(speed(1.25), "1.25× slower");
        assert_eq!(speed(1.0), "as fast");
    }
}

//! Guest mode on this machine: whether it is to be had, on which kind of host, and why not.
//!
//! Entering cannot be undone, so it is tried in a process of its own: this program, started again
//! with a hidden subcommand.

use std::ffi::OsStr;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use barchan::Source;
use barchan_boehm::{Error, ErrorKind, Layout, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How long the trial may take, not counting time in which this process, and so the trial, stood still.
const LIMIT: Duration = Duration::from_secs(60);
/// A wait of a moment that took longer counts as this.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// What a program has to be started with in guest mode, beside its name, for this tracker to be there.
pub(crate) fn variable_of(tracker: &str) -> Option<(&'static str, &'static str)> {
    (tracker == Source::GuestPml.name()).then_some(("BARCHAN_DUNE_PML", "1"))
}

/// What a trial found.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct GuestMode {
    pub(crate) available: bool,
    /// The kind of host: VT-x, SVM or PVM.
    pub(crate) kind: Option<String>,
    /// What the processor says that it has, whether or not it can be used.
    pub(crate) hardware: Option<String>,
    /// The privilege level at which SYSCALL arrives.
    pub(crate) syscall_ring: Option<u8>,
    pub(crate) enter_us: Option<u64>,
    pub(crate) system_call_ns: Option<u64>,
    pub(crate) why: Option<String>,
    /// What the automatic choice of a source comes to there.
    pub(crate) source: Option<SourceChoice>,
}

/// The source of dirty bits that is chosen automatically in guest mode, and why.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct SourceChoice {
    pub(crate) name: Option<String>,
    /// What a page costs that is written once between two collections, where both sources work.
    pub(crate) guest_pte_ns: Option<u64>,
    pub(crate) pagemap_scan_ns: Option<u64>,
    /// All sources that work there.
    #[serde(default)]
    pub(crate) works: Vec<String>,
    /// Why it is not known.
    pub(crate) why: Option<String>,
}

impl SourceChoice {
    fn unknown(why: String) -> Self {
        let (name, guest_pte_ns, pagemap_scan_ns) = (None, None, None);
        Self { name, guest_pte_ns, pagemap_scan_ns, works: Vec::new(), why: Some(why) }
    }
}

/// `barchan source-probe`
pub(crate) fn probe_source() -> Result<ExitCode> {
    let opened = barchan::Tracker::builder().ignore_env().open();
    let measured = opened.as_ref().ok().and_then(|tracker| tracker.stats().measured);
    let found = SourceChoice {
        name: opened.as_ref().ok().map(|tracker| tracker.source().name().to_owned()),
        guest_pte_ns: measured.map(|measured| measured.guest_pte_ns),
        pagemap_scan_ns: measured.map(|measured| measured.pagemap_scan_ns),
        works: Source::ALL
            .into_iter()
            .filter(|source| barchan::probe(*source).is_ok())
            .map(|source| source.name().to_owned())
            .collect(),
        why: opened.as_ref().err().map(ToString::to_string),
    };
    print_json(&found)
}

/// Prints what a trial found.
pub(crate) fn print_json(found: &impl Serialize) -> Result<ExitCode> {
    let text = serde_json::to_string(found)
        .map_err(|e| Error::new(ErrorKind::BadResult, format!("cannot write JSON: {e}")))?;
    crate::print(&(text + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Lets the library choose in guest mode, with the runtime that is built already.
fn try_source(layout: Option<&Layout>) -> SourceChoice {
    let Some(library) = layout.and_then(crate::build::built_dune_library) else {
        let why = "the runtime that is preloaded is not built: cargo build --release --package \
                   dune-preload";
        return SourceChoice::unknown(why.to_owned());
    };
    let preload = [("LD_PRELOAD", library.as_os_str())];
    run(&["source-probe"], &preload).unwrap_or_else(SourceChoice::unknown)
}

impl GuestMode {
    fn unavailable(why: String) -> Self {
        let hardware = dune::host::kind::hardware().map(|kind| kind.name().to_owned());
        let (kind, syscall_ring, enter_us, system_call_ns) = (None, None, None, None);
        let why = Some(why);
        let source = None;
        Self {
            available: false,
            kind,
            hardware,
            syscall_ring,
            enter_us,
            system_call_ns,
            why,
            source,
        }
    }
}

/// `barchan guest-probe`
pub(crate) fn probe() -> Result<ExitCode> {
    let found = match dune::host::kind::measure() {
        Ok(measured) => GuestMode {
            available: true,
            kind: Some(measured.kind.map_or_else(
                || "real virtualization, of a kind that the processor's flags hide".to_owned(),
                |kind| kind.name().to_owned(),
            )),
            hardware: measured.hardware.map(|kind| kind.name().to_owned()),
            syscall_ring: Some(measured.syscall_ring),
            enter_us: Some(measured.enter_ns / 1000),
            system_call_ns: Some(measured.call_ns),
            why: None,
            source: None,
        },
        Err(error) => GuestMode::unavailable(error.to_string()),
    };
    print_json(&found)
}

/// Tries guest mode out.
pub(crate) fn try_out(layout: Option<&Layout>) -> GuestMode {
    let mut found = try_entering();
    found.source = found.available.then(|| try_source(layout));
    found
}

/// Whether there is guest mode, without the choice of a source.
pub(crate) fn try_entering() -> GuestMode {
    run(&["guest-probe"], &[]).unwrap_or_else(GuestMode::unavailable)
}

/// What this program prints as a subcommand of its own.
pub(crate) fn run<T: DeserializeOwned>(
    arguments: &[&str],
    environment: &[(&str, &OsStr)],
) -> std::result::Result<T, String> {
    let program = std::env::current_exe().map_err(|e| format!("cannot start a trial: {e}"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start a trial: {e}"))?;
    let mut waited = Duration::ZERO;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if waited < LIMIT => {
                let start = Instant::now();
                std::thread::sleep(Duration::from_millis(2));
                waited += start.elapsed().min(LONGEST_WAIT);
            }
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("a trial did not end within {} s", LIMIT.as_secs()));
            }
            Err(e) => return Err(format!("cannot wait for a trial: {e}")),
        }
    }
    let output = child.wait_with_output().map_err(|e| format!("cannot read a trial: {e}"))?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        format!(
            "a trial ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })
}

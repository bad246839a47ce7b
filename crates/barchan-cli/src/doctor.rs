//! `barchan doctor`: which sources of dirty bits this machine has, and what would give the
//! others.
//!
//! The library tries each source out; nothing is concluded from version numbers. What the
//! kernel, its configuration and its settings say is shown beside it, to explain.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use barchan::{KernelWrites, OpenError, Source};
use barchan_boehm::{Collector, Error, ErrorKind, Flavour, Layout, Result, SystemCollector};
use serde::Serialize;

use crate::build;
use crate::cli::DoctorArgs;
use crate::guest::{self, GuestMode, SourceChoice};
use crate::machine::{self, Machine};

/// All that is known.
#[derive(Debug, Serialize)]
struct Diagnosis {
    machine: Machine,
    sources: Vec<SourceState>,
    /// The one that is chosen unless told otherwise.
    best: Option<&'static str>,
    guest_mode: GuestMode,
    settings: Vec<Setting>,
    devices: Vec<Device>,
    collectors: Vec<CollectorState>,
}

/// One source of dirty bits.
#[derive(Debug, Serialize)]
struct SourceState {
    name: &'static str,
    available: bool,
    /// What happens when a system call writes to a tracked page.
    kernel_writes: Option<&'static str>,
    /// Why it is not available: unsupported, denied, exhausted or internal.
    kind: Option<&'static str>,
    why: Option<String>,
    remedy: Option<String>,
}

/// A setting of the kernel.
#[derive(Debug, Serialize)]
struct Setting {
    name: &'static str,
    value: Option<String>,
    meaning: &'static str,
}

/// A device that guest mode or userfaultfd uses.
#[derive(Debug, Serialize)]
struct Device {
    path: &'static str,
    exists: bool,
    accessible: bool,
}

/// A collector on this machine.
#[derive(Debug, Serialize)]
struct CollectorState {
    name: &'static str,
    /// Where it is.
    found: Option<String>,
    /// Whether it was built from other patches, or another library, than are here now.
    outdated: bool,
    /// How to get it, or a newer one.
    remedy: Option<String>,
}

/// Runs the subcommand. `layout` is missing when the checkout has gone.
pub(crate) fn command(layout: Option<&Layout>, args: &DoctorArgs) -> Result<ExitCode> {
    let diagnosis = diagnose(layout);
    if args.json {
        let text = serde_json::to_string_pretty(&diagnosis)
            .map_err(|e| Error::new(ErrorKind::BadResult, format!("cannot write JSON: {e}")))?;
        crate::print(&(text + "\n"))?;
    } else {
        crate::print(&render(&diagnosis))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn diagnose(layout: Option<&Layout>) -> Diagnosis {
    let sources: Vec<_> = Source::ALL.into_iter().map(try_out).collect();
    Diagnosis {
        machine: Machine::read(layout.map(Layout::root)),
        best: sources.iter().find(|source| source.available).map(|source| source.name),
        sources,
        guest_mode: guest::try_out(layout),
        settings: settings(),
        devices: ["/dev/kvm", "/dev/dune", "/dev/userfaultfd"].map(device).into(),
        collectors: collectors(layout),
    }
}

fn try_out(source: Source) -> SourceState {
    let mut state = SourceState {
        name: source.name(),
        available: false,
        kernel_writes: None,
        kind: None,
        why: None,
        remedy: None,
    };
    match barchan::probe(source) {
        Ok(kernel_writes) => {
            state.available = true;
            state.kernel_writes = Some(match kernel_writes {
                KernelWrites::Tracked => "tracked",
                KernelWrites::Efault => "EFAULT",
            });
        }
        Err(error) => {
            state.kind = Some(kind(error.kind()));
            match error {
                OpenError::Unavailable(why) => {
                    let errno = why.errno.map_or_else(
                        || ", without success".to_owned(),
                        |errno| format!(" failed with {errno}"),
                    );
                    state.why = Some(format!("{}{errno}", why.step));
                    state.remedy = Some(why.remedy.to_owned());
                }
                other => state.why = Some(other.to_string()),
            }
        }
    }
    state
}

fn kind(kind: barchan::ErrorKind) -> &'static str {
    match kind {
        barchan::ErrorKind::Invalid => "invalid",
        barchan::ErrorKind::Unsupported => "unsupported",
        barchan::ErrorKind::Denied => "denied",
        barchan::ErrorKind::Exhausted => "exhausted",
        barchan::ErrorKind::Internal => "internal",
    }
}

fn settings() -> Vec<Setting> {
    let setting = |name, value, meaning| Setting { name, value, meaning };
    vec![
        setting(
            "vm.max_map_count",
            machine::line("/proc/sys/vm/max_map_count"),
            "mappings a process may have: mprotect needs one for each change of protection",
        ),
        setting(
            "vm.unprivileged_userfaultfd",
            machine::line("/proc/sys/vm/unprivileged_userfaultfd"),
            "0 is fine: pagemap-scan does not depend on it",
        ),
        setting(
            "transparent huge pages",
            machine::transparent_huge_pages(),
            "always: soft-dirty reports 2 MiB for one write",
        ),
        setting("CONFIG_USERFAULTFD", kernel_config("CONFIG_USERFAULTFD"), "userfaultfd(2)"),
        setting(
            "CONFIG_PTE_MARKER_UFFD_WP",
            kernel_config("CONFIG_PTE_MARKER_UFFD_WP"),
            "write protection of pages that are not there yet: pagemap-scan needs it",
        ),
        setting("CONFIG_MEM_SOFT_DIRTY", kernel_config("CONFIG_MEM_SOFT_DIRTY"), "soft-dirty bits"),
    ]
}

/// A line of the running kernel's configuration, where it is readable: `y`, `m` or `not set`.
fn kernel_config(option: &str) -> Option<String> {
    let mut text = String::new();
    match fs::File::open("/proc/config.gz") {
        Ok(file) => flate2::read::GzDecoder::new(file).read_to_string(&mut text).ok()?,
        Err(_) => {
            let release = machine::line("/proc/sys/kernel/osrelease")?;
            fs::File::open(format!("/boot/config-{release}"))
                .ok()?
                .read_to_string(&mut text)
                .ok()?
        }
    };
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(option)?.strip_prefix('='))
        .unwrap_or("not set");
    Some(value.to_owned())
}

fn device(path: &'static str) -> Device {
    let accessible = fs::OpenOptions::new().read(true).write(true).open(path).is_ok();
    Device { path, exists: Path::new(path).exists(), accessible }
}

fn collectors(layout: Option<&Layout>) -> Vec<CollectorState> {
    let system = SystemCollector::find();
    let mut all = vec![CollectorState {
        name: "debian",
        found: system.as_ref().ok().map(|system| {
            let version = system.version().unwrap_or("unknown version");
            format!("{version}, {}", system.library_dir().display())
        }),
        outdated: false,
        remedy: system.is_err().then(|| "apt-get install libgc1".to_owned()),
    }];
    for (name, flavour) in [("pinned", Flavour::STOCK), ("barchan", Flavour::PATCHED)] {
        let built = layout.and_then(|layout| Some((layout, Collector::built(layout, flavour)?)));
        let found = built.as_ref().map(|(_, built)| built.library_dir().display().to_string());
        let outdated = built.is_some_and(|(layout, built)| build::is_outdated(layout, &built));
        let remedy = (found.is_none() || outdated).then(|| "barchan build".to_owned());
        all.push(CollectorState { name, found, outdated, remedy });
    }
    all
}

fn render(diagnosis: &Diagnosis) -> String {
    let machine = &diagnosis.machine;
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let mut out = format!(
        "Machine\n  CPU                          {}, {} cores{}\n  kernel                       \
         Linux {}\n  distribution                 {}\n",
        or_unknown(&machine.cpu),
        machine.cores,
        if machine.virtual_machine { ", virtual" } else { "" },
        or_unknown(&machine.kernel),
        or_unknown(&machine.distribution),
    );
    for setting in &diagnosis.settings {
        let value = setting.value.as_deref().unwrap_or("not told");
        out.push_str(&format!("  {:<28} {value:<10} ({})\n", setting.name, setting.meaning));
    }
    out.push_str("\nSources of dirty bits, best first (each was tried)\n");
    for source in &diagnosis.sources {
        out.push_str(&render_source(source, diagnosis.best));
    }
    out.push_str("\nCollectors\n");
    for collector in &diagnosis.collectors {
        let state = match (&collector.found, &collector.remedy) {
            (Some(found), Some(remedy)) => format!(
                "{found}, from other patches or another library than are here now; do this: {remedy}"
            ),
            (Some(found), None) => found.clone(),
            (None, remedy) => format!("not there; do this: {}", remedy.as_deref().unwrap_or("–")),
        };
        out.push_str(&format!("  {:<28} {state}\n", collector.name));
    }
    out.push_str("\nGuest mode (tried: `barchan run --dune`)\n");
    out.push_str(&render_guest_mode(&diagnosis.guest_mode));
    out.push_str("\nDevices (guest mode needs one of the first two)\n");
    for device in &diagnosis.devices {
        let state = match (device.exists, device.accessible) {
            (false, _) => "not there",
            (true, false) => "there, but not accessible to you",
            (true, true) => "there and accessible",
        };
        out.push_str(&format!("  {:<28} {state}\n", device.path));
    }
    out
}

fn render_guest_mode(found: &GuestMode) -> String {
    let hardware = found.hardware.as_deref().unwrap_or("no hardware virtualization");
    if !found.available {
        let why = found.why.as_deref().unwrap_or("no reason given");
        return format!("  ✗ {why}\n    the processor offers {hardware}\n");
    }
    let mut out = format!(
        "  ✓ {:<26} host {}; the processor offers {hardware}\n    {:<26} SYSCALL arrives at ring {}; \
         a system call takes {:.1} µs, entering {:.1} ms\n",
        "works,",
        found.kind.as_deref().unwrap_or("unknown"),
        "measured:",
        found.syscall_ring.map_or_else(|| "unknown".to_owned(), |ring| ring.to_string()),
        found.system_call_ns.unwrap_or(0) as f64 / 1e3,
        found.enter_us.unwrap_or(0) as f64 / 1e3,
    );
    if let Some(source) = &found.source {
        out.push_str(&render_choice(source));
    }
    out
}

fn render_choice(source: &SourceChoice) -> String {
    let Some(name) = &source.name else {
        let why = source.why.as_deref().unwrap_or("no reason given");
        return format!("    {:<26} the source of dirty bits there is not known: {why}\n", "");
    };
    let figures = match (source.guest_pte_ns, source.pagemap_scan_ns) {
        (Some(guest_pte), Some(pagemap_scan)) => format!(
            "a page written once between two collections costs {:.2} µs with guest-pte, {:.2} µs with \
             pagemap-scan",
            guest_pte as f64 / 1e3,
            pagemap_scan as f64 / 1e3,
        ),
        _ => "there was nothing to choose between".to_owned(),
    };
    format!(
        "    {:<26} {name}, used there by default: {figures}\n    {:<26} {}\n",
        "dirty bits:",
        "there work:",
        source.works.join(", ")
    )
}

fn render_source(source: &SourceState, best: Option<&str>) -> String {
    if source.available {
        let writes = match source.kernel_writes {
            Some("tracked") => "read(2) into the heap works and is reported",
            _ => "read(2) into the heap fails with EFAULT",
        };
        let chosen = if best == Some(source.name) { ", used by default" } else { "" };
        return format!("  ✓ {:<26} works{chosen}; {writes}\n", source.name);
    }
    let mut out = format!(
        "  ✗ {:<26} {}: {}\n",
        source.name,
        source.kind.unwrap_or("unknown"),
        source.why.as_deref().unwrap_or("no reason given")
    );
    if let Some(remedy) = &source.remedy {
        out.push_str(&format!("    {:<26} do this: {remedy}\n", ""));
    }
    out
}

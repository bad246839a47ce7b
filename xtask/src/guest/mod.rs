//! `cargo xtask guest-test`: runs a test where virtualization is, real or emulated.
//!
//! | Module | Holds |
//! |---|---|
//! | `debian`, `kernel`, `modules` | Debian's kernels, fetched and unpacked, and their modules |
//! | `debug_kernel`, `debug.config` | a kernel that finds bugs, built from Debian's source |
//! | `payload`, `program`, `cpio`, `init.sh` | the initramfs: busybox, modules, the test, its libraries |
//! | `machine`, `tcg`, `bochs`, `emulator` | the emulated machine and its process |
//! | `watch`, `verdict`, `files` | following the logs, judging by them, what was sent out |
//! | `native` | the same test on this machine's own /dev/kvm |
//! | `suite` | what the CI runs on each host |
//! | `collector`, `collector.sh` | the patched collector in guest mode: bdwgc's programs and real ones |
//! | `cargo.sh` | what answers for cargo in a guest |

mod bochs;
mod collector;
mod cpio;
mod debian;
mod debug_kernel;
mod emulator;
mod files;
mod kernel;
mod machine;
mod modules;
mod native;
mod payload;
mod program;
mod suite;
mod tcg;
mod verdict;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::{cargo, setup, step};
pub(crate) use collector::{PRELOAD, PRELOAD_SOURCE, SOURCES_OVER_DUNE, pause_ms};
pub(crate) use emulator::guest_test;
pub(crate) use kernel::{Kernel, Series};
use machine::{Machine, Run};
use payload::{Payload, Test};
pub(crate) use suite::{RUNTIME, runtime_tests};
use verdict::{Case, End, Report};

/// Where a test can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Host {
    /// This machine, with its own /dev/kvm
    Native,
    /// QEMU's emulator of an AMD processor: SVM, nested paging; two CPUs; boots in seconds
    Tcg,
    /// Bochs, an emulator of an Intel processor: VMX, EPT, VPID, PML, VMFUNC; exact and slow
    Bochs,
}

impl Host {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Tcg => "tcg",
            Self::Bochs => "bochs",
        }
    }

    /// The kind of virtualization that an emulated host must have; `kvm-probe` checks it.
    fn kind(self) -> Option<&'static str> {
        match self {
            Self::Native => None,
            Self::Tcg => Some("svm"),
            Self::Bochs => Some("vmx"),
        }
    }
}

/// `cargo xtask guest-test`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The emulated hosts boot Debian's kernel with an initramfs of busybox, kvm's modules, the test and
the libraries that it needs. The run succeeds only if the test ended with 0 and the kernel
was silent: any WARNING, BUG, Oops, stall or lockdep line, a taint, a module that does not
load or unload, the time limit, or a line that is missing, is a failure. Logs are kept in
build/guest/run.

  cargo xtask guest-test --host tcg                       the probe of the host itself
  cargo xtask guest-test --host bochs --kernel 6.12
  cargo xtask guest-test --host tcg --kernel debug        builds that kernel first: some minutes, once
  cargo xtask guest-test --host tcg --suite               what the CI runs there
  cargo xtask guest-test --host tcg -p dune --test enter -- --nocapture
  cargo xtask guest-test --host tcg --collector -- gctest_guest-pte guile
  cargo xtask guest-test --host bochs --no-kvm --module kmod/dune.ko -- kmod/tests/selftest -v
  cargo xtask guest-test --host tcg --module zram --file workloads:/workloads -- /bin/busybox ls /workloads

A module is built against the guest's kernel with
  make -C build/guest/kernel/6.1/build M=$PWD/kmod modules")]
pub(crate) struct Args {
    /// Where to run
    #[arg(long, value_enum)]
    host: Host,

    /// The kernel that an emulated host boots
    #[arg(long, value_enum, default_value_t = Series::V6_1)]
    kernel: Series,

    /// Virtual CPUs [default: 2; bochs: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: Option<u32>,

    /// The processor that Bochs plays (bochs-bin --help cpu) [default: corei7_skylake_x]
    #[arg(long, value_name = "MODEL")]
    cpu_model: Option<String>,

    /// Memory of the emulated machine, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(128..=3072))]
    memory: u32,

    /// A module to load before the test and unload after it: a file (x.ko) or a name of the
    /// guest's kernel, maybe with parameters: --module 'dune.ko debug=1'
    #[arg(long = "module", value_name = "MODULE")]
    modules: Vec<String>,

    /// Do not load kvm and kvm_intel or kvm_amd
    #[arg(long)]
    no_kvm: bool,

    /// A file or directory to bring into the guest, at the same path or at DST
    #[arg(long = "file", value_name = "SRC[:DST]")]
    files: Vec<String>,

    /// A file of the guest to bring out, to DST or into the current directory
    #[arg(long = "fetch", value_name = "PATH[:DST]")]
    fetch: Vec<String>,

    /// An environment variable of the test
    #[arg(long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,

    /// Added to the command line of the guest's kernel
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    append: String,

    /// A text that excuses a line of the kernel which would fail the run
    #[arg(long = "allow", value_name = "TEXT")]
    allowed: Vec<String>,

    /// How often a test restarts the machine; it begins anew each time, and passes the last time
    #[arg(long, value_name = "N", default_value_t = 0)]
    restarts: usize,

    /// Seconds for the whole run, booting included [default: 300; bochs and --suite: 900; --collector: 43200]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: Option<u64>,

    /// A package of this workspace to take the test from, with --test, --bin or --lib
    #[arg(short, long, value_name = "NAME")]
    package: Option<String>,

    /// An integration test of the package; several run one after the other in one machine
    #[arg(long, value_name = "NAME", requires = "package", conflicts_with_all = ["bin", "lib"])]
    test: Vec<String>,

    /// A program of the package
    #[arg(long, value_name = "NAME", requires = "package", conflicts_with = "lib")]
    bin: Option<String>,

    /// The unit tests of the package
    #[arg(long, requires = "package")]
    lib: bool,

    /// Build the package's test with optimisation
    #[arg(long, requires = "package")]
    release: bool,

    /// Swap space in memory (zram, 256 MiB)
    #[arg(long)]
    swap: bool,

    /// All tests of the project that are for this host, one after the other in one machine
    #[arg(long, conflicts_with_all = ["package", "command"])]
    suite: bool,

    /// bdwgc's own test programs, guile, ecl and w3m on the patched collector in guest mode; what follows -- are parts of
    /// names, of which a test has to contain one. --env SOURCES='NAME ...' chooses the sources of dirty bits
    #[arg(long, conflicts_with_all = ["package", "suite"])]
    collector: bool,

    /// Do not look for missing Debian packages
    #[arg(long)]
    skip_setup: bool,

    /// The program and its arguments; with --package only arguments. Without either: the probe
    #[arg(last = true, value_name = "BINARY [ARGS]")]
    command: Vec<String>,
}

/// For all of `--collector`, in Bochs.
pub(crate) const COLLECTOR_SECONDS: u64 = 43_200;

pub(crate) use native::unusable as native_unusable;

/// What the CI runs on `host`: the arguments of `cargo xtask`.
pub(crate) fn suite_command(host: &str, kernel: Option<Series>) -> Vec<String> {
    let mut words = vec!["guest-test".to_owned(), "--skip-setup".into(), "--suite".into()];
    words.extend(["--host".into(), host.into()]);
    words.extend(kernel.into_iter().flat_map(|series| ["--kernel".into(), series.to_string()]));
    words
}

/// Runs the task.
pub(crate) fn command(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.skip_setup && args.host != Host::Native {
        setup::for_guests()?;
    }
    let mut payload = Payload { tests: tests(args)?, ..Payload::default() };
    let interrupted = step::interrupt_flag()?;
    if args.host == Host::Native {
        if args.collector {
            bail!(
                "natively it is BARCHAN_DUNE_RUNS=1 cargo test -p barchan-cli --test dune collector"
            );
        }
        return native::run(args, &payload, &interrupted);
    }
    if args.suite {
        payload.files = suite::files(args.host, args.kernel)?;
    }
    if args.collector {
        payload.files = collector::files()?;
    }
    for file in &args.files {
        let (source, target) = file.split_once(':').unwrap_or((file, file));
        let source = Path::new(source)
            .canonicalize()
            .with_context(|| format!("there is no {source} to bring into the guest"))?;
        let target =
            if target == file { source.to_string_lossy().into_owned() } else { target.to_owned() };
        payload.files.push((source, target));
    }
    emulated(args, payload, &interrupted)
}

/// The tests to run.
fn tests(args: &Args) -> anyhow::Result<Vec<Test>> {
    let mut environment = Vec::new();
    for variable in &args.environment {
        let (name, value) = variable
            .split_once('=')
            .with_context(|| format!("--env {variable} is not NAME=VALUE"))?;
        environment.push((name.to_owned(), value.to_owned()));
    }
    if args.suite {
        return suite::tests(args.host, args.kernel, &environment);
    }
    if args.collector {
        return Ok(vec![collector::test(args.host, &args.command, &environment)?]);
    }
    if let Some(package) = &args.package {
        let test = |target: Vec<&str>| {
            let program = cargo::test_program(package, &target, args.release)?;
            let environment = environment.clone();
            anyhow::Ok(Test { program, arguments: args.command.clone(), environment })
        };
        return args.targets().into_iter().map(test).collect();
    }
    let (program, arguments) = if let Some((program, arguments)) = args.command.split_first() {
        let found = Path::new(program).canonicalize().with_context(|| {
            format!("there is no program {program}; give its path on this machine, not a name")
        })?;
        (found, arguments.to_vec())
    } else {
        return Ok(vec![suite::probe(args.host, &environment)?]);
    };
    Ok(vec![Test { program, arguments, environment }])
}

impl Args {
    /// What of the package is run, in cargo's words.
    fn targets(&self) -> Vec<Vec<&str>> {
        match &self.bin {
            Some(name) => vec![vec!["--bin", name]],
            None if self.test.is_empty() => vec![vec!["--lib"]],
            None => self.test.iter().map(|name| vec!["--test", name]).collect(),
        }
    }

    fn limit(&self) -> Duration {
        let default = if self.host == Host::Bochs { 900 } else { 300 };
        let default = if self.suite { 900 } else { default };
        let default = if self.collector { COLLECTOR_SECONDS } else { default };
        Duration::from_secs(self.timeout.unwrap_or(default))
    }
}

fn emulated(
    args: &Args,
    mut payload: Payload,
    interrupted: &AtomicBool,
) -> anyhow::Result<ExitCode> {
    let kernel = Kernel::get(args.kernel)?;
    let catalogue = modules::Catalogue::of(&kernel)?;
    if !args.no_kvm {
        let kvm = if args.host == Host::Bochs { "kvm_intel" } else { "kvm_amd" };
        catalogue.resolve(kvm, false, &mut payload.modules)?;
        if args.host == Host::Tcg {
            payload.holder = Some(suite::probe_program()?);
        }
    }
    if args.swap || args.suite {
        catalogue.resolve("zram", false, &mut payload.modules)?;
        // Its default compressor, which the kernel would ask modprobe for; built in since 6.12.
        if catalogue.has("lzo_rle") {
            catalogue.resolve("lzo_rle", false, &mut payload.modules)?;
        }
        payload.swap = true;
    }
    for module in &args.modules {
        catalogue.resolve(module, true, &mut payload.modules)?;
    }
    let mut destinations = Vec::new();
    for file in &args.fetch {
        let (path, destination) = file.split_once(':').unwrap_or((file, ""));
        let name = Path::new(path).file_name().with_context(|| format!("{path} names no file"))?;
        let here = if destination.is_empty() { PathBuf::from(name) } else { destination.into() };
        payload.fetch.push(path.to_owned());
        destinations.push(here);
    }
    let cpus = args.cpus.unwrap_or(if args.host == Host::Bochs { 1 } else { 2 });
    // In QEMU one more, which tests stay away from (`tcg`).
    let all = cpus + u32::from(payload.holder.is_some());
    let mut machine = Machine::new(args.host, &kernel, all, args.memory, &args.append);
    machine.cpu_model.clone_from(&args.cpu_model);
    let run = Run::create(&format!("{}-{}", args.host.name(), args.kernel))?;
    let nonce = nonce()?;
    let initramfs = payload.initramfs(&nonce, &run.dir)?;
    std::fs::write(&run.initramfs, initramfs).context("cannot write the initramfs")?;
    let names: Vec<_> = payload.tests.iter().map(Test::name).collect();
    println!(
        "guest: {} in {}, Linux {}, {cpus} CPU{}",
        names.join(", "),
        args.host.name(),
        kernel.release,
        if cpus == 1 { "" } else { "s" }
    );
    let mut emulator = match args.host {
        Host::Bochs => bochs::start(&machine, &run)?,
        _ => tcg::start(&machine, &run)?,
    };
    let files = !destinations.is_empty();
    let report = Report::with_restarts(args.restarts);
    let limit = args.limit();
    let seen = watch::watch(&mut emulator, &run, &nonce, limit, files, report, interrupted)?;
    drop(emulator);
    run.remove_images();
    let case = Case { nonce: &nonce, tests: &names, allowed: &args.allowed };
    let mut problems = verdict::problems(&seen.end, &seen.report, &seen.kernel_log, case);
    if files && seen.end == End::Done {
        problems.extend(files::extract(&run.files, &nonce, &payload.fetch, &destinations)?);
    }
    conclude(args, &run, &seen, &problems)
}

fn conclude(
    args: &Args,
    run: &Run,
    seen: &watch::Seen,
    problems: &[String],
) -> anyhow::Result<ExitCode> {
    let what = format!("{} with Linux {}", args.host.name(), args.kernel);
    let time = |spent: watch::Spent| {
        format!("{:.1} s ({:.1} s of CPU)", spent.clock.as_secs_f64(), spent.cpu_seconds)
    };
    let took = time(seen.all);
    let boot = seen
        .boot
        .map_or("did not begin".to_owned(), |spent| format!("began after {}", time(spent)));
    if problems.is_empty() {
        println!("guest: {what}: passed in {took}; the test {boot}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("guest: the end of the kernel's console ({}):", run.kernel_log.display());
    let lines: Vec<_> = seen.kernel_log.lines().collect();
    for line in &lines[lines.len().saturating_sub(40)..] {
        println!("    {}", line.trim_end());
    }
    println!("guest: {what}: FAILED after {took}; the test {boot}");
    for problem in problems {
        println!("guest:   {problem}");
    }
    println!("guest: the logs are in {}", run.dir.display());
    Ok(if seen.end == End::Interrupted { ExitCode::from(130) } else { ExitCode::FAILURE })
}

/// Fetches the kernels that are not there yet, and says where they are.
pub(crate) fn fetch_kernels() -> anyhow::Result<()> {
    for series in Series::FETCHED {
        let kernel = Kernel::get(series)?;
        println!(
            "setup: Linux {}; modules: make -C {}",
            kernel.release,
            kernel.build_dir().display()
        );
    }
    Ok(())
}

/// A word that nobody else knows, so that no line is taken for one of this run by accident.
fn nonce() -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

//! What an emulated machine is given, whichever emulator plays it, and the files of one run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::Host;
use super::kernel::Kernel;
use crate::cargo;

/// Runs whose logs are kept.
const KEPT_RUNS: usize = 20;

/// An emulated machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// Another than the emulator's own choice; only Bochs is told.
    pub(crate) cpu_model: Option<String>,
    pub(crate) image: PathBuf,
    pub(crate) command_line: String,
}

impl Machine {
    /// The machine of `host` that boots `kernel`; `more` is added to its command line.
    pub(crate) fn new(host: Host, kernel: &Kernel, cpus: u32, memory_mib: u32, more: &str) -> Self {
        // An Oops ends the run at once; `init` turns the console up when the test begins.
        let mut command_line = "console=ttyS0,115200 quiet oops=panic panic=0 audit=0 \
                                cryptomgr.notests"
            .to_owned();
        let own =
            if host == Host::Bochs { super::bochs::COMMAND_LINE } else { super::tcg::COMMAND_LINE };
        command_line = format!("{command_line} {own}");
        if !more.is_empty() {
            command_line = format!("{command_line} {more}");
        }
        Self { cpus, memory_mib, cpu_model: None, image: kernel.image(), command_line }
    }
}

/// The files of one run, in a directory of its own.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) dir: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// The kernel's console.
    pub(crate) kernel_log: PathBuf,
    /// The test's output and the lines of `init`.
    pub(crate) test_log: PathBuf,
    /// What the guest sends out.
    pub(crate) files: PathBuf,
    /// What the emulator itself prints.
    pub(crate) emulator_log: PathBuf,
}

impl Run {
    /// A directory for a run called `name`; logs of long past runs go.
    pub(crate) fn create(name: &str) -> anyhow::Result<Self> {
        let runs = cargo::root()?.join("build/guest/run");
        let dir = runs.join(format!("{name}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        prune(&runs);
        let file = |name: &str| dir.join(name);
        let run = Self {
            initramfs: file("initramfs"),
            kernel_log: file("kernel.log"),
            test_log: file("test.log"),
            files: file("files"),
            emulator_log: file("emulator.log"),
            dir: dir.clone(),
        };
        for log in [&run.kernel_log, &run.test_log, &run.files] {
            fs::write(log, "").with_context(|| format!("cannot write {}", log.display()))?;
        }
        Ok(run)
    }

    /// Removes what is big and can be made again; the logs stay.
    pub(crate) fn remove_images(&self) {
        for name in ["initramfs", "cd.iso", "stripped"] {
            fs::remove_file(self.dir.join(name)).ok();
        }
    }
}

/// Removes the oldest of the runs that are over; errors only leave some files behind.
fn prune(runs: &Path) {
    let mut over: Vec<_> = fs::read_dir(runs)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let process = name.rsplit('-').next().unwrap_or_default().to_owned();
            !Path::new("/proc").join(process).exists()
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    over.sort();
    let surplus = over.len().saturating_sub(KEPT_RUNS);
    for (_, dir) in over.into_iter().take(surplus) {
        fs::remove_dir_all(dir).ok();
    }
}

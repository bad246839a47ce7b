//! What this machine is: the stamp of every report, read from the kernel's own files.
//!
//! A fact that the machine does not tell is `None`, never a guess.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The stamp of a report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The CPU's model name.
    pub(crate) cpu: Option<String>,
    /// CPUs that this process may use.
    pub(crate) cores: usize,
    /// Revision of the CPU's microcode.
    pub(crate) microcode: Option<String>,
    /// Whether the kernel runs under a hypervisor.
    pub(crate) virtual_machine: bool,
    /// Memory in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// The kernel's release.
    pub(crate) kernel: Option<String>,
    /// The distribution's name.
    pub(crate) distribution: Option<String>,
    /// Setting of transparent huge pages: always, madvise or never.
    pub(crate) transparent_huge_pages: Option<String>,
    /// The C library and its version.
    pub(crate) libc: Option<String>,
    /// Load average of the last minute when the stamp was taken.
    pub(crate) load_1min: Option<f64>,
    /// Commit of the checkout, with `-dirty` if it has been edited.
    pub(crate) commit: Option<String>,
}

impl Machine {
    /// Reads the stamp; `checkout` is asked for its commit.
    pub(crate) fn read(checkout: Option<&Path>) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu: cpu_field(&cpuinfo, "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            microcode: cpu_field(&cpuinfo, "microcode"),
            virtual_machine: cpu_field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            memory_bytes: memory_bytes(),
            kernel: line("/proc/sys/kernel/osrelease"),
            distribution: distribution(),
            transparent_huge_pages: transparent_huge_pages(),
            libc: said("getconf", &["GNU_LIBC_VERSION"], None),
            load_1min: line("/proc/loadavg").and_then(|l| l.split(' ').next()?.parse().ok()),
            commit: checkout.and_then(|dir| {
                said("git", &["describe", "--always", "--dirty", "--abbrev=12"], Some(dir))
            }),
        }
    }
}

/// The first line of a small file, trimmed.
pub(crate) fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let first = text.lines().next()?.trim();
    (!first.is_empty()).then(|| first.to_owned())
}

/// The chosen one of the settings in brackets.
pub(crate) fn transparent_huge_pages() -> Option<String> {
    let text = line("/sys/kernel/mm/transparent_hugepage/enabled")?;
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn cpu_field(cpuinfo: &str, name: &str) -> Option<String> {
    cpuinfo.lines().find_map(|l| {
        let (key, value) = l.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn memory_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let total = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn distribution() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

/// The first line that a program prints, if it succeeds.
fn said(program: &str, args: &[&str], dir: Option<&Path>) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args);
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next()?.trim();
    (output.status.success() && !first.is_empty()).then(|| first.to_owned())
}

/// Whether the kernel keeps soft-dirty bits: a page just written has bit 55 set in
/// `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst). A kernel without
/// CONFIG_MEM_SOFT_DIRTY never sets it.
pub(crate) fn has_soft_dirty() -> bool {
    use std::os::unix::fs::FileExt as _;
    const PAGE: usize = 4096;
    let page = std::hint::black_box(vec![1_u8; 2 * PAGE]);
    let index = (page.as_ptr() as usize + PAGE) / PAGE;
    let mut entry = [0_u8; 8];
    fs::File::open("/proc/self/pagemap")
        .and_then(|f| f.read_exact_at(&mut entry, index as u64 * 8))
        .is_ok_and(|()| u64::from_ne_bytes(entry) >> 55 & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_cpuinfo_are_told_apart_by_their_whole_name() {
        let text = "model\t\t: 85\nmodel name\t: Some CPU @ 2.0GHz\nflags\t\t: fpu hypervisor\n";
        assert_eq!(cpu_field(text, "model name").as_deref(), Some("Some CPU @ 2.0GHz"));
        assert_eq!(cpu_field(text, "microcode"), None);
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let machine = Machine::read(None);
        assert!(machine.kernel.is_some() && machine.cores > 0);
        assert!(machine.memory_bytes.is_some_and(|bytes| bytes > 1 << 24));
    }
}

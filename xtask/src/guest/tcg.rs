//! The host `tcg`: QEMU's emulator of an AMD processor, with SVM and nested paging.
//!
//! It translates code, so it is fast, keeps no count of instructions, and its TLB forgives
//! some missing flushes. Both virtual CPUs run at the same time.

use std::process::Command;

use super::emulator::{self, Emulator};
use super::machine::{Machine, Run};

pub(crate) fn start(machine: &Machine, run: &Run) -> anyhow::Result<Emulator> {
    emulator::require("qemu-system-x86_64")?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    for log in [&run.kernel_log, &run.test_log, &run.files] {
        command.arg("-serial").arg(format!("file:{}", log.display()));
    }
    command
        .arg("-kernel")
        .arg(&machine.image)
        .arg("-initrd")
        .arg(&run.initramfs)
        .args(["-append", &machine.command_line]);
    Emulator::start(&command, &run.emulator_log)
}

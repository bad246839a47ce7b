//! The host `tcg`: QEMU's emulator of an AMD processor, with SVM and nested paging.
//!
//! It translates code, so it is fast, keeps no count of instructions, and its TLB forgives
//! some missing flushes. Both virtual CPUs run at the same time.
//!
//! QEMU before 8.1 (Debian 12 has 7.2) does not stand a kernel that changes its own code while the other
//! CPU executes it: it may translate what is half changed, or keep what it has just translated although
//! it has changed (mended by commit deba78709ae8, "accel/tcg: Always lock pages before translation"). Linux
//! does so for its static keys, and KVM has one in the scheduler (`preempt_notifier_key`) that it turns on
//! with the first virtual machine and off with the last. Then the kernel may trip over a breakpoint of its
//! own ("Oops: int3"), or leave out what KVM does where threads are switched, after which anything may
//! happen: corrupted stacks, guests that end by a triple fault. It takes no guest code: a loop that makes and
//! destroys empty machines brings it about. So `init` holds a machine while the tests run, and the
//! keys stay as they are.
//!
//! And no test runs on the first processor, nor may one move itself there (`sched_setaffinity`). When any processor loads a floating-point state (FRSTOR, FXRSTOR, XRSTOR), QEMU
//! (7.2, and 10.0 still) clears a bit in a word of the *first* one's, not atomically (`cpu_clear_ignne`, `hflags2`). The
//! same word says whether nested paging is on. A VMRUN or #VMEXIT of the first processor's at that moment is
//! undone in part: a guest goes on without nested paging, finds no page table and ends by a triple fault; or the
//! host goes on with it, which is another #VMEXIT, that puts the host's state into the VMCB.

use std::process::Command;

use super::emulator::{self, Emulator};
use super::machine::{Machine, Run};

/// For the kernel's command line: it shall not check at boot whether the timer ticks in time, for where QEMU
/// waits for a processor it does not ("IO-APIC + timer doesn't work").
pub(crate) const COMMAND_LINE: &str = "no_timer_check";

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

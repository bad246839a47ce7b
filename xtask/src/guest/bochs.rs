//! The host `bochs`: an emulator of an Intel processor, with VMX, EPT, VPID, PML and VMFUNC.
//!
//! It interprets one instruction after the other, at some hundred million a second, and time
//! inside is the count of instructions: exact for counting, meaningless in nanoseconds. Several
//! CPUs take turns. The machine boots from a CD made for the run.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::emulator::{self, Emulator};
use super::machine::{Machine, Run};

const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/vgabios/vgabios.bin";

/// The newest of its processors that has all the tests need.
const CPU_MODEL: &str = "corei7_skylake_x";

/// Instructions in a simulated second: about what is interpreted in a real one.
const INSTRUCTIONS_PER_SECOND: u32 = 50_000_000;

/// What the kernel is told, so that it boots in half the instructions:
///
/// - the TSC counts instructions, whatever CPUID says of its frequency (3.5 GHz): else every delay
///   would take 70 times as long as meant;
/// - two initcalls that take 200 million instructions and that no test needs: the certificates
///   for module signatures, the names of constants in trace formats;
/// - CPUID tells the wrong size for compacted XSAVE areas, which the kernel would warn of;
/// - no mitigations: the processor that is emulated has no speculation to mitigate.
pub(crate) const COMMAND_LINE: &str = "tsc=reliable tsc_early_khz=50000 mitigations=off noxsaves \
     initcall_blacklist=load_system_certificate_list,trace_eval_init";

pub(crate) fn start(machine: &Machine, run: &Run) -> anyhow::Result<Emulator> {
    emulator::require("bochs-bin")?;
    emulator::require("grub-mkrescue")?;
    let cd = run.dir.join("cd.iso");
    make_cd(machine, run, &cd)?;
    let settings = run.dir.join("bochsrc");
    fs::write(&settings, bochsrc(machine, run, &cd))
        .with_context(|| format!("cannot write {}", settings.display()))?;
    // Debian's Bochs has the debugger, which waits for a command: continue.
    let commands = run.dir.join("bochs-commands");
    fs::write(&commands, "c\n").with_context(|| format!("cannot write {}", commands.display()))?;
    let mut command = Command::new("bochs-bin");
    command.arg("-q").arg("-f").arg(&settings).arg("-rc").arg(&commands).current_dir(&run.dir);
    Emulator::start_on_terminal(&command, &run.emulator_log)
}

fn make_cd(machine: &Machine, run: &Run, cd: &std::path::Path) -> anyhow::Result<()> {
    let tree = run.dir.join("cd");
    let boot = tree.join("boot");
    fs::create_dir_all(boot.join("grub"))
        .with_context(|| format!("cannot make {}", boot.display()))?;
    fs::copy(&machine.image, boot.join("vmlinuz"))
        .with_context(|| format!("cannot copy {}", machine.image.display()))?;
    fs::rename(&run.initramfs, boot.join("initramfs")).context("cannot move the initramfs")?;
    let menu = format!(
        "set timeout=0\nlinux /boot/vmlinuz {}\ninitrd /boot/initramfs\nboot\n",
        machine.command_line
    );
    fs::write(boot.join("grub/grub.cfg"), menu).context("cannot write grub.cfg")?;
    let output = Command::new("grub-mkrescue")
        .arg("--output")
        .args([cd, &tree])
        .stdin(Stdio::null())
        .output()
        .context("cannot start grub-mkrescue")?;
    if !output.status.success() {
        bail!("grub-mkrescue failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    fs::remove_dir_all(&tree).context("cannot remove the files of the CD")
}

fn bochsrc(machine: &Machine, run: &Run, cd: &std::path::Path) -> String {
    let (cpus, memory) = (machine.cpus, machine.memory_mib);
    let model = machine.cpu_model.as_deref().unwrap_or(CPU_MODEL);
    // More than this it does not keep in memory; the rest, once touched, is in a file.
    let host = memory.min(2048);
    let mut text = format!(
        "display_library: term\n\
         cpu: model={model}, count={cpus}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0\n\
         memory: guest={memory}, host={host}\n\
         romimage: file={BIOS}\n\
         vgaromimage: file={VGA_BIOS}\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=cdrom, path={}, status=inserted\n\
         boot: cdrom\n\
         log: {}\n\
         panic: action=fatal\nerror: action=ignore\ninfo: action=ignore\ndebug: action=ignore\n\
         clock: sync=none\n\
         speaker: enabled=0\n",
        cd.display(),
        run.dir.join("bochs.log").display(),
    );
    for (n, log) in (1..).zip([&run.kernel_log, &run.test_log, &run.files]) {
        text += &format!("com{n}: enabled=1, mode=file, dev={}\n", log.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_the_rate_of_the_clock() {
        let khz = format!("tsc_early_khz={} ", INSTRUCTIONS_PER_SECOND / 1000);
        assert!(COMMAND_LINE.contains(&khz));
    }
}

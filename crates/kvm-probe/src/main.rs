//! `kvm-probe`: what kind of virtualization `/dev/kvm` has, told by running guest code on it.
//!
//! That the device opens says little: a KVM may stand on VT-x, on SVM, or on neither (PVM, where
//! guest ring 0 is interpreted). This program runs a few instructions in real mode and in
//! long mode at ring 0, checks what came of them, times them, and says what it found. It is
//! the test with which a host of `cargo xtask guest-test` shows that it works.
//!
//! It deliberately knows nothing of the rest of Barchan: what it finds wrong is the host's.

mod kind;
mod memory;
mod vm;

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use kvm_ioctls::{Cap, Kvm};

use kind::Kind;

const USAGE: &str = "\
Usage: kvm-probe [--expect vmx|svm|pvm]
       kvm-probe --hold
Tells what kind of virtualization /dev/kvm has, by running guest code on it.
With --expect another kind is a failure. With --hold it makes a machine with a CPU, says so, and keeps
it until it is ended. Exit codes: 0 success, 1 failure, 2 wrong usage.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let expected = match words[..] {
        [] => None,
        ["--hold"] => return hold(),
        ["--expect", name] => match Kind::parse(name) {
            Some(kind) => Some(kind),
            None => return usage(),
        },
        _ => return usage(),
    };
    let checks: [(&str, &dyn Fn() -> anyhow::Result<String>); 5] = [
        ("the device", &device),
        ("real mode", &vm::real_mode),
        ("long mode at ring 0", &vm::long_mode),
        ("the dirty bit of a guest's page table", &vm::dirty_bit),
        ("the kind", &|| the_kind(expected)),
    ];
    let mut failed = 0;
    for (name, check) in &checks {
        match check() {
            Ok(found) => println!("ok: {name}: {found}"),
            Err(error) => {
                failed += 1;
                println!("FAILED: {name}: {error:#}");
            }
        }
    }
    println!("{} passed, {failed} failed", checks.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// Keeps a machine with a CPU, so that the kernel never goes from none to one or back while others come and
/// go: then it changes its own code, which not every emulator stands.
fn hold() -> ExitCode {
    let made = (|| {
        let vm =
            Kvm::new().context("cannot open /dev/kvm")?.create_vm().context("KVM_CREATE_VM")?;
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        anyhow::Ok((vm, vcpu))
    })();
    match made {
        Ok(_held) => {
            println!("holding a machine");
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Opens the device and reads what it can.
fn device() -> anyhow::Result<String> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let version = kvm.get_api_version();
    ensure!(version == 12, "the interface is version {version}; 12 is the only one known");
    for (capability, name) in [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::SyncMmu, "KVM_CAP_SYNC_MMU"),
    ] {
        ensure!(kvm.check_extension(capability), "{name} is missing");
    }
    let yes = |capability| if kvm.check_extension(capability) { "yes" } else { "no" };
    Ok(format!(
        "{} vCPUs a VM, {} memory slots, sync regs {}, dirty ring {}, read-only memory {}",
        kvm.get_max_vcpus(),
        kvm.get_nr_memslots(),
        yes(Cap::SyncRegs),
        kvm.check_extension_raw(192), // KVM_CAP_DIRTY_LOG_RING: its greatest size in bytes
        yes(Cap::ReadonlyMem),
    ))
}

fn the_kind(expected: Option<Kind>) -> anyhow::Result<String> {
    let (kind, evidence) = kind::find()?;
    let nanoseconds = vm::ring_0_nanoseconds()?;
    if let Some(expected) = expected {
        ensure!(kind == expected, "{kind}, where {expected} was expected ({evidence})");
    }
    Ok(format!("{kind} ({evidence}; {nanoseconds:.2} ns for an instruction at ring 0)"))
}

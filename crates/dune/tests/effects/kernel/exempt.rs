//! Calls that no case makes, with the reason.

pub const REASONS: &[(&str, &str)] = &[
    ("exit_group", "ends the process that would look; its rule is that of exit"),
    ("kexec_file_load", "replaces the kernel; it has no argument that is written"),
    ("kexec_load", "replaces the kernel; it has no argument that is written"),
    ("reboot", "ends the machine; it has no argument that is written"),
    ("rt_sigreturn", "reads the frame on the stack and goes on elsewhere; writes no memory"),
    ("uretprobe", "kills whoever is not the kernel's own trampoline; Everything by rule"),
    ("vhangup", "hangs up the terminal that the tests run on; it has no arguments"),
];

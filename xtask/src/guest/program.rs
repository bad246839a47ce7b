//! Bringing a program of this machine into a guest: the shared libraries that it loads, and
//! its loader, at the paths where it looks for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The libraries of a program or library, with its loader; none if it is static, or no ELF.
pub(crate) fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !is_elf(program)? {
        return Ok(Vec::new());
    }
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_ldd(&text).with_context(|| {
        format!(
            "{} cannot run here, nor in a guest that has this machine's files",
            program.display()
        )
    })
}

/// The content of `file` without debugging information, which a guest has no use for: it is
/// most of what a test binary is, and an emulator takes a second to load some megabytes.
pub(crate) fn stripped(file: &Path, scratch: &Path) -> anyhow::Result<Vec<u8>> {
    if is_elf(file)? && objcopy(&["--strip-debug"], file, scratch) {
        return read(&scratch.join(STRIPPED));
    }
    read(file)
}

/// A kernel module without its type information (BTF) and signature: guests do not need them, and
/// checking them is most of what loading KVM takes (3 of 5 seconds in Bochs).
pub(crate) fn stripped_module(content: &[u8], scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let whole = scratch.join("module");
    fs::write(&whole, content).with_context(|| format!("cannot write {}", whole.display()))?;
    if !objcopy(&["--strip-debug", "--remove-section", ".BTF"], &whole, scratch) {
        bail!("objcopy (binutils) cannot strip a kernel module, {}", whole.display());
    }
    fs::remove_file(&whole).with_context(|| format!("cannot remove {}", whole.display()))?;
    read(&scratch.join(STRIPPED))
}

const STRIPPED: &str = "stripped";

/// Writes a copy of `file` to [`STRIPPED`]; `false` if that is not possible.
fn objcopy(options: &[&str], file: &Path, scratch: &Path) -> bool {
    let done = Command::new("objcopy")
        .args(options)
        .args([file, &scratch.join(STRIPPED)])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    done.is_ok_and(|status| status.success())
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn is_elf(file: &Path) -> anyhow::Result<bool> {
    use std::io::Read as _;
    let mut start = [0; 4];
    let mut open =
        fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(open.read_exact(&mut start).is_ok() && start == *b"\x7fELF")
}

/// Reads what ldd prints: `name => /path (0x...)`, `/lib64/loader (0x...)`, `linux-vdso...`.
fn parse_ldd(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines() {
        if let Some((name, _)) = line.split_once("=> not found") {
            bail!("the library {} is not found", name.trim());
        }
        let path = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        let path = path.split(" (0x").next().unwrap_or_default();
        if path.starts_with('/') {
            libraries.push(path.into());
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ldd_prints_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        let expected: Vec<PathBuf> = expected.map(PathBuf::from).to_vec();
        assert_eq!(parse_ldd(text).expect("well-formed"), expected);
        assert!(parse_ldd("\tstatically linked\n").expect("well-formed").is_empty());
        let error = parse_ldd("\tlibx.so => not found\n").expect_err("a library is missing");
        assert!(error.to_string().contains("libx.so"));
    }

    #[test]
    fn the_libraries_of_a_program_include_its_loader() {
        let found = libraries(Path::new("/bin/sh")).expect("sh can run");
        assert!(found.iter().any(|path| path.starts_with("/lib64")), "{found:?}");
    }
}

//! What goes into a guest: busybox and `init`, the modules, the test and its files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::cpio::Archive;
use super::modules::Module;
use super::program;

const BUSYBOX: &str = "/bin/busybox";

/// A test: a program of this machine that ends with status 0 if all is well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Test {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

impl Test {
    /// What to call it.
    pub(crate) fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where it is in the guest.
    fn path(&self) -> String {
        format!("/test/{}", self.name())
    }

    /// A script that becomes the test.
    fn script(&self) -> String {
        let mut script = "#!/bin/sh\n".to_owned();
        for (name, value) in &self.environment {
            script += &format!("export {name}={}\n", quoted(value));
        }
        script += &format!("exec {}", quoted(&self.path()));
        for argument in &self.arguments {
            script += &format!(" {}", quoted(argument));
        }
        script + "\n"
    }
}

/// Tests and all that they need.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    /// Run one after the other.
    pub(crate) tests: Vec<Test>,
    /// Files and directories of this machine, and where they go.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Files of the guest to bring out.
    pub(crate) fetch: Vec<String>,
    pub(crate) modules: Vec<Module>,
}

impl Payload {
    /// The initramfs; `scratch` is a directory for what is made on the way.
    pub(crate) fn initramfs(&self, nonce: &str, scratch: &Path) -> anyhow::Result<Vec<u8>> {
        let mut archive = Archive::default();
        for dir in ["dev", "proc", "sys", "tmp", "bin", "etc", "root", "guest/modules"] {
            archive.directory(dir);
        }
        let busybox = fs::read(BUSYBOX).with_context(|| {
            format!("{BUSYBOX} is missing: cargo xtask setup --guest installs what guests need")
        })?;
        if !program::libraries(Path::new(BUSYBOX))?.is_empty() {
            bail!("{BUSYBOX} is not the static one: cargo xtask setup --guest installs that");
        }
        archive.file("/bin/busybox", 0o755, &busybox);
        archive.file("/init", 0o755, include_bytes!("init.sh"));
        archive.file(
            "/etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        );
        archive.file("/etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
        archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost guest\n");
        self.add_modules(&mut archive, scratch)?;
        archive.file("/guest/settings", 0o644, format!("NONCE={nonce}\n").as_bytes());
        archive.file("/guest/fetch", 0o644, lines(&self.fetch).as_bytes());
        for (n, test) in self.tests.iter().enumerate() {
            archive.file(&format!("/guest/tests/{n}"), 0o755, test.script().as_bytes());
            add(&mut archive, &test.program, &test.path(), scratch)?;
        }
        for (source, target) in &self.files {
            add(&mut archive, source, target, scratch)?;
        }
        Ok(archive.finish())
    }

    fn add_modules(&self, archive: &mut Archive, scratch: &Path) -> anyhow::Result<()> {
        for module in &self.modules {
            let content = program::stripped_module(&module.content, scratch)?;
            archive.file(&format!("/guest/modules/{}.ko", module.name), 0o644, &content);
        }
        self.add_lists(archive);
        Ok(())
    }

    fn add_lists(&self, archive: &mut Archive) {
        let load = self.modules.iter().map(|m| format!("{} {}", m.name, m.parameters));
        let unload = self.modules.iter().rev().filter(|m| m.unload).map(|m| m.name.clone());
        archive.file("/guest/load", 0o644, lines(&load.collect::<Vec<_>>()).as_bytes());
        archive.file("/guest/unload", 0o644, lines(&unload.collect::<Vec<_>>()).as_bytes());
    }
}

fn lines(of: &[String]) -> String {
    of.iter().map(|line| format!("{line}\n")).collect()
}

/// `text` as one word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Adds a file with the libraries that it needs, or a directory with all that is in it.
fn add(archive: &mut Archive, source: &Path, target: &str, scratch: &Path) -> anyhow::Result<()> {
    let kind = fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
    if kind.is_dir() {
        archive.directory(target);
        let entries =
            fs::read_dir(source).with_context(|| format!("cannot list {}", source.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", source.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            add(
                archive,
                &entry.path(),
                &format!("{}/{name}", target.trim_end_matches('/')),
                scratch,
            )?;
        }
        return Ok(());
    }
    archive.file(target, kind.permissions().mode(), &program::stripped(source, scratch)?);
    for library in program::libraries(source)? {
        let at = library.to_string_lossy();
        if !archive.contains(&at) {
            archive.file(&at, 0o755, &program::stripped(&library, scratch)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_survives_a_shell() {
        let test = Test {
            program: "/usr/bin/echo".into(),
            arguments: vec!["a b".into(), "it's $HOME".into(), String::new()],
            environment: vec![("X".into(), "1 '2".into())],
        };
        let script = test.script().replace("exec '/test/echo'", "printf '%s|' \"$X\"");
        let output = std::process::Command::new("sh").args(["-c", &script]).output();
        let output = output.expect("sh starts");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1 '2|a b|it's $HOME||");
    }

    #[test]
    fn modules_are_unloaded_in_reverse_if_asked() {
        let module = |name: &str, unload| Module {
            name: name.into(),
            parameters: "x=1".into(),
            content: Vec::new(),
            unload,
        };
        let modules = vec![module("a", false), module("b", true), module("c", true)];
        let payload = Payload { modules, ..Payload::default() };
        let mut archive = Archive::default();
        payload.add_lists(&mut archive);
        let bytes = String::from_utf8_lossy(&archive.finish()).into_owned();
        assert!(bytes.contains("a x=1\nb x=1\nc x=1\n") && bytes.contains("c\nb\n"));
        assert!(!bytes.contains("b\na\n"));
    }
}

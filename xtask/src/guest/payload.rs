//! What goes into a guest: busybox and `init`, the modules, the test and its files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::cpio::Archive;
use super::modules::Module;
use super::program;

/// Swap space, if there is any.
const SWAP_MIB: u32 = 256;
const BUSYBOX: &str = "/bin/busybox";

/// A test: a program of this machine that ends with status 0 if all is well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Test {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

impl Test {
    /// What to call it: the name of the file, without the hash that cargo puts behind it.
    pub(crate) fn name(&self) -> String {
        let file = self.file_name();
        match file.rsplit_once('-') {
            Some((name, hash)) if hash.len() == 16 && u64::from_str_radix(hash, 16).is_ok() => {
                name.to_owned()
            }
            _ => file,
        }
    }

    /// Where it is in the guest.
    fn path(&self) -> String {
        format!("/test/{}", self.file_name())
    }

    fn file_name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
    /// Whether to make swap space of zram, which is among the modules.
    pub(crate) swap: bool,
    /// `kvm-probe`, if it shall hold a virtual machine all the while (`tcg` says why).
    pub(crate) holder: Option<PathBuf>,
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
        archive.file("/guest/settings", 0o644, self.settings(nonce).as_bytes());
        archive.file("/guest/fetch", 0o644, lines(&self.fetch).as_bytes());
        for (n, test) in self.tests.iter().enumerate() {
            archive.file(&format!("/guest/tests/{n}"), 0o755, test.script().as_bytes());
            add(&mut archive, &test.program, &test.path(), scratch)?;
        }
        if let Some(holder) = &self.holder {
            add(&mut archive, holder, "/guest/hold", scratch)?;
        }
        for (source, target) in &self.files {
            add(&mut archive, source, target, scratch)?;
        }
        Ok(archive.finish())
    }

    fn settings(&self, nonce: &str) -> String {
        let swap_mib = if self.swap { SWAP_MIB } else { 0 };
        format!("NONCE={nonce}\nSWAP_MIB={swap_mib}\n")
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
        let root = source.canonicalize();
        let root = root.with_context(|| format!("cannot follow {}", source.display()))?;
        return add_directory(archive, &root, &root, target.trim_end_matches('/'), scratch);
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

/// Adds what is in `source`, a directory in or below `root`.
///
/// Links to what is in `root` stay links, and so do those that lead nowhere; others are followed.
fn add_directory(
    archive: &mut Archive,
    root: &Path,
    source: &Path,
    target: &str,
    scratch: &Path,
) -> anyhow::Result<()> {
    archive.directory(target);
    let list = || format!("cannot list {}", source.display());
    for entry in fs::read_dir(source).with_context(list)? {
        let entry = entry.with_context(list)?;
        let (path, kind) = (entry.path(), entry.file_type().with_context(list)?);
        let inside = format!("{target}/{}", entry.file_name().to_string_lossy());
        if kind.is_symlink() && path.canonicalize().map_or(true, |to| to.starts_with(root)) {
            let to = fs::read_link(&path).with_context(list)?;
            archive.link(&inside, &to.to_string_lossy());
        } else if kind.is_dir() {
            add_directory(archive, root, &path, &inside, scratch)?;
        } else if path.is_dir() || path.is_file() {
            add(archive, &path, &inside, scratch)?;
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
    fn links_inside_a_directory_stay_links_and_others_are_followed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (tree, other) = (dir.path().join("tree"), dir.path().join("other"));
        fs::create_dir(&tree).expect("writable");
        fs::write(&other, "content of other").expect("writable");
        symlink(".", tree.join("itself")).expect("writable");
        symlink("nowhere", tree.join("dangling")).expect("writable");
        symlink(&other, tree.join("outside")).expect("writable");
        let mut archive = Archive::default();
        add(&mut archive, &tree, "/t", dir.path()).expect("all can be read");
        assert!(["t/itself", "t/dangling", "t/outside"].iter().all(|name| archive.contains(name)));
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        assert!(text.contains("content of other") && text.contains("nowhere"));
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

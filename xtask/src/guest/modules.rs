//! Kernel modules for a guest: those of its kernel, by name, and modules of our own, by file,
//! each with what it depends on first.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::kernel::Kernel;

/// A module to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name as the kernel shows it: `kvm_intel`.
    pub(crate) name: String,
    /// The parameters, as insmod takes them.
    pub(crate) parameters: String,
    /// The file's content, not compressed.
    pub(crate) content: Vec<u8>,
    /// Whether to unload it after the test; a failure to do so fails the run.
    pub(crate) unload: bool,
}

/// The modules of a kernel, by name.
pub(crate) struct Catalogue {
    release: String,
    files: BTreeMap<String, PathBuf>,
}

impl Catalogue {
    /// Lists the modules of `kernel`.
    pub(crate) fn of(kernel: &Kernel) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        list(&kernel.modules_dir(), &mut files)?;
        Ok(Self { release: kernel.release.clone(), files })
    }

    /// Whether there is a module called `name`; it may also be built in.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(&canonical(name))
    }

    /// What to load for `request`, a name or a file (`x.ko`), maybe with parameters behind it.
    ///
    /// What is in `loaded` already is not loaded again.
    pub(crate) fn resolve(
        &self,
        request: &str,
        unload: bool,
        loaded: &mut Vec<Module>,
    ) -> anyhow::Result<()> {
        let (what, parameters) = request.split_once(' ').unwrap_or((request, ""));
        let path = Path::new(what);
        let file = if what.contains(".ko") || what.contains('/') {
            path
        } else {
            self.files.get(&canonical(what)).map(PathBuf::as_path).with_context(|| {
                format!("the kernel {} has no module {what}, or has it built in", self.release)
            })?
        };
        self.load(file, parameters, unload, loaded)
    }

    fn load(
        &self,
        file: &Path,
        parameters: &str,
        unload: bool,
        loaded: &mut Vec<Module>,
    ) -> anyhow::Result<()> {
        let name = module_name(file)?;
        if loaded.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let content = read(file)?;
        let built_for = modinfo(&content, "vermagic")
            .with_context(|| format!("{} is no kernel module", file.display()))?;
        if built_for.split(' ').next() != Some(&self.release) {
            bail!(
                "{} was built for another kernel ({built_for}), the guest's is {}",
                file.display(),
                self.release
            );
        }
        let depends = modinfo(&content, "depends").unwrap_or_default();
        for other in depends.split(',').filter(|name| !name.is_empty()) {
            let other = self.files.get(&canonical(other)).with_context(|| {
                format!("{name} needs the module {other}, which {} lacks", self.release)
            })?;
            self.load(other, "", false, loaded)?;
        }
        let parameters = parameters.trim().to_owned();
        loaded.push(Module { name, parameters, content, unload });
        Ok(())
    }
}

fn list(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if let Ok(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The kernel takes `-` and `_` in the name of a module for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn module_name(file: &Path) -> anyhow::Result<String> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let (name, _) = name
        .split_once(".ko")
        .with_context(|| format!("{} is not called something.ko", file.display()))?;
    Ok(canonical(name))
}

/// The content of a module file, unpacked; guests get it so, whatever insmod they have.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz")
            .args(["--decompress", "--stdout"])
            .arg(file)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start xz")?;
        if !output.status.success() {
            bail!("xz cannot unpack {}", file.display());
        }
        return Ok(output.stdout);
    }
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// A field of the section `.modinfo`, which holds `name=value` strings that end with a NUL.
fn modinfo(content: &[u8], field: &str) -> Option<String> {
    let prefix = format!("{field}=");
    content
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(prefix.as_bytes()))
        .map(|value| String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_modinfo_are_found() {
        let content = b"\x7fELF\0junkdepends=no\0depends=a,b\0vermagic=6.1 SMP \0";
        assert_eq!(modinfo(content, "depends").as_deref(), Some("a,b"));
        assert_eq!(modinfo(content, "vermagic").as_deref(), Some("6.1 SMP "));
        assert_eq!(modinfo(content, "alias"), None);
    }

    #[test]
    fn names_are_the_kernels() {
        let name = |file: &str| module_name(Path::new(file)).ok();
        assert_eq!(name("/x/kvm-intel.ko.xz").as_deref(), Some("kvm_intel"));
        assert_eq!(name("dune.ko").as_deref(), Some("dune"));
        assert_eq!(name("modules.dep"), None);
    }
}

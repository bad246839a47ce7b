//! Debian's kernels, without installing one: packages are fetched into `build/guest` and
//! unpacked there.
//!
//! apt works on a state of its own (sources, lists) below `build/guest/apt`, so the machine's
//! sources need not name backports, are not changed, and no privilege is needed. It asks for
//! Debian 12, its security updates and its backports, signed with the key ring that every
//! Debian has. `BARCHAN_DEBIAN_MIRROR` names another mirror than deb.debian.org.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

const KEY_RING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org";

/// apt with its state below one directory.
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Fetches the lists of packages.
    pub(crate) fn update(dir: PathBuf) -> anyhow::Result<Self> {
        if !Path::new(KEY_RING).exists() {
            bail!(
                "{KEY_RING} is missing, with which Debian's package lists are checked: \
                 apt-get install debian-archive-keyring"
            );
        }
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot make {}", dir.join(sub).display()))?;
        }
        let mirror = std::env::var("BARCHAN_DEBIAN_MIRROR").unwrap_or_else(|_| MIRROR.to_owned());
        let sources: String = [
            ("debian", "bookworm"),
            ("debian", "bookworm-backports"),
            ("debian-security", "bookworm-security"),
        ]
        .iter()
        .map(|(archive, suite)| {
            format!("deb [arch=amd64 signed-by={KEY_RING}] {mirror}/{archive} {suite} main\n")
        })
        .collect();
        fs::write(dir.join("sources.list"), sources).context("cannot write sources.list")?;
        let apt = Self { dir };
        apt.run("apt-get", &["--quiet", "--quiet", "update"])?;
        Ok(apt)
    }

    /// The names of the packages that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> anyhow::Result<Vec<String>> {
        let all = self.run("apt-cache", &["pkgnames", prefix])?;
        Ok(all.lines().map(str::to_owned).collect())
    }

    /// What `package` depends on, each without versions and alternatives.
    pub(crate) fn depends(&self, package: &str) -> anyhow::Result<Vec<String>> {
        let shown = self.run("apt-cache", &["--no-all-versions", "show", package])?;
        let line = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
        let names = line
            .unwrap_or_default()
            .split(',')
            .filter_map(|one| one.split_whitespace().next().map(str::to_owned));
        Ok(names.collect())
    }

    /// Fetches `packages` and unpacks them into `into`.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> anyhow::Result<()> {
        let here = self.dir.join("downloaded");
        fs::remove_dir_all(&here).ok();
        fs::create_dir_all(&here).with_context(|| format!("cannot make {}", here.display()))?;
        let mut args = vec!["--quiet", "--quiet", "download"];
        args.extend(packages.iter().map(String::as_str));
        self.run_in(&here, "apt-get", &args)?;
        for file in fs::read_dir(&here).context("cannot list the downloaded packages")? {
            let file = file.context("cannot list the downloaded packages")?.path();
            let status = Command::new("dpkg-deb").arg("--extract").arg(&file).arg(into).status();
            if !status.context("cannot start dpkg-deb")?.success() {
                bail!("dpkg-deb cannot unpack {}", file.display());
            }
        }
        fs::remove_dir_all(&here).context("cannot remove the downloaded packages")
    }

    fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        self.run_in(&self.dir, program, args)
    }

    fn run_in(&self, cwd: &Path, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let dir = self.dir.display();
        let mut command = Command::new(program);
        command.current_dir(cwd).env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::inherit());
        for setting in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/nonexistent".to_owned(),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
        ] {
            command.args(["-o", &setting]);
        }
        if rustix::process::geteuid().is_root() {
            // The user _apt may not enter a checkout in a home directory.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        let output = command.args(args).output().with_context(|| {
            format!("cannot start {program}: the kernels of the guests come from Debian packages")
        })?;
        if !output.status.success() {
            bail!(
                "{program} {} failed ({}); the mirror is {MIRROR} unless BARCHAN_DEBIAN_MIRROR \
                 names another",
                args.join(" "),
                output.status
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

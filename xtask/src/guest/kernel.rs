//! The kernels that guests boot: Debian's cloud flavour, unpacked below `build/guest/kernel`,
//! with the headers that a module is built against.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::debian::Apt;
use super::debug_kernel;
use crate::cargo;

/// Debian's smaller kernel, made for virtual machines.
const FLAVOUR: &str = "-cloud-amd64";

/// A series of kernels: what is promised to work, whatever the update of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Debian 12's own
    #[value(name = "6.1")]
    V6_1,
    /// The newest long-term series for Debian 12: has `PAGEMAP_SCAN`
    #[value(name = "6.12")]
    V6_12,
    /// Built from Debian's source of 6.1 with KASAN, lockdep, kmemleak and the like, and little else
    Debug,
}

impl Series {
    /// Those that are fetched; building the other takes some minutes.
    pub(crate) const FETCHED: [Self; 2] = [Self::V6_1, Self::V6_12];

    fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Debug => "debug",
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kernel that is there.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// What `uname -r` says in it.
    pub(crate) release: String,
    dir: PathBuf,
}

impl Kernel {
    /// The kernel of `series`, fetched if it is not there yet.
    ///
    /// One that is there stays, so that modules built against it stay loadable; removing
    /// its directory below `build/guest/kernel` gets the newest.
    pub(crate) fn get(series: Series) -> anyhow::Result<Self> {
        let guest = cargo::root()?.join("build/guest");
        let dir = guest.join("kernel").join(series.name());
        let stamp = dir.join("release");
        fs::create_dir_all(&guest).with_context(|| format!("cannot make {}", guest.display()))?;
        // Several tests may want it at once; the lock goes with the descriptor. Building takes long, and nobody who
        // wants another kernel shall wait for it.
        let name = if series == Series::Debug { "lock-debug" } else { "lock" };
        let lock = fs::File::create(guest.join(name)).context("cannot make a lock file")?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock build/guest/{name}"))?;
        if series == Series::Debug {
            let release = debug_kernel::built(&dir)?;
            return Ok(Self { release, dir });
        }
        if let Ok(release) = fs::read_to_string(&stamp) {
            return Ok(Self { release: release.trim().to_owned(), dir });
        }
        println!("guest: fetching Debian's kernel {series} and its headers into {}", dir.display());
        let apt = Apt::update(guest.join("apt"))?;
        let release = newest(&apt, series)?;
        let headers = format!("linux-headers-{release}");
        let mut packages = vec![format!("linux-image-{release}"), headers.clone()];
        packages.extend(apt.depends(&headers)?.into_iter().filter(|name| {
            name.starts_with("linux-kbuild-") || name.starts_with("linux-headers-")
        }));
        let new = guest.join("kernel").join(format!("{series}.new"));
        fs::remove_dir_all(&new).ok();
        fs::create_dir_all(&new).with_context(|| format!("cannot make {}", new.display()))?;
        apt.unpack(&packages, &new)?;
        make_headers_movable(&new, &release)?;
        fs::write(new.join("release"), &release).context("cannot write the release")?;
        fs::remove_dir_all(&dir).ok();
        fs::rename(&new, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { release, dir })
    }

    /// The bzImage.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The directory to give `make -C` for building a module.
    pub(crate) fn build_dir(&self) -> PathBuf {
        self.dir.join("build")
    }

    /// The directory with the kernel's own modules.
    pub(crate) fn modules_dir(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.release).join("kernel")
    }
}

/// The newest release of which both the image and the headers are to be had.
fn newest(apt: &Apt, series: Series) -> anyhow::Result<String> {
    let headers = apt.names(&format!("linux-headers-{series}."))?;
    let images = apt.names(&format!("linux-image-{series}."))?;
    let release = images
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| release.ends_with(FLAVOUR))
        .filter(|release| headers.contains(&format!("linux-headers-{release}")))
        .max_by_key(|release| numbers(release));
    release.map(str::to_owned).with_context(|| {
        format!(
            "no cloud kernel {series} with headers in Debian 12, its security updates or backports"
        )
    })
}

/// The numbers in a release, for comparing: `6.1.0-56-cloud-amd64` is 6, 1, 0, 56.
fn numbers(release: &str) -> Vec<u64> {
    let version = release.trim_end_matches(FLAVOUR);
    let digits = version.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|digits| digits.parse().ok()).collect()
}

/// Makes the headers work from where they are: Debian's makefile names `/usr/src`.
fn make_headers_movable(dir: &Path, release: &str) -> anyhow::Result<()> {
    let headers = format!("usr/src/linux-headers-{release}");
    let makefile = dir.join(&headers).join("Makefile");
    let text = fs::read_to_string(&makefile)
        .with_context(|| format!("cannot read {}", makefile.display()))?;
    let movable =
        text.replace("include /usr/src/", "include $(dir $(lastword $(MAKEFILE_LIST)))../");
    if movable == text {
        bail!("{} is not what is expected of Debian's headers:\n{text}", makefile.display());
    }
    fs::write(&makefile, movable)
        .with_context(|| format!("cannot write {}", makefile.display()))?;
    std::os::unix::fs::symlink(&headers, dir.join("build")).context("cannot link the headers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert!(numbers("6.1.0-56-cloud-amd64") > numbers("6.1.0-9-cloud-amd64"));
        assert!(numbers("6.12.117+deb12-cloud-amd64") > numbers("6.12.95+deb12-cloud-amd64"));
        assert!(numbers("6.12.90+deb12.1-cloud-amd64") > numbers("6.12.90+deb12-cloud-amd64"));
    }
}

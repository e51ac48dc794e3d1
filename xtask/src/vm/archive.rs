//! Debian's kernels, by an apt of its own: this machine's sources and packages stay as they are, and
//! apt checks what it fetches against the archive's signatures.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use fs_err as fs;
use xtask::command::output;

use crate::{progress, setup::KEYS};

/// Suites that have kernels that others have not.
const SUITES: [(&str, &str); 8] = [
    ("debian-security", "bullseye-security"),
    ("debian", "bookworm"),
    ("debian-security", "bookworm-security"),
    ("debian", "trixie"),
    ("debian-security", "trixie-security"),
    ("debian", "trixie-backports"),
    ("debian", "forky"),
    ("debian", "sid"),
];
/// Small kernels, for virtual machines.
const FLAVOUR: &str = "-cloud-amd64";
/// Lists older than this are downloaded again.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) struct Archive {
    folder: PathBuf,
}

impl Archive {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let archive = Self {
            folder: folder.join("apt"),
        };
        for part in ["lists/partial", "archives/partial", "packages"] {
            let part = archive.folder.join(part);
            fs::create_dir_all(&part)?;
        }
        let sources: String = SUITES
            .iter()
            .map(|(archive, suite)| {
                format!("deb [arch=amd64 signed-by={KEYS}] http://deb.debian.org/{archive} {suite} main\n")
            })
            .collect();
        fs::write(archive.folder.join("sources.list"), sources).context("sources.list")?;
        archive.refresh()?;
        Ok(archive)
    }

    fn refresh(&self) -> Result<()> {
        let stamp = self.folder.join("refreshed");
        let age = fs::metadata(&stamp).and_then(|stamp| stamp.modified());
        let is_fresh = age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < FRESH));
        if is_fresh {
            return Ok(());
        }
        progress::run("Debian's lists", self.apt("apt-get").arg("update"))?;
        fs::write(&stamp, "").context("the lists' stamp")
    }

    /// The packages of the newest kernel whose version begins like this.
    pub(super) fn fetch(&self, version: &str) -> Result<Vec<PathBuf>> {
        let names = self.query(&["pkgnames", "linux-image-"])?;
        let newest = newest(version, names.lines());
        let newest = newest.with_context(|| {
            format!("Debian has no kernel {version}: name the beginning of a version, as 6.12")
        })?;
        let image = format!("linux-image-{newest}");
        let depends = self.query(&["depends", "--no-recommends", &image])?;
        // Of newer ones the image itself is empty.
        let parts = ["linux-binary-", "linux-modules-"].map(|part| format!("{part}{newest}"));
        let split: Vec<_> = parts
            .into_iter()
            .filter(|part| {
                depends
                    .lines()
                    .any(|line| line.trim() == format!("Depends: {part}"))
            })
            .collect();
        let packages = if split.is_empty() { vec![image] } else { split };
        let folder = self.folder.join("packages");
        // What is there already is only checked.
        progress::run(
            &format!("Linux {newest}"),
            self.apt("apt-get")
                .arg("download")
                .args(&packages)
                .current_dir(&folder),
        )?;
        packages
            .iter()
            .map(|package| latest(&folder, package))
            .collect()
    }

    fn query(&self, arguments: &[&str]) -> Result<String> {
        output(self.apt("apt-cache").args(arguments))
    }

    fn apt(&self, program: &str) -> Command {
        let place = |name: &str, at: &str| format!("{name}={}", self.folder.join(at).display());
        let options = [
            place("Dir::Etc::SourceList", "sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            place("Dir::State::Lists", "lists"),
            place("Dir::Cache", ""),
            "Dir::State::status=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            // Root may own the folder, and then apt's own user cannot write there.
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        let mut apt = Command::new(program);
        apt.arg("-q").env("LC_ALL", "C");
        for option in options {
            apt.args(["-o", &option]);
        }
        apt
    }
}

/// The release of the newest kernel whose version begins like this, of the names of packages.
fn newest<'a>(version: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let releases = names.filter_map(|name| {
        let release = name.strip_prefix("linux-image-")?;
        let rest = release.strip_suffix(FLAVOUR)?.strip_prefix(version)?;
        // Not 6.12 for 6.1, and not what is named by its series alone.
        let goes_on = rest.is_empty() || !rest.starts_with(|c: char| c.is_ascii_digit());
        (goes_on && release.split('.').count() > 2).then_some(release)
    });
    releases.max_by_key(|release| numbers(release))
}

fn numbers(release: &str) -> Vec<u64> {
    let parts = release.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

/// The file of this package that was fetched last.
fn latest(folder: &Path, package: &str) -> Result<PathBuf> {
    let files = fs::read_dir(folder)?;
    let is_it = |name: &str| name.starts_with(&format!("{package}_")) && name.ends_with(".deb");
    files
        .flatten()
        .filter(|file| file.file_name().to_str().is_some_and(is_it))
        .max_by_key(|file| numbers(&file.file_name().to_string_lossy()))
        .map(|file| file.path())
        .with_context(|| format!("apt fetched no {package}"))
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn the_newest_of_a_series_is_taken() {
        let names = [
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-58-cloud-amd64-unsigned",
            "linux-image-6.1.0-58-rt-amd64",
            "linux-image-6.12.118+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        let newest = |version| newest(version, names.into_iter());
        assert_eq!(newest("6.1"), Some("6.1.0-57-cloud-amd64"));
        assert_eq!(newest("6.12"), Some("6.12.118+deb13-cloud-amd64"));
        assert_eq!(newest("6.1.0-9"), Some("6.1.0-9-cloud-amd64"));
        assert_eq!(newest("6.2"), None);
    }
}

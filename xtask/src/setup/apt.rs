//! Debian packages: finds and installs them without starting their services. Waits for other apt
//! processes and retries lost races.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use xtask::command::output;

use crate::progress;

const ATTEMPTS: u32 = 4;
const UPDATE: &str = "refreshing apt's lists";

/// Whether apt manages this system's packages.
pub(super) fn is_available() -> bool {
    Path::new("/etc/debian_version").exists() && super::host::find("apt-get").is_some()
}

/// Whether this process may install packages.
pub(super) fn can_install() -> bool {
    is_available() && rustix::process::geteuid().is_root()
}

/// Whether apt offers `package`; as root, its lists are refreshed before the answer is no.
pub(super) fn offers(package: &str) -> bool {
    static REFRESHED: OnceLock<bool> = OnceLock::new();
    has_candidate(package)
        || (can_install()
            && *REFRESHED.get_or_init(|| apt_get(UPDATE, &["update"]).is_ok())
            && has_candidate(package))
}

fn has_candidate(package: &str) -> bool {
    let mut policy = Command::new("apt-cache");
    let policy = output(policy.args(["policy", package]).env("LC_ALL", "C"));
    policy.is_ok_and(|policy| candidate(&policy).is_some())
}

fn candidate(policy: &str) -> Option<&str> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then_some(version)
}

/// Installs those of `packages` that are missing.
///
/// # Errors
/// Without apt or root; the message says what to run manually.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|name| !is_installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_available() {
        bail!(
            "this system has no apt; install the equivalents of these Debian packages, then run \
             `cargo xtask setup` again: {list}"
        );
    }
    if !can_install() {
        bail!(
            "not root; run `sudo apt-get install --no-install-recommends {list}`, then `cargo \
             xtask setup` again"
        );
    }
    if let Some(unknown) = missing.iter().find(|name| !offers(name)) {
        bail!("apt has no package {unknown}; install its equivalent, then run `cargo xtask setup`");
    }
    println!("  packages: {list}");
    let _guard = NoServices::start()?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&missing);
    apt_get(
        &format!("installing {} packages, about a minute", missing.len()),
        &arguments,
    )
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    output(&mut query).is_ok_and(|status| status == "installed")
}

/// Runs apt-get, with retries.
fn apt_get(title: &str, arguments: &[&str]) -> Result<()> {
    let mut attempt = 1;
    loop {
        let mut apt = Command::new("apt-get");
        apt.args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("NEEDRESTART_SUSPEND", "1")
            .env("LC_ALL", "C");
        match progress::run(title, &mut apt) {
            Ok(()) => return Ok(()),
            Err(error) if attempt == ATTEMPTS => return Err(error),
            // Transient: another apt holds or has just deleted lists or downloads, or the lists are
            // too old for the mirror.
            Err(error) => {
                let problem = format!("{error:#}");
                let cause = problem.lines().rev().find(|line| line.starts_with("E: "));
                println!("  retrying: {}", cause.unwrap_or("apt-get failed"));
                std::thread::sleep(Duration::from_secs(3 * u64::from(attempt)));
                if arguments[0] == "install" && problem.contains("404") {
                    apt_get(UPDATE, &["update"])?;
                }
            }
        }
        attempt += 1;
    }
}

/// Until it is dropped, packages start no services: Debian consults `policy-rc.d`, with and without
/// systemd. An existing file is left alone.
struct NoServices(Option<PathBuf>);

const POLICY: &str = "/usr/sbin/policy-rc.d";
const MARK: &str = "written by the rebalancer's `cargo xtask setup`; safe to delete";

impl NoServices {
    fn start() -> Result<Self> {
        let path = PathBuf::from(POLICY);
        // Replace the file of an interrupted setup.
        if fs::read_to_string(&path).is_ok_and(|text| text.contains(MARK)) {
            fs::remove_file(&path).with_context(|| format!("remove {POLICY}"))?;
        }
        match fs::File::create_new(&path) {
            Ok(mut file) => {
                let guard = Self(Some(path));
                write!(file, "#!/bin/sh\n# {MARK}\nexit 101\n").context(POLICY)?;
                let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                file.set_permissions(executable).context(POLICY)?;
                Ok(guard)
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self(None)),
            Err(error) => Err(error).context(POLICY),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("remove {}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::candidate;

    #[test]
    fn reads_the_candidate_from_apt_cache_policy() {
        let known = "nginx-light:\n  Installed: (none)\n  Candidate: 1.22.1-9+deb12u11\n";
        assert_eq!(candidate(known), Some("1.22.1-9+deb12u11"));
        assert_eq!(
            candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"),
            None
        );
        assert_eq!(candidate(""), None);
    }
}

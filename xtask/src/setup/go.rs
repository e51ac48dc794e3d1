//! Go, which builds the cluster's programs, helm and kustomize. Kubernetes needs a newer Go than
//! Debian 12 has. From 1.21 on, Go downloads the release that a module requires. An older Go, such
//! as Debian's 1.19, can download that release as a module, which is then used from the cache.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};
use xtask::command::output;

use super::{Finding, architecture, host};
use crate::{cache, progress};

/// The release to download if no installed Go is new enough.
const RELEASE: &str = "1.26.8";
/// The first release that downloads others.
const MINIMUM: (u32, u32) = (1, 21);
/// Where Go's archives are unpacked by convention; often not in PATH.
const UPSTREAM_PATH: &str = "/usr/local/go/bin/go";

pub(super) fn find() -> Finding {
    let any = find_any();
    let found = program().and_then(|go| Ok(format!("{}, {}", go.display(), version(&go)?)));
    let problem = match &any {
        None => "missing: will be installed, and".to_owned(),
        Some(go) => format!("{} is older than 1.{}; will be", go.display(), MINIMUM.1),
    };
    Finding {
        what: "go",
        state: found.map_err(|_| {
            anyhow!("{problem} {RELEASE} downloaded from the Go module proxy (70 MB)")
        }),
        packages: if any.is_none() {
            vec!["golang-go"]
        } else {
            Vec::new()
        },
    }
}

/// `go build` in `folder`, independent of the caller's environment. Go downloads a newer release if
/// the module requires one.
pub(crate) fn build(folder: &Path) -> Result<Command> {
    let mut go = Command::new(program()?);
    go.current_dir(folder)
        .args([
            "build",
            "-v",
            "-mod=readonly",
            "-buildvcs=false",
            "-trimpath",
        ])
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "auto")
        .env_remove("GOFLAGS");
    Ok(go)
}

/// A Go that is new enough.
pub(crate) fn program() -> Result<PathBuf> {
    let downloaded = toolchain()?.join("bin/go");
    let candidates = [
        host::find("go"),
        Some(UPSTREAM_PATH.into()),
        Some(downloaded),
    ];
    candidates
        .into_iter()
        .flatten()
        .find(|go| version(go).is_ok_and(|version| release(&version) >= Some(MINIMUM)))
        .with_context(|| {
            format!(
                "no Go 1.{} or later: `cargo xtask cluster up` and `test deploy` install one",
                MINIMUM.1
            )
        })
}

/// Go of any version.
fn find_any() -> Option<PathBuf> {
    host::find("go").or_else(|| host::find(UPSTREAM_PATH))
}

/// Downloads the release with an older Go, which must be installed by now.
pub(super) fn install() -> Result<()> {
    if program().is_ok() {
        return Ok(());
    }
    let Some(old) = find_any() else {
        bail!(
            "no Go: install 1.{} or later from https://go.dev/dl/ to /usr/local/go, then run this \
             again",
            MINIMUM.1
        );
    };
    let mut go = Command::new(old);
    go.args([
        "mod",
        "download",
        &format!("golang.org/toolchain@{}", module()),
    ])
    .current_dir("/")
    .env("GOMODCACHE", modules()?)
    .env("GOFLAGS", "-modcacherw")
    .env("GO111MODULE", "on");
    progress::run(&format!("downloading Go {RELEASE}"), &mut go)?;
    // Files of a module are not executable.
    let root = toolchain()?;
    let tools = root
        .join("pkg/tool")
        .join(format!("linux_{}", architecture()));
    for folder in [root.join("bin"), tools] {
        make_executable(&folder).with_context(|| folder.display().to_string())?;
    }
    program().map(drop)
}

fn make_executable(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn module() -> String {
    format!("v0.0.1-go{RELEASE}.linux-{}", architecture())
}

fn modules() -> Result<PathBuf> {
    Ok(cache()?.join("go"))
}

fn toolchain() -> Result<PathBuf> {
    Ok(modules()?.join(format!("golang.org/toolchain@{}", module())))
}

/// The output of `go version`: `go version go1.26.8 linux/amd64`.
fn version(go: &Path) -> Result<String> {
    let mut go = Command::new(go);
    go.arg("version").current_dir("/");
    Ok(output(go.env("GOTOOLCHAIN", "local"))?.trim().to_owned())
}

fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version
        .split(' ')
        .nth(2)?
        .strip_prefix("go")?
        .split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_a_release() {
        assert_eq!(release("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(release("go version go1.19.8 linux/amd64"), Some((1, 19)));
        assert_eq!(release("go version go1.27rc1 linux/arm64"), Some((1, 27)));
        assert_eq!(release("go version devel"), None);
    }
}

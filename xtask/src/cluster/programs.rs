//! Kubernetes' servers, etcd and kubectl as one binary, built from Go modules. This takes about ten
//! minutes of CPU once: the binary is cached under a hash of its sources.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{Kube, layout};
use crate::{image, progress, root, setup};

/// The binary's names, each of which selects a program.
const NAMES: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
];
const TAGS: &str = "selinux,netgo";

/// Whether the binary of `kube` is cached.
pub(super) fn is_built(kube: Kube) -> Result<bool> {
    Ok(Sources::of(kube)?.binary.exists())
}

/// The sources of a binary, and its path in the cache.
struct Sources {
    files: [PathBuf; 3],
    flags: String,
    binary: PathBuf,
}

impl Sources {
    fn of(kube: Kube) -> Result<Self> {
        let sources = root().join("xtask/cluster/kubernetes");
        let module = sources.join(kube.to_string());
        let files = [
            sources.join("main.go"),
            module.join("go.mod"),
            module.join("go.sum"),
        ];
        let flags = link_flags(kube);
        let mut made_from = format!("{flags} {TAGS}").into_bytes();
        for file in &files {
            made_from.extend(fs::read(file).with_context(|| file.display().to_string())?);
        }
        let key = &image::hex(&made_from)[..16];
        let binary = crate::cache()?.join(format!("kubernetes-{kube}-{key}"));
        Ok(Self {
            files,
            flags,
            binary,
        })
    }
}

/// The binary of `kube`, built if it is not cached.
pub(super) fn build(kube: Kube) -> Result<PathBuf> {
    let Sources {
        files,
        flags,
        binary,
    } = Sources::of(kube)?;
    if binary.exists() {
        return Ok(binary);
    }
    let cache = crate::cache()?;
    let folder = cache.join(format!("build-{kube}"));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for file in &files {
        let name = file.file_name().context("a file's name")?;
        fs::copy(file, folder.join(name)).with_context(|| file.display().to_string())?;
    }
    println!(
        "  building Kubernetes {kube} and etcd from their Go modules, once: about ten minutes of \
         CPU, 4 GB\n  in Go's caches (freed by `go clean -cache -modcache`), 160 MB in {}",
        cache.display()
    );
    let unfinished = folder.join("hyperkube");
    let mut go = setup::go_build(&folder)?;
    go.args(["-tags", TAGS, "-ldflags", &flags, "-o"]);
    go.arg(&unfinished).arg(".");
    progress::run(&format!("building Kubernetes {kube}"), &mut go)?;
    fs::rename(&unfinished, &binary).with_context(|| binary.display().to_string())?;
    fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(binary)
}

/// Sets the version at link time, in both packages that report it.
fn link_flags(kube: Kube) -> String {
    let minor = kube.minor();
    let stamps = [
        format!("gitVersion=v{kube}"),
        "gitMajor=1".to_owned(),
        format!("gitMinor={minor}"),
        "gitTreeState=clean".to_owned(),
        format!("gitCommit={:040}", 0),
        "buildDate=1970-01-01T00:00:00Z".to_owned(),
    ];
    let packages = [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ];
    let mut flags = "-s -w".to_owned();
    for package in packages {
        for stamp in &stamps {
            flags.push_str(&format!(" -X {package}.{stamp}"));
        }
    }
    flags
}

/// Links the binary into the cluster's folder under each of its names.
pub(super) fn install(binary: &Path) -> Result<()> {
    let folder = layout::state().join("bin");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for name in NAMES {
        symlink(binary, folder.join(name)).with_context(|| format!("link {name}"))?;
    }
    Ok(())
}

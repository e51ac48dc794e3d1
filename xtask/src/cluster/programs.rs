//! Kubernetes' servers, etcd and kubectl as one binary, built from Go modules. This takes about ten
//! minutes of CPU once: the binary is cached under a hash of its sources.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use fs_err as fs;

use super::{Kube, layout};
use crate::{cached, once, progress, root, setup, word};

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
    Ok(binary(kube)?.exists())
}

/// The sources of a binary.
fn sources(kube: Kube) -> [PathBuf; 3] {
    let folder = root().join("xtask/cluster/kubernetes");
    let module = folder.join(word(kube));
    [
        folder.join("main.go"),
        module.join("go.mod"),
        module.join("go.sum"),
    ]
}

/// Its path in the cache.
fn binary(kube: Kube) -> Result<PathBuf> {
    let name = format!("kubernetes-{}", word(kube));
    let options = format!("{} {TAGS}", link_flags(kube));
    cached(&name, &options, &sources(kube))
}

/// The binary of `kube`, built if it is not cached.
pub(super) fn build(kube: Kube) -> Result<PathBuf> {
    let binary = binary(kube)?;
    once(&binary, |partial| {
        let (version, cache) = (word(kube), crate::cache()?);
        let folder = cache.join(format!("build-{version}"));
        fs::create_dir_all(&folder)?;
        for file in &sources(kube) {
            let name = file.file_name().context("a file's name")?;
            fs::copy(file, folder.join(name))?;
        }
        println!(
            "  building Kubernetes {version} and etcd from their Go modules, once: about ten minutes of \
             CPU, 4 GB\n  in Go's caches (freed by `go clean -cache -modcache`), 160 MB in {}",
            cache.display()
        );
        let mut go = setup::go_build(&folder)?;
        go.args(["-tags", TAGS, "-ldflags", &link_flags(kube), "-o"]);
        go.arg(partial).arg(".");
        progress::run(&format!("building Kubernetes {version}"), &mut go)?;
        fs::remove_dir_all(&folder)?;
        Ok(())
    })?;
    Ok(binary)
}

/// Sets the version at link time, in both packages that report it.
fn link_flags(kube: Kube) -> String {
    let version = word(kube);
    let minor = version.split('.').nth(1).unwrap_or_default();
    let stamps = [
        format!("gitVersion=v{version}"),
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
    fs::create_dir_all(&folder)?;
    for name in NAMES {
        symlink(binary, folder.join(name)).with_context(|| format!("link {name}"))?;
    }
    Ok(())
}

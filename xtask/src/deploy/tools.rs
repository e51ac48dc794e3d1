//! helm and kustomize, made from their Go modules: no registry of packages has them. It takes some
//! two minutes of CPU, once: both are kept in the cache, named by what they were made from.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::chart;
use crate::{image, progress, root, setup};

const PACKAGES: [&str; 2] = [
    "helm.sh/helm/v3/cmd/helm",
    "sigs.k8s.io/kustomize/kustomize/v5",
];
/// helm takes no version from its module; nor that of the Kubernetes that it renders for where no
/// cluster is asked.
const LINK_FLAGS: &str = "-s -w -X helm.sh/helm/v3/internal/version.version=v3.19.5 \
                          -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 \
                          -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=34 \
                          -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 \
                          -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34";
/// The namespace that deploy/ names.
const NAMESPACE: &str = "rebalancer";

/// The programs that render.
pub(super) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// If they are there.
    pub(super) fn if_built() -> Result<Option<Self>> {
        let (_, folder) = Self::place()?;
        Ok(folder.exists().then_some(Self { folder }))
    }

    /// What they are built from, and where they are once they are built.
    fn place() -> Result<(PathBuf, PathBuf)> {
        let module = root().join("xtask/deploy");
        let mut made_from = LINK_FLAGS.as_bytes().to_vec();
        for file in ["go.mod", "go.sum"].map(|name| module.join(name)) {
            made_from.extend(fs::read(&file).with_context(|| file.display().to_string())?);
        }
        let name = format!("deploy-tools-{}", &image::hex(&made_from)[..16]);
        Ok((module, crate::cache()?.join(name)))
    }

    /// Builds them if they are not there.
    pub(super) fn build() -> Result<Self> {
        let (module, folder) = Self::place()?;
        if folder.exists() {
            return Ok(Self { folder });
        }
        let cache = crate::cache()?;
        println!(
            "  helm and kustomize are built from their Go modules, once: some two minutes of CPU, \
             1 GB in\n  Go's own caches (`go clean -cache -modcache` frees it), 80 MB in {}",
            cache.display()
        );
        let unfinished = cache.join("build-deploy-tools");
        fs::create_dir_all(&unfinished).with_context(|| unfinished.display().to_string())?;
        let mut go = setup::go_build(&module)?;
        go.args(["-ldflags", LINK_FLAGS, "-o"]);
        go.arg(&unfinished).args(PACKAGES);
        progress::run("building helm and kustomize", &mut go)?;
        fs::rename(&unfinished, &folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder })
    }

    /// What `kubectl apply -k` of this folder would send.
    pub(super) fn kustomize(&self, folder: &Path) -> Result<String> {
        let mut kustomize = Command::new(self.folder.join("kustomize"));
        let (text, said) = run(kustomize.arg("build").arg(folder))?;
        ensure!(
            said.is_empty(),
            "kustomize build {}: {said}",
            folder.display()
        );
        Ok(text)
    }

    /// What `helm install` with these arguments would send, but for helm's own labels.
    pub(super) fn template(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = self.helm(&["template", NAMESPACE]);
        helm.arg(chart()).args(["--namespace", NAMESPACE]);
        run(helm.args(arguments)).map(|(text, _)| text)
    }

    /// helm, with no file of the caller's own: repositories, plugins, a kubeconfig.
    pub(super) fn helm(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut helm = Command::new(self.folder.join("helm"));
        let nowhere = self.folder.join("home");
        helm.args(arguments).env_remove("KUBECONFIG");
        for place in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(place, &nowhere);
        }
        helm
    }
}

/// What it wrote to stdout and to stderr; fails with both if it fails.
pub(super) fn run(command: &mut Command) -> Result<(String, String)> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| program.clone())?;
    let text = String::from_utf8(output.stdout).with_context(|| format!("{program}: UTF-8"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{said}\n{}", output.status, text.trim());
    }
    Ok((text, said))
}

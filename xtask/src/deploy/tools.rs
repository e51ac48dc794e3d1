//! helm and kustomize, built from their Go modules, as Debian does not package them. This takes
//! about two minutes of CPU once: both are cached under a hash of their sources.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use fs_err as fs;

use super::chart;
use crate::{cached, once, progress, root, setup};

const PACKAGES: [&str; 2] = [
    "helm.sh/helm/v3/cmd/helm",
    "sigs.k8s.io/kustomize/kustomize/v5",
];
/// helm does not take its own version, nor the Kubernetes version that it renders for without a
/// cluster, from its module.
const LINK_FLAGS: &str = "-s -w -X helm.sh/helm/v3/internal/version.version=v3.19.5 \
                          -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 \
                          -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=34 \
                          -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 \
                          -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34";
/// The namespace in deploy/.
const NAMESPACE: &str = "rebalancer";

/// helm and kustomize.
pub(super) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// The tools, if they have been built.
    pub(super) fn if_built() -> Result<Option<Self>> {
        let (_, folder) = Self::folders()?;
        Ok(folder.exists().then_some(Self { folder }))
    }

    /// The folder of their sources and the folder for the programs.
    fn folders() -> Result<(PathBuf, PathBuf)> {
        let module = root().join("xtask/deploy");
        let sources = ["go.mod", "go.sum"].map(|name| module.join(name));
        Ok((module, cached("deploy-tools", LINK_FLAGS, &sources)?))
    }

    /// Builds them if they are not cached.
    pub(super) fn build() -> Result<Self> {
        let (module, folder) = Self::folders()?;
        once(&folder, |partial| {
            println!(
                "  building helm and kustomize from their Go modules, once: about two minutes of CPU, \
                 1 GB in\n  Go's caches (freed by `go clean -cache -modcache`), 80 MB in {}",
                crate::cache()?.display()
            );
            fs::create_dir_all(partial)?;
            let mut go = setup::go_build(&module)?;
            go.args(["-ldflags", LINK_FLAGS, "-o"]);
            go.arg(partial).args(PACKAGES);
            progress::run("building helm and kustomize", &mut go)
        })?;
        Ok(Self { folder })
    }

    /// The manifest that `kubectl apply -k` of this folder would send.
    pub(super) fn kustomize(&self, folder: &Path) -> Result<String> {
        let mut kustomize = Command::new(self.folder.join("kustomize"));
        let (text, warnings) = run(kustomize.arg("build").arg(folder))?;
        ensure!(
            warnings.is_empty(),
            "kustomize build {}: {warnings}",
            folder.display()
        );
        Ok(text)
    }

    /// The manifest that `helm install` with these arguments would send.
    pub(super) fn template(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = self.helm(&["template", NAMESPACE]);
        helm.arg(chart()).args(["--namespace", NAMESPACE]);
        run(helm.args(arguments)).map(|(text, _)| text)
    }

    /// helm, isolated from the user's repositories, plugins and kubeconfig.
    pub(super) fn helm(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut helm = Command::new(self.folder.join("helm"));
        let home = self.folder.join("home");
        helm.args(arguments).env_remove("KUBECONFIG");
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(variable, &home);
        }
        helm
    }
}

/// Runs `command` and returns stdout and stderr; the error contains both.
pub(super) fn run(command: &mut Command) -> Result<(String, String)> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| program.clone())?;
    let text = String::from_utf8(output.stdout).with_context(|| format!("{program}: UTF-8"))?;
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{stderr}\n{}", output.status, text.trim());
    }
    Ok((text, stderr))
}

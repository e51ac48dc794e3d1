//! `cargo xtask manifests` renders deploy/. `cargo xtask test deploy` checks it without a cluster:
//! overlays and chart render the same objects for the same choices, mistakes in the chart's values
//! are rejected with a clear message, and Prometheus parses every rule and panel. Tests that need
//! neither helm nor kustomize are in `rebalancer-user/tests`.

mod checks;
mod choices;
mod objects;
mod prometheus;
mod tools;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use fs_err as fs;

use crate::{
    root,
    setup::{self, Need},
    terminal,
};

pub(crate) use checks::run as check;
use tools::Tools;

/// Writes every overlay, and the chart with its defaults, to one file each in `folder`.
pub(crate) fn write(folder: &Path) -> Result<()> {
    setup::ensure(&[Need::Deploy])?;
    let tools = Tools::build()?;
    fs::create_dir_all(folder)?;
    for (name, text) in shipped(&tools)? {
        let path = folder.join(name).with_extension("yaml");
        fs::write(&path, text)?;
        println!("{} {}", terminal::green("wrote"), path.display());
    }
    Ok(())
}

/// The manifest that `helm install` with default values would send; `None` if helm has not been
/// built.
pub(crate) fn chart_as_sent() -> Result<Option<String>> {
    let tools = Tools::if_built()?;
    tools.map(|tools| tools.template(&[])).transpose()
}

/// All rendered manifests, by name.
fn shipped(tools: &Tools) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for overlay in overlays()? {
        let text = tools.kustomize(&overlay)?;
        let name = overlay.file_name().context("an overlay's name")?;
        all.push((format!("overlay-{}", name.display()), text));
    }
    all.push(("chart".to_owned(), tools.template(&[])?));
    let uninstall = folder().join("uninstall.yaml");
    let text = fs::read_to_string(&uninstall)?;
    all.push(("uninstall".to_owned(), text));
    Ok(all)
}

/// Writes a kustomization to `folder` that combines an overlay with components. kustomize accepts
/// only relative paths and follows no symbolic links.
pub(crate) fn combined(folder: &Path, overlay: &str, components: &[&str]) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let real = folder.canonicalize().context("the overlay's folder")?;
    let up: PathBuf = real.components().skip(1).map(|_| "..").collect();
    let deploy = self::folder();
    let deploy = up.join(deploy.strip_prefix("/").context("an absolute path")?);
    let deploy = deploy.display();
    let components: String = components
        .iter()
        .map(|name| format!("- '{deploy}/components/{name}'\n"))
        .collect();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n\
         - '{deploy}/overlays/{overlay}'\ncomponents:\n{components}"
    );
    fs::write(real.join("kustomization.yaml"), text).context("kustomization.yaml")?;
    Ok(real)
}

fn folder() -> PathBuf {
    root().join("deploy")
}

fn chart() -> PathBuf {
    folder().join("chart")
}

/// The folders of the overlays, sorted by name.
pub(crate) fn overlays() -> Result<Vec<PathBuf>> {
    let overlays = folder().join("overlays");
    let entries = fs::read_dir(&overlays)?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

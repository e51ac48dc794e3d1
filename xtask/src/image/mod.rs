//! `cargo xtask image`: builds the agent's OCI image without a container engine or a registry: one
//! layer with the binary of `cargo xtask build` and the shared libraries that it needs.

mod oci;
mod root;

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;
use serde_json::json;

use crate::{
    build,
    setup::{self, Need},
    terminal,
};

pub(crate) use oci::{Image, hex};
pub(crate) use root::Root;

/// The name that deploy/base uses.
const NAME: &str = concat!("docker.io/library/rebalancer:", env!("CARGO_PKG_VERSION"));

/// Builds the image and prints its path and how to copy it to a node.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Kernel])?;
    let agent = build::agent()?;
    let path = write(&agent)?;
    let bytes = fs::read(&path)?;
    println!(
        "{} {} ({:.1} MiB, sha256 {})",
        terminal::green("built"),
        path.display(),
        bytes.len() as f64 / f64::from(1 << 20),
        hex(&bytes)
    );
    println!("  name           {NAME}");
    println!(
        "  to a node      ctr -n k8s.io images import {}",
        path.display()
    );
    println!(
        "  to a registry  skopeo copy oci-archive:{} docker://…",
        path.display()
    );
    Ok(())
}

/// Writes the image of `agent` to the same folder.
pub(crate) fn write(agent: &Path) -> Result<PathBuf> {
    let mut root = Root::default();
    root.program("/usr/bin/rebalancer", agent)?;
    let image = Image {
        name: NAME,
        root: &root,
        config: json!({
            "Entrypoint": ["/usr/bin/rebalancer"],
            "Cmd": ["--help"],
            "Env": ["PATH=/usr/bin"],
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": {
                "org.opencontainers.image.title": "rebalancer",
                "org.opencontainers.image.description":
                    "Ends heavy or old TCP connections gently, so that clients reconnect and spread",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            },
        }),
    };
    let path = agent.with_file_name("rebalancer-image.tar");
    fs::write(&path, image.tar()?)?;
    Ok(path)
}

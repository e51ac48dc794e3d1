//! Properties of this machine other than its programs.

use std::path::Path;

use anyhow::{Result, bail};

/// Checks for root and BTF, which the kernel tests and the demo need.
pub(crate) fn needs_this_kernel() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root; `cargo xtask test unit` does not");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "this kernel has no BTF (/sys/kernel/btf/vmlinux): boot one with CONFIG_DEBUG_INFO_BTF"
        );
    }
    Ok(())
}

/// The architecture as Go and OCI registries name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

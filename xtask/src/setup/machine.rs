//! What this machine is, beyond the programs on it.

use std::path::Path;

use anyhow::{Result, bail};

/// The keys of all of Debian's archives.
pub(crate) const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What the kernel tests and the demo need of the machine, beyond programs.
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

/// As Go names it, and with it every registry.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

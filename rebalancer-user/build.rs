//! Builds the kernel half into the agent.
//!
//! The toolchain's name comes from `.ebpf-toolchain` at the workspace's root, which
//! `cargo xtask setup` writes, never from a guess.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain, build_ebpf};

fn main() -> Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..");
    let ebpf = root.join("rebalancer-ebpf");
    // aya-build watches the kernel crate alone. A changed record must rebuild it too, or the two
    // halves silently disagree.
    for watched in [
        "rebalancer-common",
        "Cargo.lock",
        ".ebpf-toolchain",
        ".cargo/config.toml",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");

    let skip = env::var("AYA_BUILD_SKIP").is_ok_and(|v| v == "1" || v == "true");
    if skip {
        // Documentation and checks need no kernel half, but `include_bytes` needs a file.
        let object = PathBuf::from(env::var("OUT_DIR")?).join("rebalancer-ebpf");
        if !object.exists() {
            fs::write(&object, []).with_context(|| format!("writing {}", object.display()))?;
        }
        return Ok(());
    }
    let name = fs::read_to_string(root.join(".ebpf-toolchain")).context(
        "no .ebpf-toolchain: run `cargo xtask setup` first, it installs what is missing",
    )?;
    let package = Package {
        name: "rebalancer-ebpf",
        root_dir: ebpf
            .to_str()
            .context("the path of the workspace is not UTF-8")?,
        ..Package::default()
    };
    build_ebpf([package], Toolchain::Custom(name.trim()))
}

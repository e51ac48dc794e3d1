//! clippy and rustfmt for the default toolchain. rustup has a proxy for each even if it is not
//! installed, so each is run for its version.

use std::process::Command;

use anyhow::Result;
use xtask::command::output;

use super::Finding;
use crate::progress;

pub(super) fn find() -> Finding {
    let version = |tool: &str| -> Result<String> {
        let version = output(Command::new("cargo").args([tool, "--version"]))?;
        Ok(version.trim().to_owned())
    };
    let state = version("clippy").and_then(|clippy| Ok(format!("{clippy}, {}", version("fmt")?)));
    Finding {
        what: "clippy, rustfmt",
        state,
        packages: Vec::new(),
    }
}

pub(super) fn install() -> Result<()> {
    if find().state.is_ok() {
        return Ok(());
    }
    progress::run(
        "adding clippy and rustfmt",
        Command::new("rustup").args(["component", "add", "clippy", "rustfmt"]),
    )
}

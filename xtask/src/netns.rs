//! Network namespaces and their links, set up by `ip`.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;

/// Creates a network namespace.
pub fn add(name: &str) -> Result<()> {
    command::output(Command::new("ip").args(["netns", "add", name])).map(drop)
}

/// Runs `commands` of `ip`, a line each, in a namespace.
pub fn batch(name: &str, commands: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    command::output_with_input(ip.args(["-n", name, "-batch", "-"]), commands)
        .map(drop)
        .with_context(|| format!("set up the links of {name}"))
}

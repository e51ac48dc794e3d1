//! Runs a program until it exits.

use std::{
    fs::File,
    io::{Seek as _, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};

/// Runs `command` without input and returns its standard output.
///
/// # Errors
/// It cannot be started or fails; the message has its arguments and its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    run(command.stdin(Stdio::null()))
}

/// The same with `input` as standard input.
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC)?);
    file.write_all(input.as_bytes()).context("the input")?;
    file.rewind().context("the input")?;
    run(command.stdin(file))
}

fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command.output();
    let output = output.with_context(|| format!("start {program}: is it installed?"))?;
    let arguments: Vec<_> = command.get_args().map(|it| it.to_string_lossy()).collect();
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        problem.trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("{program} writes UTF-8"))
}

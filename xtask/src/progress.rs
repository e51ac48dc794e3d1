//! Progress of long steps: on a terminal a spinner with the elapsed time and the program's last
//! line, elsewhere plain lines. The program's output is printed only if it fails.

use std::{
    io::IsTerminal as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{lines::lines, terminal};

/// Lines printed of a failed program's output.
const SHOWN: usize = 40;

/// Runs `command` until it exits, as the step `title`.
pub(crate) fn run(title: &str, command: &mut Command) -> Result<()> {
    run_for_output(title, command).map(drop)
}

/// The same; returns the lines of its output.
pub(crate) fn run_for_output(title: &str, command: &mut Command) -> Result<Vec<String>> {
    Step::run(title, |step| run_in(step, command)).with_context(|| title.to_owned())
}

fn run_in(step: &Step, command: &mut Command) -> Result<Vec<String>> {
    let (reader, writer) = std::io::pipe().context("pipe")?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    // `command` still holds the pipe's write ends; without this the reader never sees its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let lines = lines(reader).into_iter().inspect(|line| step.update(line));
    let lines: Vec<String> = lines.collect();
    let status = child
        .wait()
        .with_context(|| format!("wait for {program}"))?;
    let shown = &lines[lines.len().saturating_sub(SHOWN)..];
    ensure!(
        status.success(),
        "{program} exited with {status}\n{}",
        shown.join("\n")
    );
    Ok(lines)
}

/// A running step.
pub(crate) struct Step {
    title: String,
    started: Instant,
    /// On a terminal only.
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Runs `work` as a step, which has failed if that has.
    pub(crate) fn run<T>(title: &str, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let step = Self::start(title);
        let done = work(&step);
        step.end(done.is_ok());
        done
    }

    pub(crate) fn start(title: &str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("  {spinner} {prefix} [{elapsed}] {wide_msg}")
                .expect("a valid template");
            let spinner = ProgressBar::new_spinner().with_style(style);
            spinner.set_prefix(title.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        if spinner.is_none() {
            println!("  … {title}");
        }
        Self {
            title: title.to_owned(),
            started: Instant::now(),
            spinner,
        }
    }

    /// Shows what is happening now, on a terminal only.
    pub(crate) fn update(&self, line: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(line.to_owned());
        }
    }

    pub(crate) fn end(self, passed: bool) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        let mark = terminal::mark(passed);
        let seconds = self.started.elapsed().as_secs_f64();
        println!(
            "  {mark} {} {}",
            self.title,
            terminal::dim(format!("({seconds:.1} s)"))
        );
    }
}

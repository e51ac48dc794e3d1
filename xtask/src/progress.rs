//! Long steps: a spinner with the elapsed time and the program's last line on a terminal,
//! plain lines elsewhere; the program's output only if it fails.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, IsTerminal as _, PipeReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal;

/// How much of a failed program's output is shown.
const SHOWN: usize = 40;
/// How much of a program's output is kept.
const KEPT: usize = 400;

/// Runs `command` to its end as the step `title`.
pub(crate) fn run(title: &str, command: &mut Command) -> Result<()> {
    run_for_output(title, command).map(drop)
}

/// The same; the last lines that it wrote.
pub(crate) fn run_for_output(title: &str, command: &mut Command) -> Result<Vec<String>> {
    let step = Step::start(title);
    let (reader, writer) = std::io::pipe().context("pipe")?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    // The command keeps the pipe's ends for another start: without this the pipe never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let tail = follow(reader, &step);
    let status = child
        .wait()
        .with_context(|| format!("wait for {program}"))?;
    if status.success() {
        step.done();
        return Ok(tail.into());
    }
    step.failed();
    let tail = Vec::from(tail);
    let shown = &tail[tail.len().saturating_sub(SHOWN)..];
    bail!(
        "{title}: {program} ended with {status}\n{}",
        shown.join("\n")
    );
}

fn follow(output: PipeReader, step: &Step) -> VecDeque<String> {
    let mut tail = VecDeque::with_capacity(KEPT);
    // Not `lines()`: what a program writes need not be UTF-8.
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        step.say(&line);
        if tail.len() == KEPT {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    tail
}

/// A step under way.
pub(crate) struct Step {
    title: String,
    started: Instant,
    /// Only on a terminal.
    spinner: Option<ProgressBar>,
}

impl Step {
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

    /// What is happening now: shown on a terminal only.
    pub(crate) fn say(&self, line: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(line.to_owned());
        }
    }

    pub(crate) fn done(self) {
        self.end(&terminal::green("✓"));
    }

    pub(crate) fn failed(self) {
        self.end(&terminal::red("✗"));
    }

    fn end(&self, mark: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        println!(
            "  {mark} {} {}",
            self.title,
            terminal::dim(format!("({seconds:.1} s)"))
        );
    }
}

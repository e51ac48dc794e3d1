//! Counts how many moves by the defaults cost a request of a real HTTP library with think time,
//! while compilers load the machine.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{Lab, PORT, Spec};

use super::{RULE, policy};
use crate::{agent::Agent, demo::fleet::Fleet, progress::Step, terminal::heading};

/// Number of parallel compilers.
const COMPILERS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(600);

pub(super) fn run(program: &Path, moves: u64) -> Result<()> {
    heading("Keep-alive clients on a machine under load");
    let lab = Lab::start(Spec::default())?;
    let agent = Agent::start(&lab, program, &policy(&lab, &[PORT], false), &[])?;
    let fleet = Fleet::start(&lab, "/")?;
    let compilers = (0..COMPILERS).map(|number| Compiler::start(&lab, number));
    let compilers: Vec<Compiler> = compilers.collect::<Result<_>>()?;
    let step = Step::start(&format!("{moves} moves"));
    let started = Instant::now();
    let moved = || {
        let log = agent.log();
        let ended = log.outcomes(RULE);
        ended.get("reset").copied().unwrap_or(0)
    };
    while moved() < moves && started.elapsed() < PATIENCE {
        fleet.next()?;
        step.update(&format!("{} moves", moved()));
    }
    let took = started.elapsed().as_secs_f64();
    let log = agent.stop()?;
    let report = fleet.stop()?;
    step.end(true);
    let compiled = compilers.into_iter().map(Compiler::count);
    let compiled: u64 = compiled.sum::<Result<_>>()?;
    let answers: u64 = report.answers.values().sum();
    let outcomes = log.outcomes(RULE);
    println!(
        "  {} of {} moves cost a request; {answers} responses in {took:.0} s during {compiled} \
         compilations; moves by outcome: {outcomes:?}",
        report.errors,
        outcomes.get("reset").copied().unwrap_or(0),
    );
    if let Some(error) = report.last_error {
        println!("  last error: {error}");
    }
    ensure!(
        outcomes.get("reset").is_some_and(|reset| *reset >= moves),
        "fewer than {moves} moves in {PATIENCE:?}"
    );
    Ok(())
}

/// Compiles the same file repeatedly until the lab is removed.
struct Compiler {
    shell: Child,
    folder: PathBuf,
}

impl Compiler {
    fn start(lab: &Lab, number: usize) -> Result<Self> {
        let folder = lab.folder().join(format!("compiler-{number}"));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("lib.rs"), source())?;
        let rustc = "rustc --edition 2024 --crate-type lib -O --emit=obj lib.rs";
        let shell = lab
            .machine()
            .command("sh")
            .args(["-c", &format!("while {rustc}; do echo; done")])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(fs::File::create(folder.join("compiled"))?)
            .stderr(fs::File::create(folder.join("log"))?)
            .spawn()
            .context("start a compiler")?;
        Ok(Self { shell, folder })
    }

    /// The number of compilations so far.
    fn count(mut self) -> Result<u64> {
        let log = fs::read_to_string(self.folder.join("log"))?;
        ensure!(self.shell.try_wait()?.is_none(), "rustc: {log}");
        Ok(fs::metadata(self.folder.join("compiled"))?.len())
    }
}

/// Source code that takes some seconds to compile.
fn source() -> String {
    let mut source = "use std::collections::BTreeMap;\n".to_owned();
    for number in 0..40 {
        let _written = writeln!(
            source,
            "pub struct S{number}(pub u64, pub String);\n\
             pub fn f{number}(all: &[S{number}]) -> Vec<(u64, String)> {{\n\
             \x20   let mut map: BTreeMap<u64, Vec<&S{number}>> = BTreeMap::new();\n\
             \x20   all.iter().for_each(|one| map.entry(one.0 % {number}.max(1)).or_default().push(one));\n\
             \x20   map.into_iter().map(|(k, v)| (k, format!(\"{{k}} {{}}\", v.len()))).collect()\n\
             }}"
        );
    }
    source
}

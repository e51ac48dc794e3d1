//! Clients of a real HTTP library that think between requests, moved by the defaults beside a machine
//! that compiles: how many moves cost a request.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{Lab, Spec};

use crate::{
    agent::Agent,
    demo::{fleet::Fleet, policies::Policy},
    progress::Step,
    terminal::heading,
};

/// Compilers at once.
const COMPILERS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(600);

pub(super) fn run(program: &Path, moves: u64) -> Result<()> {
    heading("Paced clients beside a machine that compiles");
    let lab = Lab::start(Spec::default())?;
    let rule = "old";
    let subnet = lab.client_subnet();
    let policy = Policy {
        rule,
        limit: "maxAge: 4s",
        client_subnet: &subnet,
    };
    let agent = Agent::start(&lab, program, &policy.nothing_else(), &[])?;
    let fleet = Fleet::start(&lab, "/")?;
    let compilers = (0..COMPILERS).map(|number| Compiler::start(&lab, number));
    let compilers: Vec<Compiler> = compilers.collect::<Result<_>>()?;
    let step = Step::start(&format!("{moves} moves"));
    let started = Instant::now();
    let moved = || {
        let log = agent.log();
        let ended = log.outcomes(rule);
        ended.get("reset").copied().unwrap_or(0)
    };
    while moved() < moves && started.elapsed() < PATIENCE {
        fleet.next()?;
        step.say(&format!("{} moves", moved()));
    }
    let took = started.elapsed().as_secs_f64();
    let log = agent.stop()?;
    let report = fleet.stop()?;
    step.done();
    drop(compilers);
    let answers: u64 = report.answers.values().sum();
    let outcomes = log.outcomes(rule);
    println!(
        "  {} of {} moves cost a request, of {answers} answers in {took:.0} s; moves by outcome: \
         {outcomes:?}",
        report.errors,
        outcomes.get("reset").copied().unwrap_or(0),
    );
    if let Some(error) = report.last_error {
        println!("  the last of them: {error}");
    }
    ensure!(
        outcomes.get("reset").is_some_and(|reset| *reset >= moves),
        "{moves} moves were not made in {PATIENCE:?}"
    );
    Ok(())
}

/// Compiles the same again and again, until it is dropped.
struct Compiler(Child);

impl Compiler {
    fn start(lab: &Lab, number: usize) -> Result<Self> {
        let folder = lab.folder().join(format!("compiler-{number}"));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("lib.rs"), source())?;
        let compile =
            "while rustc --edition 2024 --crate-type lib -O --emit=obj lib.rs; do :; done";
        let shell = lab
            .machine()
            .command("sh")
            .args(["-c", compile])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log"))?)
            .spawn();
        Ok(Self(shell.context("start a compiler")?))
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        // What it has started ends with its compilation.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Enough to compile for some seconds.
fn source() -> String {
    let mut source = "use std::collections::BTreeMap;\n".to_owned();
    for number in 0..300 {
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

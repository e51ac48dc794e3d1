//! `kubectl rebalancer`: a command on the agents of all nodes at once. The program does this when it is
//! called `kubectl-rebalancer`, as kubectl calls its plugins; it needs no node and no privilege, only
//! what `kubectl exec` needs.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use super::note;
use crate::text::visible;

/// The name under which the program is this plugin.
pub(super) const PLUGIN: &str = "kubectl-rebalancer";

/// How agents' pods are found.
const SELECTOR: &str = "app.kubernetes.io/name=rebalancer";
/// Agents whose events are followed at once: each takes a process and a stream of the API server.
const MOST_FOLLOWED: usize = 64;
/// The container in them.
const CONTAINER: &str = "agent";

/// Run a command of `rebalancer` on the agents of all nodes at once.
///
/// Each line of the output begins with its node; with `-o json` one document has the answer of each.
/// Agents that do not answer are named on stderr, and the exit code is then 6.
#[derive(Parser)]
#[command(name = "kubectl rebalancer", version)]
pub(super) struct Plugin {
    /// Namespace of the agents.
    #[arg(short, long, value_name = "NAME", default_value = "rebalancer")]
    namespace: String,
    /// Ask the agents of these nodes only; may be repeated.
    #[arg(long = "node", value_name = "NAME")]
    nodes: Vec<String>,
    /// Agents that are asked at the same time.
    #[arg(long, value_name = "NUMBER", default_value = "16", value_parser = clap::value_parser!(u16).range(1..))]
    at_once: u16,
    /// As kubectl's.
    #[arg(long, value_name = "NAME")]
    context: Option<OsString>,
    /// As kubectl's.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The command.
    #[arg(value_enum)]
    command: Asked,
    /// Its options, as `rebalancer COMMAND --help` lists them.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTION"
    )]
    options: Vec<String>,
}

/// Commands that ask an agent.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Asked {
    /// What each agent has done lately, by time; -f follows
    Events,
    /// How each agent is
    Status,
    /// The endpoints of each Service
    Top,
    /// What each agent would move, and what not, and why
    Plan,
    /// The connections of each node
    Dump,
    /// The decision about one connection
    Explain,
    /// Rules, clients and connections on cooldown
    Cooldowns,
    /// Empty a pod, or the endpoints of a Service on one node
    Drain,
    /// Pause moves on these nodes for a while
    Pause,
    /// End such a pause
    Resume,
    /// What each node lacks
    Doctor,
}

/// Whether an option of `events` asks to follow: alone, or among other short ones.
fn follows(option: &str) -> bool {
    let is_short = option.starts_with('-') && !option.starts_with("--");
    option == "--follow" || is_short && option.starts_with("-f")
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Agent {
    node: String,
    pod: String,
}

/// What came of one.
struct Answer<'a> {
    agent: &'a Agent,
    /// What it printed: also one that failed may, such as `doctor`.
    printed: String,
    /// Why it failed, if so.
    failed: Option<String>,
}

/// Agents that have not answered.
#[derive(Debug, thiserror::Error)]
#[error("{missing} of {all} agents have failed or have not answered")]
pub(super) struct Unanswered {
    missing: usize,
    all: usize,
}

impl Plugin {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let agents = self.agents()?;
        if self.command == Asked::Events && self.options.iter().any(|option| follows(option)) {
            if self.is_json() {
                bail!("events are followed as text only\n  remedy: leave out -o json, or -f");
            }
            if agents.len() > MOST_FOLLOWED {
                let all = agents.len();
                bail!(
                    "{all} agents cannot be followed at once, {MOST_FOLLOWED} at most\n  remedy: name nodes by --node"
                );
            }
            return self.follow(&agents);
        }
        if self.command == Asked::Drain && self.nodes.len() != 1 && !self.drains_pod() {
            bail!(
                "a Service, an address or a port is drained on one node, as the connections have to go somewhere\n  \
                 remedy: --node NAME, in front of `drain`"
            );
        }
        let input = self.input()?;
        let answers = self.ask(&agents, input.as_deref());
        let out = &mut io::stdout().lock();
        let shown = if self.is_json() {
            write_json(out, &answers)
        } else {
            write_lines(out, &answers, self.command == Asked::Events)
        };
        shown.context("writing to stdout")?;
        let failed = answers.iter().filter(|answer| answer.failed.is_some());
        let missing = failed.clone().count();
        // A connection and a pod are on one node: the others do not know them.
        let is_of_one_node = matches!(self.command, Asked::Explain | Asked::Drain);
        if missing == 0 || is_of_one_node && missing < agents.len() {
            return Ok(());
        }
        for Answer { agent, failed, .. } in failed {
            let why = failed.as_deref().unwrap_or_default();
            note(format_args!("{}: {}", agent.node, visible(why)));
        }
        let all = agents.len();
        Err(Unanswered { missing, all }.into())
    }

    fn kubectl(&self) -> Command {
        let mut kubectl = Command::new("kubectl");
        if let Some(context) = &self.context {
            kubectl.arg("--context").arg(context);
        }
        if let Some(file) = &self.kubeconfig {
            kubectl.arg("--kubeconfig").arg(file);
        }
        kubectl.args(["--namespace", &self.namespace]);
        kubectl
    }

    /// The agents that run, by node.
    fn agents(&self) -> anyhow::Result<Vec<Agent>> {
        let mut kubectl = self.kubectl();
        kubectl.args(["get", "pods", "--selector", SELECTOR, "--output", "json"]);
        let listed = kubectl
            .stderr(Stdio::inherit())
            .output()
            .context("running kubectl, which must be in PATH")?;
        if !listed.status.success() {
            bail!("kubectl cannot list the agents' pods");
        }
        let agents = agents_in(&listed.stdout).context("the answer of kubectl")?;
        let wanted = |agent: &Agent| self.nodes.is_empty() || self.nodes.contains(&agent.node);
        let agents: Vec<Agent> = agents.into_iter().filter(wanted).collect();
        if let Some(node) = self
            .nodes
            .iter()
            .find(|node| !agents.iter().any(|a| a.node == **node))
        {
            bail!("no agent runs on node {}", visible(node));
        }
        if agents.is_empty() {
            bail!(
                "no agent runs in the namespace {}\n  remedy: --namespace, if they are in another",
                visible(&self.namespace)
            );
        }
        Ok(agents)
    }

    /// What is handed to each of them: a policy of ours.
    fn input(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let reads = |option: &String| option == "-" || option == "/dev/stdin";
        if !self.options.iter().any(reads) {
            return Ok(None);
        }
        let mut input = Vec::new();
        io::stdin()
            .read_to_end(&mut input)
            .context("reading stdin")?;
        Ok(Some(input))
    }

    /// Whether it drains a pod, which is on one node, or only asks for help.
    fn drains_pod(&self) -> bool {
        let is_pod = |option: &String| option.starts_with("pod/");
        let asks = |option: &String| option == "--help" || option == "-h";
        self.options
            .iter()
            .any(|option| is_pod(option) || asks(option))
    }

    fn is_json(&self) -> bool {
        let mut before = "";
        self.options.iter().any(|option| {
            let is_value = matches!(before, "-o" | "--output") && option == "json";
            before = option;
            is_value || option == "-ojson" || option == "--output=json" || option == "-o=json"
        })
    }

    fn exec(&self, agent: &Agent, has_input: bool) -> Command {
        let mut kubectl = self.kubectl();
        kubectl.args(["exec", &agent.pod, "--container", CONTAINER]);
        if has_input {
            kubectl.arg("--stdin");
        }
        let name = self.command.to_possible_value();
        let name = name.as_ref().map_or("status", |value| value.get_name());
        kubectl.args(["--", "rebalancer", name]);
        if self.command == Asked::Top && !self.options.iter().any(|option| option == "--once") {
            kubectl.arg("--once");
        }
        kubectl.args(&self.options);
        kubectl
    }

    /// Asks all, so many at a time; the answers are in the order of the agents.
    fn ask<'a>(&self, agents: &'a [Agent], input: Option<&[u8]>) -> Vec<Answer<'a>> {
        let next = AtomicUsize::new(0);
        let answers: Mutex<BTreeMap<usize, Answer<'a>>> = Mutex::default();
        let progress = io::stderr().is_terminal() && agents.len() > usize::from(self.at_once);
        let lock = || answers.lock().unwrap_or_else(PoisonError::into_inner);
        thread::scope(|scope| {
            for _ in 0..agents.len().min(usize::from(self.at_once)) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(agent) = agents.get(index) else {
                            break;
                        };
                        let (printed, failed) = answered(self.exec(agent, input.is_some()), input);
                        let mut answers = lock();
                        let answer = Answer {
                            agent,
                            printed,
                            failed,
                        };
                        answers.insert(index, answer);
                        if progress {
                            let _nobody_reads = write!(
                                io::stderr(),
                                "\r{} of {} nodes ",
                                answers.len(),
                                agents.len()
                            );
                        }
                    }
                });
            }
        });
        if progress {
            note("");
        }
        let answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        answers.into_values().collect()
    }

    /// Prints what all of them print, line by line, for as long as one of them does.
    fn follow(&self, agents: &[Agent]) -> anyhow::Result<()> {
        let width = width(agents.iter());
        let failed = AtomicUsize::new(0);
        thread::scope(|scope| {
            for agent in agents {
                let failed = &failed;
                scope.spawn(move || {
                    if let Err(error) = follow_one(self.exec(agent, false), agent, width) {
                        failed.fetch_add(1, Ordering::Relaxed);
                        note(format_args!(
                            "{}: {}",
                            agent.node,
                            visible(&format!("{error:#}"))
                        ));
                    }
                });
            }
        });
        match failed.into_inner() {
            0 => Ok(()),
            missing => Err(Unanswered {
                missing,
                all: agents.len(),
            }
            .into()),
        }
    }
}

/// The agents of a list of pods, those that run, by node.
fn agents_in(list: &[u8]) -> anyhow::Result<Vec<Agent>> {
    let list: Value = serde_json::from_slice(list)?;
    let pods = list["items"].as_array().context("a list of pods")?;
    let agent = |pod: &Value| {
        let runs =
            pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
        runs.then(|| {
            Some(Agent {
                node: pod["spec"]["nodeName"].as_str()?.to_owned(),
                pod: pod["metadata"]["name"].as_str()?.to_owned(),
            })
        })?
    };
    let mut agents: Vec<Agent> = pods.iter().filter_map(agent).collect();
    agents.sort();
    Ok(agents)
}

/// Runs a command to its end: what it prints, and, if it fails, what it says on stderr.
fn answered(mut command: Command, input: Option<&[u8]>) -> (String, Option<String>) {
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut run = || -> io::Result<std::process::Output> {
        let mut child = command.spawn()?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            // One that does not read it fails otherwise.
            let _unread = stdin.write_all(input);
        }
        child.wait_with_output()
    };
    let output = match run() {
        Ok(output) => output,
        Err(error) => return (String::new(), Some(format!("kubectl: {error}"))),
    };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = || reason(&String::from_utf8_lossy(&output.stderr));
    (printed, (!output.status.success()).then(failed))
}

/// What failed, of what kubectl and the command have written: kubectl's own last line says only that it did.
fn reason(stderr: &str) -> String {
    let lines = stderr.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("command terminated"));
    let lines: Vec<&str> = lines.collect();
    if lines.is_empty() {
        return "kubectl exec failed without a word".to_owned();
    }
    lines.join("; ")
}

fn follow_one(mut command: Command, agent: &Agent, width: usize) -> anyhow::Result<()> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("kubectl")?;
    let stdout = child.stdout.take().context("its output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("its output")?;
        let out = &mut io::stdout().lock();
        if let Err(error) = write_line(out, &agent.node, width, &line).and_then(|()| out.flush()) {
            // Nobody reads any more.
            let _ended = child.kill();
            let _reaped = child.wait();
            return Err(error).context("writing to stdout");
        }
    }
    let status = child.wait().context("kubectl")?;
    if !status.success() {
        bail!("kubectl exec: {status}");
    }
    Ok(())
}

fn width<'a>(agents: impl Iterator<Item = &'a Agent>) -> usize {
    let widths = agents.map(|agent| agent.node.chars().count());
    widths.chain(["NODE".len()]).max().unwrap_or_default()
}

fn write_line(out: &mut impl Write, node: &str, width: usize, line: &str) -> io::Result<()> {
    let line = format!("{:<width$}  {line}", visible(node));
    writeln!(out, "{}", line.trim_end())
}

/// All lines, each with its node; the head of a table once. `by_time`: the lines begin with a time, and are
/// sorted by it.
fn write_lines(out: &mut impl Write, answers: &[Answer<'_>], by_time: bool) -> io::Result<()> {
    let width = width(answers.iter().map(|answer| answer.agent));
    let mut lines: Vec<(&str, &str)> = Vec::new();
    let mut head = None;
    for Answer { agent, printed, .. } in answers {
        for (index, line) in printed.lines().enumerate() {
            if index == 0 && is_head(line) {
                head.get_or_insert(line);
            } else {
                lines.push((&agent.node, line));
            }
        }
    }
    if by_time {
        lines.sort_by_key(|(_, line)| *line);
    }
    if let Some(head) = head {
        write_line(out, "NODE", width, head)?;
    }
    for (node, line) in lines {
        write_line(out, node, width, line)?;
    }
    Ok(())
}

/// Names of columns are written in capitals.
fn is_head(line: &str) -> bool {
    line.chars().any(char::is_alphabetic) && !line.chars().any(char::is_lowercase)
}

/// One document: `items` with the answer of each agent, `failed` with the reasons of those that failed.
fn write_json(out: &mut impl Write, answers: &[Answer<'_>]) -> io::Result<()> {
    let (mut items, mut failures) = (Vec::new(), Vec::new());
    for answer in answers {
        let Agent { node, pod } = answer.agent;
        let mut failed = answer.failed.clone();
        if failed.is_none() || !answer.printed.trim().is_empty() {
            match documents(&answer.printed) {
                Ok(answer) => items.push(json!({"node": node, "pod": pod, "answer": answer})),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failures.extend(failed.map(|error| json!({"node": node, "pod": pod, "error": error})));
    }
    let all = json!({"items": items, "failed": failures});
    serde_json::to_writer_pretty(&mut *out, &all)?;
    writeln!(out)
}

/// The document that was printed; a list, if there are several or none.
fn documents(printed: &str) -> Result<Value, String> {
    let read = serde_json::Deserializer::from_str(printed).into_iter::<Value>();
    let mut all: Vec<Value> = read
        .collect::<Result<_, _>>()
        .map_err(|error| format!("not JSON: {error}"))?;
    Ok(if all.len() == 1 {
        all.remove(0)
    } else {
        Value::Array(all)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn agent(node: &str) -> Agent {
        Agent {
            node: node.to_owned(),
            pod: format!("rebalancer-{node}"),
        }
    }

    fn plugin(arguments: &str) -> Plugin {
        Plugin::try_parse_from([PLUGIN].into_iter().chain(arguments.split_whitespace())).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Plugin::command().debug_assert();
        assert!(plugin("plan -o json --rule web").is_json());
        assert!(plugin("--node a --node b plan --output=json").is_json());
        assert!(!plugin("events --since 10m").is_json());
        for wrong in ["agent", "uninstall", "move 1"] {
            let arguments = [PLUGIN].into_iter().chain(wrong.split(' '));
            assert!(Plugin::try_parse_from(arguments).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_command_becomes_kubectl_exec() {
        let words = |arguments: &str| -> String {
            let command = plugin(arguments).exec(&agent("n1"), false);
            let words: Vec<_> = command
                .get_args()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            words.join(" ")
        };
        assert_eq!(
            words("--context c -n ns top"),
            "--context c --namespace ns exec rebalancer-n1 --container agent -- rebalancer top --once"
        );
        assert_eq!(
            words("cooldowns list -o json"),
            "--namespace rebalancer exec rebalancer-n1 --container agent -- rebalancer cooldowns list -o json"
        );
    }

    #[test]
    fn only_pods_that_run_are_asked() {
        let pod = |name: &str, node: Value, phase: &str, deleted: Value| {
            json!({"metadata": {"name": name, "deletionTimestamp": deleted}, "spec": {"nodeName": node},
                   "status": {"phase": phase}})
        };
        let list = json!({"items": [
            pod("b", json!("n2"), "Running", Value::Null),
            pod("a", json!("n1"), "Running", Value::Null),
            pod("c", json!("n3"), "Pending", Value::Null),
            pod("d", json!("n4"), "Running", json!("2026-01-02T03:04:05Z")),
            pod("e", Value::Null, "Running", Value::Null),
        ]});
        let agents = agents_in(list.to_string().as_bytes()).unwrap();
        let pods: Vec<&str> = agents.iter().map(|agent| &*agent.pod).collect();
        assert_eq!(pods, ["a", "b"]);
        assert!(agents_in(b"{}").is_err());
    }

    #[test]
    fn answers_become_one_table_and_one_document() {
        let (first, second, third) = (agent("n1"), agent("node-2"), agent("n3"));
        let answers = |printed: [&str; 2]| {
            let answer = |agent, printed: &str, failed: Option<&str>| Answer {
                agent,
                printed: printed.to_owned(),
                failed: failed.map(str::to_owned),
            };
            [
                answer(&first, printed[0], None),
                answer(&second, printed[1], None),
                answer(&third, "", Some("Forbidden")),
            ]
        };
        let text = |printed, by_time| {
            let mut out = Vec::new();
            write_lines(&mut out, &answers(printed), by_time).unwrap();
            String::from_utf8(out).unwrap()
        };
        let events = [
            "TIME  EVENT\n2026-1  a\n2026-3  c\n",
            "TIME  EVENT\n2026-2  b\n",
        ];
        assert_eq!(
            text(events, true),
            "NODE    TIME  EVENT\nn1      2026-1  a\nnode-2  2026-2  b\nn1      2026-3  c\n"
        );
        assert_eq!(
            text(["agent  0.1\nmode  DryRun\n", ""], false),
            "n1      agent  0.1\nn1      mode  DryRun\n"
        );
        let all = as_json(&answers(["{\"a\": 1}", "{\"b\": 1}\n{\"b\": 2}\n"]));
        assert_eq!(all["items"][0]["answer"], json!({"a": 1}));
        assert_eq!(all["items"][1]["answer"], json!([{"b": 1}, {"b": 2}]));
        let failed = json!({"node": "n3", "pod": "rebalancer-n3", "error": "Forbidden"});
        assert_eq!(all["failed"][0], failed);
    }

    fn as_json(answers: &[Answer<'_>]) -> Value {
        let mut out = Vec::new();
        write_json(&mut out, answers).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn one_that_fails_may_have_printed_something() {
        let mut command = Command::new("sh");
        command.args(["-c", "cat; echo error: 1 finding >&2; exit 1"]);
        let (printed, failed) = answered(command, Some(b"{\"a\": 1}"));
        assert_eq!(printed, "{\"a\": 1}");
        let agent = &agent("n1");
        let all = as_json(&[Answer {
            agent,
            printed,
            failed,
        }]);
        assert_eq!(all["items"][0]["answer"]["a"], 1);
        assert_eq!(all["failed"][0]["error"], "error: 1 finding");
        let mut missing = Command::new("/there/is/none");
        missing.arg("x");
        assert!(answered(missing, None).1.unwrap().starts_with("kubectl: "));
    }

    #[test]
    fn the_reason_is_what_the_command_has_said() {
        assert_eq!(
            reason("error: no agent\n  remedy: start it\ncommand terminated with exit code 5\n"),
            "error: no agent; remedy: start it"
        );
        assert!(reason("").contains("without a word"));
    }
}

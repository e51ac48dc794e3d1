//! Programs of the tests' own, each a process in the lab as real ones are: this test binary,
//! started again to run one "test" that is none. Its environment has its orders; it says
//! when it is ready, works until its input ends, and then reports.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    marker::PhantomData,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::{Serialize, de::DeserializeOwned};
use xtask::lab::Host;

const ORDERS: &str = "REBALANCER_TEST_PROGRAM";
/// What the program says begins so; the test harness says more.
const MARK: &str = "program: ";
const READY: &str = "ready";

/// Starts this binary again in a host of the lab, for one test.
pub fn again(host: &Host, test: &str) -> Command {
    this_binary(|program| host.command(program), test)
}

pub fn this_binary(run: impl FnOnce(PathBuf) -> Command, test: &str) -> Command {
    let mut command = run(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
}

/// Gives orders to what runs one of them.
pub fn order<'a>(command: &'a mut Command, orders: &impl Serialize) -> &'a mut Command {
    command.env(ORDERS, serde_json::to_string(orders).unwrap())
}

/// A program at work, which will report an `R`. Dropping it kills it.
pub struct Program<R> {
    pub child: Child,
    mark: &'static str,
    orders: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    report: PhantomData<R>,
}

impl<R: DeserializeOwned> Program<R> {
    /// Starts one and waits until it is ready.
    pub fn start(host: &Host, test: &str, orders: &impl Serialize) -> Self {
        Self::launch(again(host, test), orders)
    }

    /// The same by a command that ends in running one of [`again`].
    pub fn launch(mut command: Command, orders: &impl Serialize) -> Self {
        order(&mut command, orders);
        Self::run(command, MARK)
    }

    /// Another program that does the same; this stands before what it says.
    pub fn run(mut command: Command, mark: &'static str) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut program = Self {
            mark,
            orders: child.stdin.take(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
            report: PhantomData,
        };
        assert_eq!(program.line().as_deref(), Some(READY), "{command:?}");
        program
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to end, and returns what it has to say.
    pub fn stop(mut self) -> R {
        self.orders = None;
        let rest = self.line().expect("the program reports");
        serde_json::from_str(&rest).unwrap()
    }

    fn line(&mut self) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once(self.mark)?;
            Some(rest.to_owned())
        })
    }
}

impl<R> Drop for Program<R> {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the program: its orders. `None`: this is an ordinary run of the tests.
pub fn orders<T: DeserializeOwned>() -> Option<T> {
    let text = std::env::var(ORDERS).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

/// In the program: it is ready.
pub fn ready() {
    say(READY);
}

/// In the program: waits for the order to end.
pub fn wait_for_the_end() {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

/// In the program: its last words.
pub fn report(what: &impl Serialize) -> ! {
    say(&serde_json::to_string(what).unwrap());
    std::process::exit(0);
}

fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    // On a line of its own, whatever the harness has begun.
    writeln!(out, "\n{MARK}{what}").unwrap();
    out.flush().unwrap();
}

/// In the program: lets it hold so many descriptors, and some more.
pub fn allow_descriptors(count: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = Some(count as u64 + 100);
    if getrlimit(Resource::Nofile).current < wanted {
        let limit = Rlimit {
            current: wanted,
            maximum: wanted.max(getrlimit(Resource::Nofile).maximum),
        };
        setrlimit(Resource::Nofile, limit)
            .unwrap_or_else(|e| panic!("raising the limit of open files to {count}: {e}"));
    }
}

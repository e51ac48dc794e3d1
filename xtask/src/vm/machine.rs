//! One virtual machine from start to end, and its console.

use std::{
    fs::File,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::RecvTimeoutError,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Boot, Lockdown};
use crate::{lines::lines, setup, word};

pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// The prefix of the lines that the guest prints for the host.
const MARK: &str = "@@ ";
/// A machine that prints nothing for this long is killed: each test in it has a shorter timeout.
const SILENCE: Duration = Duration::from_secs(360);
/// Socket storage needs cmpxchg16b from 7.2 on; the others are of any CPU since 2008.
const CPU: &str = "qemu64,+cx16,+ssse3,+sse4.1,+sse4.2,+popcnt";

const MACHINE: &str = "-accel tcg,thread=multi -machine q35 -smp 2 -m 2048 -display none \
                       -serial stdio -monitor none -nic none -no-reboot";

/// Killed with what holds it.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Boots the machine and returns the marked lines of its console until it ends; each is also passed to
/// `on_line` as it comes. The whole console goes to `log`.
pub(super) fn run(
    boot: Boot<'_>,
    initramfs: &Path,
    log: &Path,
    on_line: &dyn Fn(&str),
) -> Result<Vec<String>> {
    let mut line = "console=ttyS0 quiet panic=-1 tsc=unstable nokaslr".to_owned();
    if boot.lockdown != Lockdown::None {
        line.push_str(&format!(" lockdown={}", word(boot.lockdown)));
    }
    line.push_str(&format!(" vm.cgroup={}", word(boot.cgroup)));
    if let Some(scope) = boot.yama {
        line.push_str(&format!(" vm.yama={scope}"));
    }
    let mut qemu = Command::new(setup::find(QEMU).context(QEMU)?);
    qemu.args(MACHINE.split(' '))
        .args(["-cpu", CPU, "-append", &line, "-kernel"])
        .arg(&boot.kernel.image)
        .arg("-initrd")
        .arg(initramfs);
    follow(&mut qemu, SILENCE, log, on_line)
}

/// Starts it and reads its console to the end; kills it if it prints nothing for `silence`.
fn follow(
    machine: &mut Command,
    silence: Duration,
    log: &Path,
    on_line: &dyn Fn(&str),
) -> Result<Vec<String>> {
    machine
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    // Ctrl-C reaches it too; whatever else ends us, ends it.
    // SAFETY: it makes one system call.
    unsafe {
        machine.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
                .map_err(Into::into)
        });
    }
    let mut machine = Machine(machine.spawn().context(QEMU)?);
    let console = machine.0.stdout.take().expect("its console is a pipe");
    let lines = lines(console);
    let mut log = File::create(log).with_context(|| log.display().to_string())?;
    let mut marked = Vec::new();
    loop {
        match lines.recv_timeout(silence) {
            Ok(line) => {
                writeln!(log, "{line}").context("the console's log")?;
                // The firmware's last output may precede the mark on its line.
                if let Some((_, word)) = line.split_once(MARK) {
                    on_line(word);
                    marked.push(word.to_owned());
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(marked),
            Err(RecvTimeoutError::Timeout) => {
                let stopped = format!("stopped: it printed nothing for {} s", silence.as_secs());
                writeln!(log, "{stopped}").context("the console's log")?;
                marked.push(stopped);
                return Ok(marked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_machine_is_killed_and_its_console_is_kept() {
        let folder =
            std::env::temp_dir().join(format!("rebalancer-machine-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let log = folder.join("log");
        let mut machine = Command::new("sh");
        machine.args(["-c", "echo bios@@ pid $$; echo noise; exec sleep 600"]);
        let marked = follow(&mut machine, Duration::from_secs(1), &log, &|_| {}).unwrap();
        let console = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let [pid, stopped] = &marked[..] else {
            panic!("{marked:?}")
        };
        let pid = pid.strip_prefix("pid ").unwrap();
        assert!(!Path::new("/proc").join(pid).exists(), "{pid} goes on");
        assert!(stopped.starts_with("stopped"), "{marked:?}");
        assert!(console.contains("noise"), "{console}");
    }
}

//! One machine, from its start to its end: what it says on its console.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Boot, Lockdown};
use crate::setup;

pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Begins what the machine says to us.
const MARK: &str = "@@ ";
/// A machine that says nothing for so long is ended: each test in it has less.
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

/// Boots it and returns what it says to us until it ends; `tell` hears it at once. The whole console
/// goes to `log`.
pub(super) fn run(
    boot: Boot<'_>,
    initramfs: &Path,
    log: &Path,
    tell: &dyn Fn(&str),
) -> Result<Vec<String>> {
    let mut line = "console=ttyS0 quiet panic=-1 tsc=unstable nokaslr".to_owned();
    if boot.lockdown != Lockdown::None {
        line.push_str(&format!(" lockdown={}", boot.lockdown.as_str()));
    }
    line.push_str(&format!(" vm.cgroup={}", boot.cgroup.as_str()));
    let mut qemu = Command::new(setup::find(QEMU).context(QEMU)?);
    qemu.args(MACHINE.split(' '))
        .args(["-cpu", CPU, "-append", &line, "-kernel"])
        .arg(&boot.kernel.image)
        .arg("-initrd")
        .arg(initramfs);
    hear(&mut qemu, SILENCE, log, tell)
}

/// Starts it and hears it out; it is ended if it is silent for so long.
fn hear(
    machine: &mut Command,
    silence: Duration,
    log: &Path,
    tell: &dyn Fn(&str),
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
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let mut log = File::create(log).with_context(|| log.display().to_string())?;
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(silence) {
            Ok(line) => {
                writeln!(log, "{line}").context("the console's log")?;
                // The firmware's last words may stand before the first.
                if let Some((_, word)) = line.split_once(MARK) {
                    tell(word);
                    said.push(word.to_owned());
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(said),
            Err(RecvTimeoutError::Timeout) => {
                let stopped = format!("stopped: it said nothing for {} s", silence.as_secs());
                writeln!(log, "{stopped}").context("the console's log")?;
                said.push(stopped);
                return Ok(said);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_machine_is_ended_and_what_it_said_is_kept() {
        let folder =
            std::env::temp_dir().join(format!("rebalancer-machine-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let log = folder.join("log");
        let mut machine = Command::new("sh");
        machine.args(["-c", "echo bios@@ pid $$; echo noise; exec sleep 600"]);
        let said = hear(&mut machine, Duration::from_secs(1), &log, &|_| {}).unwrap();
        let console = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let [pid, stopped] = &said[..] else {
            panic!("{said:?}")
        };
        let pid = pid.strip_prefix("pid ").unwrap();
        assert!(!Path::new("/proc").join(pid).exists(), "{pid} goes on");
        assert!(stopped.starts_with("stopped"), "{said:?}");
        assert!(console.contains("noise"), "{console}");
    }
}

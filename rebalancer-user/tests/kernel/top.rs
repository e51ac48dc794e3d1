//! `rebalancer top` in a real terminal, and without one.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Command, Stdio},
    time::Instant,
};

use rustix::termios::{LocalModes, tcgetattr};

use crate::support::{Agent, PATIENCE, PATIENT, REBALANCER, connect_many, lab, request};

/// Both ends of a terminal of 100 by 30.
fn terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (0, 0);
    let size = libc::winsize {
        ws_row: 30,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let (ends, none) = ((&raw mut master, &raw mut slave), std::ptr::null_mut());
    // SAFETY: two descriptors are written; name and modes are not asked for.
    let failed = unsafe { libc::openpty(ends.0, ends.1, none, std::ptr::null(), &raw const size) };
    assert_eq!(failed, 0, "openpty: {}", std::io::Error::last_os_error());
    // SAFETY: they are new, and nobody else's.
    unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

/// Reads what is shown until it contains `text`.
fn until(master: &mut File, shown: &mut String, text: &str) {
    let begin = Instant::now();
    let mut part = [0; 4096];
    while !shown.contains(text) {
        assert!(begin.elapsed() < PATIENCE, "{text:?} never came: {shown:?}");
        let mut ready = libc::pollfd {
            fd: master.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: it is one descriptor, and lives.
        if unsafe { libc::poll(&raw mut ready, 1, 100) } > 0 {
            // An end that was closed is an error.
            let n = master.read(&mut part).unwrap_or(0);
            shown.push_str(&String::from_utf8_lossy(&part[..n]));
        }
    }
}

#[test]
fn top_shows_endpoints_and_restores_the_terminal() {
    let lab = lab(2);
    let mut agent = Agent::moving(&lab, 80, "maxAge: 400ms", PATIENT);
    let mut streams = connect_many(&lab, lab.pod(0).address(), 3);
    request(&mut streams[0], "/").unwrap();
    agent.wait_for_skipped("\"inFlight\": 3");
    agent.wait_for_intervals(1);

    let text = agent.ask(&["top", "--once"]);
    let endpoint = format!("netns {}:80", lab.pod(0).host.netns_inode());
    let row = text.lines().find(|line| line.contains(&endpoint));
    let row = row.unwrap_or_else(|| panic!("{text}"));
    assert!(
        row.contains("100 % ") && row.contains('█') && row.contains("3 moving"),
        "{row}"
    );
    assert!(
        text.contains("port 80  3 connections, 2 endpoints"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text:?}");
    // Without a terminal it says how to do without.
    let piped = agent.fails(1, &["top"]);
    assert!(piped.contains("--once"), "{piped}");

    let (mut master, slave) = terminal();
    let before = tcgetattr(&slave).unwrap();
    let end = || Stdio::from(slave.try_clone().unwrap());
    let mut child = Command::new(REBALANCER)
        .args(["top", "--pins"])
        .arg(&agent.pins)
        .env("TERM", "xterm")
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    let mut shown = String::new();
    until(&mut master, &mut shown, "port 80");
    until(&mut master, &mut shown, "moving");
    assert!(shown.contains("\u{1b}[?1049h"), "its own screen: {shown:?}");
    let raw = tcgetattr(&slave).unwrap();
    assert!(
        !raw.local_modes.contains(LocalModes::ECHO),
        "keys are its own"
    );
    // A rate is known from the second pass that it sees on.
    until(&mut master, &mut shown, "B/s");
    master.write_all(b"q").unwrap();
    until(&mut master, &mut shown, "\u{1b}[?1049l");
    assert_eq!(child.wait().unwrap().code(), Some(0), "{shown:?}");
    let after = tcgetattr(&slave).unwrap();
    assert_eq!(
        after.local_modes, before.local_modes,
        "the terminal is as it was"
    );
    assert_eq!(after.input_modes, before.input_modes);
}

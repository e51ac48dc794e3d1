//! Runs `ab`, with or without keep-alive.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use xtask::{command::output, lab::Lab};

/// What ab reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AbReport {
    pub(crate) complete: u64,
    pub(crate) failed: u64,
    /// Requests on a kept-alive connection.
    pub(crate) kept: u64,
    /// Requests per second.
    pub(crate) per_second: f64,
}

/// Sends `requests` from the lab's client, `concurrency` at a time.
pub(crate) fn run(
    lab: &Lab,
    to: SocketAddr,
    requests: u64,
    concurrency: u64,
    keep: bool,
) -> Result<AbReport> {
    let mut ab = lab.client().command("ab");
    if keep {
        ab.arg("-k");
    }
    ab.args(["-q", "-c", &concurrency.to_string()])
        .args(["-n", &requests.to_string()])
        .arg(format!("http://{to}/"));
    parse(&output(&mut ab)?).context("ab's output")
}

fn parse(output: &str) -> Option<AbReport> {
    let line = |name: &str| output.lines().find_map(|line| line.strip_prefix(name));
    let number = |name: &str| -> Option<u64> { line(name)?.trim().parse().ok() };
    Some(AbReport {
        complete: number("Complete requests:")?,
        failed: number("Failed requests:")?,
        // Printed with -k only.
        kept: number("Keep-Alive requests:").unwrap_or(0),
        per_second: line("Requests per second:")?
            .split_whitespace()
            .next()?
            .parse()
            .ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_abs_output() {
        let output = "Concurrency Level:      1\nTime taken for tests:   0.136 seconds\n\
                      Complete requests:      2000\nFailed requests:        3\n\
                      Keep-Alive requests:    1999\n\
                      Requests per second:    14705.88 [#/sec] (mean)\nTotal transferred:      340000 bytes\n";
        assert_eq!(
            parse(output),
            Some(AbReport {
                complete: 2000,
                failed: 3,
                kept: 1999,
                per_second: 14705.88
            })
        );
        let plain = "Complete requests:      10\nFailed requests:        0\n\
                     Requests per second:    9.50 [#/sec] (mean)\n";
        assert_eq!(
            parse(plain),
            Some(AbReport {
                complete: 10,
                failed: 0,
                kept: 0,
                per_second: 9.5
            })
        );
        assert_eq!(parse("ab: invalid URL\n"), None);
    }
}

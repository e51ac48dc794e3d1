//! The first act's client: `ab`, with and without kept connections.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use xtask::lab::Lab;

/// What ab says it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) complete: u64,
    pub(super) failed: u64,
    /// Requests on a connection that was kept.
    pub(super) kept: u64,
}

/// Sends `requests` to the Service, one after the other.
pub(super) fn run(lab: &Lab, requests: u64, keep: bool) -> Result<Done> {
    let mut ab = lab.client().command("ab");
    if keep {
        ab.arg("-k");
    }
    let output = ab
        .args(["-q", "-c", "1", "-n", &requests.to_string()])
        .arg(format!("http://{}/", lab.service()))
        .stdin(Stdio::null())
        .output()
        .context("start ab")?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ab: {}", problem.trim());
    parse(&String::from_utf8_lossy(&output.stdout)).context("ab's output")
}

fn parse(output: &str) -> Option<Done> {
    let number = |name: &str| -> Option<u64> {
        let line = output.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Some(Done {
        complete: number("Complete requests:")?,
        failed: number("Failed requests:")?,
        // Only there with -k.
        kept: number("Keep-Alive requests:").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_abs_output() {
        let output = "Concurrency Level:      1\nTime taken for tests:   0.136 seconds\n\
                      Complete requests:      2000\nFailed requests:        3\n\
                      Keep-Alive requests:    1999\nTotal transferred:      340000 bytes\n";
        assert_eq!(
            parse(output),
            Some(Done {
                complete: 2000,
                failed: 3,
                kept: 1999
            })
        );
        let plain = "Complete requests:      10\nFailed requests:        0\n";
        assert_eq!(
            parse(plain),
            Some(Done {
                complete: 10,
                failed: 0,
                kept: 0
            })
        );
        assert_eq!(parse("ab: invalid URL\n"), None);
    }
}

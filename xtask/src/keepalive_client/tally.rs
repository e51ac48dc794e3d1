//! The keep-alive client's counts.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// One line of the client's output: counts since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Number of connections by the pod that answered last.
    pub(crate) connections: BTreeMap<String, u64>,
    /// Number of responses by pod.
    pub(crate) answers: BTreeMap<String, u64>,
    /// Number of failed requests.
    pub(crate) errors: u64,
    /// The latest failure.
    pub(crate) last_error: Option<String>,
}

impl Report {
    pub(crate) fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line)
            .with_context(|| format!("the keep-alive client's report {line:?}"))
    }

    /// Number of connections that have had a response.
    pub(crate) fn answered(&self) -> u64 {
        self.connections.values().sum()
    }
}

pub(super) struct Tally(Mutex<Inner>);

struct Inner {
    /// The pod that answered each worker last.
    last_pods: Vec<Option<String>>,
    sums: Report,
}

impl Tally {
    pub(super) fn new(workers: usize) -> Self {
        Self(Mutex::new(Inner {
            last_pods: vec![None; workers],
            sums: Report::default(),
        }))
    }

    pub(super) fn answered(&self, worker: usize, pod: &str) {
        let mut inner = self.0.lock();
        *inner.sums.answers.entry(pod.to_owned()).or_default() += 1;
        inner.last_pods[worker] = Some(pod.to_owned());
    }

    pub(super) fn failed(&self, error: &anyhow::Error) {
        let mut inner = self.0.lock();
        inner.sums.errors += 1;
        inner.sums.last_error = Some(format!("{error:#}"));
    }

    pub(super) fn report(&self) -> Report {
        let inner = self.0.lock();
        let mut report = inner.sums.clone();
        for pod in inner.last_pods.iter().flatten() {
            *report.connections.entry(pod.clone()).or_default() += 1;
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_for_the_pod_that_answered_last() {
        let tally = Tally::new(3);
        tally.answered(0, "web-0");
        tally.answered(1, "web-0");
        tally.answered(0, "web-1");
        tally.failed(&anyhow::anyhow!("reset"));
        let report = tally.report();
        assert_eq!(
            report.connections,
            BTreeMap::from([("web-0".into(), 1), ("web-1".into(), 1)])
        );
        assert_eq!(
            report.answers,
            BTreeMap::from([("web-0".into(), 2), ("web-1".into(), 1)])
        );
        assert_eq!((report.answered(), report.errors), (2, 1));
        let line = serde_json::to_string(&report).unwrap();
        assert_eq!(Report::parse(&line).unwrap(), report);
    }
}

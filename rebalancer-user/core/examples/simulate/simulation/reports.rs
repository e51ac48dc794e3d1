//! Delayed reports of nodes that each see a part of a Service.

use std::{collections::VecDeque, time::Duration};

use rebalancer_core::{plan::ServiceFacts, snapshot::KernelTime};

/// The delay of a report.
const LATE: Duration = Duration::from_secs(10);

/// How long it remains valid.
pub(crate) const COUNTS: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct Reports {
    made: VecDeque<(KernelTime, ServiceFacts)>,
}

impl Reports {
    pub(crate) fn make(&mut self, at: KernelTime, facts: ServiceFacts) {
        self.made.push_back((at, facts));
    }

    /// The report that arrives by `now`, with the largest sum of the last three: clients that are about
    /// to reconnect are missing in the last.
    pub(crate) fn heard(&mut self, now: KernelTime) -> Option<ServiceFacts> {
        let heard = self
            .made
            .iter()
            .filter(|(at, _)| now.since(*at) >= LATE)
            .count();
        self.made.drain(..heard.saturating_sub(3));
        let heard = self.made.range(..heard.min(3));
        let (_, last) = heard.clone().last()?;
        let sum = heard
            .map(|(_, facts)| facts.sum)
            .max_by_key(|sum| sum.total)?;
        Some(ServiceFacts { sum, ..*last })
    }
}

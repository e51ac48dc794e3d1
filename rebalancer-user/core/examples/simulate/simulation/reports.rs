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

    /// The latest report that has arrived by `now`, with the largest sum of the last three: the latest
    /// alone lacks clients that are about to reconnect.
    pub(crate) fn latest(&mut self, now: KernelTime) -> Option<ServiceFacts> {
        let arrived = self
            .made
            .iter()
            .filter(|(at, _)| now.since(*at) >= LATE)
            .count();
        self.made.drain(..arrived.saturating_sub(3));
        let recent = self.made.range(..arrived.min(3));
        let (_, last) = recent.clone().last()?;
        let sum = recent
            .map(|(_, facts)| facts.sum)
            .max_by_key(|sum| sum.total)?;
        Some(ServiceFacts { sum, ..*last })
    }
}

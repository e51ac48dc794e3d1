//! What nodes tell each other of a Service of which each sees a part: late.

use std::{collections::VecDeque, time::Duration};

use rebalancer_core::{plan::ServiceFacts, snapshot::KernelTime};

/// How old a report is when it is heard.
const LATE: Duration = Duration::from_secs(10);

/// How long it counts.
pub(crate) const COUNTS: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct Reports {
    made: VecDeque<(KernelTime, ServiceFacts)>,
}

impl Reports {
    pub(crate) fn make(&mut self, at: KernelTime, facts: ServiceFacts) {
        self.made.push_back((at, facts));
    }

    /// What is heard at `now`: the last report that is old enough, with the largest sum of the last
    /// three, as clients that are about to reconnect are in none of the last.
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

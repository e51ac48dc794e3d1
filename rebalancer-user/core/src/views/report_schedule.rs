//! When a node is to write its report.

use std::time::Duration;

use super::{
    NEW_SET_REPORTED_AFTER, REPORT_AT_LEAST_EVERY, REPORT_EVERY, REPORTED_AHEAD, Report,
    ServiceReport,
};

/// The last report that a node has written, which says when the next is due. Times are on the node's clock, since
/// any moment.
#[derive(Clone, Debug, Default)]
pub struct ReportSchedule(Option<Written>);

#[derive(Clone, Debug)]
struct Written {
    report: Report,
    at: Duration,
    /// Until when all so far would last, if none came before its time.
    lasts: Duration,
}

impl ReportSchedule {
    /// The number of the last report; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.0.as_ref().map_or(0, |last| last.report.sequence)
    }

    /// It was written at `at`.
    pub fn written(&mut self, report: Report, at: Duration) {
        let from = self.0.as_ref().map_or(at, |last| last.lasts.max(at));
        self.0 = Some(Written {
            report,
            at,
            lasts: from + REPORT_EVERY,
        });
    }

    /// Whether a report of this is due at `at`: none is while there is nothing to report and nothing was.
    pub fn is_due(&self, now: &[ServiceReport], at: Duration) -> bool {
        let Some(last) = &self.0 else {
            return !now.is_empty();
        };
        let age = at.saturating_sub(last.at);
        let ahead = last.lasts.saturating_sub(at);
        let soon = age >= NEW_SET_REPORTED_AFTER && ahead <= REPORT_EVERY * REPORTED_AHEAD;
        soon && last.report.is_of_others_than(now)
            || age >= REPORT_EVERY && last.report.is_outdated_by(now)
            || age >= REPORT_AT_LEAST_EVERY && !now.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn service(load: u64) -> Vec<ServiceReport> {
        vec![ServiceReport {
            loads: vec![load],
            ..ServiceReport::default()
        }]
    }

    #[test]
    fn a_report_is_due_soon_after_a_change_and_once_in_a_while() {
        let after = |services| {
            let mut schedule = ReportSchedule::default();
            schedule.written(Report::of(1, services), Duration::ZERO);
            schedule
        };
        let (last, nothing) = (after(service(100)), after(Vec::new()));
        let due = |now: &[ServiceReport], after| last.is_due(now, second(after));
        let never = ReportSchedule::default();
        assert!(
            !never.is_due(&[], Duration::ZERO),
            "most nodes have nothing to report"
        );
        assert!(never.is_due(&service(1), Duration::ZERO));
        assert!(!due(&service(300), 9));
        assert!(due(&service(300), 10));
        assert!(!due(&[], 1));
        assert!(due(&[], 2), "another set of endpoints is reported soon");
        assert!(!due(&service(101), 29));
        assert!(due(&service(101), 30));
        assert!(!nothing.is_due(&[], second(300)));
    }

    /// The replicas of a scale-out become ready one after the other; one may also flap for long.
    #[test]
    fn sets_of_endpoints_that_change_are_reported_soon_for_a_while_and_as_often_as_loads_then() {
        let mut schedule = ReportSchedule::default();
        let mut at = Vec::new();
        for now in 0..120 {
            // Another with each second.
            let services = vec![service(1); 1 + now % 2].concat();
            if schedule.is_due(&services, second(now as u64)) {
                schedule.written(Report::of(now as u64, services), second(now as u64));
                at.push(now);
            }
        }
        assert_eq!(at[..5], [0, 3, 6, 9, 12]);
        let later = at.iter().skip(5).filter(|at| **at >= 20).count();
        assert!(later <= 10, "{at:?}");
    }
}

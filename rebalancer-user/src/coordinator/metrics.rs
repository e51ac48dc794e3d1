//! The coordinator's metrics and health.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
    time::{Duration, Instant},
};

use hyper::{Method, StatusCode};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::http::{Answer, Router, metrics_answer, text_answer};

/// A loop that has not come round for so long is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Numbers that the loop sets and requests read.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    pub(super) leads: Gauge<i64, AtomicI64>,
    pub(super) nodes: Gauge<i64, AtomicI64>,
    /// Of those nodes, whose reports count.
    pub(super) current: Gauge<i64, AtomicI64>,
    pub(super) oldest: Gauge<f64, AtomicU64>,
    pub(super) views: Gauge<i64, AtomicI64>,
    pub(super) merge: Gauge<f64, AtomicU64>,
    pub(super) reports: Counter,
    pub(super) given: Counter,
    pub(super) failed: Counter,
    signs: Arc<Mutex<Signs>>,
}

#[derive(Debug, Default)]
struct Signs {
    round: Option<Instant>,
    listed: bool,
}

impl Numbers {
    /// The loop has come round.
    pub(super) fn came_round(&self) {
        self.signs().round = Some(Instant::now());
    }

    /// All reports were listed once.
    pub(super) fn listed(&self) {
        self.signs().listed = true;
    }

    fn signs(&self) -> std::sync::MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("rebalancer_coordinator");
        registry.register(
            "leads",
            "Whether this coordinator leads",
            self.leads.clone(),
        );
        registry.register("nodes", "Nodes with a report", self.nodes.clone());
        registry.register(
            "nodes_current",
            "Nodes whose report is recent enough to be merged",
            self.current.clone(),
        );
        registry.register_with_unit(
            "report_age_max",
            "Age of the oldest report that is merged",
            Unit::Seconds,
            self.oldest.clone(),
        );
        registry.register(
            "views",
            "Views of Services over all nodes",
            self.views.clone(),
        );
        registry.register_with_unit(
            "merge_duration",
            "Duration of the last merge",
            Unit::Seconds,
            self.merge.clone(),
        );
        registry.register("reports", "Reports received", self.reports.clone());
        registry.register("statuses_written", "Statuses written", self.given.clone());
        registry.register(
            "statuses_failed",
            "Statuses that could not be written",
            self.failed.clone(),
        );
        registry
    }

    pub(super) fn router(&self) -> Router {
        let registry = Arc::new(self.registry());
        let (of_live, of_ready) = (self.clone(), self.clone());
        Router::default()
            .on(Method::GET, "/metrics", move |asked| {
                std::future::ready(metrics_answer(&registry, asked.headers()))
            })
            .on(Method::GET, "/healthz", move |_| {
                std::future::ready(of_live.live())
            })
            .on(Method::GET, "/readyz", move |_| {
                std::future::ready(of_ready.ready())
            })
    }

    fn live(&self) -> Answer {
        let is_recent = |at: Instant| at.elapsed() < STUCK;
        if self.signs().round.is_none_or(is_recent) {
            return text_answer(StatusCode::OK, "ok\n");
        }
        text_answer(StatusCode::SERVICE_UNAVAILABLE, "the loop is stuck\n")
    }

    fn ready(&self) -> Answer {
        if self.signs().listed {
            return text_answer(StatusCode::OK, "ok\n");
        }
        let why = "the API server has not listed the reports yet\n";
        text_answer(StatusCode::SERVICE_UNAVAILABLE, why)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::http::assert_metrics_listed;

    #[test]
    fn all_numbers_are_shown() {
        let numbers = Numbers::default();
        numbers.leads.set(1);
        numbers.given.inc();
        let mut text = String::new();
        encode(&mut text, &numbers.registry()).unwrap();
        let listed = include_str!("../../../deploy/metrics-coordinator.txt");
        assert_metrics_listed(listed, &text);
        assert_eq!(numbers.ready().status(), StatusCode::SERVICE_UNAVAILABLE);
        numbers.listed();
        assert_eq!(numbers.ready().status(), StatusCode::OK);
        assert_eq!(numbers.live().status(), StatusCode::OK);
    }
}

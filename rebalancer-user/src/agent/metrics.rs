//! Metrics for Prometheus: what the loop counted, written out for whoever scrapes it.

mod exposition;

pub(super) use self::exposition::registry;

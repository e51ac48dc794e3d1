//! The rebalancer's node agent.

pub mod plan;
pub mod policy;
pub mod snapshot;

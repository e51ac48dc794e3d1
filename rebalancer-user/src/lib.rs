//! The rebalancer's node agent.

//! What the rebalancer decides, and why.
//!
//! From a [`snapshot`] of one node's connections and a [`policy`], [`plan::decide`] decides for each
//! connection whether to move it; before a move, [`exchange`] decides whether every request on the
//! connection has been answered. Nothing here does I/O, reads a clock or draws a random
//! number: times and facts are arguments, and the same input gives the same plan.
#![forbid(unsafe_code)]
#![deny(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros
)]

pub mod exchange;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod plan;
pub mod policy;
pub mod snapshot;
pub mod text;
pub mod views;

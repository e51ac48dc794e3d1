//! What the rebalancer decides, and why.
//!
//! A [`snapshot`] of one node's connections and a [`policy`] go in; [`plan::decide`] says of each
//! connection whether it is to be moved, and [`exchange`] says of one that is about to be whether
//! everything asked on it has been answered. Nothing here does I/O, reads a clock or draws a random
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

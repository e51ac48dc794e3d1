//! What the operator wants: a [`Policy`], read from one strict YAML document.
//!
//! ```yaml
#![doc = include_str!("example.yaml")]
//! ```
//!
#![doc = include_str!("semantics.md")]
//!
//! # Implementation
//!
//! [`parse`] gives [`PolicyErrors`], each with its line, column and remedy. Syntax and types stop at
//! the first; errors of meaning are reported all at once.
//!
//! Pure. The file's types are private to this module; the types seen from outside are built from
//! them once, and only valid ones exist.

mod cgroups;
mod document;
mod error;
mod lines;
mod matching;
mod node;
mod notation;
mod parse;
mod pods;
mod reference;
mod rule;
mod schema;
mod section;
mod shape;
mod suggest;
mod syntax;
#[cfg(test)]
mod tests;
mod units;

pub use cgroups::CgroupGlobs;
pub use document::{Budget, Guards, Mode, Policy, Track};
pub use error::{PolicyError, PolicyErrors, visible};
pub use matching::{IpBlock, Match, Mismatch, Peer, PortRange};
pub use parse::{explain, parse};
pub use pods::{MissingFact, Operator, Requirement, Selector, ServiceRef};
pub use reference::reference;
pub use rule::{
    AtEnd, Balance, By, Condition, Count, Limits, MaxRate, OnReconnect, Rule, RuleName, Step,
    StepKind, When,
};
pub use schema::schema;
pub use units::{Amount, Percent, Size, Span, UnitError, parse_duration, parse_size};

/// A policy with every field that has a default set to it.
const EXAMPLE: &str = include_str!("example.yaml");

/// The largest policy file that is read, in bytes.
pub const LARGEST_FILE: u64 = 16 << 20;

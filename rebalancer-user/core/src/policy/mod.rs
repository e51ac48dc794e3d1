//! The operator's [`Policy`], read from one strict YAML document.
//!
//! ```yaml
#![doc = include_str!("example.yaml")]
//! ```
//!
#![doc = include_str!("semantics.md")]
//!
//! # Implementation
//!
//! [`parse`] returns a [`Policy`], or [`PolicyErrors`] with line, column and remedy. Invalid YAML is
//! reported alone; all other errors are reported at once.
//!
//! Each mapping of the file is declared once, by the macro `section!`: a field is a row with its
//! documentation, name, type and default. Accessors, reading, [`explain`], [`schema`] and
//! [`reference`] follow from the rows. Values can only be made by [`parse`], so each is valid.

mod cgroups;
mod document;
mod error;
mod lines;
mod matching;
mod mode;
mod node;
mod notation;
mod parse;
mod reference;
mod rule;
pub mod sample;
mod schema;
mod section;
mod selector;
mod service_ref;
mod shape;
mod suggest;
mod syntax;
#[cfg(test)]
mod tests;
mod units;

pub use cgroups::CgroupGlobs;
pub use document::{Budget, Guards, Policy, Track};
pub use error::{PolicyError, PolicyErrors};
pub use matching::{IpBlock, Match, Mismatch, MissingFact, Peer, PortRange};
pub use mode::Mode;
pub use parse::{explain, parse};
pub use reference::reference;
pub use rule::{
    AtEnd, Balance, By, Condition, Count, Drain, DrainOn, Limits, MaxRate, OnReconnect, Rule,
    RuleName, Step, StepKind, When,
};
pub use schema::schema;
pub use selector::{Operator, Requirement, Selector};
pub use service_ref::ServiceRef;
pub use units::{Amount, Percent, Size, Span, UnitError, parse_duration, parse_size};

/// A policy with every field that has a default set to it.
const EXAMPLE: &str = include_str!("example.yaml");

/// The largest policy file that is read, in bytes.
pub const LARGEST_FILE: u64 = 16 << 20;

//! Policies for tests, of this crate and of those that use it: each writes what its case is about.

use super::{Policy, parse};

/// The policy of this text, which lacks the two lines with which each begins.
///
/// # Panics
/// If it is invalid, with its errors.
pub fn policy(rest: &str) -> Policy {
    let text = format!("apiVersion: rebalancer.dev/v1alpha1\nkind: RebalancePolicy\n{rest}");
    parse("test", &text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

//! What the endpoints of a Service hold on all nodes, though each node sees only its own.
//!
//! Each node's agent makes a [`Report`] of what its ready endpoints hold. The coordinator merges them
//! ([`Merger`]) and gives each node a [`View`] of every Service of its report: what all endpoints hold
//! together, and which share of the Service's moves is this node's.
//!
//! Nobody trusts more than it must. Times are differences on the reader's own clock, so that clocks may
//! differ. A view is made only if every ready endpoint was reported, by nodes that know the same set of
//! them ([`Generation`]): absence proves nothing. And a view only narrows what a node may do by its own
//! budgets, so that a forged report can hide a load or claim one, and take shares from others, but can
//! make no node move more than its budget.

mod generation;
mod merge;
mod publisher;
mod report;
mod report_schedule;
mod share;
mod sums;
mod view;

pub use generation::Generation;
pub use merge::Merger;
pub use publisher::Publisher;
pub use report::{Key, MOST_LOADS, MOST_SERVICES, Report, ServiceReport};
pub use report_schedule::ReportSchedule;
pub use share::{Share, WHOLE};
pub use sums::Sums;
pub use view::{View, Views};

use std::time::Duration;

/// The least time between two reports of a node, unless its endpoints change.
pub const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The least time between a report and one of other endpoints: a new replica should not have to wait.
pub const NEW_SET_REPORTED_AFTER: Duration = Duration::from_secs(2);

/// So many reports of other endpoints may come before their time: the replicas of a scale-out become ready one after
/// the other. One that flaps for longer costs no more than [`REPORT_EVERY`] allows.
pub const REPORTED_AHEAD: u32 = 3;

/// The most time between two reports, though nothing changes: who reports nothing may be gone.
pub const REPORT_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// A report that has not changed for so long is not merged: two were lost.
pub const REPORT_COUNTS_FOR: Duration = Duration::from_secs(70);

/// An object whose report has not changed for so long is removed: its node is gone, or has nothing to report. An
/// agent that has something to report makes it again.
pub const REPORT_REMOVED_AFTER: Duration = Duration::from_secs(3600);

/// A view counts for so long after it was received, on the receiver's clock.
pub const VIEW_COUNTS_FOR: Duration = Duration::from_secs(60);

/// A view is given again after so long, though nothing has changed.
pub const VIEW_AGAIN_AFTER: Duration = Duration::from_secs(20);

//! Ends connections, and only those that a plan chose.
//!
//! One thread does it: it enters the connection's network namespace, looks at the socket by its
//! cookie, finds the processes that hold it, and takes the step when its condition holds and no
//! guard forbids it, in the same breath. It leaves the namespace at once, as a thread that stays
//! keeps a dead pod's namespace alive.
//!
//! `active` is a move's state from order to outcome; `owner` and `process` tell who holds a
//! socket; `guards` skips for what is known of them alone; `mechanism` is how a reset is made,
//! `probe` tries which of them this node has; `watch` hears whether the victim speaks HTTP/1
//! and all that was asked is answered; `pulse` shows others whether the thread is stuck, and at
//! which connection.

mod active;
mod guards;
mod mechanism;
mod mover;
mod owners;
mod probe;
mod pulse;
mod quiet;
mod raw;
mod sniffer;

pub(crate) use guards::stranger;
pub(crate) use owners::Owners;

pub use mechanism::Mechanism;
pub use mover::{Done, GivenUp, Mover, Order, Steps};
pub use probe::{find_mechanism, probe};
pub use pulse::{Health, Pulse};
pub use quiet::{Quiet, judge};
pub use sniffer::probe_sniffing;

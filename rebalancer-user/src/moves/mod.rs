//! Ends connections, and only those that a plan chose.
//!
//! One thread does it: it enters the connection's network namespace, looks at the socket by its
//! cookie, finds the processes that hold it, and takes the step when its condition holds and no
//! guard forbids it, in the same breath. It leaves the namespace at once, as a thread that stays
//! keeps a dead pod's namespace alive.
//!
//! `victim` is a connection from order to outcome; `owners` finds who holds its socket, and `guards`
//! checks those processes; `quiet` judges one look at the socket; `sniffer` detects the protocol;
//! `notices` tells clients of HTTP/2 to leave, and `wake` wakes readers of what has left without that; `mechanism`
//! resets (by raw segments in `raw`), and `probe` tries which mechanisms work here; `pulse` shows whether the
//! thread is stuck, and on which connection.

mod guards;
mod mechanism;
mod mover;
mod notices;
mod owners;
mod probe;
mod pulse;
mod quiet;
mod raw;
mod sniffer;
mod victim;
mod wake;

pub(crate) use guards::stranger;
pub(crate) use owners::Owners;
pub(crate) use wake::wake;

pub use mechanism::Mechanism;
pub use mover::{Done, GivenUp, Mover, Steps};
pub use notices::probe_notice;
pub use probe::{find_mechanism, probe};
pub use pulse::{Health, Pulse};
pub use quiet::{Quiet, judge};
pub use sniffer::probe_sniffing;
pub use victim::Order;

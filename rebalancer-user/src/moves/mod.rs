//! Ends connections, and only those that a plan chose.
//!
//! One thread does it: it enters the connection's network namespace, looks at the socket by its
//! cookie, and destroys it when the step's condition holds, in the same breath. It leaves the
//! namespace at once, as a thread that stays keeps a dead pod's namespace alive.

mod diag;
mod mover;
mod probe;
mod quiet;

pub use diag::{Socket, SocketId};
pub use mover::{Done, Mover, Order};
pub use probe::can_destroy;
pub use quiet::{Quiet, judge};

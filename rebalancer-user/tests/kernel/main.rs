//! What holds on a real kernel, with real servers and clients, in the lab. Needs root.
//!
//! `cargo xtask test kernel` runs it, one test after the other.

mod by_hand;
mod bytes;
mod cost;
mod doctor;
mod guards;
mod life;
mod mechanisms;
mod moves;
mod neighbours;
mod program;
mod reload;
mod scale;
mod server;
mod steps;
mod support;
mod tracking;
mod without;

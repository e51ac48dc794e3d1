//! What holds on a real kernel, with real servers and clients, in the lab. Needs root.
//!
//! `cargo xtask test kernel` runs it, one test after the other.
#![expect(
    unreachable_pub,
    reason = "one program of many rooms: what they share is public"
)]

mod balance;
mod bytes;
mod calls;
mod cgroups;
mod cost;
mod doctor;
mod events;
mod guards;
mod handed_over;
mod handshakes;
mod interrupted;
mod ipv6;
mod life;
mod locks;
mod manual;
mod mechanisms;
mod messages;
mod metrics;
mod moves;
mod mptcp;
mod names;
mod neighbours;
mod notice;
mod pause;
mod privileges;
mod program;
mod records;
mod refused;
mod reload;
mod scale;
mod server;
mod sniffing;
mod status;
mod steps;
mod support;
mod top;
mod tracking;
mod walk;
mod without;

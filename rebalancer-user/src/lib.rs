//! The rebalancer's node agent, as a library for its binary and its tests.
//!
//! Data flow: [`host`] reads what Linux says without BPF, [`bpf`] reads what the kernel recorded, [`observe`] makes a [`snapshot`] of it, [`plan`]
//! decides by the [`policy`] what should be moved, [`moves`] moves it once its [`exchange`] is complete,
//! [`counting`] counts what a rule asks for beyond what the kernel counts anyway, and [`agent`] joins
//! them in one loop, which others ask through [`http`]. [`cli`] and [`render`] are what an operator sees.
//! [`abilities`] tries what of all this the kernel allows.

pub mod abilities;
pub mod agent;
pub mod bpf;
pub mod cli;
pub mod counting;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod host;
pub mod http;
pub mod kubernetes;
mod lost_closes;
pub mod moves;
pub mod observe;
pub mod render;
mod walking;

pub use rebalancer_core::{exchange, plan, policy, snapshot};

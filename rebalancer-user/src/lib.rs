//! The rebalancer's node agent, as a library for its binary and its tests.
//!
//! Data flow: [`bpf`] reads what the kernel half recorded, [`observe`] makes a [`snapshot`] of it, [`plan`]
//! decides by the [`policy`] what should be moved, [`moves`] moves it once its [`exchange`] is complete,
//! [`counting`] counts sends where a rule asks for it, and [`agent`] runs all of them in one loop. Other
//! processes query the agent over [`http`], in documents of [`api`]; [`cli`] and [`render`] are what an
//! operator sees. `coordinator` merges the reports of all nodes into [`views`]. [`host`] is what Linux says
//! without BPF, and [`abilities`] tests what this kernel allows.

pub mod abilities;
pub mod agent;
pub mod api;
pub mod bpf;
pub mod cli;
#[cfg(feature = "kubernetes")]
pub mod coordinator;
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
#[cfg(test)]
mod waiting;
mod walking;

pub use rebalancer_core::{exchange, plan, policy, snapshot, text, views};

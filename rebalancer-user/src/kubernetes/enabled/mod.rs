//! Names from the API server, Kubernetes Events to it, and reports and views by it.

mod cluster;
mod connect;
mod coordination;
mod event_recorder;
mod exchange;
#[cfg(test)]
mod exchange_tests;
mod lease;
mod membership;
mod name;
mod node_balance;
mod node_balances;
mod objects;
mod pod_lookup;
#[cfg(test)]
mod sample;
mod services;
mod slices;
mod store;
#[cfg(test)]
mod tests;
mod watch;

pub use connect::Names;
pub use coordination::coordination;
pub use event_recorder::{EventWriter, write_event};
pub use exchange::Exchange;
pub use lease::Lease;
pub use node_balance::definition;
pub use node_balances::{NodeBalances, ReportEvent};

//! Names from the API server, and Kubernetes Events to it.

mod cluster;
mod connect;
mod event_recorder;
mod name;
mod objects;
mod pod_lookup;
mod services;
mod slices;
mod store;
#[cfg(test)]
mod tests;
mod watch;

pub use connect::Names;
pub use event_recorder::{EventWriter, write_event};

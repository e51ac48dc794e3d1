//! Text for people: tables and lines, into any writer. Where an output has both forms, the function here
//! takes the [`Form`](crate::api::Form).

mod cooldowns;
mod drain;
mod events;
mod explain;
mod moved;
mod plan;
mod service_facts;
mod status;
mod table;
mod top;
mod units;

pub use cooldowns::cooldowns;
pub use drain::{drain, drain_endpoint};
pub use events::{event_row, events_head};
pub use explain::{explanation, not_tracked};
pub use moved::moved_table;
pub use plan::plan;
pub use status::status_table;
pub use table::{connections_table, connections_wide, endpoints_table};
pub use top::top;

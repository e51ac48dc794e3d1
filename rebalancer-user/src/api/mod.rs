//! What travels over the agent's socket or stands in files, as JSON or YAML: written here, and read back
//! here. Requests are in [`http`](crate::http); text for people is in [`render`](crate::render).

mod cooldowns;
mod doctor;
mod drain;
mod dump;
mod envelope;
mod events;
mod explanation;
mod kept_ledger;
mod moved;
mod order;
mod parse;
mod plan;
mod read_dump;
mod services;
mod status;

pub use cooldowns::write_cooldowns;
pub use doctor::{Diagnosis, Finding, Level, write_diagnosis};
pub use drain::{DrainEndpoint, DrainTarget};
pub(crate) use dump::{container, service_names};
pub use dump::{write_connections, write_endpoints};
pub use envelope::{Form, Notation, Origin, Source};
#[cfg(test)]
pub(crate) use events::tests::one_of_each;
pub use events::{Event, EventDrain, EventKind, EventMove, read_event, write_event};
pub use explanation::write_explanation;
pub(crate) use explanation::{effort_text, standing};
pub use kept_ledger::{KeptLedger, read_kept_ledger, write_kept_ledger};
pub use moved::{End, Moved, write_moved};
pub use order::Sort;
pub(crate) use order::{rate, sorted};
pub use parse::ReadError;
pub use plan::write_plan;
pub(crate) use plan::{by_cookie, in_order};
#[cfg(test)]
pub(crate) use read_dump::tests::{any_origin, any_snapshot};
pub use read_dump::{Dumped, read_snapshot};
pub use services::{
    BalanceItem, EndpointItem, ServiceItem, Services, read_services, write_services,
};
#[cfg(test)]
pub(crate) use status::sample as sample_status;
pub use status::{
    BudgetStatus, CapacityStatus, ClusterStatus, InFlightStatus, ModeStatus, MoverStatus,
    PassStatus, PausedBy, PausedStatus, PolicyStatus, RampStatus, RefusedStatus, ShareStatus,
    Status, read_status, write_status,
};

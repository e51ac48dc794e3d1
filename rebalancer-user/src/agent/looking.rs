//! The thread that observes the node. A walk takes as long as there are descriptors, and waits for whatever
//! the kernel waits for: meanwhile the loop takes in how moves end, answers requests and stops on a signal.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::{
    bpf::{self, Adopt},
    host::CgroupPaths,
    observe::{Observation, Observer},
};

/// What came of one observation.
pub(super) type Observed = Result<Observation, bpf::Error>;

/// What to observe.
struct Order {
    adopt: Adopt,
    paths: Arc<CgroupPaths>,
    everywhere: bool,
}

/// Handle of the thread, which ends once this is dropped and its observation is complete. It is not waited
/// for.
pub(super) struct Looking(Sender<Order>);

impl Looking {
    /// Starts the thread. The receiver gets one result for each order, and is closed if the thread panics.
    pub(super) fn start(mut observer: Observer) -> io::Result<(Self, UnboundedReceiver<Observed>)> {
        let (orders, queue) = channel::<Order>();
        let (report, observed) = unbounded_channel();
        thread::Builder::new()
            .name("looking".to_owned())
            .spawn(move || {
                for order in queue {
                    if order.everywhere {
                        observer.look_everywhere();
                    }
                    let seen = observer.observe(order.adopt, &order.paths);
                    if report.send(seen).is_err() {
                        return; // the agent is exiting
                    }
                }
            })?;
        Ok((Self(orders), observed))
    }

    /// Orders an observation; `everywhere`: over all processes.
    pub(super) fn order(&self, adopt: Adopt, paths: Arc<CgroupPaths>, everywhere: bool) {
        let order = Order {
            adopt,
            paths,
            everywhere,
        };
        // The loop sees that the thread has ended by its receiver.
        let _has_ended = self.0.send(order);
    }
}

//! One replica, and its endpoint in a snapshot.

use std::{net::Ipv4Addr, sync::Arc};

use rebalancer_core::snapshot::{Endpoint, EndpointKey, Identity, Labels, Netns, ServiceAt, Who};

use super::scenario::Nodes;

pub(crate) const PORT: u16 = 8080;
pub(crate) const NAMESPACE: &str = "shop";
pub(crate) const SERVICE: &str = "web";

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Terminating,
    Stopped,
}

pub(crate) struct Replica {
    number: usize,
    nodes: Nodes,
    state: State,
    who: Who,
}

impl Replica {
    pub(crate) fn new(number: usize, nodes: Nodes) -> Self {
        let mut replica = Self {
            number,
            nodes,
            state: State::Ready,
            who: Who::NoPod,
        };
        replica.name();
        replica
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state == State::Stopped
    }

    /// The node whose agent sees it.
    pub(crate) fn node(&self) -> usize {
        match self.nodes {
            Nodes::Plain | Nodes::One => 0,
            Nodes::Own => self.number,
        }
    }

    pub(crate) fn key(&self) -> EndpointKey {
        EndpointKey {
            netns: Netns(4_026_532_000 + self.number as u32),
            cgroup: None,
            port: PORT,
        }
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 1).to_bits() + self.number as u32)
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint {
            who: self.who.clone(),
            listeners: 1,
            ..Endpoint::default()
        }
    }

    pub(crate) fn terminate(&mut self) {
        self.state = State::Terminating;
        self.name();
    }

    pub(crate) fn stop(&mut self) {
        self.state = State::Stopped;
    }

    fn name(&mut self) {
        if self.nodes == Nodes::Plain {
            return;
        }
        let (ready, terminating) = (self.is_ready(), !self.is_ready());
        let service = ServiceAt {
            name: SERVICE.to_owned(),
            ready,
            terminating,
            ..ServiceAt::default()
        };
        self.who = Who::Pod(Arc::new(Identity {
            namespace: NAMESPACE.to_owned(),
            namespace_labels: Some(Labels::new()),
            pod: format!("{SERVICE}-{}", self.number),
            uid: self.number.to_string(),
            services: Some(vec![service]),
            ready,
            terminating,
            ..Identity::default()
        }));
    }
}

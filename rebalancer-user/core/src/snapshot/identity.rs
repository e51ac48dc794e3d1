//! Who serves at an endpoint, as a cluster names it: facts, however they were come by.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Whether a snapshot's endpoints have names, and of when those are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// Nobody was asked for names: a plain host.
    #[default]
    Off,
    /// As the API server has them.
    Fresh,
    /// The last ones known: the API server has not answered for so long; for ever, if `None`.
    Stale(Option<Duration>),
}

/// Whose an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Who {
    /// No pod's, or nobody was asked.
    #[default]
    NoPod,
    /// It is not known: a pod that the API server does not have on this node, or none that was
    /// found.
    Unknown,
    /// This pod's.
    Pod(Arc<Identity>),
}

impl Who {
    /// The pod, if it is known.
    pub fn pod(&self) -> Option<&Identity> {
        match self {
            Self::Pod(identity) => Some(identity),
            Self::NoPod | Self::Unknown => None,
        }
    }
}

/// A pod, as it is seen at one of its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The pod's namespace.
    pub namespace: String,
    /// That namespace's labels; `None` if it is not known.
    pub namespace_labels: Option<Labels>,
    /// That namespace asks for its pods to be left alone, as far as it is known.
    pub namespace_opted_out: bool,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid: another pod of the same name has another.
    pub uid: String,
    /// The pod's labels.
    pub labels: Labels,
    /// The Services that lead to this port, by name, all of the pod's namespace; `None` if they
    /// are not known.
    pub services: Option<Vec<ServiceAt>>,
    /// The pod is ready.
    pub ready: bool,
    /// The pod is being deleted.
    pub terminating: bool,
    /// The pod itself asks to be left alone.
    pub opted_out: bool,
}

/// A Service at one of its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceAt {
    /// Its name.
    pub name: String,
    /// New connections are sent here.
    pub ready: bool,
    /// This endpoint is being taken out.
    pub terminating: bool,
    /// The Service asks to be left alone.
    pub opted_out: bool,
}

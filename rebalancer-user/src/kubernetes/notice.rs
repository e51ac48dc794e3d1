//! What a Kubernetes Event says.

/// A pod, as an Event names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodAt {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, if it is known: without it `kubectl describe` does not show the Event.
    pub uid: Option<String>,
}

/// What an Event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The pod that it is about; the agent's own, if `None`.
    pub about: Option<PodAt>,
    /// A word, as Kubernetes writes it.
    pub reason: &'static str,
    /// What was done, or tried.
    pub action: &'static str,
    /// For people.
    pub note: String,
    /// Whether somebody should look.
    pub warning: bool,
}

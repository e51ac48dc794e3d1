//! The name of a Service as a policy gives it.

use std::fmt;

/// A Service, in one namespace or in any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRef {
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

impl ServiceRef {
    /// Its namespace; `None` stands for the namespace of each pod.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it names this Service.
    pub fn means(&self, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace().is_none_or(|own| own == namespace)
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => write!(f, "*/{}", self.name),
        }
    }
}

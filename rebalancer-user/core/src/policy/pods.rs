//! Which pods a rule is for, by the names that a cluster gives them.

use std::fmt;

use super::Mismatch;
use crate::snapshot::{Identity, Labels, Who};

/// Services, namespaces and pods; where several are given, all must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    pub(super) services: Vec<ServiceRef>,
    pub(super) namespace_selector: Option<Selector>,
    pub(super) pod_selector: Option<Selector>,
}

impl Pods {
    /// Services of which one must lead to the endpoint; empty if none must.
    pub fn services(&self) -> &[ServiceRef] {
        &self.services
    }

    /// What the labels of the pod's namespace must be.
    pub fn namespace_selector(&self) -> Option<&Selector> {
        self.namespace_selector.as_ref()
    }

    /// What the pod's labels must be.
    pub fn pod_selector(&self) -> Option<&Selector> {
        self.pod_selector.as_ref()
    }

    /// Whether nothing of a pod is asked for.
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }

    /// Why an endpoint of `who` is not, or not surely, one of those meant; `None` if it is.
    pub(super) fn misses(&self, who: &Who) -> Option<Mismatch> {
        if self.is_any() {
            return None;
        }
        let pod = match who {
            Who::NoPod => return Some(Mismatch::NoPod),
            Who::Unknown => return Some(Mismatch::Undetermined(MissingFact::Pod)),
            Who::Pod(pod) => pod,
        };
        let all = [
            self.misses_services(pod),
            self.misses_namespace(pod),
            self.misses_labels(pod),
        ];
        // What is surely another is another, whatever else is not known of it.
        let mut misses = all.into_iter().flatten();
        let first = misses.next()?;
        let sure = misses.find(|miss| miss.is_sure());
        Some(if first.is_sure() {
            first
        } else {
            sure.unwrap_or(first)
        })
    }

    fn misses_services(&self, pod: &Identity) -> Option<Mismatch> {
        if self.services.is_empty() {
            return None;
        }
        // A Service has endpoints in its own namespace only.
        let here = |meant: &&ServiceRef| {
            let namespace = meant.namespace.as_ref();
            namespace.is_none_or(|namespace| *namespace == pod.namespace)
        };
        let meant: Vec<&ServiceRef> = self.services.iter().filter(here).collect();
        if meant.is_empty() {
            return Some(Mismatch::Services);
        }
        let Some(services) = &pod.services else {
            return Some(Mismatch::Undetermined(MissingFact::Services));
        };
        let is_meant = |name: &str| meant.iter().any(|meant| meant.name == name);
        let found = services.iter().any(|at| is_meant(&at.name));
        (!found).then_some(Mismatch::Services)
    }

    fn misses_namespace(&self, pod: &Identity) -> Option<Mismatch> {
        let selector = self.namespace_selector.as_ref()?;
        match &pod.namespace_labels {
            None if selector.is_any() => None,
            None => Some(Mismatch::Undetermined(MissingFact::NamespaceLabels)),
            Some(labels) => (!selector.selects(labels)).then_some(Mismatch::Namespace),
        }
    }

    fn misses_labels(&self, pod: &Identity) -> Option<Mismatch> {
        let selector = self.pod_selector.as_ref()?;
        (!selector.selects(&pod.labels)).then_some(Mismatch::PodLabels)
    }
}

/// What would have to be known to tell whether a rule is for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingFact {
    /// Which pod it is.
    Pod,
    /// The labels of its namespace.
    NamespaceLabels,
    /// The Services that lead to it.
    Services,
    /// The cgroup that it belongs to.
    Cgroup,
}

impl fmt::Display for MissingFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "which pod it is",
            Self::NamespaceLabels => "which labels its namespace has",
            Self::Services => "which Services lead to it",
            Self::Cgroup => "which cgroup it belongs to",
        })
    }
}

/// A Service, in a namespace or in any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRef {
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

impl ServiceRef {
    /// Its namespace; if none, that of whatever pod is looked at.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it means the Service of this name in this namespace.
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

/// Labels as a NetworkPolicy selects by them. An empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub(super) labels: Labels,
    pub(super) requirements: Vec<Requirement>,
}

impl Selector {
    /// Labels that must be there with these values.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// What else must hold.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it selects everything.
    pub fn is_any(&self) -> bool {
        self.labels.is_empty() && self.requirements.is_empty()
    }

    /// Whether an object with these labels is selected.
    pub fn selects(&self, labels: &Labels) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.labels.iter().all(has) && self.requirements.iter().all(|r| r.holds(labels))
    }
}

/// What must hold of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub(super) key: String,
    pub(super) operator: Operator,
    pub(super) values: Vec<String>,
}

impl Requirement {
    /// The label.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What must hold.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// Of these values; none of those that only ask whether the label is there.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let among = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => among,
            // Also where there is no such label, as everywhere in Kubernetes.
            Operator::NotIn => !among,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// How a label is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It is there and has one of the values.
    In,
    /// It is not there, or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Operator {
    /// The word in the policy file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }

    /// Whether it looks at values.
    pub(super) fn takes_values(self) -> bool {
        matches!(self, Self::In | Self::NotIn)
    }
}

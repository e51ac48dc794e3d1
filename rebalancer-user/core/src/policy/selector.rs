//! Label selectors, as in a NetworkPolicy.

use super::{
    error::Fault,
    notation::{LabelKey, LabelValue, word, words},
    section::{Constraints, Fields, LabelMap, Reader, list, or_empty, part, required, section},
};
use crate::snapshot::Labels;

/// The most items of a list.
const MOST: usize = 256;

section! {
    /// A label selector as in a NetworkPolicy; an empty one selects everything.
    pub struct Selector "LabelSelector" {
        /// Labels and the values they must have.
        labels "matchLabels": Labels as &Labels = or_empty(LabelMap);
        /// Further requirements on labels.
        requirements "matchExpressions": Vec<Requirement> as &[Requirement] = or_empty(
            list(part(), MOST));
    }
}

impl Constraints for Selector {}

impl Selector {
    /// Whether it selects everything.
    pub fn is_any(&self) -> bool {
        self.labels.is_empty() && self.requirements.is_empty()
    }

    /// Whether it selects an object with these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.labels.iter().all(has) && self.requirements.iter().all(|r| r.holds(labels))
    }
}

section! {
    /// A requirement on one label.
    pub struct Requirement "LabelSelectorRequirement" {
        /// The label's key.
        key "key": String as &str = required(LabelKey, "a label, e.g. `key: app`");
        /// How the label is tested.
        operator "operator": Operator = required(word(), "one, e.g. `operator: In`");
        /// The values for `In` and `NotIn`.
        values "values": Vec<String> as &[String] = or_empty(list(LabelValue, MOST));
    }
}

impl Constraints for Requirement {
    fn check(requirement: Option<&Self>, fields: &Fields<'_>, reader: &mut Reader<'_>) {
        let Some(requirement) = requirement else {
            return;
        };
        let given = fields.get("values");
        let fault = match (requirement.operator.takes_values(), given) {
            (true, None) => {
                return fields.require("values", "values, e.g. `values: [checkout]`", reader);
            }
            (true, Some(_)) if requirement.values.is_empty() => {
                Fault::new("an empty list", "nothing in it", "write a value into it")
            }
            (false, Some(_)) if !requirement.values.is_empty() => {
                let label = "this operator looks at the label alone";
                Fault::new("values without effect", label, "remove `values`")
            }
            _ => return,
        };
        reader.report(reader.place_of(given), fault);
    }
}

impl Requirement {
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

words! {
    /// How a label is tested.
    pub enum Operator {
        /// It has one of the values.
        In,
        /// It has none of the values, or is absent.
        NotIn,
        /// It is present.
        Exists,
        /// It is absent.
        DoesNotExist,
    }
}

impl Operator {
    /// Whether it compares values.
    pub(super) fn takes_values(self) -> bool {
        matches!(self, Self::In | Self::NotIn)
    }
}

//! From a file's names and selectors to [`Pods`].

use std::collections::BTreeMap;

use serde_saphyr::Spanned;

use super::{
    reader::{Reader, inner},
    rules::MOST_ITEMS,
};
use crate::policy::{
    Operator, Pods, Requirement, Selector,
    error::Fault,
    file::{Field, List, RequirementFile, Scalar, SelectorFile},
    values,
};

const OPERATORS: [(&str, Operator); 4] = [
    ("In", Operator::In),
    ("NotIn", Operator::NotIn),
    ("Exists", Operator::Exists),
    ("DoesNotExist", Operator::DoesNotExist),
];

impl Reader<'_> {
    pub(super) fn pods(
        &mut self,
        services: &List<Scalar>,
        namespaces: &Field<SelectorFile>,
        pods: &Field<SelectorFile>,
    ) -> Pods {
        self.not_empty(services, "services");
        let names = self.list(services, MOST_ITEMS);
        Pods {
            services: names
                .iter()
                .filter_map(|name| self.item(name, values::service))
                .collect(),
            namespace_selector: self.selector(namespaces),
            pod_selector: self.selector(pods),
        }
    }

    fn selector(&mut self, field: &Field<SelectorFile>) -> Option<Selector> {
        field.0.as_ref()?;
        let default = SelectorFile::default();
        let SelectorFile {
            match_labels,
            match_expressions,
        } = inner(field, &default);
        let expressions = self.list(match_expressions, MOST_ITEMS);
        Some(Selector {
            labels: self.labels(match_labels),
            requirements: expressions
                .iter()
                .filter_map(|expression| self.requirement(expression))
                .collect(),
        })
    }

    fn labels(
        &mut self,
        field: &Field<BTreeMap<String, Spanned<Scalar>>>,
    ) -> BTreeMap<String, String> {
        let none = BTreeMap::new();
        let mut labels = BTreeMap::new();
        for (key, value) in inner(field, &none) {
            if let Err(fault) = values::label_key_text(key) {
                self.report(self.place(value), fault);
            }
            if let Some(value) = self.item(value, |v| values::label_value(v).map(str::to_owned)) {
                labels.insert(key.clone(), value);
            }
        }
        labels
    }

    fn requirement(&mut self, file: &Spanned<RequirementFile>) -> Option<Requirement> {
        let at = self.place(file);
        let RequirementFile {
            key,
            operator,
            values,
        } = &file.value;
        self.required(key, "key", &at, "a label, e.g. `key: app`");
        self.required(operator, "operator", &at, "one, e.g. `operator: In`");
        let key = self.value(key, |value| values::label_key(value).map(str::to_owned));
        let operator = self.word(operator, &OPERATORS, &[]);
        let listed: Vec<String> = self
            .list(values, MOST_ITEMS)
            .iter()
            .filter_map(|value| self.item(value, |v| values::label_value(v).map(str::to_owned)))
            .collect();
        let takes_values = operator.is_none_or(Operator::takes_values);
        let given = values.0.as_ref();
        if takes_values && given.is_none() {
            self.required(values, "values", &at, "values, e.g. `values: [checkout]`");
        } else if takes_values {
            self.not_empty(values, "values");
        } else if given.is_some_and(|given| !given.value.is_empty()) {
            let label = "this operator looks at the label alone";
            let fault = Fault::new("values without effect", label, "remove `values`");
            self.report(self.place_of(values), fault);
        }
        Some(Requirement {
            key: key?,
            operator: operator?,
            values: listed,
        })
    }
}

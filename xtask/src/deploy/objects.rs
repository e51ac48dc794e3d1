//! Rendered objects and their differences.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Keys of Kubernetes lists: the first in this order that all items have.
const KEYS: [&str; 3] = ["mountPath", "name", "containerPort"];

/// Objects by kind and name.
pub(super) type Objects = BTreeMap<String, Value>;

/// Parses a rendering.
pub(super) fn parse(text: &str) -> Result<Objects> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).context("rendered YAML")?;
    let mut objects = Objects::new();
    // helm renders an empty document for an empty template.
    for mut object in all.into_iter().filter(|object| !object.is_null()) {
        let part = |value: &Value| value.as_str().map(str::to_owned);
        let kind = part(&object["kind"]).context("an object without a kind")?;
        let name = part(&object["metadata"]["name"]).context("an object without a name")?;
        let key = format!("{kind} {name}");
        sort(&mut object);
        let before = objects.insert(key.clone(), object);
        ensure!(before.is_none(), "{key} twice");
    }
    Ok(objects)
}

/// Sorts keyed lists by key, as their order has no meaning.
fn sort(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(sort),
        Value::Array(items) => {
            items.iter_mut().for_each(sort);
            let key = KEYS
                .into_iter()
                .find(|key| !items.is_empty() && items.iter().all(|item| !item[*key].is_null()));
            if let Some(key) = key {
                items.sort_by_key(|item| item[key].to_string());
            }
        }
        _ => {}
    }
}

/// Describes each difference; empty if the objects are equal.
pub(super) fn differences(ours: &Objects, theirs: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    let keys = ours.keys().chain(theirs.keys());
    let keys: std::collections::BTreeSet<&String> = keys.collect();
    for key in keys {
        let of = |objects: &Objects| objects.get(key).cloned().unwrap_or(Value::Null);
        compare(key, &of(ours), &of(theirs), &mut found);
    }
    found
}

fn compare(at: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: std::collections::BTreeSet<&String> =
                one.keys().chain(other.keys()).collect();
            for key in keys {
                compare(&format!("{at}/{key}"), &ours[key], &theirs[key], found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (n, (ours, theirs)) in one.iter().zip(other).enumerate() {
                compare(&format!("{at}/{n}"), ours, theirs, found);
            }
        }
        // A number may have been written as 0 or as 0.0.
        (Value::Number(one), Value::Number(other)) if one.as_f64() == other.as_f64() => {}
        _ if ours == theirs => {}
        _ => found.push(format!("{at}: {ours} and {theirs}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "kind: Pod\nmetadata: {name: a}\nspec: {env: [{name: x, value: '1'}, {name: y}], args: [p, q]}\n";

    #[test]
    fn order_matters_only_in_lists_without_keys() {
        let ours = parse(ONE).unwrap();
        let other = ONE.replace(
            "{name: x, value: '1'}, {name: y}",
            "{name: y}, {name: x, value: '1'}",
        );
        assert_ne!(other, ONE);
        assert_eq!(differences(&ours, &parse(&other).unwrap()), [""; 0]);
        let number = |number: &str| parse(&ONE.replace("'1'", number)).unwrap();
        assert_eq!(differences(&number("0"), &number("0.0")), [""; 0]);
        let other = parse(&ONE.replace("[p, q]", "[q, p]")).unwrap();
        let found = differences(&ours, &other);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("Pod a/spec/args/0: "), "{found:?}");
    }

    #[test]
    fn missing_objects_and_changed_fields_are_differences() {
        let ours = parse(ONE).unwrap();
        let found = differences(&ours, &Objects::new());
        assert_eq!(found.len(), 1, "{found:?}");
        let other = parse(&ONE.replace("value: '1'", "value: '2'")).unwrap();
        let found = differences(&ours, &other);
        assert_eq!(found, ["Pod a/spec/env/0/value: \"1\" and \"2\""]);
    }

    #[test]
    fn duplicate_objects_are_rejected() {
        assert!(parse(&format!("{ONE}---\n{ONE}")).is_err());
    }
}

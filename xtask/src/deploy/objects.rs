//! Rendered objects, and where two renderings differ.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// What a list of Kubernetes' is keyed by; in this order the first that every item has.
const KEYS: [&str; 3] = ["mountPath", "name", "containerPort"];

/// Objects by kind and name.
pub(super) type Objects = BTreeMap<String, Value>;

/// Parses a rendering.
pub(super) fn parse(text: &str) -> Result<Objects> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).context("rendered YAML")?;
    let mut objects = Objects::new();
    // helm leaves an empty document for a template that gives nothing.
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

/// Puts lists that are keyed into their keys' order: in it they mean the same.
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

/// Each place where they differ, in words; none if they are the same.
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
        _ if ours == theirs => {}
        _ => found.push(format!("{at}: {ours} and {theirs}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "kind: Pod\nmetadata: {name: a}\nspec: {env: [{name: x, value: '1'}, {name: y}], args: [p, q]}\n";

    #[test]
    fn a_keyed_list_may_have_any_order_and_another_may_not() {
        let ours = parse(ONE).unwrap();
        let other = ONE.replace(
            "{name: x, value: '1'}, {name: y}",
            "{name: y}, {name: x, value: '1'}",
        );
        assert_ne!(other, ONE);
        assert_eq!(differences(&ours, &parse(&other).unwrap()), [""; 0]);
        let other = parse(&ONE.replace("[p, q]", "[q, p]")).unwrap();
        let found = differences(&ours, &other);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("Pod a/spec/args/0: "), "{found:?}");
    }

    #[test]
    fn an_object_or_a_field_that_only_one_has_is_a_difference() {
        let ours = parse(ONE).unwrap();
        let found = differences(&ours, &Objects::new());
        assert_eq!(found.len(), 1, "{found:?}");
        let other = parse(&ONE.replace("value: '1'", "value: '2'")).unwrap();
        let found = differences(&ours, &other);
        assert_eq!(found, ["Pod a/spec/env/0/value: \"1\" and \"2\""]);
    }

    #[test]
    fn the_same_object_twice_is_refused() {
        assert!(parse(&format!("{ONE}---\n{ONE}")).is_err());
    }
}

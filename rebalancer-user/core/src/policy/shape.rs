//! What a policy file may contain, as data: from it the JSON Schema and the reference are made.

use serde_json::{Value, json};

/// A mapping of the policy file.
pub(super) struct Mapping {
    pub(super) title: &'static str,
    pub(super) doc: String,
    pub(super) fields: Vec<Field>,
    /// What its JSON Schema says beyond its fields.
    pub(super) constraint: Value,
}

/// A field of a [`Mapping`].
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) doc: String,
    pub(super) shape: Shape,
    pub(super) absent: Absent,
}

/// What it means that a field is left out.
pub(super) enum Absent {
    /// An error.
    Required,
    /// The same as this value, as a policy writes it; `None` if it takes more than a line.
    Default(Option<String>),
    /// What no value of the field says; empty if it means nothing.
    Means(&'static str),
}

/// What the value of a field looks like.
pub(super) enum Shape {
    /// A single value: what it is called, and its schema.
    Value(String, Value),
    /// One of these words; what each means.
    Words(Vec<(&'static str, String)>),
    /// A list.
    List(Box<Shape>),
    /// A mapping from labels.
    Labels(Box<Shape>),
    /// A mapping with fields of its own.
    Mapping(fn() -> Mapping),
}

impl Shape {
    /// A text that matches `pattern`.
    pub(super) fn text(called: impl Into<String>, pattern: &str) -> Self {
        Self::Value(called.into(), json!({"type": "string", "pattern": pattern}))
    }

    /// An integer from 1 to `most`.
    pub(super) fn integer(most: u32) -> Self {
        let schema = json!({"type": "integer", "minimum": 1, "maximum": most});
        Self::Value(format!("integer, 1 to {most}"), schema)
    }
}

/// The lines of a doc comment as one.
pub(super) fn one_line(doc: &str) -> String {
    doc.trim().to_owned()
}

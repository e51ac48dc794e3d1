//! The policy file's JSON Schema, for editors.
//!
//! What [`super::parse`] accepts it accepts; of what `parse` refuses it refuses all that a schema
//! can: shape, words, units and ranges, but not what one field means for another.

use serde_json::{Map, Value, json};

use super::{
    document::Policy,
    section::Section,
    shape::{Absent, Field, Mapping, Shape},
};

/// The schema, as indented JSON.
pub fn schema() -> String {
    let mut definitions = Map::new();
    let mut root = mapping(&Policy::mapping(), &mut definitions);
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("RebalancePolicy");
    root["$defs"] = definitions.into();
    format!("{root:#}")
}

/// The schema of one mapping; those that its fields lead to are put into `definitions`.
fn mapping(of: &Mapping, definitions: &mut Map<String, Value>) -> Value {
    let mut schema = json!({
        "type": "object",
        "description": of.doc,
        "additionalProperties": false,
    });
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in &of.fields {
        let mut value = shape(&field.shape, definitions);
        value["description"] = json!(described(field));
        match &field.absent {
            Absent::Required => required.push(field.name),
            // A number, a boolean or a list as it is; anything else is a text.
            Absent::Default(Some(text)) => {
                value["default"] = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
            }
            Absent::Default(None) | Absent::Means(_) => {}
        }
        properties.insert(field.name.to_owned(), value);
    }
    schema["properties"] = properties.into();
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    for (key, value) in of.constraint.as_object().into_iter().flatten() {
        schema[key] = value.clone();
    }
    schema
}

/// What a field means, and each of its words.
fn described(field: &Field) -> String {
    let mut text = field.doc.clone();
    if let Shape::Words(words) = &field.shape {
        for (word, meaning) in words {
            text += &format!(" `{word}`: {meaning}");
        }
    }
    text
}

fn shape(of: &Shape, definitions: &mut Map<String, Value>) -> Value {
    match of {
        Shape::Value(_, schema) => schema.clone(),
        Shape::Words(words) => {
            let words: Vec<_> = words.iter().map(|(word, _)| word).collect();
            json!({"enum": words})
        }
        Shape::List(item) => json!({"type": "array", "items": shape(item, definitions)}),
        Shape::Labels(value) => {
            json!({"type": "object", "additionalProperties": shape(value, definitions)})
        }
        Shape::Mapping(of) => {
            let of = of();
            let schema = mapping(&of, definitions);
            definitions.insert(of.title.to_owned(), schema);
            json!({"$ref": format!("#/$defs/{}", of.title)})
        }
    }
}

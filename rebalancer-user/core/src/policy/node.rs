//! What a YAML document says, before it means anything: values with their places.

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

/// A value and where it stands.
pub(super) type Given = Spanned<Node>;

/// A value of the document. A number is read from the source, at its place: `010` and `1.50` keep
/// what YAML would lose.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number,
    Text(String),
    List(Vec<Given>),
    Map(Vec<(Given, Given)>),
}

impl Node {
    /// The field of a mapping.
    pub(super) fn field(&self, name: &str) -> Option<&Given> {
        let Self::Map(entries) = self else {
            return None;
        };
        let field = entries.iter().find(|(key, _)| key.value.is(name));
        field.map(|(_, value)| value)
    }

    /// Whether it is this text.
    pub(super) fn is(&self, text: &str) -> bool {
        matches!(self, Self::Text(own) if own == text)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

/// The bytes of `text` that `location` means. Errors of the parser itself have no bytes, only a
/// line and a column.
pub(super) fn place(text: &str, location: &Location) -> Range<usize> {
    let span = location.span();
    let known = |number: u64| usize::try_from(number).ok();
    if let (Some(start), Some(length)) = (span.byte_offset(), span.byte_len())
        && let (Some(start), Some(length)) = (known(start), known(length))
    {
        return start..start.saturating_add(length);
    }
    let (Some(line @ 1..), Some(column)) = (known(location.line()), known(location.column()))
    else {
        return text.len()..text.len();
    };
    let mut lines = text.split_inclusive('\n');
    let before: usize = lines.by_ref().take(line - 1).map(str::len).sum();
    let within = lines
        .next()
        .unwrap_or_default()
        .chars()
        .take(column.saturating_sub(1));
    let start = before + within.map(char::len_utf8).sum::<usize>();
    start..start
}

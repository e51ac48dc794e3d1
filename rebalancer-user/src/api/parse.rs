//! Reads JSON that may come from anywhere. Unknown fields are ignored, so that what a later version has
//! written can be read as long as its `apiVersion` is the same.

use std::io::Read;

use serde::{Deserialize, de::DeserializeOwned};

use super::envelope::API_VERSION;
use crate::text::{quoted, visible};

/// The largest dump read: some 500,000 connections.
const LARGEST: u64 = 512 << 20;

/// Why a text cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is larger than any dump.
    #[error("more than {} MiB, the largest dump that is read", LARGEST >> 20)]
    TooLarge,
    /// Not JSON, or a field is missing or has the wrong type.
    #[error("{0}")]
    Shape(String),
    /// JSON of another kind or version.
    #[error(
        "{field} is {found}, {expected} is expected\n  remedy: give what `rebalancer dump -o json` of this version has written"
    )]
    Kind {
        /// `apiVersion` or `kind`.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// A field has a value that makes no sense.
    #[error("{path}: {value} is not {expected}")]
    Value {
        /// The field, from the top.
        path: String,
        /// What stands there.
        value: String,
        /// What should.
        expected: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a dump")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
}

/// Checks `apiVersion` and `kind` first: of another kind, an error about a field would mislead.
pub(super) fn check_kind(text: &[u8], kind: &'static str) -> Result<(), ReadError> {
    let head: Head = parse(text)?;
    let fixed = [
        ("apiVersion", head.api_version, API_VERSION),
        ("kind", head.kind, kind),
    ];
    for (field, found, expected) in fixed {
        if found.as_deref() != Some(expected) {
            let found = found.map_or("missing".to_owned(), |found| quoted(&found));
            return Err(ReadError::Kind {
                field,
                found,
                expected,
            });
        }
    }
    Ok(())
}

/// Reads all of it, if it is no larger than the largest dump.
pub(super) fn read_all(from: impl Read) -> Result<Vec<u8>, ReadError> {
    read_at_most(from, LARGEST)
}

fn read_at_most(from: impl Read, most: u64) -> Result<Vec<u8>, ReadError> {
    let mut text = Vec::new();
    from.take(most + 1).read_to_end(&mut text)?;
    if text.len() as u64 > most {
        return Err(ReadError::TooLarge);
    }
    Ok(text)
}

pub(super) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, ReadError> {
    let mut json = serde_json::Deserializer::from_slice(text);
    // Its errors have the path of the field.
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| ReadError::Shape(visible(&error.to_string())))?;
    json.end()
        .map_err(|error| ReadError::Shape(error.to_string()))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_text_is_not_read() {
        let read = |text: &[u8]| read_at_most(text, 3);
        assert!(matches!(read(b"abcd"), Err(ReadError::TooLarge)));
        assert!(read(b"abc").is_ok());
        let endless = read_at_most(std::io::repeat(b' '), 1 << 20);
        assert!(matches!(endless, Err(ReadError::TooLarge)));
    }
}

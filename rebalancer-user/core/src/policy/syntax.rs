//! From text to the file's types: syntax and shape, which stop at the first error.

use std::ops::Range;

use serde_saphyr::{
    DefaultMessageFormatter, Error, Location, MessageFormatter,
    budget::BudgetBreach,
    options::{MergeKeyPolicy, NonFiniteFloatPolicy},
};

use super::{
    error::{Fault, Problem, quoted},
    file::PolicyFile,
};

/// The largest policy read; a ConfigMap cannot be larger.
const LARGEST: usize = 1 << 20;

/// Reads the one document of `text`, in which no byte-order mark is left.
pub(super) fn read(text: &str) -> Result<PolicyFile, Problem> {
    if text.len() > LARGEST {
        let fault = Fault::new(
            "the file is too large",
            format!("{} bytes", text.len()),
            "a policy has at most 1 MiB, as a ConfigMap has",
        );
        return Err(fault.at(0..0));
    }
    if let Some(nul) = text.find('\0') {
        let fault = Fault::new("not a text", "a NUL byte", "write the policy as UTF-8 text");
        return Err(fault.at(nul..nul + 1));
    }
    let options = serde_saphyr::options! {
        strict_booleans: true,
        merge_keys: MergeKeyPolicy::Error,
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
        emit_comments: false,
        budget: serde_saphyr::budget! {
            max_anchors: 0,
            max_aliases: 0,
            max_depth: 16,
        },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| explain(text, &error))
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

fn explain(text: &str, error: &Error) -> Problem {
    let error = error.without_snippet();
    let at = error
        .location()
        .map_or(text.len()..text.len(), |at| place(text, &at));
    let (fault, length) = fault(text, error, at.start);
    let end = length.map_or(at.end, |length| at.start + length);
    fault.at(at.start..end)
}

/// What is wrong, and how many bytes to mark, where that is not what the error says.
fn fault(text: &str, error: &Error, offset: usize) -> (Fault, Option<usize>) {
    match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => (unknown_field(field, expected), Some(field.len())),
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or_default();
            let message = format!("duplicate field {}", quoted(key));
            let fault = Fault::new(message, "given before", "remove one of the two");
            (fault, Some(key.len()))
        }
        Error::MultipleDocuments { .. } => {
            let fault = Fault::new(
                "more than one document",
                "the second begins here",
                "write one policy per file; all rules go into its `rules`",
            );
            (fault, None)
        }
        Error::MergeKeyNotAllowed { .. } => (repeated("merge keys"), None),
        Error::UnknownAnchor { .. } => (repeated("anchors and aliases"), None),
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Anchors { .. } | BudgetBreach::Aliases { .. } => {
                (repeated("anchors and aliases"), None)
            }
            _ => {
                let label = "more than any policy needs";
                let remedy = "a policy is a few levels deep; compare it with the documented one";
                (Fault::new("too deep or too large", label, remedy), None)
            }
        },
        Error::UnsupportedTag { .. } | Error::TaggedStructFieldName { .. } => (
            Fault::new(
                "tags are not allowed",
                "tagged",
                "write the value without a tag",
            ),
            None,
        ),
        Error::Unexpected {
            expected: "mapping start",
            ..
        } => {
            let remedy = "write fields with their values, e.g. `{field: value}`";
            (
                Fault::new("wrong type", "a mapping is expected here", remedy),
                None,
            )
        }
        Error::Unexpected {
            expected: "sequence start",
            ..
        } => {
            let remedy = "write a list, e.g. `[…]`, or lines that begin with `- `; empty is `[]`";
            (
                Fault::new("wrong type", "a list is expected here", remedy),
                None,
            )
        }
        Error::Unexpected {
            expected: "string scalar",
            ..
        }
        | Error::NullIntoString { .. } => {
            let remedy = "a field's name is plain text";
            (Fault::new("wrong type", "not a field's name", remedy), None)
        }
        other => {
            let words = DefaultMessageFormatter.format_message(other);
            (
                Fault::new("not valid YAML", words, yaml_remedy(text, offset)),
                None,
            )
        }
    }
}

fn repeated(what: &str) -> Fault {
    let message = format!("{what} are not allowed");
    Fault::new(
        message,
        "used here",
        "write the value out wherever it is meant",
    )
}

/// Fields of former versions, and what they are called now.
const RENAMED: [(&str, &str); 2] = [
    ("sessionState", "onReconnect"),
    ("settle", "stabilizationWindow"),
];

fn unknown_field(field: &str, expected: &[&str]) -> Fault {
    let message = format!("unknown field {}", quoted(field));
    let renamed = RENAMED
        .iter()
        .find(|(old, new)| *old == field && expected.contains(new));
    if let Some((_, new)) = renamed {
        let remedy = format!("it is called `{new}` now");
        return Fault::new(message, "a former name", remedy);
    }
    let remedy = match nearest(field, expected) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("the fields here are {}", expected.join(", ")),
    };
    Fault::new(message, "not a field of this mapping", remedy)
}

/// A tab anywhere near is the likeliest cause; YAML's own messages rarely say so.
fn yaml_remedy(text: &str, offset: usize) -> &'static str {
    let near = text.split_inclusive('\n').scan(0, |end, line| {
        *end += line.len();
        Some((*end, line))
    });
    let indented_by_tab = |line: &str| {
        line.chars()
            .take_while(|c| c.is_whitespace())
            .any(|c| c == '\t')
    };
    let mut lines = near.skip_while(|(end, _)| *end <= offset).take(2);
    if lines.any(|(_, line)| indented_by_tab(line)) {
        return "indent with spaces; YAML forbids tabs there";
    }
    "check indentation, brackets and quotes; text with `: `, `#` or a leading symbol needs quotes"
}

/// The one of `known` that `word` was most likely meant to be.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    const LONGEST: usize = 40;
    if word.len() > LONGEST {
        return None;
    }
    let lower = word.to_lowercase();
    known
        .iter()
        .map(|known| (distance(&lower, &known.to_lowercase()), *known))
        .filter(|(distance, known)| *distance <= known.len() / 3)
        .min()
        .map(|(_, known)| known)
}

/// Edits (insert, remove, replace) that make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_one_that_looks_like_it() {
        let known = ["maxAge", "maxBytes", "maxRate"];
        for (word, meant) in [
            ("maxage", Some("maxAge")),
            ("max_age", Some("maxAge")),
            ("maxBites", Some("maxBytes")),
            ("age", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}

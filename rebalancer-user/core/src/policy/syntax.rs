//! From text to a [`Given`] values: YAML's own errors, of which the first stops the reading.

use serde_saphyr::{
    DefaultMessageFormatter, Error, MessageFormatter,
    budget::BudgetBreach,
    options::{MergeKeyPolicy, NonFiniteFloatPolicy},
};

use super::{
    error::{Fault, Problem},
    node::{Given, place},
};
use crate::text::quoted;

/// The largest policy read; a ConfigMap cannot be larger.
const LARGEST: usize = 1 << 20;

/// Reads the one document of `text`, in which no byte-order mark is left.
pub(super) fn read(text: &str) -> Result<Given, Problem> {
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

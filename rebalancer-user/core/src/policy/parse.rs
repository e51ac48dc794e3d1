//! From text to a [`Policy`], and back.

use super::{
    document::Policy,
    error::PolicyErrors,
    lines::Lines,
    node::{Given, Node},
    section::{Notation, Reader, part},
    syntax,
};

/// Reads a policy; `source_name` is what errors call it.
///
/// # Errors
/// The first error of YAML's, or else all that is wrong, sorted by place.
pub fn parse(source_name: &str, text: &str) -> Result<Policy, PolicyErrors> {
    read(source_name, text).map(|(_, policy)| policy)
}

/// Reads a policy and writes all of it out, with `# default` behind what the file leaves out: valid
/// again, and the same policy.
///
/// # Errors
/// As [`parse`].
pub fn explain(source_name: &str, text: &str) -> Result<String, PolicyErrors> {
    let (given, policy) = read(source_name, text)?;
    let mut lines = Lines::default();
    part().body(&policy, Some(&given), &mut lines);
    Ok(lines.into_text())
}

fn read(source_name: &str, text: &str) -> Result<(Given, Policy), PolicyErrors> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let given = syntax::read(text).and_then(|given| match given.value {
        // An empty document: the answer is what a policy needs.
        Node::Null => syntax::read("{}"),
        _ => Ok(given),
    });
    let given = given.map_err(|problem| PolicyErrors::new(source_name, text, vec![problem]))?;
    let mut reader = Reader::of(text);
    match part().read(&given, &mut reader) {
        Some(policy) => Ok((given, policy)),
        None => Err(PolicyErrors::new(source_name, text, reader.problems)),
    }
}

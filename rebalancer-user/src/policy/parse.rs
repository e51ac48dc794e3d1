//! From text to a [`Policy`].

use super::{Policy, PolicyError, PolicyErrors};

/// Reads a policy; `source_name` is what errors call it.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(source_name: &str, _text: &str) -> Result<Policy, PolicyErrors> {
    let message = "not read yet".into();
    Err(PolicyErrors {
        source_name: source_name.into(),
        errors: vec![PolicyError {
            line: 1,
            column: 1,
            message,
        }],
    })
}

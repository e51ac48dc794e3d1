//! What is wrong with a policy file, shown as rustc shows it.

use std::fmt;

/// One mistake and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) message: String,
}

impl PolicyError {
    /// Line, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Column in characters, from 1.
    pub fn column(&self) -> usize {
        self.column
    }

    /// What is wrong, in a few words.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// All that is wrong with a policy file, sorted by place; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors {
    pub(super) source_name: String,
    pub(super) errors: Vec<PolicyError>,
}

impl PolicyErrors {
    /// Each of them.
    pub fn errors(&self) -> &[PolicyError] {
        &self.errors
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.errors {
            let PolicyError {
                line,
                column,
                message,
            } = error;
            writeln!(f, "{}:{line}:{column}: error: {message}", self.source_name)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

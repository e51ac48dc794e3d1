//! Writes a policy as YAML, line by line.

use std::fmt::{Display, Write as _};

/// Lines of YAML, at some depth.
#[derive(Default)]
pub(super) struct Lines {
    text: String,
    indent: usize,
    /// The next line begins an item of a list.
    is_item: bool,
}

impl Lines {
    pub(super) fn into_text(self) -> String {
        self.text
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn line(&mut self, text: impl Display) {
        let dash = if std::mem::take(&mut self.is_item) {
            "- "
        } else {
            ""
        };
        let indent = self.indent - dash.len();
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{:indent$}{dash}{text}", "");
    }

    /// A field with its value in the same line, marked if the file leaves it out.
    pub(super) fn field(&mut self, name: &str, value: &str, is_given: bool) {
        let mark = if is_given { "" } else { " # default" };
        self.line(format_args!("{name}: {value}{mark}"));
    }

    /// A field whose value stands in the lines below.
    pub(super) fn block(&mut self, name: &str, body: impl FnOnce(&mut Self)) {
        self.line(format_args!("{name}:"));
        self.indent += 2;
        body(self);
        self.indent -= 2;
    }

    /// An item of a list that is a mapping.
    pub(super) fn item(&mut self, body: impl FnOnce(&mut Self)) {
        self.is_item = true;
        body(self);
    }
}

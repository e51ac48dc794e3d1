//! Headings, colours and check marks. Colours are used only on a terminal and not with `NO_COLOR`.

use std::fmt::Display;

use console::style;

pub(crate) fn bold(text: impl Display) -> String {
    style(text).bold().to_string()
}

pub(crate) fn dim(text: impl Display) -> String {
    style(text).dim().to_string()
}

pub(crate) fn red(text: impl Display) -> String {
    style(text).red().to_string()
}

pub(crate) fn green(text: impl Display) -> String {
    style(text).green().to_string()
}

pub(crate) fn cyan(text: impl Display) -> String {
    style(text).cyan().to_string()
}

/// A heading with a blank line before it.
pub(crate) fn heading(text: impl Display) {
    println!("\n{}", bold(text));
}

pub(crate) fn mark(passed: bool) -> String {
    if passed { green("✓") } else { red("✗") }
}

/// Prints one line of a checklist: a mark, the subject and a detail.
pub(crate) fn check(passed: bool, what: &str, detail: &str) {
    println!("  {} {what:<18} {}", mark(passed), dim(detail));
}

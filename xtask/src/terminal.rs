//! Headings, colours and check marks. Colours are used only on a terminal and not with `NO_COLOR`.

use std::{fmt::Display, io::IsTerminal as _, sync::LazyLock};

static COLOURS: LazyLock<bool> = LazyLock::new(|| {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::io::stdout().is_terminal()
});

fn paint(code: &str, text: impl Display) -> String {
    if *COLOURS {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_string()
    }
}

pub(crate) fn bold(text: impl Display) -> String {
    paint("1", text)
}

pub(crate) fn dim(text: impl Display) -> String {
    paint("2", text)
}

pub(crate) fn red(text: impl Display) -> String {
    paint("31", text)
}

pub(crate) fn green(text: impl Display) -> String {
    paint("32", text)
}

pub(crate) fn cyan(text: impl Display) -> String {
    paint("36", text)
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

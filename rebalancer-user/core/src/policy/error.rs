//! Errors in a policy file, shown as rustc shows them.

use std::{fmt, ops::Range};

use crate::text::visible;

/// Errors kept: a hostile file could cause any number.
const KEPT: usize = 50;
/// Characters shown of a source line, around the mark.
const WIDTH: usize = 100;

/// One error, its place and its remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    line: usize,
    column: usize,
    message: String,
    label: String,
    remedy: String,
    excerpt: Excerpt,
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

    /// What exactly is wrong with the marked text.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What to write instead.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

/// All errors in a policy file, sorted by place; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors {
    source_name: String,
    errors: Vec<PolicyError>,
    more: usize,
}

impl PolicyErrors {
    /// From the problems found in `text`.
    pub(super) fn new(source_name: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.at.start, problem.at.end));
        let locate = |problem| PolicyError::locate(text, problem);
        Self {
            source_name: visible(source_name),
            more: problems.len().saturating_sub(KEPT),
            errors: problems.into_iter().take(KEPT).map(locate).collect(),
        }
    }

    /// Each of them, up to the 50th.
    pub fn errors(&self) -> &[PolicyError] {
        &self.errors
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            let PolicyError {
                line,
                column,
                message,
                label,
                remedy,
                excerpt,
            } = error;
            let gutter = " ".repeat(line.to_string().len() + 2);
            let indent = " ".repeat(excerpt.before);
            let mark = "^".repeat(excerpt.marked);
            writeln!(f, "{}:{line}:{column}: error: {message}", self.source_name)?;
            writeln!(f, "  {line} | {}", excerpt.text)?;
            writeln!(f, "{gutter} | {indent}{mark} {label}")?;
            write!(f, "{gutter} = {remedy}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\n\n{}: {more} more errors", self.source_name),
        }
    }
}

impl std::error::Error for PolicyErrors {}

/// A fault and the bytes that it is about.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) at: Range<usize>,
    pub(super) fault: Fault,
}

/// What is wrong with a value, without its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    message: String,
    label: String,
    remedy: String,
}

impl Fault {
    /// `message` heads the error, `label` stands at the mark, `remedy` below.
    pub(super) fn new(
        message: impl Into<String>,
        label: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let [message, label, remedy] =
            [message.into(), label.into(), remedy.into()].map(|text| visible(&text));
        Self {
            message,
            label,
            remedy,
        }
    }

    /// The fault, found in these bytes.
    pub(super) fn at(self, at: Range<usize>) -> Problem {
        Problem { at, fault: self }
    }
}

/// Part of a source line, with what is marked in it, in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    text: String,
    before: usize,
    marked: usize,
}

impl PolicyError {
    fn locate(text: &str, problem: Problem) -> Self {
        let Problem {
            at,
            fault:
                Fault {
                    message,
                    label,
                    remedy,
                },
        } = problem;
        let start = floor(text, at.start);
        let end = floor(text, at.end.max(start));
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..]
            .find('\n')
            .map_or(text.len(), |length| start + length);
        let before = text[line_start..start].chars().count();
        let marked = text[start..end.min(line_end)].trim_end().chars().count();
        Self {
            line: text[..line_start].matches('\n').count() + 1,
            column: before + 1,
            message,
            label,
            remedy,
            excerpt: Excerpt::around(text[line_start..line_end].trim_end(), before, marked),
        }
    }
}

impl Excerpt {
    fn around(line: &str, before: usize, marked: usize) -> Self {
        let length = line.chars().count();
        let skipped = if length <= WIDTH {
            0
        } else {
            before.saturating_sub(WIDTH / 2)
        };
        let shown: String = line.chars().skip(skipped).take(WIDTH).collect();
        let head = if skipped > 0 { "…" } else { "" };
        let tail = if skipped + WIDTH < length { "…" } else { "" };
        let before = before - skipped;
        Self {
            text: format!("{head}{}{tail}", visible(&shown)),
            before: before + head.chars().count(),
            marked: marked.clamp(1, WIDTH.saturating_sub(before).max(1)),
        }
    }
}

/// The nearest character boundary at or before `offset`.
fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, at: Range<usize>) -> String {
        let fault = Fault::new("wrong", "this", "write that");
        PolicyErrors::new("policy.yaml", text, vec![fault.at(at)]).to_string()
    }

    #[test]
    fn the_mark_stands_below_what_it_means() {
        insta::assert_snapshot!(shown("a: 1\né: ö30\n", 9..12), @r"
        policy.yaml:2:4: error: wrong
          2 | é: ö30
            |    ^^ this
            = write that
        ");
    }

    #[test]
    fn a_long_line_is_cut_around_the_mark() {
        let text = format!("{}HERE{}", "a".repeat(5000), "b".repeat(5000));
        let shown = shown(&text, 5000..5004);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0], "policy.yaml:1:5001: error: wrong");
        assert!(
            lines.iter().all(|line| line.chars().count() < WIDTH + 20),
            "{shown}"
        );
        let column = lines[2].chars().position(|c| c == '^').unwrap();
        assert_eq!(
            lines[1].chars().skip(column).take(4).collect::<String>(),
            "HERE"
        );
    }

    #[test]
    fn nothing_in_a_file_reaches_the_terminal_as_a_command() {
        let text = "a: \u{1b}[31mred\u{202e}\r\n";
        let shown = shown(text, 3..text.len());
        assert!(!shown.contains(['\u{1b}', '\u{202e}', '\r']), "{shown:?}");
    }

    #[test]
    fn any_range_is_shown() {
        for text in ["", "é", "\n\n", "é\né", "\r\n"] {
            for start in 0..6 {
                for end in 0..6 {
                    shown(text, start..end);
                }
            }
        }
    }

    #[test]
    fn thousands_of_errors_are_cut() {
        let problems = (0..4000)
            .map(|i| Fault::new("wrong", "", "").at(i..i))
            .collect();
        let shown = PolicyErrors::new("p", &"x\n".repeat(2000), problems).to_string();
        assert!(shown.ends_with("p: 3950 more errors"), "{shown}");
    }
}

//! What is claimed, in large numbers. Each test prints what it measured; how much it does is said
//! by the environment, which `cargo xtask test moves` and `cargo xtask bench held` set.

mod churn;
mod churner;
mod client;
mod held;
mod holder;
mod moves;
mod server;
mod walk;

use serde::{Deserialize, Serialize};

/// How a connection ended, as one of its ends saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum How {
    /// It lives, and has just answered.
    Open,
    /// By our own close.
    Left,
    /// End of file.
    Eof,
    /// ECONNRESET.
    Reset,
    /// ECONNABORTED: destroyed from this side.
    Aborted,
    /// Another error.
    Error(i32),
    /// Not the bytes that were expected.
    Corrupt,
}

impl From<std::io::Error> for How {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNRESET) => Self::Reset,
            Some(libc::ECONNABORTED) => Self::Aborted,
            Some(errno) => Self::Error(errno),
            None => Self::Eof,
        }
    }
}

/// A number from the environment.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text}: a number is wanted"))
    })
}

/// The value below which this share of them lie.
fn quantile<T: Copy + Ord + Default>(values: &mut [T], share: f64) -> T {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    let index = (last as f64 * share).round() as usize;
    values.get(index).copied().unwrap_or_default()
}

//! Waits for something that takes a moment.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Calls `ready` until it returns a value.
///
/// # Errors
/// That of `ready`, or that it has returned no value in time.
pub fn until<T>(patience: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = ready()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("not within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

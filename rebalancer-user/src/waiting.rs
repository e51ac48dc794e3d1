//! Waiting in tests.

use std::time::{Duration, Instant};

/// For anything that should happen, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `look` finds, as soon as it finds anything.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

//! Rare messages of the kernel half, handed to the `log` crate.

use std::io;

use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

/// Messages of the kernel half, as they come.
pub struct KernelLog(AsyncFd<EbpfLogger<&'static dyn log::Log>>);

impl KernelLog {
    /// Listens to the kernel half's ring buffer. Within a tokio runtime.
    pub(super) fn listen(logger: EbpfLogger<&'static dyn log::Log>) -> io::Result<Self> {
        // SAFETY: the logger owns its descriptor, never changes it, and outlives the registration.
        unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
            .map(Self)
            .map_err(|e| e.into_parts().1)
    }

    /// Waits for messages and hands them to the `log` crate. Can be cancelled.
    pub async fn pass_on(&mut self) {
        if let Ok(mut ready) = self.0.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

//! systemd learns when the agent is ready and what it does, by sd_notify(3). Nothing happens where no
//! `NOTIFY_SOCKET` is set.

use sd_notify::{NotifyState, notify};
use tracing::debug;

use crate::policy::Policy;

/// The agent answers on its socket, and goes by this policy.
pub(super) fn ready(policy: &Policy) {
    let (mode, rules) = (policy.mode().as_str(), policy.rules().len());
    let status = format!(
        "mode {mode}, {rules} {}",
        if rules == 1 { "rule" } else { "rules" }
    );
    send(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The agent ends moves that wait, without harm, and removes what it has in the kernel.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = notify(state) {
        debug!(%error, "could not notify the service manager");
    }
}

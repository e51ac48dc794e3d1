//! The policies of the table's columns.

use crate::policy::{Policy, QUICK};

/// A policy that is tried in every situation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    /// Required fields only.
    Defaults,
    Close,
    AtOnce,
    Quiet,
}

impl Column {
    pub(super) const ALL: [Self; 4] = [Self::Defaults, Self::Close, Self::AtOnce, Self::Quiet];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Defaults => "with the defaults",
            Self::Close => "Close",
            Self::AtOnce => "Reset at once",
            Self::Quiet => "Reset at a quiet moment",
        }
    }

    /// The fields beyond the defaults. They disable the guards that a policy can disable; those of
    /// the process that holds the socket remain.
    fn forced(self) -> &'static str {
        match self {
            Self::Defaults => "",
            Self::Close => "  onReconnect: LosesState\n  steps: [{step: Close, timeout: 5s}]\n",
            Self::AtOnce => "  onReconnect: LosesState\n  steps: [{step: Reset, when: AtOnce}]\n",
            Self::Quiet => "  onReconnect: LosesState\n  steps: [{step: Reset, timeout: 5s}]\n",
        }
    }

    /// With mode `Enforce` it moves connections of the lab's client on this port that are older than
    /// two seconds; with `Disabled` it chooses no more.
    pub(super) fn policy(self, mode: &str, rule: &str, port: u16, client_subnet: &str) -> String {
        let policy = Policy {
            pace: QUICK,
            rule,
            ports: &[port],
            client_subnet,
            limits: "maxAge: 2s",
            more: self.forced(),
        };
        policy.file(mode)
    }
}

//! The policies of the table's columns.

/// What is tried on every situation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    /// No more than a rule must say.
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

    /// What the rule says beyond its defaults. The guards that a policy can lift are lifted; those
    /// of the process that holds the socket cannot be.
    fn forced(self) -> &'static str {
        match self {
            Self::Defaults => "",
            Self::Close => "  onReconnect: LosesState\n  steps: [{step: Close, timeout: 5s}]\n",
            Self::AtOnce => "  onReconnect: LosesState\n  steps: [{step: Reset, when: AtOnce}]\n",
            Self::Quiet => "  onReconnect: LosesState\n  steps: [{step: Reset, timeout: 5s}]\n",
        }
    }

    /// Moves whatever is older than two seconds on this port, from the lab's client alone. Only
    /// times and budgets are not the defaults: nobody wants to wait for them.
    pub(super) fn enforce(self, rule: &str, port: u16, client_subnet: &str) -> String {
        self.policy("Enforce", rule, port, client_subnet)
    }

    /// Chooses nothing more.
    pub(super) fn rest(self, rule: &str, port: u16, client_subnet: &str) -> String {
        self.policy("Disabled", rule, port, client_subnet)
    }

    fn policy(self, mode: &str, rule: &str, port: u16, client_subnet: &str) -> String {
        let forced = self.forced();
        format!(
            "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: {mode}
interval: 500ms
budget: {{window: 1s, perNode: 1000, perService: 100%, perEndpoint: 100%, maxInFlight: 1000}}
guards: {{minAge: 1s}}
rules:
- name: {rule}
  match:
    ports: [{{port: {port}}}]
    peers: [{{ipBlock: {{cidr: {client_subnet}}}}}]
  limits: {{maxAge: 2s}}
{forced}"
        )
    }
}

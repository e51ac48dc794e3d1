//! The demo's policies. They match the lab's client only.

/// One rule with one limit.
pub(crate) struct Policy<'a> {
    pub(crate) rule: &'a str,
    pub(crate) limit: &'a str,
    pub(crate) client_subnet: &'a str,
}

impl Policy<'_> {
    pub(crate) fn dry_run(&self) -> String {
        self.file("DryRun")
    }

    pub(crate) fn enforce(&self) -> String {
        self.file("Enforce")
    }

    /// The line with the limits.
    pub(crate) fn limits(&self) -> String {
        format!("limits: {{{}}}", self.limit)
    }

    fn file(&self, mode: &str) -> String {
        let Self {
            rule,
            client_subnet,
            ..
        } = self;
        let limits = self.limits();
        format!(
            "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: {mode}
interval: 1s
budget: {{window: 10s, perNode: 30, perService: 100%, perEndpoint: 100%, maxInFlight: 20}}
guards: {{minAge: 2s}}
rules:
- name: {rule}
  match:
    ports: [{{port: 80}}]
    peers: [{{ipBlock: {{cidr: {client_subnet}}}}}]
  {limits}
  jitter: 50%
  steps: [{{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}}]
"
        )
    }
}

//! The policies of the demo and the suites: one rule, which matches the lab's client only.

/// Times and budgets that are shorter than the defaults, to save time.
pub(crate) const QUICK: &str = "\
interval: 500ms
budget: {window: 1s, perNode: 1000, perService: 100%, perEndpoint: 100%, maxInFlight: 1000}
guards: {minAge: 1s}
";

pub(crate) struct Policy<'a> {
    /// Interval, budget and guards.
    pub(crate) pace: &'a str,
    pub(crate) rule: &'a str,
    pub(crate) ports: &'a [u16],
    pub(crate) client_subnet: &'a str,
    pub(crate) limits: &'a str,
    /// Further fields of the rule, each a line.
    pub(crate) more: &'a str,
}

impl Policy<'_> {
    /// The file, with mode `DryRun`, `Enforce` or `Disabled`.
    pub(crate) fn file(&self, mode: &str) -> String {
        let Self {
            pace,
            rule,
            ports,
            client_subnet,
            limits,
            more,
        } = self;
        let ports: Vec<String> = ports
            .iter()
            .map(|port| format!("{{port: {port}}}"))
            .collect();
        let ports = ports.join(", ");
        format!(
            "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: {mode}
{pace}rules:
- name: {rule}
  match:
    ports: [{ports}]
    peers: [{{ipBlock: {{cidr: {client_subnet}}}}}]
  limits: {{{limits}}}
{more}"
        )
    }
}

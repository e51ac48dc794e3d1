//! The strategies that are compared, each as a policy.

use super::{
    replica::{PORT, SERVICE},
    scenario::{Nodes, Scenario},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// Nothing is moved.
    Nothing,
    /// `balance`: the excess of overloaded endpoints.
    Excess,
    /// `maxAge`: old connections.
    Age,
    /// Every connection, once.
    All,
}

impl Strategy {
    pub(crate) const COMPARED: [Self; 3] = [Self::Excess, Self::Age, Self::All];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Excess => "excess",
            Self::Age => "age",
            Self::All => "all",
        }
    }

    /// The policy file. Budgets allow everything at once, so that the strategies alone are compared.
    pub(crate) fn policy(self, scenario: &Scenario) -> String {
        let (mode, limits) = match self {
            Self::Nothing => ("Disabled", "limits: {maxAge: 1h}".to_owned()),
            Self::Excess => ("Enforce", balance(scenario)),
            Self::Age => ("Enforce", "limits: {maxAge: 10m}\n  jitter: 50%".to_owned()),
            Self::All => ("Enforce", "limits: {maxAge: 1s}\n  jitter: 0%".to_owned()),
        };
        let matches = match scenario.nodes {
            Nodes::Plain => format!("{{ports: [{{port: {PORT}}}]}}"),
            Nodes::One | Nodes::Own => format!("{{services: ['*/{SERVICE}']}}"),
        };
        let interval = scenario.interval.as_millis();
        format!(
            "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: {mode}
interval: {interval}ms
budget: {{window: 10s, perNode: 100%, perService: 100%, perEndpoint: 100%, maxInFlight: 10000}}
guards: {{minAge: 1s, stabilizationWindow: 15s}}
rules:
- name: web
  match: {matches}
  {limits}
"
        )
    }
}

fn balance(scenario: &Scenario) -> String {
    let by = scenario.by.as_str();
    format!("balance: {{by: {by}, tolerance: {}%}}", scenario.tolerance)
}

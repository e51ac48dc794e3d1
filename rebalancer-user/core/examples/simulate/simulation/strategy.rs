//! What is compared, each as a policy of the product.

use super::{
    replica::{PORT, SERVICE},
    scenario::{By, Nodes, Scenario},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// Nothing is moved.
    Nothing,
    /// `balance`: the excess of what holds too much.
    Excess,
    /// `maxAge`: whatever is old.
    Age,
    /// All that is there, once.
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

    /// The policy file. Budgets allow everything at once: how long they make it take is no
    /// strategy's merit.
    pub(crate) fn policy(self, scenario: &Scenario) -> String {
        let (mode, asks) = match self {
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
  {asks}
"
        )
    }
}

fn balance(scenario: &Scenario) -> String {
    let by = match scenario.by {
        By::Connections => "Connections",
        By::ByteRate => "ByteRate",
    };
    format!("balance: {{by: {by}, tolerance: {}%}}", scenario.tolerance)
}

//! The two policies of the third act. Both are limited to the lab's client: nothing else on
//! this machine is touched.

/// Connections that are too old. All are, by the time the agent starts.
pub(super) fn by_age(client_subnet: &str) -> String {
    policy("too-old", "maxAge: 8s", client_subnet)
}

/// Connections that carried too much.
pub(super) fn by_bytes(client_subnet: &str) -> String {
    policy("too-heavy", "maxBytes: 4Mi", client_subnet)
}

fn policy(name: &str, limit: &str, client_subnet: &str) -> String {
    format!(
        "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: 1s
budget: {{window: 10s, perNode: 30, maxInFlight: 20}}
guards: {{minAge: 2s}}
rules:
- name: {name}
  match:
    ports: [{{port: 80}}]
    peers: [{{ipBlock: {{cidr: {client_subnet}}}}}]
  limits: {{{limit}}}
  jitter: 50%
  steps: [{{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}}]
"
    )
}

//! A new policy, while the agent runs.

use tracing::{error, warn};

use super::{Agent, Loaded, Reading, fact::Fact, pass::read_cgroups, scope};
use crate::policy::Policy;

impl Agent {
    /// Reads the policy again; whether there is a new one. A refused one changes nothing. Under a new
    /// one the moves in flight are recalled, and those connections are judged again like any other.
    pub(super) fn reload(&mut self) -> bool {
        let Reading { content, loaded } = (self.reload)();
        self.policy_file.was_read(content);
        let reloaded = match loaded {
            Ok(loaded) => {
                self.use_policy(loaded);
                true
            }
            Err(error) => {
                let error = format!("{error:#}");
                self.journal.record(Fact::PolicyRefused { error: &error });
                false
            }
        };
        self.publish();
        reloaded
    }

    fn use_policy(&mut self, Loaded { policy, text }: Loaded) {
        if *text != *self.policy_text {
            self.ledger.forget_reported();
            self.policy_text = text;
        }
        let tracking = scope::tracking(policy.track(), &read_cgroups(&policy, &self.cgroups));
        if let Err(error) = self.tracker.track(tracking) {
            error!(%error, "could not update the kernel half; it keeps its previous settings");
        }
        // What is there already gets its record, or loses it.
        self.look_again();
        let window = policy.guards().stabilization_window();
        let names = self.names.as_mut();
        if let Some(Err(error)) = names.map(|names| names.stabilization_window(window)) {
            error!(%error, "could not change how often the API server is asked; names may be stale in between");
        }
        let mode = policy.mode();
        self.policy = on_this_node(policy.with_mode_at_most(self.mode), self.names.is_some());
        self.recall_all("the policy was replaced");
        self.journal.record(Fact::PolicyLoaded {
            mode,
            policy: &self.policy,
            first: false,
        });
    }
}

/// The policy as it is meant where there are names, or none.
pub(super) fn on_this_node(policy: Policy, named: bool) -> Policy {
    if named {
        return policy.with_kubernetes_defaults();
    }
    for rule in policy.rules_for_pods() {
        let rule = rule.name().as_str();
        warn!(
            rule,
            "the rule selects pods by name: without Kubernetes it matches nothing"
        );
    }
    policy
}

//! Of what a budget is: the node, a Service or an endpoint.

use std::fmt;

/// One row for each: its field in the policy file, and the word of who is skipped for it.
macro_rules! budgets {
    ($($(#[$doc:meta])* $variant:ident $field:literal $skip:literal;)*) => {
        /// Of what a budget is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum BudgetOf {
            $($(#[$doc])* $variant,)*
        }

        impl BudgetOf {
            /// The field in the policy file.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $field,)* }
            }

            /// The stable word of [`super::SkipReason::Budget`].
            pub(super) fn skip_word(self) -> &'static str {
                match self { $(Self::$variant => $skip,)* }
            }
        }
    };
}

budgets! {
    /// Of the node.
    Node "perNode" "budget";
    /// Of the Service, or of what shares a port where there are no Services.
    Service "perService" "serviceBudget";
    /// This node's share of that of the Service on all nodes, for balance.
    Share "this node's share of perService" "shareBudget";
    /// Of the endpoint.
    Endpoint "perEndpoint" "endpointBudget";
}

impl fmt::Display for BudgetOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

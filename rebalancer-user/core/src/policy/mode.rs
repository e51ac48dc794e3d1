//! How much a policy, or a rule of it, may do.

use serde::{Deserialize, Serialize};

use super::notation::words;

words! {
    /// How much a policy may do. Ordered from the safest.
    #[derive(Default, PartialOrd, Ord, Deserialize, Serialize)]
    pub enum Mode {
        /// No connection is selected.
        Disabled,
        /// Reports what would be moved, and moves nothing.
        #[default]
        DryRun,
        /// Moves connections.
        Enforce,
    }
}

impl Mode {
    /// The safer of two.
    pub fn safest(self, other: Self) -> Self {
        self.min(other)
    }
}

//! A hash map that nobody can walk through: its order is no input's, and must not reach a plan.
#![allow(
    clippy::disallowed_types,
    reason = "what is forbidden of it is its order, and that is not offered here"
)]

use std::{collections::HashMap, hash::Hash};

use foldhash::quality::RandomState;

/// From keys to values, for looking up alone. Clients may choose keys: which of them collide depends on
/// a number that each process draws by chance.
pub(super) struct Lookup<K, V>(HashMap<K, V, RandomState>);

impl<K: Eq + Hash, V> Lookup<K, V> {
    /// With room for so many keys.
    pub(super) fn with_capacity(keys: usize) -> Self {
        Self(HashMap::with_capacity_and_hasher(
            keys,
            RandomState::default(),
        ))
    }

    /// The value of this key, made first if there is none.
    pub(super) fn slot(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        self.0.entry(key).or_insert_with(make)
    }
}

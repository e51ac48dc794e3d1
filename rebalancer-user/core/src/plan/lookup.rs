//! A hash map that nobody can walk through: its order is no input's, and must not reach a plan.
#![allow(
    clippy::disallowed_types,
    reason = "what is forbidden of it is its order, and that is not offered here"
)]

use std::{collections::HashMap, hash::Hash};

/// From keys to values, for looking up alone.
pub(super) struct Lookup<K, V>(HashMap<K, V>);

impl<K, V> Default for Lookup<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> Lookup<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)
    }

    /// The value of this key, made first if there is none.
    pub(super) fn slot(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        self.0.entry(key).or_insert_with(make)
    }
}

//! Which rule each connection of a snapshot is for, found once for all that ask.
//!
//! What a rule asks of the endpoint is asked once for each endpoint, as that is the same for all of
//! its connections; of a connection only its peer and its cgroup are looked at.

use super::lookup::Lookup;
use crate::{
    policy::{MissingFact, Policy, Rule},
    snapshot::{Connection, EndpointKey, Snapshot, Who},
};

/// An endpoint and a rule that is for some of its connections. Whatever is the same for all of
/// these is found once, and kept by the pair's index.
pub(super) struct Pair<'a> {
    pub(super) rule: &'a Rule,
    /// The rule's index in the policy.
    pub(super) rule_index: u32,
    pub(super) endpoint: EndpointKey,
    /// The endpoint's index in [`Matches::endpoints`].
    pub(super) endpoint_index: usize,
    pub(super) who: &'a Who,
    /// How many they are.
    pub(super) connections: usize,
}

/// The first rule that matches a connection. Small, as there is one for each.
#[derive(Clone, Copy)]
pub(super) enum Found {
    /// That of the pair with this index.
    Pair(u32),
    /// None.
    NoRule,
    /// It is not known whether the rule with this index, the first that may, does.
    Undetermined(u32, MissingFact),
}

/// A connection and its rule.
pub(super) struct Matched<'a> {
    pub(super) connection: &'a Connection,
    pub(super) endpoint_index: u32,
    pub(super) found: Found,
}

/// Of each connection of a snapshot, in its order.
#[derive(Default)]
pub(super) struct Matches<'a> {
    pub(super) all: Vec<Matched<'a>>,
    pub(super) pairs: Vec<Pair<'a>>,
    /// How many connections each endpoint has, of those that have any.
    pub(super) endpoints: Vec<u64>,
}

/// A rule that connections of an endpoint may be of.
struct AtEndpoint<'a> {
    rule: &'a Rule,
    index: u32,
    /// What is not known of the endpoint.
    lack: Option<MissingFact>,
    pair: Option<u32>,
}

impl<'a> Matches<'a> {
    pub(super) fn of(policy: &'a Policy, snapshot: &'a Snapshot) -> Self {
        let mut indexes: Lookup<EndpointKey, u32> = Lookup::with_capacity(snapshot.endpoints.len());
        let mut rules: Vec<(&Who, Vec<AtEndpoint<'a>>)> = Vec::new();
        let mut matches = Self::default();
        matches.all.reserve_exact(snapshot.connections.len());
        for connection in &snapshot.connections {
            let endpoint = connection.endpoint;
            let endpoint_index = *indexes.slot(endpoint, || {
                let who = snapshot.who(&endpoint);
                rules.push((who, at_endpoint(policy, snapshot, &endpoint)));
                matches.endpoints.push(0);
                rules.len() as u32 - 1
            });
            matches.endpoints[endpoint_index as usize] += 1;
            let (who, rules) = &mut rules[endpoint_index as usize];
            let found = match first(rules, connection) {
                Ok(None) => Found::NoRule,
                Err((rule, lack)) => Found::Undetermined(rule, lack),
                Ok(Some(at)) => {
                    let pair = *at.pair.get_or_insert_with(|| {
                        matches.pairs.push(Pair {
                            rule: at.rule,
                            rule_index: at.index,
                            endpoint,
                            endpoint_index: endpoint_index as usize,
                            who,
                            connections: 0,
                        });
                        matches.pairs.len() as u32 - 1
                    });
                    matches.pairs[pair as usize].connections += 1;
                    Found::Pair(pair)
                }
            };
            matches.all.push(Matched {
                connection,
                endpoint_index,
                found,
            });
        }
        matches
    }

    /// Each connection that a rule is for.
    pub(super) fn with_rules(&self) -> impl Iterator<Item = (&'a Connection, &'a Rule)> {
        self.all.iter().filter_map(|matched| match matched.found {
            Found::Pair(pair) => Some((matched.connection, self.pairs[pair as usize].rule)),
            Found::NoRule | Found::Undetermined(..) => None,
        })
    }
}

/// Where an operator drains, what no rule of the policy matches has a rule too, behind all others.
fn at_endpoint<'a>(
    policy: &'a Policy,
    snapshot: &Snapshot,
    endpoint: &EndpointKey,
) -> Vec<AtEndpoint<'a>> {
    let who = snapshot.who(endpoint);
    let manual = Rule::manual();
    let manual = snapshot.is_drain_requested(endpoint).then_some(manual);
    let at = |(rule, index): (&'a Rule, u32)| {
        let lack = rule.of_endpoint(endpoint.port, who).ok()?;
        let pair = None;
        Some(AtEndpoint {
            rule,
            index,
            lack,
            pair,
        })
    };
    let rules = policy.rules().iter().chain(manual);
    rules.zip(0..).filter_map(at).collect()
}

/// The first rule that matches.
///
/// # Errors
/// The first of which it is not known whether it does, and what would have to be known.
fn first<'a, 'b>(
    rules: &'b mut [AtEndpoint<'a>],
    connection: &Connection,
) -> Result<Option<&'b mut AtEndpoint<'a>>, (u32, MissingFact)> {
    for at in rules {
        match at.rule.matches().of_connection(connection, at.lack) {
            Ok(None) => return Ok(Some(at)),
            Ok(Some(lack)) => return Err((at.index, lack)),
            Err(_) => {}
        }
    }
    Ok(None)
}

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
    pub(super) endpoint: EndpointKey,
    /// The endpoint's index in [`Matches::endpoints`].
    pub(super) endpoint_index: usize,
    pub(super) who: &'a Who,
    /// How many they are.
    pub(super) connections: usize,
}

/// The first rule that matches a connection.
#[derive(Clone, Copy)]
pub(super) enum Found<'a> {
    /// That of the pair with this index.
    Pair(usize),
    /// None.
    NoRule,
    /// It is not known whether this rule, the first that may, does.
    Undetermined(&'a Rule, MissingFact),
}

/// A connection and its rule.
pub(super) struct Matched<'a> {
    pub(super) connection: &'a Connection,
    pub(super) endpoint_index: usize,
    pub(super) found: Found<'a>,
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
    /// What is not known of the endpoint.
    lack: Option<MissingFact>,
    pair: Option<usize>,
}

impl<'a> Matches<'a> {
    pub(super) fn of(policy: &'a Policy, snapshot: &'a Snapshot) -> Self {
        let mut indexes: Lookup<EndpointKey, usize> = Lookup::default();
        let mut rules: Vec<(&Who, Vec<AtEndpoint<'a>>)> = Vec::new();
        let mut matches = Self::default();
        matches.all.reserve_exact(snapshot.connections.len());
        for connection in &snapshot.connections {
            let endpoint = connection.endpoint;
            let endpoint_index = *indexes.slot(endpoint, || {
                let who = snapshot.who(&endpoint);
                rules.push((who, at_endpoint(policy, endpoint.port, who)));
                matches.endpoints.push(0);
                rules.len() - 1
            });
            matches.endpoints[endpoint_index] += 1;
            let (who, rules) = &mut rules[endpoint_index];
            let found = match first(rules, connection) {
                Ok(None) => Found::NoRule,
                Err((rule, lack)) => Found::Undetermined(rule, lack),
                Ok(Some(at)) => {
                    let pair = *at.pair.get_or_insert_with(|| {
                        matches.pairs.push(Pair {
                            rule: at.rule,
                            endpoint,
                            endpoint_index,
                            who,
                            connections: 0,
                        });
                        matches.pairs.len() - 1
                    });
                    matches.pairs[pair].connections += 1;
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
            Found::Pair(pair) => Some((matched.connection, self.pairs[pair].rule)),
            Found::NoRule | Found::Undetermined(..) => None,
        })
    }
}

fn at_endpoint<'a>(policy: &'a Policy, port: u16, who: &Who) -> Vec<AtEndpoint<'a>> {
    let at = |rule: &'a Rule| {
        let lack = rule.matches().of_endpoint(port, who).ok()?;
        let pair = None;
        Some(AtEndpoint { rule, lack, pair })
    };
    policy.rules().iter().filter_map(at).collect()
}

/// The first rule that matches.
///
/// # Errors
/// The first of which it is not known whether it does, and what would have to be known.
fn first<'a, 'b>(
    rules: &'b mut [AtEndpoint<'a>],
    connection: &Connection,
) -> Result<Option<&'b mut AtEndpoint<'a>>, (&'a Rule, MissingFact)> {
    for at in rules {
        match at.rule.matches().of_connection(connection, at.lack) {
            Ok(None) => return Ok(Some(at)),
            Ok(Some(lack)) => return Err((at.rule, lack)),
            Err(_) => {}
        }
    }
    Ok(None)
}

//! Which rule each connection of a snapshot is for, found once for all that ask.
//!
//! What a rule asks of the endpoint is asked once for each endpoint, as that is the same for all of
//! its connections; of a connection only its peer and its cgroup are looked at.

use super::lookup::Lookup;
use crate::{
    policy::{MissingFact, Policy, Rule},
    snapshot::{Connection, EndpointKey, Snapshot, Who},
};

/// The first rule that matches, by its index too; or the first of which it is not known whether it
/// does, with what would have to be known.
pub(super) type Found<'a> = Result<Option<(usize, &'a Rule)>, (&'a Rule, MissingFact)>;

/// A connection and its rule.
pub(super) struct Matched<'a> {
    pub(super) connection: &'a Connection,
    /// Its endpoint's index: the endpoints that have connections are counted through.
    pub(super) endpoint: usize,
    pub(super) found: Found<'a>,
}

impl<'a> Matched<'a> {
    /// The rule, if one surely matches.
    pub(super) fn rule(&self) -> Option<&'a Rule> {
        self.found.ok().flatten().map(|(_, rule)| rule)
    }
}

/// Of each connection of a snapshot, in its order.
pub(super) struct Matches<'a> {
    pub(super) all: Vec<Matched<'a>>,
    /// How many endpoints have connections.
    pub(super) endpoints: usize,
}

/// A rule that connections of an endpoint may be of, and what is not known of the endpoint.
type AtEndpoint<'a> = (usize, &'a Rule, Option<MissingFact>);

impl<'a> Matches<'a> {
    pub(super) fn of(policy: &'a Policy, snapshot: &'a Snapshot) -> Self {
        let mut indexes: Lookup<EndpointKey, usize> = Lookup::default();
        let mut rules: Vec<Vec<AtEndpoint<'a>>> = Vec::new();
        let one = |connection: &'a Connection| {
            let endpoint = *indexes.slot(connection.endpoint, || {
                let who = snapshot.who(&connection.endpoint);
                rules.push(at_endpoint(policy, connection.endpoint.port, who));
                rules.len() - 1
            });
            Matched {
                connection,
                endpoint,
                found: found(&rules[endpoint], connection),
            }
        };
        let all = snapshot.connections.iter().map(one).collect();
        Self {
            all,
            endpoints: rules.len(),
        }
    }
}

fn at_endpoint<'a>(policy: &'a Policy, port: u16, who: &Who) -> Vec<AtEndpoint<'a>> {
    let rules = policy.rules().iter().enumerate();
    rules
        .filter_map(|(index, rule)| {
            let lack = rule.matches().of_endpoint(port, who).ok()?;
            Some((index, rule, lack))
        })
        .collect()
}

fn found<'a>(rules: &[AtEndpoint<'a>], connection: &Connection) -> Found<'a> {
    for (index, rule, lack) in rules {
        match rule.matches().of_connection(connection, *lack) {
            Ok(None) => return Ok(Some((*index, rule))),
            Ok(Some(lack)) => return Err((rule, lack)),
            Err(_) => {}
        }
    }
    Ok(None)
}

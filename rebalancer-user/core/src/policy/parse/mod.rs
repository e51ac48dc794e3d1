//! From the file's types to a [`Policy`]: the errors of meaning, all of them.

mod pods;
mod reader;
mod rules;

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use self::reader::{Reader, inner};
use super::{
    Amount, Budget, Guards, Percent, Policy, PolicyErrors, Track,
    file::{BudgetFile, Field, GuardsFile, PolicyFile, Scalar, TrackFile},
    syntax, values,
};

pub(super) const API_VERSION: &str = "rebalancer.dev/v1alpha1";
pub(super) const KIND: &str = "RebalancePolicy";

const MOST_NAMESPACES: usize = 1024;
const MOST_MOVES: u32 = 1_000_000;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads a policy; `source_name` is what errors call it.
///
/// # Errors
/// The first error of syntax or shape, or else all errors of meaning, sorted by place.
pub fn parse(source_name: &str, text: &str) -> Result<Policy, PolicyErrors> {
    read(source_name, text).map(|(_, policy)| policy)
}

/// Reads a policy, and gives what the file says beside what it means.
pub(super) fn read(source_name: &str, text: &str) -> Result<(PolicyFile, Policy), PolicyErrors> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let file = syntax::read(text)
        .map_err(|problem| PolicyErrors::new(source_name, text, vec![problem]))?;
    let mut reader = Reader {
        text,
        problems: Vec::new(),
    };
    let policy = reader.policy(&file);
    if reader.problems.is_empty() {
        Ok((file, policy))
    } else {
        Err(PolicyErrors::new(source_name, text, reader.problems))
    }
}

impl Reader<'_> {
    fn policy(&mut self, file: &PolicyFile) -> Policy {
        let head = 0..0;
        let fixed = [
            (&file.api_version, "apiVersion", API_VERSION),
            (&file.kind, "kind", KIND),
        ];
        for (field, name, expected) in fixed {
            self.required(field, name, &head, &format!("{name}: {expected}"));
            self.value(field, |value| values::exactly(value, expected));
        }
        self.required(&file.rules, "rules", &head, "rules, or `rules: []`");
        let guards = self.guards(&file.guards);
        let interval = self
            .duration(&file.interval, Duration::from_millis(200)..=DAY / 24)
            .unwrap_or(5 * SECOND);
        Policy {
            mode: self.mode(&file.mode).unwrap_or_default(),
            interval,
            track: self.track(&file.track),
            budget: self.budget(&file.budget),
            rules: self.rules(&file.rules, guards.min_age, interval),
            guards,
        }
    }

    fn track(&mut self, field: &Field<TrackFile>) -> Track {
        let default = TrackFile::default();
        let TrackFile {
            loopback,
            max_per_endpoint,
            max_per_node,
            exclude_cgroups,
        } = inner(field, &default);
        Track {
            loopback: self.value(loopback, values::boolean).unwrap_or(false),
            max_per_endpoint: self.count(max_per_endpoint, 1 << 20, 65_536),
            max_per_node: self.count(max_per_node, 1 << 22, 262_144),
            exclude_cgroups: self.cgroups(exclude_cgroups),
        }
    }

    fn budget(&mut self, field: &Field<BudgetFile>) -> Budget {
        let default = BudgetFile::default();
        let BudgetFile {
            window,
            per_node,
            max_in_flight,
            per_service,
            per_endpoint,
        } = inner(field, &default);
        let share = |percent| Amount::Share(Percent::new(percent).unwrap_or(Percent::WHOLE));
        let mut amount = |field: &Field<Scalar>, default: Amount| {
            self.value(field, |value| values::amount(value, MOST_MOVES))
                .unwrap_or(default)
        };
        let per_node = amount(
            per_node,
            Amount::Fixed(const { NonZeroU32::new(60).unwrap() }),
        );
        let per_service = amount(per_service, share(10));
        let per_endpoint = amount(per_endpoint, share(25));
        Budget {
            window: self.duration(window, SECOND..=DAY).unwrap_or(60 * SECOND),
            per_node,
            per_service,
            per_endpoint,
            max_in_flight: self.count(max_in_flight, 10_000, 20),
        }
    }

    fn guards(&mut self, field: &Field<GuardsFile>) -> Guards {
        let default = GuardsFile::default();
        let GuardsFile {
            min_age,
            allow_system_ports,
            allow_host_network,
            exclude_namespaces,
            min_ready_endpoints,
            stabilization_window,
        } = inner(field, &default);
        let ports: BTreeSet<u16> = self
            .list(allow_system_ports, u16::MAX.into())
            .iter()
            .filter_map(|port| self.item(port, values::port))
            .map(Into::into)
            .collect();
        let namespaces: BTreeSet<String> = self
            .list(exclude_namespaces, MOST_NAMESPACES)
            .iter()
            .filter_map(|name| self.item(name, |value| values::name(value).map(str::to_owned)))
            .collect();
        Guards {
            exclude_namespaces: exclude_namespaces.0.is_some().then_some(namespaces),
            min_age: self.duration(min_age, Duration::ZERO..=YEAR).unwrap_or(
                if min_age.0.is_some() {
                    Duration::ZERO
                } else {
                    30 * SECOND
                },
            ),
            min_ready_endpoints: self.count(min_ready_endpoints, 10_000, 2),
            stabilization_window: self
                .duration(stabilization_window, Duration::ZERO..=DAY)
                .unwrap_or(60 * SECOND),
            allow_system_ports: ports,
            allow_host_network: self.value(allow_host_network, values::boolean),
        }
    }
}

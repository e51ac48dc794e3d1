//! What the endpoints of a group hold, and which of them holds too much.
//!
//! What balance must know of a group is a value, [`ServiceFacts`]: whoever knows more of a Service
//! than this node does can give a better one.

use std::fmt;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize, Serializer};

use super::chance::Chance;
use crate::{
    policy::{Balance, By, Percent},
    views::Sums,
};

/// The mean, in the unit of shares: a load is counted in millionths of it.
pub(super) const MEAN: u64 = 1_000_000;

impl By {
    /// The unit of such a load, as a stable word.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ByteRate => "bytesPerSecond",
            Self::MessageRate => "messagesPerSecond",
        }
    }
}

/// A number in the unit of what is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load(pub By, pub u64);

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(by, load) = *self;
        match by {
            By::Connections => write!(f, "{load}"),
            By::ByteRate => write!(f, "{}/s", ByteSize::b(load)),
            By::MessageRate => write!(f, "{load} messages/s"),
        }
    }
}

/// How an endpoint stands among those that share clients with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LoadComparison {
    /// What is balanced.
    #[serde(rename = "unit", serialize_with = "unit")]
    pub by: By,
    /// Endpoints.
    pub endpoints: u32,
    /// What this one holds.
    pub load: u64,
    /// What each would hold.
    pub mean: u64,
    /// What it would keep, if it shed.
    pub stop: u64,
    /// From what on it sheds; none if chance explains even all of it on one endpoint.
    pub start: Option<u64>,
}

fn unit<S: Serializer>(by: &By, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(by.unit())
}

impl LoadComparison {
    pub(super) fn of(balance: Balance, facts: ServiceFacts, load: u64) -> Self {
        Self {
            by: balance.by(),
            endpoints: facts.endpoints,
            load,
            mean: facts.mean(),
            stop: facts.stop(balance.tolerance()),
            start: facts.start(balance.tolerance()),
        }
    }
}

impl fmt::Display for LoadComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [load, mean, stop] = [self.load, self.mean, self.stop].map(|load| Load(self.by, load));
        write!(
            f,
            "endpoint holds {load} of mean {mean} over {}",
            self.endpoints
        )?;
        match self.start {
            Some(start) => write!(f, ", sheds from {} to {stop}", Load(self.by, start)),
            None => f.write_str(", and chance explains it however they are placed"),
        }
    }
}

/// What the endpoints of a group hold together. The unit is what is balanced by: connections, or
/// bytes or sends per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sum {
    /// What all connections count for.
    pub total: u64,
    /// The sum of the squares of what each counts for.
    pub squares: u128,
    /// The most that one counts for.
    pub largest: u64,
}

impl Sum {
    pub(super) fn add(&mut self, load: u64) {
        self.join(Self {
            total: load,
            squares: u128::from(load) * u128::from(load),
            largest: load,
        });
    }

    pub(super) fn join(&mut self, other: Self) {
        self.total = self.total.saturating_add(other.total);
        self.squares = self.squares.saturating_add(other.squares);
        self.largest = self.largest.max(other.largest);
    }
}

impl From<Sums> for Sum {
    fn from(sums: Sums) -> Self {
        let Sums {
            total,
            squares,
            largest,
        } = sums;
        Self {
            total,
            squares,
            largest,
        }
    }
}

impl From<Sum> for Sums {
    fn from(sum: Sum) -> Self {
        let Sum {
            total,
            squares,
            largest,
        } = sum;
        Self {
            total,
            squares,
            largest,
        }
    }
}

/// The facts about a Service that decide which of its endpoints holds too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Ready endpoints; one or more.
    pub endpoints: u32,
    /// What they hold together. The largest of the last three listings, and what was moved and
    /// has not been seen again is in it: while clients wait to reconnect the mean would be too low.
    pub sum: Sum,
    /// The least that one of them holds.
    pub least: u64,
    /// The most that one of them holds.
    pub most: u64,
}

impl ServiceFacts {
    /// What each would hold, rounded down.
    pub fn mean(&self) -> u64 {
        self.sum.total / u64::from(self.endpoints.max(1))
    }

    /// What an endpoint that sheds keeps: the mean and the tolerance, rounded up, so that all
    /// together can keep everything.
    pub fn stop(&self, tolerance: Percent) -> u64 {
        self.above_mean(u128::from(tolerance.get()))
    }

    /// The mean rounded up.
    fn fair(&self) -> u64 {
        self.above_mean(0)
    }

    fn above_mean(&self, percent: u128) -> u64 {
        let whole = u128::from(self.sum.total) * (100 + percent);
        let above = whole.div_ceil(100 * u128::from(self.endpoints.max(1)));
        u64::try_from(above).unwrap_or(u64::MAX)
    }

    /// The least load that is beyond tolerance and chance; none if all of the Service on one
    /// endpoint were not.
    pub fn start(&self, tolerance: Percent) -> Option<u64> {
        let chance = self.chance()?;
        let beyond = |load: u64| chance.is_above(load as f64);
        let (mut low, mut high) = (self.mean(), self.sum.total);
        if !beyond(high) {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if beyond(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(high.max(self.stop(tolerance).saturating_add(1)))
    }

    /// What the emptiest lacks, in millionths of the mean.
    pub(super) fn missing(&self) -> u64 {
        MEAN.saturating_sub(self.share(self.least))
    }

    /// How much a load is, in millionths of the mean.
    pub(super) fn share(&self, load: u64) -> u64 {
        let load = u128::from(load) * u128::from(self.endpoints) * u128::from(MEAN);
        u64::try_from(load / u128::from(self.sum.total.max(1))).unwrap_or(u64::MAX)
    }

    /// Whether an endpoint holds less than chance explains, as one that was just added.
    pub fn one_is_empty(&self) -> bool {
        self.chance()
            .is_some_and(|chance| chance.is_below(self.least as f64))
    }

    /// What an endpoint that holds `load` would keep, if it holds too much. `sheds`: it has begun
    /// to shed before, and goes on until it holds no more than the stop.
    pub fn keeps(&self, load: u64, tolerance: Percent, sheds: bool) -> Option<u64> {
        if self.endpoints < 2 {
            return None;
        }
        let (stop, fair) = (self.stop(tolerance), self.fair());
        if load > stop {
            let start = || self.start(tolerance).is_some_and(|start| load >= start);
            return (sheds || start() || self.one_is_empty()).then_some(stop);
        }
        // A replica that was just added to many leaves each of them within the tolerance. What is
        // moved from one of those is spread over all, so that only what is above the mean can go.
        (self.most <= stop && load > fair && self.one_is_empty()).then_some(fair)
    }

    /// What an endpoint that sheds and holds `load` has too much still, those that are being moved
    /// counted in. Less makes it stop than made it begin, so that no move is given up for its own
    /// sake: the mean is enough where one is empty, and by rates, which change from one interval to
    /// the next.
    pub(super) fn still_beyond(&self, load: u64, balance: Balance) -> u64 {
        if self.endpoints < 2 {
            return 0;
        }
        let to_the_mean = balance.by() != By::Connections || self.one_is_empty();
        let keeps = if to_the_mean {
            self.fair()
        } else {
            self.stop(balance.tolerance())
        };
        load.saturating_sub(keeps)
    }

    fn chance(&self) -> Option<Chance> {
        let sensible = self.endpoints >= 2 && self.sum.total > 0 && self.sum.largest > 0;
        sensible.then(|| Chance {
            endpoints: self.endpoints.into(),
            total: self.sum.total as f64,
            squares: self.sum.squares as f64,
            largest: self.sum.largest as f64,
        })
    }
}

/// Why a Service's facts are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoView {
    /// Of its ready endpoints, those that are seen here.
    pub here: u32,
    /// How many there are; none if that is not known.
    pub all: Option<u32>,
    /// Why the others are not known by a view of the cluster.
    pub cause: NoClusterView,
}

/// Why there is no view of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoClusterView {
    /// None is asked for.
    #[default]
    Off,
    /// No coordinator has given one yet.
    Awaited,
    /// The last is too old.
    Expired,
    /// It is of other endpoints than those that are known here.
    OtherGeneration,
    /// Not every ready endpoint was reported.
    Incomplete,
}

impl NoClusterView {
    /// What it says of the others, if anything.
    pub(super) fn sentence(self) -> Option<&'static str> {
        Some(match self {
            Self::Off => return None,
            Self::Awaited => "no coordinator has compared them with the others yet",
            Self::Expired => "the coordinator has said nothing of the others for too long",
            Self::OtherGeneration => "the coordinator knows another set of them",
            Self::Incomplete => "not all of the others were reported to the coordinator",
        })
    }

    /// What it takes for a view.
    pub(super) fn needs(self) -> Option<&'static str> {
        Some(match self {
            Self::Off => return None,
            Self::Awaited | Self::Expired => "a coordinator that runs and leads",
            Self::OtherGeneration => "that all nodes know its endpoints, in a few seconds",
            Self::Incomplete => "a running agent on each node of its endpoints",
        })
    }
}

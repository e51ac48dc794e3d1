//! The least number of moves that random placement allows, by a mover with complete knowledge and no
//! hurry. It moves one connection from the endpoint that is furthest above its target, sees where it is
//! placed, and moves the next, until no endpoint is overloaded by the agent's own rule.

use rebalancer_core::{
    plan::{ServiceFacts, Sum},
    policy::Percent,
};

use super::random::Random;

/// Placements over which the least is averaged.
const PLACEMENTS: u32 = 32;

/// Beyond this many moves it gives up.
const MOST: u32 = 20_000;

/// The mean number of moves; `loads`: the load of each connection, by endpoint.
pub(crate) fn least(loads: &[Vec<u64>], tolerance: Percent, seed: u64) -> f64 {
    let mut random = Random::new(seed ^ 0x0dd5);
    let moves = |_| f64::from(once(loads.to_vec(), tolerance, &mut random));
    (0..PLACEMENTS).map(moves).sum::<f64>() / f64::from(PLACEMENTS)
}

/// The facts of endpoints with these loads.
pub(crate) fn facts(loads: &[Vec<u64>]) -> ServiceFacts {
    let all = || loads.iter().flatten().copied();
    let sums = || loads.iter().map(|loads| loads.iter().sum::<u64>());
    ServiceFacts {
        endpoints: loads.len() as u32,
        sum: Sum {
            total: all().sum(),
            squares: all().map(|load| u128::from(load).pow(2)).sum(),
            largest: all().max().unwrap_or(0),
        },
        least: sums().min().unwrap_or(0),
        most: sums().max().unwrap_or(0),
    }
}

fn once(mut loads: Vec<Vec<u64>>, tolerance: Percent, random: &mut Random) -> u32 {
    let mut facts = facts(&loads);
    for endpoint in &mut loads {
        endpoint.sort_unstable();
    }
    let mut sums: Vec<u64> = loads.iter().map(|loads| loads.iter().sum()).collect();
    let mut sheds = vec![false; loads.len()];
    for moves in 0..MOST {
        facts.least = sums.iter().min().copied().unwrap_or(0);
        facts.most = sums.iter().max().copied().unwrap_or(0);
        let mut hottest = None;
        for (index, load) in sums.iter().enumerate() {
            let keeps = facts.keeps(*load, tolerance, sheds[index]);
            sheds[index] = keeps.is_some();
            let excess = keeps.map_or(0, |keeps| load - keeps);
            hottest = hottest.max((excess > 0).then_some((excess, index)));
        }
        let Some((excess, from)) = hottest else {
            return moves;
        };
        // The largest that does not exceed the excess: a larger one would make another as hot.
        let fits = loads[from].partition_point(|load| *load <= excess);
        let Some(chosen) = fits.checked_sub(1).filter(|at| loads[from][*at] > 0) else {
            return moves;
        };
        let load = loads[from].remove(chosen);
        let to = random.place(loads.len());
        let at = loads[to].partition_point(|other| *other <= load);
        loads[to].insert(at, load);
        sums[from] -= load;
        sums[to] += load;
    }
    MOST
}

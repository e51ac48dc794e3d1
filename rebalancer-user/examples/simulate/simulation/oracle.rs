//! The least that random placement allows: a mover that knows all and is in no hurry. It moves one
//! connection from the endpoint that holds most, looks where it came, and moves the next, until no
//! endpoint holds more than the stop.

use super::random::Random;

/// Placements over which the least is averaged.
const PLACEMENTS: u32 = 32;

/// Beyond this many moves there is no end to be hoped for.
const MOST: u32 = 100_000;

/// How many moves it takes on average; `loads`: what each connection counts for, by endpoint.
pub(crate) fn least(loads: &[Vec<u64>], stop: u64, seed: u64) -> f64 {
    let mut random = Random::new(seed ^ 0x0dd5);
    let moves = |_| f64::from(once(loads.to_vec(), stop, &mut random));
    (0..PLACEMENTS).map(moves).sum::<f64>() / f64::from(PLACEMENTS)
}

fn once(mut loads: Vec<Vec<u64>>, stop: u64, random: &mut Random) -> u32 {
    // The heaviest last.
    for endpoint in &mut loads {
        endpoint.sort_unstable();
    }
    let mut sums: Vec<u64> = loads.iter().map(|loads| loads.iter().sum()).collect();
    for moves in 0..MOST {
        let Some((hottest, excess)) = (0..sums.len())
            .map(|index| (index, sums[index].saturating_sub(stop)))
            .max_by_key(|(_, excess)| *excess)
            .filter(|(_, excess)| *excess > 0)
        else {
            return moves;
        };
        // The largest that does not exceed the excess: with a larger one another would be as hot.
        let fits = loads[hottest].partition_point(|load| *load <= excess);
        let Some(chosen) = fits.checked_sub(1).filter(|at| loads[hottest][*at] > 0) else {
            return moves;
        };
        let load = loads[hottest].remove(chosen);
        let to = random.place(loads.len());
        let at = loads[to].partition_point(|other| *other <= load);
        loads[to].insert(at, load);
        sums[hottest] -= load;
        sums[to] += load;
    }
    MOST
}

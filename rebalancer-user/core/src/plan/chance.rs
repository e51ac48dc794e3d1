//! Whether chance explains what an endpoint holds.
//!
//! kube-proxy places each connection on one of N endpoints by chance. What an endpoint holds is
//! then a sum of independent values, each with the chance 1/N of being there, and is far from the
//! mean only rarely. How rarely is bounded by two inequalities that hold for any such sum, however
//! few or unequal its parts: Chernoff's, which is sharp where all are equal, and Bennett's, which
//! is where a few are much larger than the others. Either bound is e to the minus of what is
//! computed here; the larger is taken.
//!
//! For many equal connections the bound comes to `mean · z · √((N−1)/M)` above the mean, with
//! z = √(2 ln(N/[`RARE`])), about 5: the quantile of the largest of N. For few it is wider, as the
//! bell curve would be wrong there.

/// The probability that random placement of all connections puts an endpoint beyond the bounds in one
/// interval. Once in 10⁵: a balanced Service is left alone.
const RARE: f64 = 1e-5;

/// A sum of what was placed by chance on one of several endpoints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Chance {
    /// Endpoints, two or more.
    pub(super) endpoints: f64,
    /// What all of them hold.
    pub(super) total: f64,
    /// The sum of squares of what each connection counts for.
    pub(super) squares: f64,
    /// The most that one connection counts for.
    pub(super) largest: f64,
}

impl Chance {
    /// Whether an endpoint that holds `load` holds more than chance explains.
    pub(super) fn is_above(self, load: f64) -> bool {
        load > self.mean() && self.surprise(load, self.largest * (1.0 - self.p())) >= self.limit()
    }

    /// Whether an endpoint that holds `load` holds less than chance explains.
    pub(super) fn is_below(self, load: f64) -> bool {
        load < self.mean() && self.surprise(load, self.largest * self.p()) >= self.limit()
    }

    fn p(self) -> f64 {
        1.0 / self.endpoints
    }

    fn mean(self) -> f64 {
        self.total / self.endpoints
    }

    fn limit(self) -> f64 {
        (self.endpoints / RARE).ln()
    }

    /// Minus the logarithm of a bound on the chance of `load` or what is further from the mean on
    /// its side; `part`: how far one connection can take the sum to that side.
    fn surprise(self, load: f64, part: f64) -> f64 {
        let p = self.p();
        let share = (load / self.total).clamp(0.0, 1.0);
        let divergence = entropy(share, p) + entropy(1.0 - share, 1.0 - p);
        let chernoff = self.total / self.largest * divergence;
        let variance = p * (1.0 - p) * self.squares;
        let far = (load - self.mean()).abs();
        let u = part * far / variance;
        let bennett = variance / (part * part) * ((1.0 + u) * u.ln_1p() - u);
        // Of nothing, or of what is not a number, chance explains everything.
        chernoff.max(bennett).max(0.0)
    }
}

/// x ln(x/p), which is 0 for nothing.
fn entropy(x: f64, p: f64) -> f64 {
    if x > 0.0 { x * (x / p).ln() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(endpoints: u32, total: u32) -> Chance {
        Chance {
            endpoints: endpoints.into(),
            total: total.into(),
            squares: total.into(),
            largest: 1.0,
        }
    }

    /// The least that is too much, and the most that is too little.
    fn bounds(chance: Chance) -> (Option<u32>, Option<u32>) {
        let all = || 0..=(chance.total as u32);
        (
            all().find(|load| chance.is_above((*load).into())),
            all().rev().find(|load| chance.is_below((*load).into())),
        )
    }

    #[test]
    fn chance_explains_what_is_near_the_mean() {
        assert_eq!(bounds(connections(3, 300)), (Some(143), Some(60)));
        assert_eq!(bounds(connections(3, 30_000)), (Some(10_412), Some(9_591)));
        assert_eq!(bounds(connections(11, 1100)), (Some(154), Some(53)));
        // The usual of a fresh placement is a maximum of 1.27 times the mean.
        assert_eq!(bounds(connections(3, 30)), (Some(24), None));
        // So few connections prove nothing.
        assert_eq!(bounds(connections(3, 9)), (None, None));
        assert_eq!(bounds(connections(2, 17)), (None, None));
        assert_eq!(bounds(connections(2, 18)), (Some(18), Some(0)));
        assert_eq!(bounds(connections(3, 0)), (None, None));
    }

    /// The exact chance of a sum so far above or below, by the binomial distribution.
    #[test]
    fn what_is_called_rare_is_rare() {
        for (endpoints, total) in [
            (2, 40),
            (3, 300),
            (3, 60),
            (10, 100),
            (10, 1000),
            (100, 400),
        ] {
            let p = 1.0 / f64::from(endpoints);
            let mut chance = vec![0.0; total as usize + 1];
            chance[0] = 1.0;
            for _ in 0..total {
                for load in (0..chance.len()).rev() {
                    let from_below = if load > 0 { chance[load - 1] * p } else { 0.0 };
                    chance[load] = chance[load] * (1.0 - p) + from_below;
                }
            }
            let (above, below) = bounds(connections(endpoints, total));
            let above: f64 = above.map_or(0.0, |from| chance[from as usize..].iter().sum());
            let below: f64 = below.map_or(0.0, |to| chance[..=to as usize].iter().sum());
            let any = f64::from(endpoints) * above.max(below);
            assert!(any <= RARE, "{endpoints} {total}: {above} {below}");
        }
    }

    /// One that carries a tenth of all may be anywhere: where it is, is no surprise.
    #[test]
    fn the_place_of_a_heavy_one_is_no_surprise() {
        let chance = Chance {
            endpoints: 100.0,
            total: 1000.0,
            squares: 100.0 * 100.0 + 900.0,
            largest: 100.0,
        };
        assert!(!chance.is_above(109.0));
        assert!(chance.is_above(500.0));
    }
}

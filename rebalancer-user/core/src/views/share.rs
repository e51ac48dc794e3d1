//! Which part of a budget is one node's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A whole budget, in the unit of shares.
pub const WHOLE: u32 = 1_000_000;

/// A node's part of a budget: from one point on it to another, in millionths. The parts of all nodes
/// do not overlap, so that their whole moves add up to no more than the budget however small that is,
/// without anybody who knows the budget of each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
pub struct Share {
    /// Where it begins.
    #[schemars(range(max = 1_000_000))]
    pub from: u32,
    /// Where it ends.
    #[schemars(range(max = 1_000_000))]
    pub to: u32,
}

impl Share {
    /// All of it.
    pub const ALL: Self = Self { from: 0, to: WHOLE };

    /// The moves of a budget that are in this part. Of a small budget the first parts have some.
    pub fn of(self, budget: u64) -> u64 {
        let up_to = |point: u32| {
            let part = u128::from(point.min(WHOLE)) * u128::from(budget);
            u64::try_from(part.div_ceil(u128::from(WHOLE))).unwrap_or(u64::MAX)
        };
        up_to(self.to).saturating_sub(up_to(self.from))
    }

    /// Parts in proportion to these weights, each with its own: the heaviest first, equals in their
    /// order. Who weighs nothing has nothing.
    pub(super) fn by_weight<T: Copy + Ord>(weights: &[(T, u64)]) -> Vec<(T, Self)> {
        let mut in_order: Vec<_> = weights.to_vec();
        in_order.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        let sum: u128 = in_order.iter().map(|(_, weight)| u128::from(*weight)).sum();
        let mut before = 0_u128;
        let point = |at: u128| {
            // The sum of up to 2³² weights of 64 bits, times a million, is below 2¹²⁸.
            let point = at * u128::from(WHOLE) / sum.max(1);
            u32::try_from(point).unwrap_or(WHOLE)
        };
        let part = |(of, weight): (T, u64)| {
            let from = point(before);
            before += u128::from(weight);
            let share = Self {
                from,
                to: point(before),
            };
            (of, if weight > 0 { share } else { Self::default() })
        };
        in_order.into_iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_single_move_is_of_the_heaviest() {
        let shares = Share::by_weight(&[("a", 10), ("b", 30), ("c", 20), ("d", 0)]);
        let moves = |budget| -> Vec<(&str, u64)> {
            let moves = shares.iter().map(|(of, share)| (*of, share.of(budget)));
            moves.collect()
        };
        assert_eq!(moves(1), [("b", 1), ("c", 0), ("a", 0), ("d", 0)]);
        assert_eq!(moves(60), [("b", 30), ("c", 20), ("a", 10), ("d", 0)]);
        assert_eq!((Share::ALL.of(7), Share::default().of(7)), (7, 0));
    }

    proptest! {
        #[test]
        fn all_parts_are_no_more_than_the_budget(
            weights in vec(prop_oneof![0..5_u64, any::<u64>()], 0..40), budget: u64,
        ) {
            let weights: Vec<(usize, u64)> = weights.into_iter().enumerate().collect();
            let shares = Share::by_weight(&weights);
            prop_assert_eq!(shares.len(), weights.len());
            let sum: u128 = shares.iter().map(|(_, share)| u128::from(share.of(budget))).sum();
            prop_assert!(sum <= u128::from(budget), "{} of {}", sum, budget);
            if weights.iter().any(|(_, weight)| *weight > 0) {
                prop_assert_eq!(sum, u128::from(budget), "what is there is given");
            }
        }
    }
}

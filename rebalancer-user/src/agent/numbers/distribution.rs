//! How values are spread: counts by upper bound.

/// Counts of values by the least bound that each is not above, with their sum.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Distribution {
    /// Rising; what is above the last has a count of its own.
    bounds: &'static [f64],
    /// One more than the bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Distribution {
    pub(in crate::agent) fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    pub(in crate::agent) fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at] += 1;
        self.sum += value;
    }

    pub(in crate::agent) fn sum(&self) -> f64 {
        self.sum
    }

    pub(in crate::agent) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Each bound and how many are between it and the one below; the last is infinity.
    pub(in crate::agent) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied()).collect()
    }

    /// Each bound and how many are not above it.
    pub(in crate::agent) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut all = 0;
        self.buckets().into_iter().map(move |(bound, count)| {
            all += count;
            (bound, all)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_at_the_least_bound_that_it_is_not_above() {
        let mut ages = Distribution::new(&[1.0, 10.0]);
        for value in [0.0, 1.0, 1.5, 10.0, 11.0] {
            ages.observe(value);
        }
        assert_eq!(ages.buckets(), [(1.0, 2), (10.0, 2), (f64::INFINITY, 1)]);
        let cumulative: Vec<u64> = ages.cumulative().map(|(_, n)| n).collect();
        assert_eq!(cumulative, [2, 4, 5]);
        assert_eq!((ages.count(), ages.sum()), (5, 23.5));
    }
}

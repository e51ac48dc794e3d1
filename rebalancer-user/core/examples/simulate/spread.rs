//! Mean and spread over many runs.

/// Mean, standard deviation and maximum of values.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    /// The standard deviation of one value.
    pub(crate) deviation: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// `None` without values.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (count > 0.0).then(|| Self {
            mean,
            deviation: (squares / (count - 1.0).max(1.0)).sqrt(),
            most: values.iter().copied().fold(f64::MIN, f64::max),
        })
    }
}

/// The value below which this part of all are, by rank; not a number of none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (part * values.len() as f64).ceil() as usize;
    let at = rank.saturating_sub(1);
    values.get(at).copied().unwrap_or(f64::NAN)
}

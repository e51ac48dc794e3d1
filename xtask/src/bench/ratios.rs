//! Quartiles of measurements: their spread shows how noisy the machine is.

use serde::Serialize;

/// Median and quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Quartiles {
    pub(super) lower: f64,
    pub(super) median: f64,
    pub(super) upper: f64,
}

impl Quartiles {
    /// `None` without numbers.
    pub(super) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        // Interpolates between neighbours.
        let at = |share: f64| {
            let place = share * last as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            sorted[below] + (sorted[above] - sorted[below]) * place.fract()
        };
        Some(Self {
            lower: at(0.25),
            median: at(0.5),
            upper: at(0.75),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        let of = |numbers: &[f64]| Quartiles::of(numbers.iter().copied());
        let [lower, median, upper] = [2.0, 3.0, 4.0];
        assert_eq!(
            of(&[5.0, 1.0, 3.0, 2.0, 4.0]),
            Some(Quartiles {
                lower,
                median,
                upper
            })
        );
        assert_eq!(of(&[1.0, 2.0]).map(|q| q.median), Some(1.5));
        assert_eq!(of(&[]), None);
    }
}

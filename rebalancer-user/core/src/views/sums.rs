//! What the connections of some endpoints amount to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sums over connections of what each counts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sums {
    /// What all connections count for.
    pub total: u64,
    /// The sum of the squares of what each counts for, in decimal digits: it may have 128 bits.
    #[serde(with = "decimal")]
    #[schemars(with = "String", regex(pattern = "^[0-9]{1,39}$"))]
    pub squares: u128,
    /// The most that one counts for.
    pub largest: u64,
}

impl Sums {
    /// Clamped to what is possible for parts that come to `total`, none of them above `most`: a report may be forged.
    pub(super) fn clamped(self, total: u64, most: u64) -> Self {
        let largest = self.largest.clamp(u64::from(most > 0), most);
        // A whole number is not above its square, and no part is above the largest.
        let (low, high) = (u128::from(total), u128::from(largest) * u128::from(total));
        Self {
            total,
            squares: self.squares.clamp(low.min(high), high),
            largest,
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.total = self.total.saturating_add(other.total);
        self.squares = self.squares.saturating_add(other.squares);
        self.largest = self.largest.max(other.largest);
    }
}

/// A number of up to 128 bits in decimal digits.
mod decimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(number: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        let text = String::deserialize(from)?;
        text.parse()
            .map_err(|_| D::Error::custom("not a whole number in decimal digits"))
    }
}

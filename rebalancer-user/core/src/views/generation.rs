//! Which set of ready endpoints is meant.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Identifies the set of a Service's ready endpoints: nodes that know the same set have the same. It
/// does not depend on the program's version or on the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// Of endpoints by their identities, each once.
    pub fn of<'a>(endpoints: impl Iterator<Item = &'a [u8]>) -> Self {
        // A sum does not depend on the order; each addend is mixed, so that they do not cancel out.
        let sum = endpoints.fold(0_u64, |sum, endpoint| sum.wrapping_add(hash(endpoint)));
        Self(mix(sum))
    }
}

/// FNV-1a, mixed.
fn hash(bytes: &[u8]) -> u64 {
    let of_bytes = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(of_bytes)
}

/// The finalizer of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Generation {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl Serialize for Generation {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Generation {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(from)?;
        text.parse()
            .map_err(|_| D::Error::custom("a generation is up to 16 hexadecimal digits"))
    }
}

impl JsonSchema for Generation {
    fn schema_name() -> Cow<'static, str> {
        "Generation".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9a-f]{1,16}$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(endpoints: &[&str]) -> Generation {
        Generation::of(endpoints.iter().map(|endpoint| endpoint.as_bytes()))
    }

    #[test]
    fn it_is_of_the_set_and_the_same_in_every_build() {
        assert_eq!(of(&["a", "b", "c"]), of(&["c", "a", "b"]));
        let others = [
            &["a", "b"][..],
            &["a"],
            &[],
            &["ab"],
            &["b", "c"],
            &["a", "b", "c"],
        ];
        for (n, one) in others.iter().enumerate() {
            for other in &others[..n] {
                assert_ne!(of(one), of(other));
            }
        }
        // Agents of several versions must agree.
        assert_eq!(of(&["a", "b"]).to_string(), "885c39bef5d6577a");
    }

    #[test]
    fn it_reads_back() {
        for number in [0, 1, u64::MAX] {
            let text = serde_json::to_string(&Generation(number)).unwrap();
            assert_eq!(serde_json::from_str::<Generation>(&text).unwrap().0, number);
        }
        for wrong in ["\"\"", "\"x\"", "\"10000000000000000\"", "7", "\"-1\""] {
            assert!(
                serde_json::from_str::<Generation>(wrong).is_err(),
                "{wrong}"
            );
        }
    }
}

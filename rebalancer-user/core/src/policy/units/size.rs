//! Sizes as Kubernetes quantities.

use std::fmt;

use super::{UnitError, digits};

/// Shows a number of bytes as a policy writes it: in the largest binary unit that says it
/// exactly. [`parse_size`] reads it back as the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |(_, bytes): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*bytes);
        match BINARY.iter().find(exact) {
            Some((suffix, bytes)) => write!(f, "{}{suffix}", self.0 / bytes),
            None => self.0.fmt(f),
        }
    }
}

/// Binary suffixes, largest first.
const BINARY: [(&str, u64); 6] = [
    ("Ei", 1 << 60),
    ("Pi", 1 << 50),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
];

/// Decimal suffixes.
const DECIMAL: [(&str, u64); 7] = [
    ("", 1),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// Reads a size as a Kubernetes quantity, in bytes: `10Gi`, `1.5G`, `4096`; a fraction of a byte
/// is rounded up. Exponents and milli-bytes, which quantities also have, are not sizes.
///
/// # Errors
/// What is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let example =
        "a size is a number with Ki, Mi, Gi, Ti, k, M, G, T or nothing (bytes), e.g. 10Gi";
    if text.starts_with('-') {
        return Err(UnitError::new(
            "a size is not negative",
            "write it without the sign",
        ));
    }
    let (whole, after) = digits(text);
    let (fraction, suffix) = after.strip_prefix('.').map_or(("", after), digits);
    if whole.is_empty() || fraction.is_empty() && after.starts_with('.') {
        return Err(UnitError::new("not a size", example));
    }
    let Some((_, unit)) = BINARY
        .iter()
        .chain(&DECIMAL)
        .find(|(known, _)| *known == suffix)
    else {
        return Err(unknown_suffix(text, suffix, example));
    };
    let too_large = || UnitError::new("too large", "the most is 16383Pi");
    if whole.len() > 20 || fraction.len() > 18 {
        return Err(UnitError::new(
            "too many digits",
            "write it in a larger unit, e.g. 10Gi",
        ));
    }
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or_default());
    let fraction: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().unwrap_or_default()
    };
    let bytes = whole * u128::from(*unit) + (fraction * u128::from(*unit)).div_ceil(scale);
    u64::try_from(bytes).map_err(|_| too_large())
}

fn unknown_suffix(text: &str, suffix: &str, example: &str) -> UnitError {
    let number = &text[..text.len() - suffix.len()];
    let lower = suffix.to_lowercase();
    let meant = match lower.trim_end_matches('b') {
        _ if suffix.starts_with(' ') => {
            return UnitError::new("a space within a size", "write it without, e.g. 10Gi");
        }
        "" if lower == "b" => "",
        "k" => "k",
        "ki" => "Ki",
        "m" if suffix != "m" => "M",
        "mi" => "Mi",
        "g" => "G",
        "gi" => "Gi",
        "t" => "T",
        "ti" => "Ti",
        _ => return UnitError::new("unknown unit", example),
    };
    UnitError::new("unknown unit", format!("did you mean `{number}{meant}`?"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_of_kubernetes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1000),
            ("10Gi", 10 << 30),
            ("1.5Gi", 3 << 29),
            ("1.5", 2),
            ("500M", 500_000_000),
            ("15Ei", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_gets_a_remedy() {
        let remedies: String = [
            "",
            "-1",
            "10GB",
            "10 Gi",
            "10gi",
            "10K",
            "10m",
            "1e9",
            "16Ei",
            "18446744073709551616",
            "1.",
            ".5Gi",
            "1..5",
            "999999999999999999999999",
            "lots",
            "10Gi/s",
            "5b",
        ]
        .map(|text| format!("{text:?}: {}\n", parse_size(text).unwrap_err()))
        .concat();
        insta::assert_snapshot!(remedies);
    }

    proptest! {
        #[test]
        fn sizes_round_trip(bytes: u64, shift in 0..64u32) {
            let bytes = bytes >> shift << (shift / 2);
            prop_assert_eq!(parse_size(&Size(bytes).to_string()), Ok(bytes));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-zA-Zµ. -]{0,30}|\\PC{0,20}") {
            let _ = parse_size(&text);
        }
    }
}

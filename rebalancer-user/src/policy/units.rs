//! Durations, sizes and amounts: how they are written and read.

use std::{fmt, num::NonZeroU32, time::Duration};

/// A whole percentage from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    /// `None` above 100.
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 {
            Some(Self(percent))
        } else {
            None
        }
    }

    /// The number before the sign.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A number of moves: fixed, or a share of the node's tracked connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Fixed(NonZeroU32),
    /// So many of a hundred connections.
    Share(Percent),
}

impl Amount {
    /// The number out of `total`: a share is rounded up; at least 1.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Fixed(number) => u64::from(number.get()),
            Self::Share(percent) => {
                let share = (u128::from(total) * u128::from(percent.0)).div_ceil(100);
                u64::try_from(share).unwrap_or(u64::MAX).max(1)
            }
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(number) => number.fmt(f),
            Self::Share(percent) => percent.fmt(f),
        }
    }
}

/// Shows a duration as a policy writes it (`1h30m`), in whole milliseconds. What
/// [`parse_duration`] has read, it reads back as the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_millis();
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in UNITS {
            let count = left / u128::from(millis);
            left %= u128::from(millis);
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

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

/// Why a text is no duration or size, and what to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError {
    /// What is wrong with it.
    pub what: &'static str,
    /// What to write instead.
    pub remedy: String,
}

impl UnitError {
    fn new(what: &'static str, remedy: impl Into<String>) -> Self {
        Self {
            what,
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for UnitError {}

/// Units of a duration in milliseconds, largest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration as GEP-2257 has it: `^([0-9]{1,5}(h|m|s|ms)){1,4}$`, the parts added up. So
/// none is longer than 399,996 h.
///
/// # Errors
/// What is wrong with it.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    if text.is_empty() {
        return Err(UnitError::new("empty", "write a duration, e.g. 30m"));
    }
    if text.starts_with('-') {
        return Err(UnitError::new(
            "a duration is not negative",
            "write it without the sign",
        ));
    }
    let mut rest = text;
    let mut millis: u64 = 0;
    for _ in 0..4 {
        let (number, after) = digits(rest);
        let (unit, after) = letters(after);
        millis += duration_part(number, unit, after)?;
        rest = after;
        if rest.is_empty() {
            return Ok(Duration::from_millis(millis));
        }
    }
    Err(UnitError::new(
        "more than four parts",
        "write it with fewer, e.g. 1h30m",
    ))
}

/// Milliseconds of one number with its unit; at most 99,999 h.
fn duration_part(number: &str, unit: &str, after: &str) -> Result<u64, UnitError> {
    let example = "a duration is whole numbers with units, e.g. 1h30m or 200ms";
    if number.is_empty() {
        return Err(UnitError::new("not a duration", example));
    }
    if number.len() > 5 {
        return Err(UnitError::new(
            "more than five digits",
            "write it in a larger unit, e.g. 48h",
        ));
    }
    let count: u64 = number
        .parse()
        .map_err(|_| UnitError::new("not a number", example))?;
    if let Some((_, millis)) = UNITS.iter().find(|(known, _)| *known == unit) {
        return Ok(count * millis);
    }
    Err(match unit.to_lowercase().as_str() {
        "" if after.starts_with(['.', ',']) => UnitError::new(
            "fractions are not allowed",
            "use a smaller unit, e.g. 1h30m or 1500ms",
        ),
        "" if after.starts_with(' ') => {
            UnitError::new("a space within a duration", "write it without, e.g. 30m")
        }
        "" => UnitError::new(
            "the last number has no unit",
            format!("write it with a unit, e.g. {number}m"),
        ),
        "d" | "day" | "days" => {
            UnitError::new("days are no unit here", format!("write {}h", count * 24))
        }
        "w" | "week" | "weeks" => {
            UnitError::new("weeks are no unit here", format!("write {}h", count * 168))
        }
        "us" | "µs" | "ns" => UnitError::new("finer than 1ms", "the smallest unit is ms"),
        "h" | "hr" | "hrs" | "hour" | "hours" => unit_named(number, "h"),
        "m" | "min" | "mins" | "minute" | "minutes" => unit_named(number, "m"),
        "s" | "sec" | "secs" | "second" | "seconds" => unit_named(number, "s"),
        "ms" | "msec" | "millis" => unit_named(number, "ms"),
        _ => UnitError::new("unknown unit", "the units are h, m, s and ms, e.g. 1h30m"),
    })
}

fn unit_named(number: &str, unit: &str) -> UnitError {
    UnitError::new("unknown unit", format!("did you mean `{number}{unit}`?"))
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

/// The digits at the head of `text`, and the rest.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

/// The letters at the head of `text`, and the rest.
fn letters(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_alphabetic())
            .unwrap_or(text.len()),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_of_the_specification() {
        for (text, millis) in [
            ("0s", 0),
            ("200ms", 200),
            ("5s", 5_000),
            ("1h30m", 5_400_000),
            ("1h1m1s1ms", 3_661_001),
            ("90m", 5_400_000),
            ("1m1h", 3_660_000),
            ("99999h99999h99999h99999h", 99_999 * 4 * 3_600_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_duration_gets_a_remedy() {
        let remedies: String = [
            "",
            "30",
            "1h30",
            "100000s",
            "1.5h",
            "-5s",
            "30 m",
            "30M",
            "5min",
            "2d",
            "1w",
            "10us",
            "m",
            "5parsec",
            "1s1s1s1s1s",
            "forever",
            "5s ",
            "٣s",
        ]
        .map(|text| format!("{text:?}: {}\n", parse_duration(text).unwrap_err()))
        .concat();
        insta::assert_snapshot!(remedies);
    }

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

    #[test]
    fn a_share_is_rounded_up_and_at_least_one() {
        let share = |percent, total| Amount::Share(Percent::new(percent).unwrap()).of(total);
        assert_eq!(share(10, 0), 1);
        assert_eq!(share(10, 10), 1);
        assert_eq!(share(10, 11), 2);
        assert_eq!(share(1, 100_001), 1001);
        assert_eq!(share(100, u64::MAX), u64::MAX);
        assert_eq!(Percent::new(101), None);
    }

    proptest! {
        #[test]
        fn durations_round_trip(millis in 0..99_999u64 * 3_600_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&Span(duration).to_string()), Ok(duration));
        }

        #[test]
        fn sizes_round_trip(bytes: u64, shift in 0..64u32) {
            let bytes = bytes >> shift << (shift / 2);
            prop_assert_eq!(parse_size(&Size(bytes).to_string()), Ok(bytes));
        }

        #[test]
        fn no_text_makes_them_panic(text in "[0-9a-zA-Zµ. -]{0,30}|\\PC{0,20}") {
            let _ = (parse_duration(&text), parse_size(&text));
        }
    }
}

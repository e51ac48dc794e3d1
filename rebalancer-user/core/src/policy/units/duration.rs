//! Durations as Gateway API's GEP-2257.

use std::{fmt, time::Duration};

use super::{UnitError, digits};

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

    proptest! {
        #[test]
        fn durations_round_trip(millis in 0..99_999u64 * 3_600_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&Span(duration).to_string()), Ok(duration));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-zA-Zµ. -]{0,30}|\\PC{0,20}") {
            let _ = parse_duration(&text);
        }
    }
}

//! From one value of the file to what it means.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::{NonZeroU16, NonZeroU32, NonZeroU64},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    CgroupGlobs, ServiceRef,
    error::{Fault, quoted},
    file::Scalar,
    syntax::nearest,
    units::{Amount, Percent, Span, parse_duration, parse_size},
};

/// A value and its text in the source, where quotes still are.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    pub(super) scalar: &'a Scalar,
    pub(super) raw: &'a str,
}

type Read<T> = Result<T, Fault>;

impl<'a> Value<'a> {
    /// A text or number as it is written, for values with their own notation.
    fn word(self, expected: &str, example: &str) -> Read<&'a str> {
        match self.scalar {
            Scalar::Text(text) => Ok(text),
            Scalar::Number => Ok(self.raw),
            _ => Err(self.wrong_type(expected, example)),
        }
    }

    /// A text that YAML takes for nothing else.
    fn text(self, expected: &str, example: &str) -> Read<&'a str> {
        match self.scalar {
            Scalar::Text(text) if text == self.raw && is_old_boolean(text) => Err(Fault::new(
                "a word that other readers of YAML take for a boolean",
                format!("not quoted, {} means true or false to them", quoted(text)),
                format!("write it in quotes: \"{text}\""),
            )),
            Scalar::Text(text) => Ok(text),
            Scalar::Number => Err(Fault::new(
                "wrong type",
                format!("{expected} is expected, this is a number"),
                format!("if it is meant, write it in quotes: \"{}\"", self.raw),
            )),
            _ => Err(self.wrong_type(expected, example)),
        }
    }

    fn wrong_type(self, expected: &str, example: &str) -> Fault {
        let found = match self.scalar {
            Scalar::Null => {
                return Fault::new(
                    "missing value",
                    format!("{expected} is expected here"),
                    format!("write one, e.g. {example}, or remove the field"),
                );
            }
            Scalar::Bool(_) => "a boolean",
            Scalar::Number => "a number",
            Scalar::Text(_) => "a text",
            Scalar::List => "a list",
            Scalar::Map => "a mapping",
        };
        let label = format!("{expected} is expected, this is {found}");
        Fault::new("wrong type", label, format!("write it as e.g. {example}"))
    }
}

fn is_old_boolean(text: &str) -> bool {
    ["y", "n", "yes", "no", "on", "off"]
        .iter()
        .any(|word| word.eq_ignore_ascii_case(text))
}

pub(super) fn boolean(value: Value<'_>) -> Read<bool> {
    match value.scalar {
        Scalar::Bool(value) => Ok(*value),
        Scalar::Text(text) => {
            let lower = text.to_lowercase();
            let remedy = match lower.as_str() {
                "yes" | "on" | "y" | "true" => "write true, without quotes",
                "no" | "off" | "n" | "false" => "write false, without quotes",
                _ => "write true or false",
            };
            Err(Fault::new(
                "not a boolean",
                format!("{} is a text", quoted(text)),
                remedy,
            ))
        }
        _ => Err(value.wrong_type("a boolean", "true")),
    }
}

/// A duration within `range`.
pub(super) fn duration(value: Value<'_>, range: RangeInclusive<Duration>) -> Read<Duration> {
    let text = value.word("a duration", "30m")?;
    let digits_only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits_only {
        let number = if text.len() <= 5 { text } else { "30" };
        return Err(Fault::new(
            "missing unit",
            "a duration needs a unit",
            format!("write it with a unit, e.g. {number}m or {number}s"),
        ));
    }
    let duration = parse_duration(text)
        .map_err(|error| Fault::new("not a duration", error.what, error.remedy))?;
    if !range.contains(&duration) {
        let (least, most) = (Span(*range.start()), Span(*range.end()));
        let label = if duration < *range.start() {
            "too short"
        } else {
            "too long"
        };
        let remedy = format!("write one from {least} to {most}");
        return Err(Fault::new("duration out of range", label, remedy));
    }
    Ok(duration)
}

/// A number of bytes, more than 0.
pub(super) fn size(value: Value<'_>) -> Read<NonZeroU64> {
    let text = value.word("a size", "10Gi")?;
    let bytes =
        parse_size(text).map_err(|error| Fault::new("not a size", error.what, error.remedy))?;
    NonZeroU64::new(bytes).ok_or_else(|| {
        Fault::new(
            "size out of range",
            "must be more than 0",
            "write a size, e.g. 10Gi",
        )
    })
}

/// A plain integer from 1 to `most`.
pub(super) fn count(value: Value<'_>, most: u32) -> Read<NonZeroU32> {
    integer(value, most, "20")
}

fn integer(value: Value<'_>, most: u32, example: &str) -> Read<NonZeroU32> {
    let text = match value.scalar {
        Scalar::Number => value.raw,
        Scalar::Text(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            let label = "a text, as it is in quotes";
            return Err(Fault::new(
                "wrong type",
                label,
                "write it without the quotes",
            ));
        }
        _ => return Err(value.wrong_type("an integer", example)),
    };
    let range = || {
        let remedy = format!("write an integer from 1 to {most}");
        Fault::new(
            "number out of range",
            format!("not from 1 to {most}"),
            remedy,
        )
    };
    if text.bytes().any(|byte| !byte.is_ascii_digit()) || text.len() > 1 && text.starts_with('0') {
        let sign = text
            .strip_prefix('-')
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
        let remedy = format!("write an integer from 1 to {most}, in decimal digits only");
        let other = || Fault::new("not an integer", "not in decimal digits only", remedy);
        return Err(if sign { range() } else { other() });
    }
    let number: u32 = text.parse().map_err(|_| range())?;
    NonZeroU32::new(number)
        .filter(|number| number.get() <= most)
        .ok_or_else(range)
}

/// A port.
pub(super) fn port(value: Value<'_>) -> Read<NonZeroU16> {
    let port = integer(value, u32::from(u16::MAX), "8080")?.get();
    // In range: `count` has seen to it.
    Ok(u16::try_from(port)
        .ok()
        .and_then(NonZeroU16::new)
        .unwrap_or(NonZeroU16::MAX))
}

/// An integer from 1 to `most`, or a percentage from 1% to 100%.
pub(super) fn amount(value: Value<'_>, most: u32) -> Read<Amount> {
    match value.scalar {
        Scalar::Number => count(value, most).map(Amount::Fixed),
        Scalar::Text(_) => percent(value, 1).map(Amount::Share),
        _ => Err(value.wrong_type("an integer or a percentage", "60 or 10%")),
    }
}

/// A whole percentage from `least` to 100%.
pub(super) fn percent(value: Value<'_>, least: u8) -> Read<Percent> {
    let text = value.word("a percentage", "10%")?;
    let Some(number) = text.strip_suffix('%') else {
        let number = if text.parse::<u8>().is_ok_and(|n| n <= 100) {
            text
        } else {
            "10"
        };
        return Err(match value.scalar {
            Scalar::Number => Fault::new(
                "missing unit",
                "a percentage needs its sign",
                format!("write it with the sign, e.g. {number}%"),
            ),
            _ => Fault::new("not a percentage", "no number with `%`", "write e.g. 10%"),
        });
    };
    if number.is_empty() || number.len() > 9 || number.bytes().any(|byte| !byte.is_ascii_digit()) {
        let remedy = format!("write a whole one from {least}% to 100%");
        return Err(Fault::new("not a percentage", "not a whole number", remedy));
    }
    number
        .parse()
        .ok()
        .filter(|number| *number >= least)
        .and_then(Percent::new)
        .ok_or_else(|| {
            let label = format!("not from {least}% to 100%");
            Fault::new(
                "percentage out of range",
                label,
                format!("write {least}% to 100%"),
            )
        })
}

/// Words of former versions, and what they are called now.
const RENAMED: [(&str, &str); 4] = [
    ("Spare", "Skip"),
    ("Unknown", "Detect"),
    ("Keeps", "Safe"),
    ("Loses", "LosesState"),
];

/// One of a field's words.
pub(super) fn word<T: Copy>(value: Value<'_>, known: &[(&str, T)], later: &[&str]) -> Read<T> {
    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    let one_of = words.join(" or ");
    let Scalar::Text(text) = value.scalar else {
        return Err(value.wrong_type("a word", words.first().unwrap_or(&"")));
    };
    if let Some((_, meaning)) = known.iter().find(|(word, _)| word == text) {
        return Ok(*meaning);
    }
    if let Some((_, new)) = RENAMED
        .iter()
        .find(|(old, new)| old == text && words.contains(new))
    {
        let message = format!("unknown word {}", quoted(text));
        let remedy = format!("it is called `{new}` now");
        return Err(Fault::new(message, "a former word", remedy));
    }
    let message = if later.contains(&text.as_str()) {
        let label = format!("{} is of a later version", quoted(text));
        let message = format!("this version does not support {} yet", quoted(text));
        return Err(Fault::new(message, label, format!("write {one_of}")));
    } else {
        format!("unknown word {}", quoted(text))
    };
    let remedy = match nearest(text, &words) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if text.eq_ignore_ascii_case("off") && words.contains(&"Disabled") => {
            "did you mean `Disabled`?".into()
        }
        None => format!("write {one_of}"),
    };
    Err(Fault::new(
        message,
        format!("not one of {}", words.join(", ")),
        remedy,
    ))
}

/// A word that must be there as it is: apiVersion, kind.
pub(super) fn exactly(value: Value<'_>, expected: &str) -> Read<()> {
    match value.scalar {
        Scalar::Text(text) if text == expected => Ok(()),
        Scalar::Text(_) => Err(Fault::new(
            "not a policy of this version",
            format!("`{expected}` is expected"),
            format!("write {expected}"),
        )),
        _ => Err(value.wrong_type("a text", expected)),
    }
}

/// A DNS label.
pub(super) fn name(value: Value<'_>) -> Read<&str> {
    let text = value.text("a name", "checkout")?;
    if is_label(text) {
        return Ok(text);
    }
    Err(Fault::new(
        "not a name",
        "must be a DNS label",
        "write 1 to 63 of a-z, 0-9 and `-`, the first and last not `-`, e.g. checkout",
    ))
}

pub(super) fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

const NOT_A_SERVICE: &str = "neither `namespace/name` nor `*/name`";
const SERVICE_REMEDY: &str = "write the namespace and the Service's name, e.g. shop/checkout";

/// A Service: `namespace/name`, or `*/name` in any namespace.
pub(super) fn service(value: Value<'_>) -> Read<ServiceRef> {
    let text = value.text("a Service", "shop/checkout")?;
    let Some((namespace, name)) = text.split_once('/') else {
        let any = format!("write namespace/{text}, or '*/{text}' for any namespace");
        let (label, remedy) = if is_label(text) {
            ("without its namespace", any.as_str())
        } else {
            (NOT_A_SERVICE, SERVICE_REMEDY)
        };
        return Err(Fault::new("not a Service", label, remedy));
    };
    if (namespace == "*" || is_label(namespace)) && is_label(name) {
        return Ok(ServiceRef {
            namespace: (namespace != "*").then(|| namespace.to_owned()),
            name: name.to_owned(),
        });
    }
    Err(Fault::new("not a Service", NOT_A_SERVICE, SERVICE_REMEDY))
}

/// A label's key: a name, with or without a prefix.
pub(super) fn label_key(value: Value<'_>) -> Read<&str> {
    let text = value.text("a label", "app.kubernetes.io/name")?;
    label_key_text(text).map(|()| text)
}

/// As [`label_key`], of a mapping's own key.
pub(super) fn label_key_text(text: &str) -> Read<()> {
    const LONGEST_PREFIX: usize = 253;
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let is_prefix =
        |prefix: &str| prefix.len() <= LONGEST_PREFIX && prefix.split('.').all(is_label);
    if !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_prefix) {
        return Ok(());
    }
    Err(Fault::new(
        "not a label",
        format!("{} is no label's key", quoted(text)),
        "write it as on the object, e.g. app or app.kubernetes.io/name",
    ))
}

/// A label's value.
pub(super) fn label_value(value: Value<'_>) -> Read<&str> {
    let text = value.text("a label's value", "checkout")?;
    if is_label_value(text) {
        return Ok(text);
    }
    let label = "no label can have this value";
    let remedy =
        "write up to 63 of a-z, A-Z, 0-9, `-`, `_` and `.`, a letter or digit at both ends";
    Err(Fault::new("not a label's value", label, remedy))
}

fn is_label_value(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.is_empty()
        || text.len() <= 63
            && text.bytes().all(inner)
            && text.starts_with(ends)
            && text.ends_with(ends)
}

/// A glob over cgroups' paths.
pub(super) fn cgroup_glob(value: Value<'_>) -> Read<&str> {
    const EXAMPLE: &str = "'*/machine.slice/*'";
    const LONGEST: usize = 512;
    let text = value.text("a glob over cgroups' paths", EXAMPLE)?;
    let fault = |label: String, remedy: String| {
        let message = "not a glob over cgroups' paths";
        Err(Fault::new(message, label, remedy))
    };
    if text.chars().count() > LONGEST {
        let label = format!("longer than {LONGEST} characters");
        return fault(label, "write a shorter one, with `*`".to_owned());
    }
    if text.contains(char::is_control) {
        let label = "a line break or another control character in it".to_owned();
        return fault(label, "write `?` for it".to_owned());
    }
    if !text.starts_with(['/', '*', '?', '[', '{']) {
        let label = "every path begins with `/`, so it matches none".to_owned();
        let remedy = if text.is_empty() {
            format!("write one, e.g. {EXAMPLE}")
        } else {
            format!("write '/{text}', or '*/{text}' for one at any depth")
        };
        return fault(label, remedy);
    }
    if text.ends_with('/') {
        let label = "no path ends with `/`".to_owned();
        let all = text.trim_end_matches('/');
        let remedy = if all.is_empty() {
            "for every cgroup write '*'".to_owned()
        } else {
            format!("write '{all}': what is below it is meant too")
        };
        return fault(label, remedy);
    }
    match CgroupGlobs::new([text]) {
        Ok(_) => Ok(text),
        Err(error) => fault(
            error.kind().to_string(),
            "`*` is any text, `?` a character, `[ab]` one of these, `{a,b}` either; for one of \
             them itself write e.g. `[[]`"
                .to_owned(),
        ),
    }
}

/// A network; an IPv4-mapped one becomes IPv4.
pub(super) fn network(value: Value<'_>) -> Read<IpNet> {
    let text = value.text("a network", "10.0.0.0/8")?;
    if let Ok(address) = text.parse::<IpAddr>() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let remedy = format!("for this address alone write {text}/{bits}");
        return Err(Fault::new("not a network", "no prefix length", remedy));
    }
    let net: IpNet = text.parse().map_err(|_| {
        let label = "not in CIDR notation";
        Fault::new("not a network", label, "write e.g. 10.0.0.0/8 or fd00::/8")
    })?;
    if net.trunc() != net {
        let remedy = format!("write {}", net.trunc());
        return Err(Fault::new(
            "not a network",
            "bits are set beyond the prefix",
            remedy,
        ));
    }
    Ok(canonical(net))
}

fn canonical(net: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    let mapped = |net: Ipv6Net| {
        let prefix = net.prefix_len().checked_sub(MAPPED)?;
        let address: Ipv6Addr = net.network();
        Ipv4Net::new(address.to_ipv4_mapped()?, prefix).ok()
    };
    match net {
        IpNet::V6(net) => mapped(net).map_or(IpNet::V6(net), IpNet::V4),
        IpNet::V4(_) => net,
    }
}

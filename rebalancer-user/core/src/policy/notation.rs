//! Single values of the policy file: how each is read, with what is wrong with it, and written.

use std::{
    marker::PhantomData,
    net::{IpAddr, Ipv6Addr},
    num::{NonZeroU32, NonZeroU64},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::json;

use super::{
    cgroups::CgroupGlobs,
    error::Fault,
    node::Node,
    service_ref::ServiceRef,
    shape::{Shape, one_line},
    suggest::{nearest, renamed},
    units::{Amount, Percent, Size, Span, parse_duration, parse_size},
};
use crate::text::quoted;

/// A kind of single value.
pub(super) trait Scalar {
    type Value;

    fn read(&self, value: Value<'_>) -> Read<Self::Value>;

    /// As a policy writes it.
    fn show(&self, value: &Self::Value) -> String;

    fn shape(&self) -> Shape;
}

/// A value and its text in the source, where quotes still are.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    node: &'a Node,
    raw: &'a str,
}

pub(super) type Read<T> = Result<T, Fault>;

impl<'a> Value<'a> {
    pub(super) fn new(node: &'a Node, raw: &'a str) -> Self {
        Self { node, raw }
    }

    /// A text or number as it is written, for values with their own notation.
    fn word(self, expected: &str, example: &str) -> Read<&'a str> {
        match self.node {
            Node::Text(text) => Ok(text),
            Node::Number => Ok(self.raw),
            _ => Err(self.wrong_type(expected, example)),
        }
    }

    /// A text that no YAML reader takes for another type.
    fn text(self, expected: &str, example: &str) -> Read<&'a str> {
        match self.node {
            Node::Text(text) if text == self.raw && is_old_boolean(text) => Err(Fault::new(
                "a word that other readers of YAML take for a boolean",
                format!("not quoted, {} means true or false to them", quoted(text)),
                format!("write it in quotes: \"{text}\""),
            )),
            Node::Text(text) => Ok(text),
            Node::Number => Err(Fault::new(
                "wrong type",
                format!("{expected} is expected, this is a number"),
                format!("if it is meant, write it in quotes: \"{}\"", self.raw),
            )),
            _ => Err(self.wrong_type(expected, example)),
        }
    }

    fn wrong_type(self, expected: &str, example: &str) -> Fault {
        let found = match self.node {
            Node::Null => {
                return Fault::new(
                    "missing value",
                    format!("{expected} is expected here"),
                    format!("write one, e.g. {example}, or remove the field"),
                );
            }
            Node::Bool(_) => "a boolean",
            Node::Number => "a number",
            Node::Text(_) => "a text",
            Node::List(_) => "a list",
            Node::Map(_) => "a mapping",
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

/// True or false.
pub(super) struct Flag;

impl Scalar for Flag {
    type Value = bool;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
        match value.node {
            Node::Bool(value) => Ok(*value),
            Node::Text(text) => {
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

    fn show(&self, value: &Self::Value) -> String {
        value.to_string()
    }

    fn shape(&self) -> Shape {
        Shape::Value("boolean".into(), json!({"type": "boolean"}))
    }
}

/// A duration within a range.
pub(super) struct Time(pub(super) RangeInclusive<Duration>);

impl Scalar for Time {
    type Value = Duration;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
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
        if !self.0.contains(&duration) {
            let (least, most) = (Span(*self.0.start()), Span(*self.0.end()));
            let label = if duration < *self.0.start() {
                "too short"
            } else {
                "too long"
            };
            let remedy = format!("write one from {least} to {most}");
            return Err(Fault::new("duration out of range", label, remedy));
        }
        Ok(duration)
    }

    fn show(&self, value: &Self::Value) -> String {
        Span(*value).to_string()
    }

    fn shape(&self) -> Shape {
        let (least, most) = (Span(*self.0.start()), Span(*self.0.end()));
        Shape::text(
            format!("duration, {least} to {most}"),
            "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
        )
    }
}

/// A number of bytes, more than 0.
pub(super) struct Bytes;

impl Scalar for Bytes {
    type Value = NonZeroU64;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
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

    fn show(&self, value: &Self::Value) -> String {
        Size(value.get()).to_string()
    }

    fn shape(&self) -> Shape {
        let schema = json!({
            "type": ["string", "number"],
            "pattern": "^[0-9]{1,20}(\\.[0-9]{1,18})?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$",
            "exclusiveMinimum": 0
        });
        Shape::Value("size".into(), schema)
    }
}

/// An integer from 1 to this.
pub(super) struct UpTo(pub(super) u32);

impl Scalar for UpTo {
    type Value = NonZeroU32;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
        integer(value, self.0, "20")
    }

    fn show(&self, value: &Self::Value) -> String {
        value.to_string()
    }

    fn shape(&self) -> Shape {
        Shape::integer(self.0)
    }
}

fn integer(value: Value<'_>, most: u32, example: &str) -> Read<NonZeroU32> {
    let text = match value.node {
        Node::Number => value.raw,
        Node::Text(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
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
pub(super) struct Port;

impl Scalar for Port {
    type Value = u16;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
        let port = integer(value, u16::MAX.into(), "8080")?.get();
        // In range: `integer` has ensured it.
        Ok(u16::try_from(port).unwrap_or(u16::MAX))
    }

    fn show(&self, value: &Self::Value) -> String {
        value.to_string()
    }

    fn shape(&self) -> Shape {
        Shape::integer(u16::MAX.into())
    }
}

/// An integer from 1 to this, or a percentage from 1% to 100%.
pub(super) struct AmountUpTo(pub(super) u32);

impl Scalar for AmountUpTo {
    type Value = Amount;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
        match value.node {
            Node::Number => integer(value, self.0, "20").map(Amount::Fixed),
            Node::Text(_) => PercentFrom(1).read(value).map(Amount::Share),
            _ => Err(value.wrong_type("an integer or a percentage", "60 or 10%")),
        }
    }

    fn show(&self, value: &Self::Value) -> String {
        value.to_string()
    }

    fn shape(&self) -> Shape {
        let schema = json!({
            "type": ["integer", "string"],
            "minimum": 1,
            "maximum": self.0,
            "pattern": "^0*(100|[1-9][0-9]?)%$"
        });
        Shape::Value(
            format!("integer, 1 to {}, or percentage, 1% to 100%", self.0),
            schema,
        )
    }
}

/// A whole percentage from this to 100%.
pub(super) struct PercentFrom(pub(super) u8);

impl Scalar for PercentFrom {
    type Value = Percent;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
        let least = self.0;
        let text = value.word("a percentage", "10%")?;
        let Some(number) = text.strip_suffix('%') else {
            let number = if text.parse::<u8>().is_ok_and(|n| n <= 100) {
                text
            } else {
                "10"
            };
            return Err(match value.node {
                Node::Number => Fault::new(
                    "missing unit",
                    "a percentage needs its sign",
                    format!("write it with the sign, e.g. {number}%"),
                ),
                _ => Fault::new("not a percentage", "no number with `%`", "write e.g. 10%"),
            });
        };
        if number.is_empty()
            || number.len() > 9
            || number.bytes().any(|byte| !byte.is_ascii_digit())
        {
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

    fn show(&self, value: &Self::Value) -> String {
        value.to_string()
    }

    fn shape(&self) -> Shape {
        let digits = if self.0 == 0 {
            "[0-9]{1,2}"
        } else {
            "[1-9][0-9]?"
        };
        let called = format!("percentage, {}% to 100%", self.0);
        Shape::text(called, &format!("^0*(100|{digits})%$"))
    }
}

/// A closed list of words, declared by [`words!`].
pub(super) trait Words: Copy + PartialEq + 'static {
    /// Each with its word and what it means.
    const WORDS: &'static [(Self, &'static str, &'static str)];
}

/// Declares the words of a field: each is written as its variant, and documented by it.
macro_rules! words {
    (
        $(#[doc = $doc:literal])+
        $(#[derive($($derive:ident),+)])?
        pub enum $Name:ident {
            $($(#[doc = $word_doc:literal])+ $(#[default$($no:tt)?])? $word:ident,)+
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq $($(, $derive)+)?)]
        pub enum $Name {
            $($(#[doc = $word_doc])+ $(#[default$($no)?])? $word,)+
        }

        impl $Name {
            /// The word in the policy file.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$word => stringify!($word),)+
                }
            }
        }

        impl $crate::policy::notation::Words for $Name {
            const WORDS: &'static [(Self, &'static str, &'static str)] =
                &[$((Self::$word, stringify!($word), concat!($($word_doc),+)),)+];
        }
    };
}
pub(super) use words;

/// One of the words of `W`.
pub(super) struct Word<W>(PhantomData<W>);

/// One of the words of `W`.
pub(super) fn word<W: Words>() -> Word<W> {
    Word(PhantomData)
}

impl<W: Words> Scalar for Word<W> {
    type Value = W;

    fn read(&self, value: Value<'_>) -> Read<W> {
        let words: Vec<&str> = W::WORDS.iter().map(|(_, word, _)| *word).collect();
        let one_of = words.join(" or ");
        let Node::Text(text) = value.node else {
            return Err(value.wrong_type("a word", words.first().unwrap_or(&"")));
        };
        if let Some((meaning, ..)) = W::WORDS.iter().find(|(_, word, _)| word == text) {
            return Ok(*meaning);
        }
        let message = format!("unknown word {}", quoted(text));
        if let Some(new) = renamed(text, &words) {
            let remedy = format!("it is called `{new}` now");
            return Err(Fault::new(message, "a former word", remedy));
        }
        let remedy = match nearest(text, &words) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if text.eq_ignore_ascii_case("off") && words.contains(&"Disabled") => {
                "did you mean `Disabled`?".into()
            }
            None => format!("write {one_of}"),
        };
        let label = format!("not one of {}", words.join(", "));
        Err(Fault::new(message, label, remedy))
    }

    fn show(&self, value: &W) -> String {
        let word = W::WORDS.iter().find(|(known, ..)| known == value);
        word.map_or_else(String::new, |(_, word, _)| (*word).to_owned())
    }

    fn shape(&self) -> Shape {
        let words = W::WORDS.iter();
        Shape::Words(words.map(|(_, word, doc)| (*word, one_line(doc))).collect())
    }
}

/// A fixed text.
pub(super) struct Exactly(pub(super) &'static str);

impl Scalar for Exactly {
    type Value = &'static str;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
        match value.node {
            Node::Text(text) if text == self.0 => Ok(self.0),
            Node::Text(_) => Err(Fault::new(
                "not a policy of this version",
                format!("`{}` is expected", self.0),
                format!("write {}", self.0),
            )),
            _ => Err(value.wrong_type("a text", self.0)),
        }
    }

    fn show(&self, value: &Self::Value) -> String {
        (*value).to_owned()
    }

    fn shape(&self) -> Shape {
        Shape::Value(format!("`{}`", self.0), json!({"const": self.0}))
    }
}

/// A DNS label.
pub(super) struct Name;

impl Scalar for Name {
    type Value = String;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
        let text = value.text("a name", "checkout")?;
        if is_label(text) {
            return Ok(text.to_owned());
        }
        Err(Fault::new(
            "not a name",
            "must be a DNS label",
            "write 1 to 63 of a-z, 0-9 and `-`, the first and last not `-`, e.g. checkout",
        ))
    }

    fn show(&self, value: &Self::Value) -> String {
        plain_or_quoted(value)
    }

    fn shape(&self) -> Shape {
        Shape::text("DNS label", "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    }
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
pub(super) struct Service;

impl Scalar for Service {
    type Value = ServiceRef;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
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

    fn show(&self, value: &Self::Value) -> String {
        match value.namespace() {
            // No word that YAML knows has a slash; a number in front of one is a text.
            Some(_) => value.to_string(),
            // A leading star is an alias of YAML's.
            None => format!("'{value}'"),
        }
    }

    fn shape(&self) -> Shape {
        let label = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";
        Shape::text("Service", &format!("^([*]|{label})/{label}$"))
    }
}

/// A label's key: a name, with or without a prefix.
pub(super) struct LabelKey;

impl Scalar for LabelKey {
    type Value = String;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
        let text = value.text("a label", "app.kubernetes.io/name")?;
        label_key_text(text).map(|()| text.to_owned())
    }

    fn show(&self, value: &Self::Value) -> String {
        plain_or_quoted(value)
    }

    fn shape(&self) -> Shape {
        let prefix = "([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?";
        let name = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?";
        Shape::text("label key", &format!("^{prefix}{name}$"))
    }
}

/// As [`LabelKey`], of a mapping's own key.
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
pub(super) struct LabelValue;

impl Scalar for LabelValue {
    type Value = String;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
        let text = value.text("a label's value", "checkout")?;
        if is_label_value(text) {
            return Ok(text.to_owned());
        }
        let label = "no label can have this value";
        let remedy =
            "write up to 63 of a-z, A-Z, 0-9, `-`, `_` and `.`, a letter or digit at both ends";
        Err(Fault::new("not a label's value", label, remedy))
    }

    fn show(&self, value: &Self::Value) -> String {
        plain_or_quoted(value)
    }

    fn shape(&self) -> Shape {
        Shape::text(
            "label value",
            "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$",
        )
    }
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

/// A glob over cgroup paths.
pub(super) struct Glob;

impl Scalar for Glob {
    type Value = String;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
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
            Ok(_) => Ok(text.to_owned()),
            Err(error) => fault(
                error.kind().to_string(),
                "`*` is any text, `?` a character, `[ab]` one of these, `{a,b}` either; for one of \
                 them itself write e.g. `[[]`"
                    .to_owned(),
            ),
        }
    }

    fn show(&self, value: &Self::Value) -> String {
        // In single quotes only a quote has a meaning.
        format!("'{}'", value.replace('\'', "''"))
    }

    fn shape(&self) -> Shape {
        let pattern = "^[/*?\\[{]";
        let schema =
            json!({"type": "string", "pattern": pattern, "minLength": 1, "maxLength": 512});
        Shape::Value("glob".into(), schema)
    }
}

/// A network; an IPv4-mapped one becomes IPv4.
pub(super) struct Network;

impl Scalar for Network {
    type Value = IpNet;

    fn read(&self, value: Value<'_>) -> Read<Self::Value> {
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

    fn show(&self, value: &Self::Value) -> String {
        match value {
            IpNet::V4(net) => net.to_string(),
            // Its colons mean something to YAML.
            IpNet::V6(net) => format!("\"{net}\""),
        }
    }

    fn shape(&self) -> Shape {
        Shape::text("CIDR block", "^[0-9a-fA-F:.]+/[0-9]{1,3}$")
    }
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

/// A name, in quotes where YAML could take it for something else.
pub(super) fn plain_or_quoted(name: &str) -> String {
    let words = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf",
    ];
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase()) && !words.contains(&name);
    if plain {
        name.to_owned()
    } else {
        format!("\"{name}\"")
    }
}

//! How the values of a snapshot travel: units in whole numbers, texts that are checked when read.
//!
//! What is read may come from anywhere: a name reaches terminals and logs.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{CgroupPath, TcpState};
use crate::text::quoted;

/// A name that an object of Kubernetes can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        name(from).map(Self)
    }
}

/// A [`Name`] as its text.
pub(super) fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    const EXPECTED: &str = "a name: up to 253 of a-z, A-Z, 0-9, `-`, `_` and `.`";
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = |text: &str| (1..=253).contains(&text.len()) && text.bytes().all(inner);
    text(from, EXPECTED, |text| {
        is_name(text).then(|| text.to_owned())
    })
}

impl Serialize for CgroupPath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for CgroupPath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "a path that begins with `/`", Self::new)
    }
}

impl Serialize for TcpState {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TcpState {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "a TCP state as `ss` names it", Self::from_shown)
    }
}

/// A cookie as `ss -e` shows it behind `sk:`.
pub(super) mod hexadecimal {
    use serde::{Deserializer, Serializer};

    use crate::snapshot::Cookie;

    pub(crate) fn serialize<S: Serializer>(cookie: &Cookie, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(cookie)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Cookie, D::Error> {
        super::text(from, "a socket's cookie in hexadecimal", |text| {
            text.parse().ok()
        })
    }
}

/// A number of nanoseconds.
pub(crate) mod nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(super::in_nanoseconds(*time))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}

/// A number of nanoseconds, if it is known.
pub(super) mod optional_nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(super::in_nanoseconds).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let nanoseconds = Option::<u64>::deserialize(from)?;
        Ok(nanoseconds.map(Duration::from_nanos))
    }
}

/// A number of microseconds.
pub(super) mod microseconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}

/// Whole nanoseconds; the largest number if there are more.
pub fn in_nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// IPv4-mapped addresses are shown as what they are, IPv4.
pub(super) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let address = SocketAddr::deserialize(from)?;
    Ok(match address.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        // It may have a scope.
        _ => address,
    })
}

/// Addresses that are shared, IPv4-mapped ones likewise.
pub(super) mod addresses {
    use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    type Addresses = Arc<BTreeSet<IpAddr>>;

    pub(crate) fn serialize<S: Serializer>(
        addresses: &Addresses,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        (**addresses).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Addresses, D::Error> {
        let addresses = Vec::<IpAddr>::deserialize(from)?;
        Ok(Arc::new(
            addresses.iter().map(IpAddr::to_canonical).collect(),
        ))
    }
}

/// Reads a text; what is no `expected` is an error that quotes it.
fn text<'de, D: Deserializer<'de>, T>(
    from: D,
    expected: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let text = String::deserialize(from)?;
    read(&text).ok_or_else(|| D::Error::custom(format_args!("{} is not {expected}", quoted(&text))))
}

/// Whether a field is left out: it has the value that a missing one is read as.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

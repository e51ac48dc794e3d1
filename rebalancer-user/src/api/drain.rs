//! What an operator wants to be empty, and what becomes of its connections.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::text::quoted;

/// What an operator wants to be empty.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum DrainTarget {
    /// Every port of a pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The endpoints of a Service on this node.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// What accepts connections at this address.
    Address(SocketAddr),
    /// Whatever accepts connections on this port.
    Port(u16),
}

/// A text that names no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is none of pod/NAMESPACE/NAME, service/NAMESPACE/NAME, ADDRESS:PORT (an IPv6 address in \
     brackets) and :PORT"
)]
pub struct NoTarget(String);

impl FromStr for DrainTarget {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let target = || {
            if let Some(port) = text.strip_prefix(':') {
                return Some(Self::Port(port.parse().ok()?));
            }
            if let Ok(address) = text.parse::<SocketAddr>() {
                return Some(Self::Address(address));
            }
            let mut parts = text.split('/');
            let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
            if parts.next().is_some() || namespace.is_empty() || name.is_empty() {
                return None;
            }
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            match kind {
                "pod" => Some(Self::Pod { namespace, name }),
                "service" => Some(Self::Service { namespace, name }),
                _ => None,
            }
        };
        target().ok_or_else(|| NoTarget(quoted(text)))
    }
}

impl TryFrom<String> for DrainTarget {
    type Error = NoTarget;

    fn try_from(text: String) -> Result<Self, NoTarget> {
        text.parse()
    }
}

impl From<DrainTarget> for String {
    fn from(target: DrainTarget) -> Self {
        target.to_string()
    }
}

impl fmt::Display for DrainTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "pod/{namespace}/{name}"),
            Self::Service { namespace, name } => write!(f, "service/{namespace}/{name}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Port(port) => write!(f, ":{port}"),
        }
    }
}

/// An endpoint that an operator wants to be empty.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainEndpoint {
    /// Its pod, as `namespace/name`; null on a plain host.
    pub pod: Option<String>,
    /// Its network namespace.
    pub netns: u32,
    /// Its port.
    pub port: u16,
    /// Connections that are to leave.
    pub leaving: u64,
    /// Those that stay, by why.
    pub staying: BTreeMap<String, u64>,
    /// The Services that send new connections there still.
    pub ready_in: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_written_as_it_is_read() {
        for text in [
            "pod/shop/web-0",
            "service/shop/web",
            "10.0.0.1:80",
            "[fd00::1]:80",
            ":8080",
        ] {
            let target: DrainTarget = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
        }
        for text in [
            "",
            "web-0",
            "shop/web-0",
            "pod/shop",
            "pod/shop/",
            "pod//web",
            "pod/a/b/c",
            "node/a/b",
            "10.0.0.1",
            "fd00::1:80",
            ":",
            ":0x1",
            ":70000",
            "deploy/a/b",
        ] {
            assert!(text.parse::<DrainTarget>().is_err(), "{text}");
        }
    }
}

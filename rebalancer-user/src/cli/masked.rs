//! Texts without addresses: each is replaced by a name, the same one wherever it occurs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// The names of the addresses so far.
#[derive(Default)]
pub(super) struct Masker(BTreeMap<IpAddr, String>);

impl Masker {
    /// The text with a name in place of each IP address. Those of no host, as `0.0.0.0` and `::1`, stay.
    pub(super) fn mask(&mut self, text: &str) -> String {
        let mut masked = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(is_part) {
            let (before, from) = rest.split_at(start);
            let end = from.find(|c| !is_part(c)).unwrap_or(from.len());
            let (word, after) = from.split_at(end);
            masked.push_str(before);
            masked.push_str(&self.word(word));
            rest = after;
        }
        masked.push_str(rest);
        masked
    }

    /// How many there were.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// One that may be an address, perhaps with a port, a zone, or a full stop or a colon behind it.
    fn word(&mut self, word: &str) -> String {
        let bare = word.trim_end_matches(['.', ':']);
        // Of `fe80::` the colons are a part.
        for (address, after) in [(word, ""), (bare, &word[bare.len()..])] {
            if let Some(masked) = self.address(address) {
                return masked + after;
            }
        }
        word.to_owned()
    }

    fn address(&mut self, text: &str) -> Option<String> {
        let (bare, zone) = text.split_once('%').unwrap_or((text, ""));
        if let Ok(ip) = bare.parse::<IpAddr>() {
            let zone = if zone.is_empty() { "" } else { "%zone" };
            return Some(self.name(ip)? + zone);
        }
        let with_port: SocketAddr = text.parse().ok()?;
        Some(format!(
            "{}:{}",
            self.name(with_port.ip())?,
            with_port.port()
        ))
    }

    fn name(&mut self, ip: IpAddr) -> Option<String> {
        let ip = ip.to_canonical();
        if ip.is_loopback() || ip.is_unspecified() {
            return None;
        }
        let number = self.0.len() + 1;
        let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
        let name = self
            .0
            .entry(ip)
            .or_insert_with(|| format!("{family}-{number}"));
        Some(name.clone())
    }
}

/// What an address, its port and its zone consist of; and what else belongs to the same word.
fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '%' | '_')
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_has_one_name_wherever_it_occurs() {
        let mut masker = Masker::default();
        for (text, expected) in [
            ("from 10.0.0.1:80 to 10.0.0.2.", "from ipv4-1:80 to ipv4-2."),
            (
                r#"{"peer":"[::ffff:10.0.0.1]:443"}"#,
                r#"{"peer":"[ipv4-1]:443"}"#,
            ),
            ("cidr: 10.0.0.0/8, 'fd00::/8'", "cidr: ipv4-3/8, 'ipv6-4/8'"),
            ("fe80::1%eth0, fd00::1: down", "ipv6-5%zone, ipv6-6: down"),
            (
                "listens on 0.0.0.0:9464 and [::1]:9464",
                "listens on 0.0.0.0:9464 and [::1]:9464",
            ),
            // Not addresses.
            (
                "core::fmt at 07:43:12, v1.2.3, policy::bee, a.b.c.d, 1.2.3.4.5",
                "core::fmt at 07:43:12, v1.2.3, policy::bee, a.b.c.d, 1.2.3.4.5",
            ),
        ] {
            assert_eq!(masker.mask(text), expected, "{text}");
        }
        assert_eq!(masker.count(), 6);
    }

    proptest! {
        #[test]
        fn no_address_is_left(v4 in any::<u32>(), v6 in any::<u128>(), port in any::<u16>(), before in "[ \"=(\\[,/-]{1,3}") {
            let (v4, v6) = (Ipv4Addr::from_bits(v4), Ipv6Addr::from_bits(v6));
            prop_assume!(!v4.is_loopback() && !v4.is_unspecified());
            prop_assume!(!v6.to_canonical().is_loopback() && !v6.to_canonical().is_unspecified());
            let text = format!("{before}{v4}{before}{v4}:{port}{before}[{v6}]:{port} {v6}{before}");
            let masked = Masker::default().mask(&text);
            prop_assert!(!masked.contains(&v4.to_string()) && !masked.contains(&v6.to_string()), "{masked}");
        }
    }
}

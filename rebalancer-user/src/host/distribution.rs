//! The Linux distribution, for people: nothing is decided by it.

use std::{fs::File, io::Read as _};

use crate::text::visible;

/// Longer values are cut.
const LONGEST: usize = 80;

/// As os-release(5) of process 1 has it, which in a container with `hostPID` is the node's; else as our
/// own has it.
pub fn distribution() -> Option<String> {
    const PLACES: [&str; 2] = ["/proc/1/root/etc/os-release", "/etc/os-release"];
    let read = |place| {
        let mut text = String::new();
        let file = File::open(place).ok()?;
        file.take(64 << 10).read_to_string(&mut text).ok()?;
        pretty_name(&text)
    };
    PLACES.into_iter().find_map(read)
}

fn pretty_name(os_release: &str) -> Option<String> {
    let mut lines = os_release.lines();
    let value = lines.find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let name: String = value
        .trim_matches(['"', '\''])
        .chars()
        .take(LONGEST)
        .collect();
    Some(visible(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_unquoted_escaped_and_cut() {
        let of = |line: &str| pretty_name(&format!("ID=debian\n{line}\n"));
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"";
        assert_eq!(of(debian).as_deref(), Some("Debian GNU/Linux 13 (trixie)"));
        assert_eq!(of("PRETTY_NAME=Alpine").as_deref(), Some("Alpine"));
        assert!(!of("PRETTY_NAME='\x1b[2J'").unwrap().contains('\x1b'));
        let long = of(&format!("PRETTY_NAME={}", "x".repeat(1_000)));
        assert_eq!(long.unwrap().len(), LONGEST);
        assert_eq!(of("NAME=Debian"), None);
    }
}

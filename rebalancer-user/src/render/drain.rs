//! What an operator drains: what leaves, and what stays and why.

use std::io::{self, Write};

use super::table::{table, write as write_table};
use crate::api::DrainEndpoint;

/// An endpoint as people name it.
pub fn drain_endpoint(endpoint: &DrainEndpoint) -> String {
    let DrainEndpoint {
        pod, netns, port, ..
    } = endpoint;
    match pod {
        Some(pod) => format!("pod {pod} port {port}"),
        None => format!("port {port} of netns {netns}"),
    }
}

/// Writes a line for each endpoint.
pub fn drain(out: &mut impl Write, endpoints: &[DrainEndpoint]) -> io::Result<()> {
    let mut lines = table(&["ENDPOINT", "LEAVE", "STAY"], 1..2);
    for endpoint in endpoints {
        let staying = endpoint.staying.iter();
        let staying: Vec<String> = staying.map(|(why, n)| format!("{n} {why}")).collect();
        let staying = match staying.is_empty() {
            true => "0".to_owned(),
            false => staying.join(", "),
        };
        lines.add_row([
            drain_endpoint(endpoint),
            endpoint.leaving.to_string(),
            staying,
        ]);
    }
    write_table(out, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_says_how_many_leave_and_why_others_stay() {
        let endpoint = DrainEndpoint {
            pod: Some("shop/web-0".to_owned()),
            netns: 1,
            port: 8080,
            leaving: 40,
            staying: [("tls".to_owned(), 2), ("silent".to_owned(), 1)].into(),
            ready_in: Vec::new(),
        };
        let plain = DrainEndpoint {
            pod: None,
            staying: Default::default(),
            ..endpoint.clone()
        };
        let mut shown = Vec::new();
        drain(&mut shown, &[endpoint, plain]).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            lines,
            [
                ["ENDPOINT", "LEAVE", "STAY"],
                ["pod shop/web-0 port 8080", "40", "1 silent, 2 tls"],
                ["port 8080 of netns 1", "40", "0"],
            ],
            "{shown}"
        );
    }
}

//! Endpoints by Service as a picture: bars of connections, rates between two passes, moves under
//! way. A picture is lines of text with colours; who shows it decides where.

use std::collections::BTreeMap;

use jiff::Timestamp;
use ratatui::{
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
};

use super::units::{age, between, counted, size};
use crate::{
    api::{BalanceItem, EndpointItem, Services},
    snapshot::Bytes,
    text::visible,
};

/// Widths of what is beside the bar and the name.
const NUMBERS: usize = 38;
const NAME: usize = 34;
const BAR: usize = 60;

/// The picture of `now`; rates are those since `before`, a pass before it. `width` is in columns,
/// `clock` is when it is looked at.
pub fn top(
    now: &Services,
    before: Option<&Services>,
    width: usize,
    clock: Timestamp,
) -> Vec<Line<'static>> {
    let rates = Rates::between(before, now);
    let mut lines = vec![head(now, clock)];
    lines.extend(now.paused.as_ref().map(|paused| {
        let why = paused.reason.as_deref().map(visible).unwrap_or_default();
        let text = match paused.until {
            Some(until) => {
                let left = age(between(clock, until));
                format!("paused for {left} more, until {until:.0}  {why}")
            }
            None => format!("paused on all nodes  {why}"),
        };
        Line::from(text.fg(Color::Yellow).bold())
    }));
    let name = NAME.min(width.saturating_sub(NUMBERS) / 2).max(8);
    let bar = BAR.min(width.saturating_sub(NUMBERS + name)).max(4);
    for service in &now.items {
        let all = service.connections();
        lines.push(Line::default());
        lines.push(Line::from(vec![
            Span::styled(visible(&service.name), Style::new().bold()),
            Span::raw(format!(
                "  {}, {}",
                counted(all as usize, "connection"),
                counted(service.endpoints.len(), "endpoint")
            )),
        ]));
        lines.extend(
            service
                .balances
                .iter()
                .map(|item| Line::from(balance(item).dim())),
        );
        let most = service.endpoints.iter().map(|e| e.connections).max();
        for endpoint in &service.endpoints {
            let share = Share {
                most: most.unwrap_or(0).max(1),
                all: all.max(1),
            };
            lines.push(row(endpoint, share, rates.of(endpoint), name, bar));
        }
    }
    if now.items.is_empty() {
        lines.push(Line::from("no endpoint seen yet"));
    }
    lines
}

fn head(now: &Services, clock: Timestamp) -> Line<'static> {
    let seen = match now.at {
        Some(at) => format!("{} ago", age(between(at, clock))),
        None => "no pass yet".to_owned(),
    };
    Line::from(vec![
        Span::styled(visible(&now.node), Style::new().bold()),
        Span::raw("  mode "),
        Span::styled(visible(&now.mode), Style::new().fg(Color::Cyan)),
        Span::raw(format!(
            "  in flight {} of {}  budget left {}  {seen}",
            now.in_flight, now.max_in_flight, now.budget_left
        )),
    ])
}

#[derive(Clone, Copy)]
struct Share {
    most: u64,
    all: u64,
}

fn row(
    endpoint: &EndpointItem,
    share: Share,
    rate: Option<u64>,
    name: usize,
    bar: usize,
) -> Line<'static> {
    let percent = endpoint.connections.saturating_mul(100) / share.all;
    let rate = rate.map_or("-".to_owned(), |rate| format!("{}/s", size(Bytes(rate))));
    let moving = match endpoint.in_flight {
        0 => String::new(),
        n => format!("{n} moving"),
    };
    let filled = bars(endpoint.connections, share.most, bar);
    Line::from(vec![
        Span::raw(format!("  {:<name$} ", fitting(&who(endpoint), name))),
        Span::raw(format!("{:>7} {percent:>3} % ", endpoint.connections)),
        Span::styled(format!("{filled:<bar$}"), Style::new().fg(Color::Green)),
        Span::raw(format!(" {rate:>11} ")),
        Span::styled(
            moving,
            Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD),
        ),
    ])
}

/// The dead zone, in words.
fn balance(item: &BalanceItem) -> String {
    let unit = match item.by.as_str() {
        "Connections" => "",
        "ByteRate" => " B/s",
        _ => " messages/s",
    };
    let rule = visible(&item.rule);
    let (Some(mean), Some(stop)) = (item.mean, item.stop) else {
        return format!("  rule {rule}: not all of its endpoints are seen from here");
    };
    let start = item.start.map_or(
        "random placement explains any distribution".to_owned(),
        |start| format!("sheds from {start}{unit} down to {stop}{unit}"),
    );
    format!(
        "  rule {rule} by {}: mean {mean}{unit}, {start}",
        visible(&item.by)
    )
}

fn who(endpoint: &EndpointItem) -> String {
    let at = match (&endpoint.pod, endpoint.cgroup) {
        (Some(pod), _) => visible(pod),
        (None, Some(cgroup)) => format!("cgroup {cgroup}"),
        (None, None) => format!("netns {}", endpoint.netns),
    };
    format!("{at}:{}", endpoint.port)
}

/// Its end identifies it better than its beginning: the pod's own part, and the port.
fn fitting(text: &str, most: usize) -> String {
    let over = text.chars().count().saturating_sub(most);
    if over == 0 {
        return text.to_owned();
    }
    let end: String = text.chars().skip(over + 1).collect();
    format!("…{end}")
}

/// `value` of `most` as a bar of so many columns at most, in eighths.
fn bars(value: u64, most: u64, columns: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let columns = u128::try_from(columns).unwrap_or(0);
    let eighths = u128::from(value.min(most)) * columns * 8 / u128::from(most.max(1));
    let (whole, rest) = (eighths / 8, eighths % 8);
    let whole = "█".repeat(usize::try_from(whole).unwrap_or(0));
    let rest = EIGHTHS[usize::try_from(rest).unwrap_or(0)];
    format!("{whole}{rest}")
}

/// Bytes a second, by endpoint.
struct Rates(BTreeMap<(u32, Option<u64>, u16), u64>);

impl Rates {
    fn between(before: Option<&Services>, now: &Services) -> Self {
        let rates = before.and_then(|before| {
            let time = between(before.at?, now.at?).as_millis();
            if time == 0 {
                return None;
            }
            let was: BTreeMap<_, _> = all(before).collect();
            let rate = |(key, bytes): ((u32, Option<u64>, u16), u64)| {
                // A recreated endpoint has fewer bytes than before.
                let more = u128::from(bytes.checked_sub(*was.get(&key)?)?);
                Some((key, u64::try_from(more * 1000 / time).unwrap_or(u64::MAX)))
            };
            Some(all(now).filter_map(rate).collect())
        });
        Self(rates.unwrap_or_default())
    }

    fn of(&self, endpoint: &EndpointItem) -> Option<u64> {
        self.0.get(&key(endpoint)).copied()
    }
}

fn all(services: &Services) -> impl Iterator<Item = ((u32, Option<u64>, u16), u64)> {
    let endpoints = services.items.iter().flat_map(|service| &service.endpoints);
    endpoints.map(|endpoint| (key(endpoint), endpoint.bytes))
}

fn key(endpoint: &EndpointItem) -> (u32, Option<u64>, u16) {
    (endpoint.netns, endpoint.cgroup, endpoint.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PausedBy, PausedStatus, ServiceItem};

    fn services(at: &str, bytes: u64) -> Services {
        let endpoint = |netns, connections| EndpointItem {
            netns,
            port: 80,
            connections,
            bytes,
            ..EndpointItem::default()
        };
        let hot = EndpointItem {
            pod: Some("shop/checkout-7d9c5b6f4-with-a-long-name".to_owned()),
            in_flight: 2,
            ..endpoint(1, 30)
        };
        Services {
            node: "node-1".to_owned(),
            at: Some(at.parse().unwrap()),
            mode: "Enforce".to_owned(),
            paused: None,
            in_flight: 2,
            max_in_flight: 20,
            budget_left: 7,
            items: vec![ServiceItem {
                name: "shop/checkout".to_owned(),
                balances: vec![BalanceItem {
                    rule: "even".to_owned(),
                    by: "Connections".to_owned(),
                    port: 80,
                    mean: Some(14),
                    start: Some(27),
                    stop: Some(15),
                }],
                endpoints: vec![hot, endpoint(2, 10), endpoint(3, 0)],
            }],
        }
    }

    fn text(lines: &[Line<'_>]) -> String {
        let lines = lines
            .iter()
            .map(|line| line.to_string().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_picture_has_bars_rates_and_moves() {
        let before = services("2026-01-02T03:04:00Z", 1024);
        let now = services("2026-01-02T03:04:05Z", 1024 + 5 * 2048);
        let clock = "2026-01-02T03:04:07Z".parse().unwrap();
        let expected = "\
node-1  mode Enforce  in flight 2 of 20  budget left 7  2.0s ago

shop/checkout  40 connections, 3 endpoints
  rule even by Connections: mean 14, sheds from 27 down to 15
  …c5b6f4-with-a-long-name:80      30  75 % ███████████████████████████      2.0K/s 2 moving
  netns 2:80                       10  25 % █████████                        2.0K/s
  netns 3:80                        0   0 %                                  2.0K/s";
        assert_eq!(text(&top(&now, Some(&before), 92, clock)), expected);
        let unknown = text(&top(&now, None, 92, clock));
        assert!(!unknown.contains("/s"), "{unknown}");
    }

    #[test]
    fn a_pause_is_shown_and_every_width_works() {
        let mut now = services("2026-01-02T03:04:05Z", 0);
        now.paused = Some(PausedStatus {
            since: "2026-01-02T03:00:00Z".parse().unwrap(),
            until: "2026-01-02T04:00:00Z".parse().ok(),
            reason: Some("an \u{1b}[31mincident".to_owned()),
            by: PausedBy::Operator,
        });
        let clock = "2026-01-02T03:59:00Z".parse().unwrap();
        for width in [0, 1, 20, 40, 80, 500] {
            let shown = text(&top(&now, Some(&now), width, clock));
            assert!(shown.contains("paused for 60s more"), "{shown}");
            assert!(!shown.contains('\u{1b}'), "{shown:?}");
        }
        now.paused.as_mut().unwrap().until = None;
        let shown = text(&top(&now, Some(&now), 80, clock));
        assert!(shown.contains("paused on all nodes"), "{shown}");
        now.items.clear();
        assert!(text(&top(&now, None, 80, clock)).contains("no endpoint"));
    }
}

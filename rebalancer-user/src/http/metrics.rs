//! The two forms in which metrics are read: OpenMetrics, and Prometheus' older text format, which
//! is made of the former.

use bytes::Bytes;
use hyper::{HeaderMap, StatusCode, header};
use prometheus_client::{encoding::text::encode, registry::Registry};

use super::{Answer, text_answer, typed};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics, in the form that the request's head asks for.
pub fn metrics_answer(registry: &Registry, head: &HeaderMap) -> Answer {
    let mut text = String::new();
    if encode(&mut text, registry).is_err() {
        let text = "the metrics could not be written\n";
        return text_answer(StatusCode::INTERNAL_SERVER_ERROR, text);
    }
    let accept = head.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    if accept.is_some_and(wants_open_metrics) {
        typed(StatusCode::OK, OPEN_METRICS, Bytes::from(text))
    } else {
        typed(StatusCode::OK, CLASSIC, Bytes::from(classic(&text)))
    }
}

/// Whether OpenMetrics 1.0 is asked for by name, and no less than the older form is.
fn wants_open_metrics(accept: &str) -> bool {
    let (mut open, mut older) = (0.0, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut version) = (1.0, None);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.trim().parse().unwrap_or(0.0),
                "version" => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        match kind.as_str() {
            "application/openmetrics-text" if version.is_none_or(|v| v == "1.0.0") => {
                open = f32::max(open, quality);
            }
            "text/plain" => older = f32::max(older, quality),
            _ => {}
        }
    }
    open > 0.0 && open >= older
}

/// The older form: it knows neither units nor an end, its counters are named as their samples are,
/// and what it has no type for is a gauge.
fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(named) = line.strip_prefix("# HELP ") {
            help = named.split_once(' ').map(|(_, help)| help);
            continue;
        }
        let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|named| named.split_once(' '))
        else {
            text.extend([line, "\n"]);
            continue;
        };
        let (suffix, kind) = match kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            "unknown" => ("", "untyped"),
            other => ("", other),
        };
        if let Some(help) = help.take() {
            text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
        }
        text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
    }
    text
}

/// Compares a list in deploy/ with what is exposed.
#[cfg(test)]
pub fn assert_metrics_listed(listed: &str, exposed: &str) {
    let listed = listed.lines().filter(|line| !line.starts_with('#'));
    let listed: Vec<&str> = listed.collect();
    let exposed = list(exposed);
    let listed = listed.join("\n");
    assert!(
        listed.trim() == exposed.trim(),
        "the list in deploy/ shall be:\n{exposed}"
    );
}

/// Name and type, labels, and text of every metric, in the form of deploy/metrics.txt.
#[cfg(test)]
fn list(exposed: &str) -> String {
    let mut list = String::new();
    for block in exposed.split("# HELP ").skip(1) {
        let mut lines = block.lines();
        let (name, help) = lines.next().unwrap().split_once(' ').unwrap();
        let (_, kind) = lines.next().unwrap().rsplit_once(' ').unwrap();
        let sample = lines.find(|line| !line.starts_with('#')).unwrap();
        let labels = sample.split_once('{').map_or("", |(_, rest)| {
            let (labels, _) = rest.rsplit_once('}').unwrap();
            labels
        });
        let labels: Vec<&str> = labels
            .split("\",")
            .filter_map(|label| Some(label.split_once('=')?.0))
            .collect();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        list.push_str(&format!("{name}{suffix} {kind} {{{}}}\n", labels.join(",")));
        list.push_str(&format!("    {help}\n"));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_is_what_its_readers_expect() {
        let open = "\
# HELP a_build The version.
# TYPE a_build info
a_build_info{version=\"1\"} 1
# HELP a_moves Moves.
# TYPE a_moves counter
a_moves_total{rule=\"r\"} 2
# HELP a_time_seconds Time.
# TYPE a_time_seconds histogram
# UNIT a_time_seconds seconds
a_time_seconds_sum 1.5
a_time_seconds_count 1
a_time_seconds_bucket{le=\"+Inf\"} 1
# EOF
";
        let expected = "\
# HELP a_build_info The version.
# TYPE a_build_info gauge
a_build_info{version=\"1\"} 1
# HELP a_moves_total Moves.
# TYPE a_moves_total counter
a_moves_total{rule=\"r\"} 2
# HELP a_time_seconds Time.
# TYPE a_time_seconds histogram
a_time_seconds_sum 1.5
a_time_seconds_count 1
a_time_seconds_bucket{le=\"+Inf\"} 1
";
        assert_eq!(classic(open), expected);
    }

    #[test]
    fn the_form_is_chosen_as_it_is_asked_for() {
        let of_prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;\
                             q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,\
                             text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for open in [of_prometheus, "application/openmetrics-text"] {
            assert!(wants_open_metrics(open), "{open}");
        }
        for older in [
            "*/*",
            "text/plain",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0",
            "text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.1",
            ";;,,q==",
        ] {
            assert!(!wants_open_metrics(older), "{older}");
        }
    }
}

//! Facts of a Service as a phrase.

use super::units::age;
use crate::snapshot::Service;

/// What is known of a Service, as a phrase.
pub(super) fn described(service: &Service) -> String {
    let plural = |n: u32| if n == 1 { "endpoint" } else { "endpoints" };
    let mut parts = vec![format!(
        "{} ready {}, {} on this node",
        service.ready,
        plural(service.ready),
        service.ready_here
    )];
    parts.extend(service.ready_in_zone.map(|n| format!("{n} near it")));
    for (holds, words) in [
        (service.headless, "headless"),
        (service.client_ip_affinity, "sessionAffinity ClientIP"),
        (service.internal_local, "internalTrafficPolicy Local"),
        (service.external_local, "externalTrafficPolicy Local"),
    ] {
        parts.extend(holds.then(|| words.to_owned()));
    }
    let changed = service
        .changed
        .map(|since| format!("changed {} ago", age(since)));
    parts.extend(changed);
    if !service.http2.is_empty() {
        let ports: Vec<String> = service.http2.iter().map(u16::to_string).collect();
        parts.push(format!("HTTP/2 on {}", ports.join(" and ")));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;

    #[test]
    fn a_service_reads_as_a_phrase() {
        let plain = Service {
            ready: 1,
            ready_here: 1,
            ..Service::default()
        };
        assert_eq!(described(&plain), "1 ready endpoint, 1 on this node");
        let all = Service {
            ready: 9,
            ready_in_zone: Some(3),
            client_ip_affinity: true,
            headless: true,
            internal_local: true,
            external_local: true,
            changed: Some(Duration::from_secs(90)),
            http2: BTreeSet::from([80, 8080]),
            ..plain
        };
        assert_eq!(
            described(&all),
            "9 ready endpoints, 1 on this node, 3 near it, headless, sessionAffinity ClientIP, \
             internalTrafficPolicy Local, externalTrafficPolicy Local, changed 90s ago, HTTP/2 on \
             80 and 8080"
        );
    }
}

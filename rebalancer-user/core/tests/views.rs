//! What the coordinator makes of the reports of many nodes: nothing of what is missing, late or forged
//! makes a node move more than it may.

use std::time::Duration;

use proptest::{collection::vec, prelude::*, sample::select};
use rebalancer_core::views::{
    Generation, Key, MOST_LOADS, MOST_SERVICES, Merger, REPORT_COUNTS_FOR, REPORT_REMOVED_AFTER,
    Report, ServiceReport, Share, Sums, View,
};

fn key(service: &str) -> Key {
    Key {
        service: format!("shop/{service}"),
        port: 8080,
        zone: None,
        rule: "even".to_owned(),
        by: "Connections".to_owned(),
    }
}

/// Of connections, each of which counts for one.
fn of(service: &str, ready: u32, loads: &[u64]) -> ServiceReport {
    let total = loads.iter().sum();
    ServiceReport {
        key: key(service),
        generation: Generation(u64::from(ready)),
        ready,
        loads: loads.to_vec(),
        sums: Sums {
            total,
            squares: total.into(),
            largest: u64::from(total > 0),
        },
        connections: total,
        moving: 0,
    }
}

fn second(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The coordinator, the time, and the number of the next report.
#[derive(Default)]
struct Run {
    merger: Merger,
    now: Duration,
    sequence: u64,
}

impl Run {
    /// Nodes that report these at once, each for the second time, so that their age is known.
    fn of(nodes: &[(&str, &[ServiceReport])]) -> Self {
        let mut run = Self::default();
        for _ in 0..2 {
            for (node, services) in nodes {
                run.report(node, services);
            }
        }
        run
    }

    /// The same of nodes that each report these endpoints of one Service, of which so many are ready.
    fn of_web(ready: u32, nodes: &[(&str, &[u64])]) -> Self {
        let mut run = Self::default();
        for (node, loads) in nodes.iter().chain(nodes) {
            run.web(node, ready, loads);
        }
        run
    }

    fn web(&mut self, node: &str, ready: u32, loads: &[u64]) {
        self.report(node, &[of("web", ready, loads)]);
    }

    fn report(&mut self, node: &str, services: &[ServiceReport]) {
        self.sequence += 1;
        let report = Report::of(self.sequence, services.to_vec());
        self.merger.report(node, report, false, self.now);
    }

    fn view(&self, node: &str) -> Option<View> {
        let mut views = self.merger.views(self.now).remove(node)?;
        assert!(views.len() <= 1);
        views.pop()
    }
}

#[test]
fn three_nodes_learn_what_all_hold_and_the_hot_one_has_the_budget() {
    let run = Run::of_web(3, &[("a", &[300]), ("b", &[0]), ("c", &[0])]);
    let [a, b, c] = ["a", "b", "c"].map(|node| run.view(node).unwrap());
    assert_eq!((a.endpoints, a.sums.total, a.mean), (3, 300, 100));
    assert_eq!((a.least, a.most, a.connections), (0, 300, 300));
    assert_eq!((a.excess, a.share), (200, Share::ALL));
    for other in [b, c] {
        assert_eq!((other.mean, other.excess, other.share.of(30)), (100, 0, 0));
    }
}

#[test]
fn the_object_of_a_node_that_has_not_reported_for_an_hour_is_removed() {
    let mut run = Run::of(&[("alive", &[]), ("gone", &[])]);
    // An object that was there when the coordinator began, and has not changed since.
    run.report("of last year", &[]);
    let gone = |run: &Run| -> Vec<String> { run.merger.gone(run.now).map(str::to_owned).collect() };
    run.now = REPORT_REMOVED_AFTER - second(1);
    run.report("alive", &[]);
    assert!(gone(&run).is_empty());
    run.now += second(1);
    assert_eq!(gone(&run), ["gone", "of last year"]);
    run.merger.remove("gone");
    run.report("of last year", &[]);
    assert!(gone(&run).is_empty());
}

#[test]
fn shares_are_by_excess_of_each_endpoint() {
    // The second node as a whole holds no more than its part, but one of its endpoints does.
    let run = Run::of_web(4, &[("a", &[160]), ("b", &[140, 60]), ("c", &[40])]);
    let [a, b, c] = ["a", "b", "c"].map(|node| run.view(node).unwrap());
    assert_eq!([a.excess, b.excess, c.excess], [60, 40, 0]);
    assert_eq!([a, b, c].map(|view| view.share.of(10)), [6, 4, 0]);
}

#[test]
fn what_fills_those_that_lack_is_counted_apart_from_what_the_others_give_to_each_other() {
    let mut run = Run::of_web(4, &[("a", &[200]), ("b", &[180, 0]), ("c", &[20])]);
    let of_a = |run: &mut Run| {
        let view = run.view("a").unwrap();
        (view.mean, view.elsewhere, view.filled, view.full)
    };
    assert_eq!(of_a(&mut run), (100, 200, 120, 1));
    // Forty have left `a` and twenty its neighbour; of these ten each have come to those two.
    run.web("a", 4, &[170]);
    run.web("b", 4, &[170, 20]);
    run.web("c", 4, &[40]);
    assert_eq!(of_a(&mut run), (100, 230, 160, 1));
    let others = ["b", "c"].map(|node| run.view(node).unwrap());
    assert_eq!(others.map(|v| (v.filled, v.full)), [(140, 1), (220, 2)]);
}

#[test]
fn services_zones_rules_and_units_are_apart() {
    let others: [fn(&mut Key); 5] = [
        |key| key.service.push('2'),
        |key| key.port = 8081,
        |key| key.zone = Some("z".to_owned()),
        |key| key.rule.push('2'),
        |key| key.by = "ByteRate".to_owned(),
    ];
    for change in others {
        let mut other = of("web", 2, &[7]);
        change(&mut other.key);
        let run = Run::of(&[("a", &[of("web", 2, &[9])]), ("b", &[other])]);
        assert_eq!(run.view("a"), None, "one of two was reported");
        assert_eq!(run.view("b"), None);
    }
}

#[test]
fn without_every_endpoint_there_is_no_view() {
    let mut run = Run::of_web(3, &[("a", &[300]), ("b", &[0])]);
    assert_eq!(run.view("a"), None, "the third is missing");
    // One that has more than there are is not believed either.
    run.web("b", 3, &[0, 0, 0]);
    assert_eq!(run.view("a"), None);
    run.web("b", 3, &[0, 0]);
    assert_eq!(run.view("a").unwrap().mean, 100);
}

#[test]
fn nodes_that_know_other_endpoints_are_apart() {
    let mut run = Run::of_web(2, &[("a", &[200]), ("b", &[0])]);
    assert!(run.view("a").is_some());
    // A third endpoint has come, and not all know it yet.
    run.web("b", 3, &[0, 0]);
    assert_eq!((run.view("a"), run.view("b")), (None, None));
    run.web("a", 3, &[200]);
    assert_eq!(run.view("a").unwrap().endpoints, 3);
}

#[test]
fn an_age_is_known_from_the_first_change_on_and_old_reports_do_not_count() {
    let mut run = Run::default();
    let web = [of("web", 1, &[5])];
    run.report("a", &web);
    assert_eq!(run.view("a"), None, "it may be of last year");
    let same = Report::of(run.sequence, web.to_vec());
    run.now = second(20);
    run.merger.report("a", same.clone(), false, run.now);
    assert_eq!(run.view("a"), None, "a list that repeats it says nothing");
    run.report("a", &web);
    assert!(run.view("a").is_some());
    let last = Report::of(run.sequence, web.to_vec());
    run.now += REPORT_COUNTS_FOR - second(1);
    run.merger.report("a", last.clone(), false, run.now);
    assert!(run.view("a").is_some());
    run.now += second(1);
    run.merger.report("a", last, false, run.now);
    assert_eq!(run.view("a"), None);
    let ages: Vec<_> = run.merger.ages(run.now).collect();
    assert_eq!(ages, [("a", Some(REPORT_COUNTS_FOR))]);
    run.report("a", &web);
    assert!(run.view("a").is_some(), "it is back");
    run.merger.remove("a");
    assert_eq!(run.view("a"), None);
}

#[test]
fn each_node_learns_what_the_others_hold() {
    let run = Run::of(&[
        ("a", &[of("web", 3, &[150])]),
        ("b", &[of("web", 3, &[90, 60])]),
    ]);
    let total = |node| run.view(node).unwrap().others.unwrap().total;
    assert_eq!((total("a"), total("b")), (150, 150));
    let mut largest = of("web", 2, &[7]);
    largest.sums = Sums {
        total: 7,
        squares: 37,
        largest: 6,
    };
    let run = Run::of(&[("a", &[largest]), ("b", &[of("web", 2, &[90])])]);
    let others = |node| run.view(node).unwrap().others.unwrap();
    let of_b = Sums {
        total: 90,
        squares: 90,
        largest: 1,
    };
    assert_eq!(others("a"), of_b);
    assert_eq!(others("b").largest, 6);
}

#[test]
fn what_does_not_fit_is_left_out_and_counted() {
    let many: Vec<ServiceReport> = (0..MOST_SERVICES + 3)
        .map(|n| of(&format!("web-{n:03}"), 2, &[1]))
        .collect();
    let report = Report::of(1, many.clone());
    assert_eq!((report.services.len(), report.left_out), (MOST_SERVICES, 3));
    assert!(!report.is_outdated_by(&many));
    let large = of("web", 1000, &vec![1; MOST_LOADS + 1]);
    let report = Report::of(1, vec![large, of("cart", 2, &[1])]);
    assert_eq!((report.services.len(), report.left_out), (1, 1));
}

#[test]
fn a_report_is_outdated_by_a_significant_change() {
    let report = Report::of(1, vec![of("web", 2, &[100])]);
    for (now, outdated) in [
        (of("web", 2, &[100]), false),
        (of("web", 2, &[104]), false),
        (of("web", 2, &[106]), true),
        (of("web", 2, &[94]), true),
        (of("web", 3, &[100]), true),
        (of("web", 2, &[100, 0]), true),
        (of("cart", 2, &[100]), true),
    ] {
        let found = report.is_outdated_by(std::slice::from_ref(&now));
        assert_eq!(found, outdated, "{now:?}");
    }
    assert!(report.is_outdated_by(&[]));
    let few = Report::of(1, vec![of("web", 2, &[3])]);
    assert!(!few.is_outdated_by(&[of("web", 2, &[4])]));
}

const NODES: [&str; 4] = ["a", "b", "c", "d"];

/// Anything that a node may write, of Services that others report too or that nobody has.
fn forged() -> impl Strategy<Value = ServiceReport> {
    let number = || prop_oneof![0..400_u64, any::<u64>()];
    let loads = vec(number(), 0..6);
    let sums = (number(), any::<u128>(), number()).prop_map(|(total, squares, largest)| Sums {
        total,
        squares,
        largest,
    });
    let key = select(vec!["web", "none"]);
    let ready = select(vec![1_u32, 4, 5, 6]);
    (key, loads, sums, number(), ready).prop_map(|(service, loads, sums, connections, ready)| {
        ServiceReport {
            loads,
            sums,
            connections,
            ..of(service, ready, &[])
        }
    })
}

proptest! {
    /// Lost, repeated and in whatever order among nodes: it is the last report of each that counts.
    #[test]
    fn the_last_report_of_each_node_counts(
        loads in vec(0..400_u64, NODES.len()), deliveries in vec((0..NODES.len(), any::<bool>(), 0..400_u64), 0..40),
    ) {
        let mut once = Run::of(&[]);
        let mut many = Run::of(&[]);
        for (node, is_repeated, load) in deliveries {
            many.web(NODES[node], 4, &[load]);
            if is_repeated {
                let again = Report::of(many.sequence, vec![of("web", 4, &[load])]);
                many.merger.report(NODES[node], again, false, many.now);
            }
        }
        for run in [&mut once, &mut many] {
            for (node, load) in NODES.iter().zip(&loads).chain(NODES.iter().zip(&loads)) {
                run.web(node, 4, &[*load]);
            }
        }
        prop_assert_eq!(once.merger.views(once.now), many.merger.views(many.now));
    }

    /// Whatever one node writes: all shares together are no more than the budget, a view is of as many
    /// endpoints as its readers know, nobody has a share for what is not above the mean, and the mean is
    /// no lower than what the others hold makes it.
    #[test]
    fn a_forged_report_makes_nobody_move_more_than_the_budget(
        loads in vec(0..400_u64, 3), claims in vec(forged(), 0..4), budget in prop_oneof![0..50_u64, any::<u64>()],
    ) {
        let mut run = Run::default();
        for _ in 0..2 {
            for (node, load) in NODES.iter().zip(&loads) {
                run.web(node, 4, &[*load]);
            }
            run.report("d", &claims);
        }
        let views = run.merger.views(run.now);
        let of_web = |node: &str| views.get(node)?.iter().find(|view| view.key == key("web") && view.endpoints == 4);
        let shares = NODES.iter().filter_map(|node| of_web(node));
        let moves: u128 = shares.map(|view| u128::from(view.share.of(budget))).sum();
        prop_assert!(moves <= u128::from(budget));
        let honest: u64 = loads.iter().sum();
        for (node, load) in NODES.iter().zip(&loads) {
            let Some(view) = of_web(node) else { continue };
            prop_assert_eq!(view.excess, load.saturating_sub(view.mean));
            prop_assert!(view.excess > 0 || view.share.of(budget) == 0);
            prop_assert!(view.mean >= honest / 4, "{} of {}", view.mean, honest);
            let Sums { total, squares, largest } = view.sums;
            prop_assert!(largest <= total && squares >= u128::from(total).min(squares));
            prop_assert!(total == 0 || largest > 0);
        }
    }
}

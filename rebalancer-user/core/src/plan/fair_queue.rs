//! Whose turn it is: no rule, and within a rule no namespace, waits behind another's queue.
//!
//! The next turn is of the rule that had the fewest within the window, and there of the namespace
//! that had the fewest; among equals, of whoever has the candidate that stands first by itself.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

/// What a candidate is queued by: its rule and its namespace.
pub(super) type Queue<'a> = (&'a str, Option<&'a str>);

/// The order of turns of candidates that stand in the order in which each queue has them. `had`: how
/// many turns a queue had before.
pub(super) fn turns<'a>(
    queues: impl Iterator<Item = Queue<'a>>,
    had: &BTreeMap<Queue<'_>, u64>,
) -> Vec<usize> {
    let mut rules: BTreeMap<&str, Rule<'a>> = BTreeMap::new();
    for (index, (rule, namespace)) in queues.enumerate() {
        let all = &mut rules.entry(rule).or_default().namespaces;
        all.entry(namespace).or_default().push_back(index);
    }
    let mut order = Vec::new();
    let mut heap = BinaryHeap::new();
    for (name, rule) in &mut rules {
        let of_rule = had.iter().filter(|((rule, _), _)| rule == name);
        let turns: u64 = of_rule.map(|(_, turns)| turns).sum();
        for (namespace, queue) in &rule.namespaces {
            let turns = had.get(&(*name, *namespace)).copied().unwrap_or(0);
            if let Some(first) = queue.front() {
                rule.heap.push(Reverse((turns, *first, *namespace)));
            }
        }
        if let Some(Reverse((_, first, _))) = rule.heap.peek() {
            heap.push(Reverse((turns, *first, *name)));
        }
    }
    while let Some(Reverse((turns, _, name))) = heap.pop() {
        let Some(rule) = rules.get_mut(name) else {
            continue;
        };
        order.extend(rule.next());
        if let Some(Reverse((_, first, _))) = rule.heap.peek() {
            heap.push(Reverse((turns + 1, *first, name)));
        }
    }
    order
}

#[derive(Default)]
struct Rule<'a> {
    namespaces: BTreeMap<Option<&'a str>, VecDeque<usize>>,
    heap: BinaryHeap<Reverse<(u64, usize, Option<&'a str>)>>,
}

impl Rule<'_> {
    fn next(&mut self) -> Option<usize> {
        let Reverse((turns, _, namespace)) = self.heap.pop()?;
        let queue = self.namespaces.get_mut(&namespace)?;
        let index = queue.pop_front();
        if let Some(next) = queue.front() {
            self.heap.push(Reverse((turns + 1, *next, namespace)));
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(queues: &[Queue<'static>], had: &[(Queue<'static>, u64)]) -> Vec<usize> {
        turns(queues.iter().copied(), &had.iter().copied().collect())
    }

    #[test]
    fn one_queue_keeps_its_order() {
        assert_eq!(order(&[("a", None); 4], &[(("a", None), 7)]), [0, 1, 2, 3]);
    }

    #[test]
    fn rules_take_turns_and_namespaces_within_them() {
        let (a1, a2, b) = (("a", Some("1")), ("a", Some("2")), ("b", None));
        assert_eq!(order(&[a1, a1, a1, a2, b], &[]), [0, 4, 3, 1, 2]);
        // Who had none is first, until it has had as many.
        assert_eq!(order(&[a1, a1, b, b, b], &[(a1, 2)]), [2, 3, 0, 4, 1]);
        assert_eq!(order(&[a1, a1, a2, a2], &[(a1, 1)]), [2, 0, 3, 1]);
    }
}

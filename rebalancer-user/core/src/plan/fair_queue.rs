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

/// Queues by index, each once.
#[derive(Default)]
pub(super) struct Queues<'a> {
    names: Vec<Queue<'a>>,
    indexes: BTreeMap<Queue<'a>, usize>,
}

impl<'a> Queues<'a> {
    /// The index of a queue, which is added if there is none.
    pub(super) fn add(&mut self, queue: Queue<'a>) -> usize {
        *self.indexes.entry(queue).or_insert_with(|| {
            self.names.push(queue);
            self.names.len() - 1
        })
    }

    /// Its index, if there is one.
    pub(super) fn index(&self, queue: &Queue<'_>) -> Option<usize> {
        self.indexes.get(queue).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The order of turns of candidates that stand in the order in which each queue has them.
    /// `queues`: the queue of each. `had`: how many turns a queue had before.
    pub(super) fn turns(
        &self,
        queues: impl Iterator<Item = usize>,
        had: &BTreeMap<Queue<'_>, u64>,
    ) -> Vec<usize> {
        let queues: Vec<usize> = queues.collect();
        // A single queue keeps its own order.
        if queues.iter().all(|queue| *queue == queues[0]) {
            return (0..queues.len()).collect();
        }
        let mut waiting: Vec<VecDeque<usize>> = vec![VecDeque::new(); self.len()];
        for (candidate, queue) in queues.into_iter().enumerate() {
            waiting[queue].push_back(candidate);
        }
        // Of each rule its queues, by the turns that they had and their first candidate.
        let mut rules: BTreeMap<&str, Turns> = BTreeMap::new();
        for ((queue, waiting), name) in waiting.iter().enumerate().zip(&self.names) {
            if let Some(first) = waiting.front() {
                let turns = had.get(name).copied().unwrap_or(0);
                let of_rule = rules.entry(name.0).or_default();
                of_rule.push(Reverse((turns, *first, queue)));
            }
        }
        let mut heap = Turns::new();
        let mut rules: Vec<_> = rules.into_iter().collect();
        for (index, (name, queues)) in rules.iter().enumerate() {
            let of_rule = had.iter().filter(|((rule, _), _)| rule == name);
            let turns = of_rule.map(|(_, turns)| turns).sum();
            heap.extend(first(queues).map(|first| Reverse((turns, first, index))));
        }
        let mut order = Vec::new();
        while let Some(Reverse((turns, _, index))) = heap.pop() {
            let queues = &mut rules[index].1;
            if let Some(Reverse((turns, candidate, queue))) = queues.pop() {
                order.push(candidate);
                waiting[queue].pop_front();
                let next = waiting[queue].front();
                queues.extend(next.map(|next| Reverse((turns + 1, *next, queue))));
            }
            heap.extend(first(queues).map(|first| Reverse((turns + 1, first, index))));
        }
        order
    }
}

/// The order of queues: turns already taken, the first candidate, and the index of its queue or rule.
type Turns = BinaryHeap<Reverse<(u64, usize, usize)>>;

fn first(turns: &Turns) -> Option<usize> {
    turns.peek().map(|Reverse((_, first, _))| *first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(queues: &[Queue<'static>], had: &[(Queue<'static>, u64)]) -> Vec<usize> {
        let mut all = Queues::default();
        let queues: Vec<usize> = queues.iter().map(|queue| all.add(*queue)).collect();
        all.turns(queues.into_iter(), &had.iter().copied().collect())
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

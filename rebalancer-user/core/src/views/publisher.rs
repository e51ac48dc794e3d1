//! Which node is to be given its views now.

use std::{collections::BTreeMap, time::Duration};

use super::{Generation, Key, REPORT_EVERY, VIEW_AGAIN_AFTER, View};

/// The views that each node was given last. Times are on the coordinator's clock, since any moment.
#[derive(Debug, Default)]
pub struct Publisher(BTreeMap<String, Given>);

/// Which endpoints a view compares.
fn set(view: &View) -> (&Key, Generation, u32) {
    (&view.key, view.generation, view.endpoints)
}

#[derive(Debug)]
struct Given {
    /// None if it is not known whether they have arrived.
    views: Option<Vec<View>>,
    at: Duration,
}

impl Publisher {
    /// Of these views those that are to be given now, and takes them for given. A node is given views of other
    /// sets of endpoints at once, as those before are of no use to it; of Services of which somebody moves connections,
    /// if they have changed, as often as it reports; all others before they expire.
    pub fn take_due(
        &mut self,
        views: BTreeMap<String, Vec<View>>,
        now: Duration,
    ) -> Vec<(String, Vec<View>)> {
        self.0.retain(|node, _| views.contains_key(node));
        let mut due = views;
        due.retain(|node, views| {
            let Some(given) = self.0.get(node) else {
                return !views.is_empty();
            };
            let age = now.saturating_sub(given.at);
            let has_changed = given.views.as_ref() != Some(views);
            let is_of_others = |given: &Vec<View>| !given.iter().map(set).eq(views.iter().map(set));
            let is_moving = views.iter().any(|view| view.moving > 0);
            given.views.as_ref().is_some_and(is_of_others)
                || (given.views.is_none() || views.is_empty() || is_moving)
                    && has_changed
                    && age >= REPORT_EVERY
                || !views.is_empty() && age >= VIEW_AGAIN_AFTER
        });
        for (node, views) in &due {
            let given = Given {
                views: Some(views.clone()),
                at: now,
            };
            self.0.insert(node.clone(), given);
        }
        due.into_iter().collect()
    }

    /// They could not be given to this node.
    pub fn failed(&mut self, node: &str) {
        if let Some(given) = self.0.get_mut(node) {
            given.views = None;
        }
    }

    /// Forgets all: another may have given others meanwhile.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn what_has_changed_is_given_soon_and_the_rest_before_it_expires() {
        let mut publisher = Publisher::default();
        let mut due = |mean: Option<u64>, at| {
            let view = mean.map(|mean| View {
                mean,
                moving: 1,
                ..View::default()
            });
            let views = BTreeMap::from([("n1".to_owned(), view.into_iter().collect())]);
            let due = publisher.take_due(views, second(at));
            if at == 50 {
                publisher.failed("n1");
            }
            due.len()
        };
        assert_eq!(due(None, 0), 0, "most nodes have none");
        assert_eq!(due(Some(3), 1), 1);
        assert_eq!(due(Some(4), 2), 0);
        assert_eq!(due(Some(4), 11), 1);
        assert_eq!(due(Some(4), 21), 0);
        assert_eq!(due(Some(4), 31), 1, "before it expires");
        assert_eq!(due(None, 41), 1, "it has none any more");
        assert_eq!(due(None, 49), 0);
        assert_eq!(due(Some(5), 50), 1, "it has one again");
        assert_eq!(due(Some(5), 51), 0);
        assert_eq!(due(Some(5), 60), 1, "it may not have arrived");
        assert_eq!(due(Some(5), 61), 0);
        publisher.failed("n1");
        let again = BTreeMap::from([("n1".to_owned(), vec![View::default()])]);
        assert_eq!(publisher.take_due(again.clone(), second(62)).len(), 0);
        assert_eq!(publisher.take_due(again.clone(), second(70)).len(), 1);
        let others = BTreeMap::from([(
            "n1".to_owned(),
            vec![View {
                endpoints: 3,
                ..View::default()
            }],
        )]);
        assert_eq!(
            publisher.take_due(others, second(71)).len(),
            1,
            "another set"
        );
        publisher.forget();
        assert_eq!(publisher.take_due(again, second(72)).len(), 1);
    }

    #[test]
    fn at_rest_changes_are_given_as_seldom_as_what_has_not_changed() {
        let mut publisher = Publisher::default();
        let given = (0..=60).filter(|at| {
            let view = View {
                connections: *at,
                ..View::default()
            };
            let views = BTreeMap::from([("n1".to_owned(), vec![view])]);
            !publisher.take_due(views, second(*at)).is_empty()
        });
        assert_eq!(given.collect::<Vec<_>>(), [0, 20, 40, 60]);
    }
}

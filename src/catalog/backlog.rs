//! What the registry changed and no round has looked at yet.

use std::{collections::VecDeque, sync::Arc};

use hashbrown::HashMap;

use crate::registry::store::Taken;

/// Services that were taken from the store, in the order in which they came.
#[derive(Debug, Default)]
pub struct Backlog {
    /// A service that came again meanwhile may be named twice.
    order: VecDeque<Arc<str>>,
    services: HashMap<Arc<str>, Taken>,
}

impl Backlog {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Whether a service is among what is left, so that what was wanted of it when it was looked at is old.
    pub fn has(&self, id: &str) -> bool {
        self.services.contains_key(id)
    }

    /// The dataInfoIds of what is left, in no order.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services.keys()
    }

    /// The services for a round that takes about `part`: first who came now, since a single change is not to wait behind a
    /// mass, then who came before. A quarter of the round is for the latter in any case, so nobody waits for ever.
    pub fn portion(&mut self, mut came: Vec<Taken>, part: usize) -> Vec<Taken> {
        self.forget(&came);
        let room = part.saturating_sub(came.len()).max(part.div_ceil(4));
        let rest = came.split_off(part.min(came.len()));
        let waited: Vec<Taken> = std::iter::from_fn(|| self.next()).take(room).collect();
        for taken in rest {
            self.order.push_back(Arc::clone(&taken.data_info_id));
            self.services.insert(Arc::clone(&taken.data_info_id), taken);
        }
        came.extend(waited);
        came
    }

    /// Everything: who came now, and what was left.
    pub fn whole(&mut self, mut came: Vec<Taken>) -> Vec<Taken> {
        self.forget(&came);
        self.order.clear();
        came.extend(self.services.drain().map(|(_, taken)| taken));
        came
    }

    /// Leaves out services that came again: what was taken of them before is old.
    fn forget(&mut self, came: &[Taken]) {
        if !self.is_empty() {
            came.iter().for_each(|taken| _ = self.services.remove(&taken.data_info_id));
        }
    }

    /// The service that has waited longest.
    fn next(&mut self) -> Option<Taken> {
        std::iter::from_fn(|| self.order.pop_front()).find_map(|id| self.services.remove(&id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(ids: &[&str]) -> Vec<Taken> {
        let service = |id: &&str| Taken { data_info_id: (*id).into(), entries: Vec::new(), unknown: false };
        ids.iter().map(service).collect()
    }

    fn ids(taken: &[Taken]) -> Vec<&str> {
        taken.iter().map(|taken| &*taken.data_info_id).collect()
    }

    #[test]
    fn a_mass_goes_in_portions_and_holds_up_nobody_who_comes_after_it() {
        let mut backlog = Backlog::default();
        assert_eq!(
            ids(&backlog.portion(services(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]), 4)),
            ["a", "b", "c", "d"]
        );
        assert_eq!(ids(&backlog.portion(services(&["new"]), 4)), ["new", "e", "f", "g"]);
        assert_eq!(ids(&backlog.portion(services(&[]), 4)), ["h", "i"]);
        assert!(backlog.is_empty());
    }

    #[test]
    fn who_waits_gets_on_however_many_come() {
        let mut backlog = Backlog::default();
        backlog.portion(services(&["a", "b", "c"]), 2);
        assert_eq!(ids(&backlog.portion(services(&["d", "e", "f"]), 2)), ["d", "e", "c"]);
        assert_eq!(ids(&backlog.portion(services(&["g", "h"]), 2)), ["g", "h", "f"]);
        assert!(backlog.is_empty());
    }

    #[test]
    fn who_comes_again_is_looked_at_once_as_it_came_last() {
        let mut backlog = Backlog::default();
        backlog.portion(services(&["a", "b", "c"]), 1);
        let mut again = services(&["c"]);
        again[0].unknown = true;
        let taken = backlog.portion(again, 8);
        assert_eq!((ids(&taken), taken[0].unknown), (vec!["c", "b"], true));
        backlog.portion(services(&["a", "b", "a"]), 1);
        let whole = backlog.whole(services(&["b", "c"]));
        assert_eq!((ids(&whole), backlog.is_empty()), (vec!["b", "c", "a"], true));
        assert_eq!(ids(&backlog.portion(Vec::new(), 4)), [] as [&str; 0]);
    }
}

//! What the registry changed and no round has looked at yet.

use std::{collections::VecDeque, sync::Arc};

use hashbrown::{HashMap, HashSet};

use crate::registry::store::Taken;

/// Services that were taken from the store, in the order in which they came first.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Each service of [`Backlog::services`], and some that were taken out since.
    order: VecDeque<Arc<str>>,
    services: HashMap<Arc<str>, Taken>,
}

impl Backlog {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Whether a service is among what is left.
    pub fn has(&self, id: &str) -> bool {
        self.services.contains_key(id)
    }

    /// The dataInfoIds of what is left, in no order.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services.keys()
    }

    /// Everything that is left, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Taken> {
        self.services.values()
    }

    /// The services for a round that takes about `part`: first who came now, since a single change is not to wait behind a
    /// mass, then who came before. With nobody who came the round is theirs; with some, a quarter of it in any case, and who comes
    /// again while waiting keeps his place, so nobody waits for ever.
    pub fn portion(&mut self, came: Vec<Taken>, part: usize) -> Vec<Taken> {
        let mut came = self.renew(came);
        let room = if came.is_empty() { part } else { part.div_ceil(4) };
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
    pub fn whole(&mut self, came: Vec<Taken>) -> Vec<Taken> {
        let mut came = self.renew(came);
        self.order.clear();
        came.extend(self.services.drain().map(|(_, taken)| taken));
        came
    }

    /// A service, if it is among what is left.
    pub fn take_out(&mut self, id: &str) -> Option<Taken> {
        let taken = self.services.remove(id)?;
        if self.order.len() > 2 * self.services.len() {
            let mut known = HashSet::new();
            self.order.retain(|left| self.services.contains_key(left) && known.insert(Arc::clone(left)));
        }
        Some(taken)
    }

    /// Renews what was taken of services that are left; returns those that are not.
    fn renew(&mut self, came: Vec<Taken>) -> Vec<Taken> {
        if self.is_empty() {
            return came;
        }
        let renew = |taken: Taken| match self.services.get_mut(&taken.data_info_id) {
            Some(left) => {
                *left = taken;
                None
            }
            None => Some(taken),
        };
        came.into_iter().filter_map(renew).collect()
    }

    /// The service that has waited longest.
    fn next(&mut self) -> Option<Taken> {
        while let Some(id) = self.order.pop_front() {
            let taken = self.services.remove(&id);
            if taken.is_some() {
                return taken;
            }
        }
        None
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
        assert_eq!(ids(&backlog.portion(services(&["new"]), 4)), ["new", "e"]);
        assert_eq!(ids(&backlog.portion(services(&[]), 4)), ["f", "g", "h", "i"]);
        assert!(backlog.is_empty());
    }

    #[test]
    fn who_waits_gets_on_however_many_come_and_however_often() {
        let mut backlog = Backlog::default();
        assert_eq!(ids(&backlog.portion(services(&["a", "b", "c", "d"]), 2)), ["a", "b"]);
        for turn in [["a", "b", "c"], ["a", "b", "d"]] {
            assert_eq!(ids(&backlog.portion(services(&["a", "b", "c", "d"]), 2)), turn);
            assert_eq!(backlog.order.len(), backlog.services.len());
        }
        assert!(backlog.portion(services(&["a", "b"]), 2).len() == 3 && backlog.is_empty());
    }

    #[test]
    fn who_comes_again_is_looked_at_once_as_it_came_last() {
        let mut backlog = Backlog::default();
        backlog.portion(services(&["a", "b", "c"]), 1);
        let mut again = services(&["c"]);
        again[0].unknown = true;
        let taken = backlog.portion(again, 8);
        assert_eq!((ids(&taken), taken[1].unknown), (vec!["b", "c"], true));
        backlog.portion(services(&["a", "b", "c"]), 1);
        assert_eq!((backlog.take_out("b").is_some(), backlog.take_out("b").is_some()), (true, false));
        assert_eq!(ids(&backlog.portion(services(&["b", "d", "e"]), 2)), ["b", "d", "c"]);
        assert!(backlog.take_out("e").is_some() && backlog.is_empty() && backlog.order.is_empty());
        backlog.portion(services(&["a", "c"]), 1);
        let whole = backlog.whole(services(&["b", "c"]));
        assert_eq!((ids(&whole), backlog.is_empty()), (vec!["b", "c"], true));
        assert_eq!(ids(&backlog.portion(Vec::new(), 4)), [] as [&str; 0]);
    }
}

//! Who gets what when several want the same: hosts among ids, VIPs among hosts.
//!
//! Every claimant has a list of candidates, best first, and a rank. Where two want one candidate the smaller rank has
//! it and the other takes its next. All candidates rank claimants alike, so there is exactly one such assignment: it
//! depends on the set of claimants alone, never on the order in which they came.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    hash::Hash,
};

/// The assignment of candidates `V` to claimants `K`; the rank of a claimant is its order.
#[derive(Debug)]
pub struct Claims<K, V> {
    holders: HashMap<V, K>,
    /// For each contested candidate, those who want it and do not have it.
    waiting: HashMap<V, BTreeSet<K>>,
    claimants: BTreeMap<K, Claimant<V>>,
    /// How many claimants do not have their first candidate.
    moved: usize,
}

#[derive(Debug)]
struct Claimant<V> {
    candidates: Box<[V]>,
    /// Index of the candidate that it has; the length if it has none.
    at: usize,
}

impl<V> Claimant<V> {
    /// Moves to another candidate and keeps the count of those that do not have their first.
    fn move_to(&mut self, at: usize, moved: &mut usize) {
        *moved = *moved - usize::from(self.at > 0) + usize::from(at > 0);
        self.at = at;
    }
}

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self { holders: HashMap::new(), waiting: HashMap::new(), claimants: BTreeMap::new(), moved: 0 }
    }
}

impl<K: Ord + Clone + Debug, V: Eq + Hash + Clone> Claims<K, V> {
    /// Adds a claimant; returns those whose candidate changed, the new one included. No effect if it is there already.
    pub fn insert(&mut self, claimant: K, candidates: impl IntoIterator<Item = V>) -> Vec<K> {
        if self.claimants.contains_key(&claimant) {
            return Vec::new();
        }
        let candidates = candidates.into_iter().collect();
        self.claimants.insert(claimant.clone(), Claimant { candidates, at: 0 });
        let mut changed = vec![claimant.clone()];
        let mut next = Some(claimant);
        // Each turn one claimant takes its best free or weaker-held candidate; the one it displaces goes on.
        while let Some(current) = next.take() {
            let entry = self.claimants.get_mut(&current).expect("a claimant stays while it is placed");
            while let Some(wanted) = entry.candidates.get(entry.at) {
                match self.holders.get(wanted) {
                    Some(holder) if *holder < current => {
                        self.waiting.entry(wanted.clone()).or_default().insert(current.clone());
                        entry.move_to(entry.at + 1, &mut self.moved);
                    }
                    Some(_) | None => {
                        if let Some(displaced) = self.holders.insert(wanted.clone(), current.clone()) {
                            self.waiting.entry(wanted.clone()).or_default().insert(displaced.clone());
                            changed.push(displaced.clone());
                            next = Some(displaced);
                        }
                        break;
                    }
                }
            }
            if let Some(displaced) = &next {
                let entry = self.claimants.get_mut(displaced).expect("a holder is a claimant");
                entry.move_to(entry.at + 1, &mut self.moved);
            }
        }
        changed
    }

    /// Removes a claimant; returns those whose candidate changed, without the removed one.
    pub fn remove(&mut self, claimant: &K) -> Vec<K> {
        let Some(Claimant { candidates, at }) = self.claimants.remove(claimant) else { return Vec::new() };
        self.moved -= usize::from(at > 0);
        for passed in candidates.iter().take(at) {
            self.stop_waiting(passed, claimant);
        }
        let mut changed = Vec::new();
        let mut vacant = candidates.get(at).cloned();
        // The best of those who wait moves in and leaves its own place to the next.
        while let Some(free) = vacant.take() {
            self.holders.remove(&free);
            let Some(heir) = self.waiting.get(&free).and_then(|waiting| waiting.first()).cloned() else { break };
            let entry = self.claimants.get_mut(&heir).expect("who waits is a claimant");
            let index = entry.candidates.iter().position(|c| *c == free).expect("it waits for its own candidate");
            let left = entry.at;
            entry.move_to(index, &mut self.moved);
            vacant = entry.candidates.get(left).cloned();
            let given_up: Vec<V> = entry.candidates[index..left].to_vec();
            for passed in &given_up {
                self.stop_waiting(passed, &heir);
            }
            self.holders.insert(free, heir.clone());
            changed.push(heir);
        }
        changed
    }

    /// The candidate that a claimant has.
    pub fn get(&self, claimant: &K) -> Option<&V> {
        self.claimants.get(claimant).and_then(|entry| entry.candidates.get(entry.at))
    }

    /// How many claimants do not have their first candidate.
    pub fn moved(&self) -> usize {
        self.moved
    }

    fn stop_waiting(&mut self, candidate: &V, claimant: &K) {
        if let Some(waiting) = self.waiting.get_mut(candidate) {
            waiting.remove(claimant);
            if waiting.is_empty() {
                self.waiting.remove(candidate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: by rank, each takes its first candidate that nobody before it took.
    fn by_rank(claimants: &BTreeMap<u8, Vec<u8>>) -> BTreeMap<u8, Option<u8>> {
        let mut taken = BTreeSet::new();
        claimants.iter().map(|(k, wants)| (*k, wants.iter().copied().find(|want| taken.insert(*want)))).collect()
    }

    proptest! {
        #[test]
        fn any_history_gives_the_assignment_by_rank(
            history in prop::collection::vec((0u8..12, prop::collection::btree_set(0u8..8, 0..4), any::<bool>()), 0..60)
        ) {
            let (mut claims, mut model) = (Claims::default(), BTreeMap::new());
            for (claimant, candidates, add) in history {
                let before: BTreeMap<u8, Option<u8>> = by_rank(&model);
                let changed = if add {
                    let candidates: Vec<u8> = candidates.into_iter().collect();
                    model.entry(claimant).or_insert_with(|| candidates.clone());
                    claims.insert(claimant, candidates)
                } else {
                    model.remove(&claimant);
                    claims.remove(&claimant)
                };
                let after = by_rank(&model);
                for (claimant, has) in &after {
                    prop_assert_eq!(claims.get(claimant), has.as_ref());
                    if before.get(claimant) != Some(has) {
                        prop_assert!(changed.contains(claimant), "{} changed unsaid", claimant);
                    }
                }
                prop_assert_eq!(claims.holders.len(), after.values().flatten().count());
                let best = |k: &u8| model[k].first().copied();
                prop_assert_eq!(claims.moved(), after.iter().filter(|(k, has)| best(k) != **has).count());
            }
        }
    }
}

//! Who gets what when several want the same: hosts among ids, VIPs among hosts.
//!
//! Every claimant has a list of candidates, best first, and a right to each. Of those that want a candidate the one with the
//! smallest right has it, at a tie the smallest claimant, and the others take their next. So nobody has a candidate that one
//! who would rather have it has a better right to. Where rights differ by candidate there may be several such assignments; a
//! claim that is made anew moves nobody if it can be met without.

use std::{collections::BTreeSet, fmt::Debug, hash::Hash};

use hashbrown::{HashMap, HashSet};
use serde::Serialize;

/// The assignment of candidates `V` to claimants `K`, by rights `R`.
#[derive(Debug)]
pub struct Claims<R, K, V> {
    holders: HashMap<V, (R, K)>,
    /// For each contested candidate, those who want it and do not have it.
    waiting: HashMap<V, BTreeSet<(R, K)>>,
    claimants: HashMap<K, Claimant<R, V>>,
    /// How many claimants do not have their first candidate.
    moved: usize,
    /// Candidates that are contested otherwise than at the last [`Claims::contests_changed`].
    changed: HashSet<V>,
    /// Claimants that wait for other candidates than at the last [`Claims::waits_changed`].
    shifted: HashSet<K>,
}

#[derive(Debug)]
struct Claimant<R, V> {
    candidates: Box<[(V, R)]>,
    /// Index of the candidate that it has; the length if it has none.
    at: usize,
}

/// A candidate that more than one claimant wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Contest<K> {
    /// Who has it.
    pub holder: K,
    /// Some of those who would rather have it than what they have, in the order in which they would get it.
    pub waiting: Vec<K>,
    /// How many those are.
    pub count: usize,
}

/// Most claimants that a [`Contest`] names as waiting.
const NAMED: usize = 3;

impl<R, K, V> Default for Claims<R, K, V> {
    fn default() -> Self {
        Self {
            holders: HashMap::new(),
            waiting: HashMap::new(),
            claimants: HashMap::new(),
            moved: 0,
            changed: HashSet::new(),
            shifted: HashSet::new(),
        }
    }
}

impl<R: Ord + Copy + Debug, K: Ord + Hash + Clone + Debug, V: Eq + Hash + Clone + Debug> Claims<R, K, V> {
    /// Makes or replaces a claim; returns those whose candidate may be another than before.
    pub fn set(&mut self, claimant: &K, candidates: impl IntoIterator<Item = (V, R)>) -> Vec<K> {
        let candidates: Box<[(V, R)]> = candidates.into_iter().collect();
        if self.claimants.get(claimant).is_some_and(|known| known.candidates == candidates) {
            return Vec::new();
        }
        let mut changed = Vec::new();
        match self.met_in_place(claimant, &candidates) {
            Some(at) => self.replace(claimant, candidates, at),
            None => {
                changed = self.remove(claimant);
                self.claimants.insert(claimant.clone(), Claimant { candidates, at: 0 });
                changed.push(claimant.clone());
                self.place(claimant.clone(), &mut changed);
            }
        }
        changed
    }

    /// The index of the candidate that a claimant has among other candidates, if these give it no better one and nobody a
    /// better right to that.
    fn met_in_place(&self, claimant: &K, candidates: &[(V, R)]) -> Option<usize> {
        let known = self.claimants.get(claimant)?;
        let (has, _) = known.candidates.get(known.at)?;
        let is_free = |(wanted, right): &(V, R)| match self.holders.get(wanted) {
            Some((theirs, holder)) => holder == claimant || (*right, claimant) < (*theirs, holder),
            None => true,
        };
        let at = candidates.iter().position(is_free)?;
        let (wanted, right) = &candidates[at];
        let first = self.waiting.get(wanted).and_then(BTreeSet::first);
        let stays = first.is_none_or(|(theirs, first)| (*right, claimant) < (*theirs, first));
        (wanted == has && stays).then_some(at)
    }

    /// Gives a claimant other candidates, of which it has the one at `at`, as before.
    fn replace(&mut self, claimant: &K, candidates: Box<[(V, R)]>, at: usize) {
        let Some(known) = self.claimants.get_mut(claimant) else { return };
        let passed = known.candidates[..known.at].to_vec();
        known.move_to(at, &mut self.moved);
        known.candidates = candidates.clone();
        for (wanted, right) in passed {
            self.stop_waiting(&wanted, right, claimant);
        }
        for (wanted, right) in &candidates[..at] {
            self.wait(wanted, *right, claimant);
        }
        let (has, right) = &candidates[at];
        self.hold(has, *right, claimant);
    }

    /// Takes for a claimant its best candidate that it has the best right to. Who had it goes on, and so forth.
    fn place(&mut self, claimant: K, changed: &mut Vec<K>) {
        let mut next = Some(claimant);
        while let Some(current) = next.take() {
            let entry = self.claimants.get(&current).expect("a claimant stays while it is placed");
            let Some((wanted, right)) = entry.candidates.get(entry.at).cloned() else { continue };
            let holder = self.holders.get(&wanted).cloned();
            let loser = match holder {
                Some((theirs, holder)) if (theirs, &holder) < (right, &current) => Some((right, current)),
                holder => {
                    self.hold(&wanted, right, &current);
                    holder
                }
            };
            if let Some((right, loser)) = loser {
                self.wait(&wanted, right, &loser);
                let entry = self.claimants.get_mut(&loser).expect("a holder is a claimant");
                entry.move_to(entry.at + 1, &mut self.moved);
                changed.push(loser.clone());
                next = Some(loser);
            }
        }
    }

    /// Ends a claim; returns those whose candidate changed, without the one who claimed.
    pub fn remove(&mut self, claimant: &K) -> Vec<K> {
        let Some(Claimant { candidates, at }) = self.claimants.remove(claimant) else { return Vec::new() };
        self.moved -= usize::from(at > 0);
        for (passed, right) in &candidates[..at] {
            self.stop_waiting(passed, *right, claimant);
        }
        let mut changed = Vec::new();
        let mut vacant = candidates.get(at).map(|(free, _)| free.clone());
        // The best of those who wait moves in and leaves its own place to the next.
        while let Some(free) = vacant.take() {
            self.holders.remove(&free);
            let Some((right, heir)) = self.waiting.get(&free).and_then(BTreeSet::first).cloned() else { break };
            let entry = self.claimants.get_mut(&heir).expect("who waits is a claimant");
            let index = entry.candidates.iter().position(|(wanted, _)| *wanted == free);
            let index = index.expect("it waits for its own candidate");
            let left = entry.at;
            entry.move_to(index, &mut self.moved);
            vacant = entry.candidates.get(left).map(|(left, _)| left.clone());
            let given_up = entry.candidates[index..left].to_vec();
            for (passed, right) in &given_up {
                self.stop_waiting(passed, *right, &heir);
            }
            self.hold(&free, right, &heir);
            changed.push(heir);
        }
        changed
    }

    /// Makes a claim to one candidate in the place of the claim of another, who has it, so that nobody moves who waits for it. No
    /// effect if the other does not have it, or somebody who waits has a better right.
    pub fn hand_over(&mut self, from: &K, to: &K, candidate: V, right: R) {
        let first = self.waiting.get(&candidate).and_then(BTreeSet::first);
        let is_next = first.is_none_or(|(theirs, first)| (right, to) < (*theirs, first));
        if !is_next || self.get(from) != Some(&candidate) || self.claimants.contains_key(to) {
            return;
        }
        let Some(Claimant { candidates, at }) = self.claimants.remove(from) else { return };
        self.moved -= usize::from(at > 0);
        for (passed, right) in &candidates[..at] {
            self.stop_waiting(passed, *right, from);
        }
        self.hold(&candidate, right, to);
        self.claimants.insert(to.clone(), Claimant { candidates: [(candidate, right)].into(), at: 0 });
    }

    /// The candidate that a claimant has.
    pub fn get(&self, claimant: &K) -> Option<&V> {
        let entry = self.claimants.get(claimant)?;
        entry.candidates.get(entry.at).map(|(has, _)| has)
    }

    /// The candidates of a claimant, best first, each with its right to it.
    pub fn candidates(&self, claimant: &K) -> &[(V, R)] {
        self.claimants.get(claimant).map_or(&[], |entry| &entry.candidates)
    }

    /// How many claimants do not have their first candidate.
    pub fn moved(&self) -> usize {
        self.moved
    }

    /// Claimants that may wait for other candidates than at the last call.
    pub fn waits_changed(&mut self) -> HashSet<K> {
        std::mem::take(&mut self.shifted)
    }

    /// The candidates that a claimant would rather have than what it has.
    pub fn waits_for(&self, claimant: &K) -> impl Iterator<Item = &V> {
        let passed = self.claimants.get(claimant).map(|entry| &entry.candidates[..entry.at]);
        passed.into_iter().flatten().map(|(wanted, _)| wanted)
    }

    /// Candidates that are contested otherwise than at the last call; `None`: no longer contested.
    pub fn contests_changed(&mut self) -> Vec<(V, Option<Contest<K>>)> {
        let changed = std::mem::take(&mut self.changed);
        let now = |wanted: V| {
            let contest = self.contest(&wanted);
            (wanted, contest)
        };
        changed.into_iter().map(now).collect()
    }

    fn contest(&self, wanted: &V) -> Option<Contest<K>> {
        let (waiting, (_, holder)) = (self.waiting.get(wanted)?, self.holders.get(wanted)?);
        let named = waiting.iter().take(NAMED).map(|(_, claimant)| claimant.clone());
        Some(Contest { holder: holder.clone(), waiting: named.collect(), count: waiting.len() })
    }

    fn hold(&mut self, wanted: &V, right: R, claimant: &K) {
        if self.waiting.contains_key(wanted) {
            self.changed.insert(wanted.clone());
        }
        self.holders.insert(wanted.clone(), (right, claimant.clone()));
    }

    fn wait(&mut self, wanted: &V, right: R, claimant: &K) {
        self.changed.insert(wanted.clone());
        self.shifted.insert(claimant.clone());
        self.waiting.entry(wanted.clone()).or_default().insert((right, claimant.clone()));
    }

    fn stop_waiting(&mut self, wanted: &V, right: R, claimant: &K) {
        if let Some(waiting) = self.waiting.get_mut(wanted) {
            self.changed.insert(wanted.clone());
            self.shifted.insert(claimant.clone());
            waiting.remove(&(right, claimant.clone()));
            if waiting.is_empty() {
                self.waiting.remove(wanted);
            }
        }
    }
}

impl<R, V> Claimant<R, V> {
    /// Moves to another candidate and keeps the count of those that do not have their first.
    fn move_to(&mut self, at: usize, moved: &mut usize) {
        *moved = *moved - usize::from(self.at > 0) + usize::from(at > 0);
        self.at = at;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<u8, Vec<(u8, u8)>>;

    /// Holders and waiting claimants of each candidate, by what each claimant has.
    fn check(claims: &Claims<u8, u8, u8>, model: &Model) -> Result<(), TestCaseError> {
        let has: BTreeMap<u8, Option<u8>> = model.keys().map(|k| (*k, claims.get(k).copied())).collect();
        let held: BTreeSet<u8> = has.values().flatten().copied().collect();
        prop_assert_eq!(held.len(), has.values().flatten().count(), "nobody shares");
        prop_assert_eq!(claims.holders.len(), held.len());
        let mut waiting: BTreeMap<u8, BTreeSet<(u8, u8)>> = BTreeMap::new();
        for (claimant, candidates) in model {
            for (wanted, right) in candidates.iter().take_while(|(wanted, _)| Some(*wanted) != has[claimant]) {
                let holder = model.keys().find(|k| has[k] == Some(*wanted));
                prop_assert!(holder.is_some(), "{} could have {}", claimant, wanted);
                let holder = *holder.unwrap();
                let theirs = model[&holder].iter().find(|(has, _)| has == wanted).unwrap().1;
                prop_assert!((theirs, holder) < (*right, *claimant), "{} has the right to {}", claimant, wanted);
                waiting.entry(*wanted).or_default().insert((*right, *claimant));
            }
        }
        prop_assert_eq!(&claims.waiting.iter().map(|(k, v)| (*k, v.clone())).collect::<BTreeMap<_, _>>(), &waiting);
        let best = |k: &u8| model[k].first().map(|(best, _)| *best);
        prop_assert_eq!(claims.moved(), has.iter().filter(|(k, has)| best(k) != **has).count());
        Ok(())
    }

    /// The definition where all candidates rank claimants alike: by rank, each takes its first that nobody before it took.
    fn by_rank(model: &Model) -> BTreeMap<u8, Option<u8>> {
        let mut taken = BTreeSet::new();
        model.iter().map(|(k, wants)| (*k, wants.iter().map(|w| w.0).find(|want| taken.insert(*want)))).collect()
    }

    proptest! {
        #[test]
        fn in_any_history_nobody_has_what_another_has_a_better_right_to(
            history in prop::collection::vec((0u8..12, prop::collection::vec((0u8..8, 0u8..4), 0..5), 0u8..5), 0..60),
            alike in any::<bool>(),
        ) {
            let (mut claims, mut model, mut told) = (Claims::default(), Model::new(), BTreeMap::new());
            let mut waits: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
            for (claimant, mut candidates, what) in history {
                let mut seen = BTreeSet::new();
                candidates.retain(|(wanted, _)| seen.insert(*wanted));
                if alike {
                    candidates.iter_mut().for_each(|(_, right)| *right = 0);
                }
                let has = |claims: &Claims<u8, u8, u8>| (0..12).map(|k| claims.get(&k).copied()).collect::<Vec<_>>();
                let before = has(&claims);
                let mut changed = match what {
                    0 | 1 => {
                        model.insert(claimant, candidates.clone());
                        claims.set(&claimant, candidates)
                    }
                    2 | 3 => {
                        model.remove(&claimant);
                        claims.remove(&claimant)
                    }
                    _ => {
                        let (has, other) = (claims.get(&claimant).copied().unwrap_or_default(), (claimant + 1) % 12);
                        claims.hand_over(&claimant, &other, has, 0);
                        if !model.contains_key(&other) && claims.get(&other).is_some() {
                            model.remove(&claimant);
                            model.insert(other, vec![(has, 0)]);
                        }
                        vec![other]
                    }
                };
                check(&claims, &model)?;
                changed.push(claimant);
                for (claimant, (before, after)) in before.iter().zip(has(&claims)).enumerate() {
                    prop_assert!(*before == after || changed.contains(&(claimant as u8)), "{} changed unsaid", claimant);
                }
                if alike {
                    let expected: Vec<_> = by_rank(&model).into_iter().collect();
                    prop_assert_eq!(model.keys().map(|k| (*k, claims.get(k).copied())).collect::<Vec<_>>(), expected);
                }
                // Whoever keeps what is told of contests knows them all.
                for (wanted, contest) in claims.contests_changed() {
                    match contest {
                        Some(contest) => drop(told.insert(wanted, contest)),
                        None => drop(told.remove(&wanted)),
                    }
                }
                let contests: BTreeMap<u8, Contest<u8>> =
                    claims.waiting.keys().map(|wanted| (*wanted, claims.contest(wanted).unwrap())).collect();
                prop_assert_eq!(&told, &contests);
                // And whoever keeps who waits for what knows that of each claimant.
                for claimant in claims.waits_changed() {
                    waits.insert(claimant, claims.waits_for(&claimant).copied().collect());
                }
                waits.retain(|_, wanted| !wanted.is_empty());
                let mut expected: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
                for claimant in 0..12 {
                    let all = model.get(&claimant).into_iter().flatten().map(|(wanted, _)| *wanted);
                    let passed = all.take_while(|wanted| claims.get(&claimant) != Some(wanted));
                    expected.insert(claimant, passed.collect());
                }
                expected.retain(|_, wanted| !wanted.is_empty());
                prop_assert_eq!(&waits, &expected);
            }
        }

        #[test]
        fn a_claim_that_is_made_anew_moves_nobody_if_it_can_be_met_without(
            all in prop::collection::btree_map(0u8..12, prop::collection::btree_map(0u8..8, 0u8..4, 0..5), 1..12),
            again in 0u8..12,
        ) {
            let mut claims = Claims::default();
            all.iter().for_each(|(claimant, candidates)| drop(claims.set(claimant, candidates.clone())));
            if let (Some(has), Some(candidates)) = (claims.get(&again).copied(), all.get(&again)) {
                // With a better right to what it has, and a worse to the rest.
                let other = candidates.iter().map(|(wanted, right)| (*wanted, if *wanted == has { 0 } else { right + 1 }));
                prop_assert_eq!(claims.set(&again, other.clone()), Vec::<u8>::new());
                prop_assert_eq!(claims.get(&again), Some(&has));
                let mut model: Model = all.iter().map(|(k, wants)| (*k, wants.clone().into_iter().collect())).collect();
                model.insert(again, other.collect());
                check(&claims, &model)?;
            }
        }
    }
}

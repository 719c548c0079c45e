//! In which slice a resource is, found by its name: a name does not say its host, so it does not say its slice.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use once_cell::sync::Lazy;

use crate::snapshot::partition::SLICES;

/// Names are hashed with keys of this process, so that nobody can choose names that share a hash.
static KEYS: Lazy<RandomState> = Lazy::new(RandomState::new);

/// Into how many parts the index is divided: a name that comes or goes copies one of them.
const PARTS: usize = 128;
/// Bits of a slice's number.
const SLICE_BITS: u32 = SLICES.ilog2();

/// The slices of all names. Names of equal hash are in it as often as there are.
#[derive(Debug, Clone)]
pub(super) struct Index(Arc<Vec<Arc<Vec<u64>>>>);

impl Default for Index {
    fn default() -> Self {
        Self(Arc::new(vec![Arc::default(); PARTS]))
    }
}

/// The hash of a name, with room for the number of a slice in its lowest bits.
fn hash(name: &str) -> u64 {
    KEYS.hash_one(name) << SLICE_BITS
}

/// The part of a hash.
fn part(hash: u64) -> usize {
    (hash >> (u64::BITS - PARTS.ilog2())) as usize
}

impl Index {
    /// This index with names that come, or go (`false`), each with its slice. Costs the parts that they are in.
    pub(super) fn with<'a>(&self, changes: impl Iterator<Item = (&'a str, usize, bool)>) -> Self {
        let mut changes: Vec<(u64, bool)> =
            changes.map(|(name, slice, comes)| (hash(name) | slice as u64, comes)).collect();
        if changes.is_empty() {
            return self.clone();
        }
        changes.sort_unstable();
        let mut parts = Vec::clone(&self.0);
        for changes in changes.chunk_by(|a, b| part(a.0) == part(b.0)) {
            let mut gone: Vec<u64> = changes.iter().filter(|(_, comes)| !comes).map(|(entry, _)| *entry).collect();
            // Each name that goes takes one entry with it.
            let stays = |entry: &u64| gone.binary_search(entry).map(|at| gone.remove(at)).is_err();
            let first = part(changes[0].0);
            let mut entries: Vec<u64> = parts[first].iter().copied().filter(stays).collect();
            entries.extend(changes.iter().filter(|(_, comes)| *comes).map(|(entry, _)| *entry));
            entries.sort_unstable();
            parts[first] = Arc::new(entries);
        }
        Self(Arc::new(parts))
    }

    /// The slices in which a name may be; seldom more than one.
    pub(super) fn slices(&self, name: &str) -> impl Iterator<Item = usize> {
        let hash = hash(name);
        let entries = &self.0[part(hash)];
        let from = entries.partition_point(|entry| *entry < hash);
        let found = entries[from..].iter().take_while(move |entry| *entry >> SLICE_BITS == hash >> SLICE_BITS);
        found.map(move |entry| (entry - hash) as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_found_where_it_came_to_until_it_goes(
            steps in vec(vec((0usize..40, 0usize..SLICES, any::<bool>()), 1..30), 1..10),
        ) {
            let (mut index, mut known) = (Index::default(), BTreeMap::new());
            for step in steps {
                let mut changes = BTreeMap::new();
                for (name, slice, comes) in step {
                    let name = format!("name-{name}");
                    match known.get(&name) {
                        None if comes => _ = changes.insert(name, (slice, true)),
                        Some(slice) if !comes => _ = changes.insert(name, (*slice, false)),
                        _ => {}
                    }
                }
                index = index.with(changes.iter().map(|(name, (slice, comes))| (&**name, *slice, *comes)));
                for (name, (slice, comes)) in changes {
                    if comes { known.insert(name, slice); } else { known.remove(&name); }
                }
                for name in (0..40).map(|name| format!("name-{name}")) {
                    let found: Vec<usize> = index.slices(&name).collect();
                    prop_assert_eq!(found, known.get(&name).copied().into_iter().collect::<Vec<_>>());
                }
                let entries: usize = index.0.iter().map(|part| part.len()).sum();
                prop_assert_eq!(entries, known.len());
            }
        }
    }
}

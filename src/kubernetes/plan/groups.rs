//! Services: ServiceEntries and the WorkloadEntries that they select, and which of these wait for which.

use std::collections::{BTreeSet, HashMap};

use crate::kubernetes::objects::{ObjectKey, ObjectKind};

/// The objects of services, by [`Fingerprint::group`](crate::kubernetes::objects::Fingerprint::group).
#[derive(Debug, Default)]
pub(super) struct Groups(HashMap<u128, ServiceGroup>);

#[derive(Debug, Default)]
struct ServiceGroup {
    members: BTreeSet<ObjectKey>,
    /// Members that may be written only after another object of the service.
    waiting: BTreeSet<ObjectKey>,
    /// How many WorkloadEntries are yet to be created.
    missing: usize,
}

impl Groups {
    pub(super) fn ids(&self) -> impl Iterator<Item = u128> {
        self.0.keys().copied()
    }

    pub(super) fn members(&self, id: u128) -> impl Iterator<Item = &ObjectKey> {
        self.0.get(&id).into_iter().flat_map(|group| &group.members)
    }

    /// The ServiceEntries of a group.
    pub(super) fn services(&self, id: u128) -> impl Iterator<Item = &ObjectKey> {
        // Kinds come in order, and a DestinationRule belongs to no group.
        let first = ObjectKey { kind: ObjectKind::ServiceEntry, name: "".into() };
        self.0.get(&id).into_iter().flat_map(move |group| group.members.range(first.clone()..))
    }

    /// Takes an object that was in the groups `before` into the groups `after`, and out of the others.
    pub(super) fn shift(&mut self, key: &ObjectKey, before: &[Option<u128>], after: &[Option<u128>]) {
        for id in after.iter().flatten().filter(|id| !before.contains(&Some(**id))) {
            self.0.entry(*id).or_default().members.insert(key.clone());
        }
        for id in before.iter().flatten().filter(|id| !after.contains(&Some(**id))) {
            if let Some(group) = self.0.get_mut(id) {
                group.members.remove(key);
                if group.members.is_empty() {
                    self.0.remove(id);
                }
            }
        }
    }

    /// A WorkloadEntry is missing in a group from now on, and no longer in another. Returns who waited for the last.
    pub(super) fn shift_missing(&mut self, before: Option<u128>, after: Option<u128>) -> BTreeSet<ObjectKey> {
        if before == after {
            return BTreeSet::new();
        }
        if let Some(group) = after.and_then(|id| self.0.get_mut(&id)) {
            group.missing += 1;
        }
        let Some(group) = before.and_then(|id| self.0.get_mut(&id)) else { return BTreeSet::new() };
        group.missing -= 1;
        if group.missing == 0 { std::mem::take(&mut group.waiting) } else { BTreeSet::new() }
    }

    /// Whether WorkloadEntries of a group are yet to be created.
    pub(super) fn lacks(&self, id: u128) -> bool {
        self.0.get(&id).is_some_and(|group| group.missing > 0)
    }

    pub(super) fn wait(&mut self, id: u128, key: &ObjectKey) {
        if let Some(group) = self.0.get_mut(&id) {
            group.waiting.insert(key.clone());
        }
    }

    pub(super) fn wait_no_more(&mut self, id: u128, key: &ObjectKey) {
        if let Some(group) = self.0.get_mut(&id) {
            group.waiting.remove(key);
        }
    }

    #[cfg(test)]
    pub(super) fn waits(&self, id: u128, key: &ObjectKey) -> bool {
        self.0.get(&id).is_some_and(|group| group.waiting.contains(key))
    }

    /// Everybody who waits in a group, to be looked at again.
    pub(super) fn wake(&mut self, id: u128) -> BTreeSet<ObjectKey> {
        self.0.get_mut(&id).map(|group| std::mem::take(&mut group.waiting)).unwrap_or_default()
    }
}

//! The changes that a round makes in the served snapshots.

use std::sync::Arc;

use crate::snapshot::{Changes, Resource, Room, Snapshot, view::View};

/// Changes by type.
#[derive(Debug, Default)]
pub struct RoundChanges {
    /// Changes of ServiceEntries.
    pub service_entries: Changes,
    /// Changes of WorkloadEntries.
    pub workload_entries: Changes,
    /// Changes of DestinationRules.
    pub destination_rules: Changes,
    /// How many resources were encoded for these changes.
    pub encodes: u64,
}

/// The changes of one service. In lists, since there may be as many of them at a time as services, and most have one change.
#[derive(Debug, Default)]
pub struct ServiceChanges {
    /// Changes of ServiceEntries.
    pub service_entries: Vec<Change>,
    /// Changes of WorkloadEntries.
    pub workload_entries: Vec<Change>,
    /// Changes of DestinationRules.
    pub destination_rules: Vec<Change>,
    /// How many resources were encoded for these changes.
    pub encodes: u64,
}

impl ServiceChanges {
    /// Moves what was encoded into the room.
    pub fn gather(&mut self, room: &mut Room) {
        let all = self.service_entries.iter_mut().chain(&mut self.workload_entries).chain(&mut self.destination_rules);
        all.filter_map(|(_, resource)| resource.as_mut()).for_each(|resource| room.keep(resource));
    }
}

/// A resource that is put at a slice and name; `None`: the one there is removed, unless another is put there in the same round.
pub type Change = ((usize, Arc<str>), Option<Resource>);

/// Puts a resource at a slice and name, whatever was to be removed from there.
pub fn put(changes: &mut Changes, place: (usize, Arc<str>), resource: Resource) {
    changes.insert(place, Some(resource));
}

/// Removes the resource at a slice and name, unless a resource is put there in the same round.
pub fn remove(changes: &mut Changes, place: (usize, Arc<str>)) {
    changes.entry(place).or_insert(None);
}

/// The next snapshot of one type.
fn with(current: &Arc<Snapshot>, changes: &Changes) -> Arc<Snapshot> {
    if changes.is_empty() { Arc::clone(current) } else { Arc::new(current.with(changes)) }
}

impl RoundChanges {
    /// The snapshots with these changes; whether they are shown stays as it is.
    pub fn apply(&self, view: &View) -> View {
        View {
            service_entries: with(&view.service_entries, &self.service_entries),
            workload_entries: with(&view.workload_entries, &self.workload_entries),
            destination_rules: with(&view.destination_rules, &self.destination_rules),
            ..view.clone()
        }
    }

    /// Adds changes that come after these.
    pub fn then(&mut self, later: Self) {
        let Self { service_entries, workload_entries, destination_rules, encodes } = later;
        self.encodes += encodes;
        self.service_entries.extend(service_entries);
        self.workload_entries.extend(workload_entries);
        self.destination_rules.extend(destination_rules);
    }

    /// Adds the changes of a service, by the rules of [`put`] and [`remove`].
    pub fn add(&mut self, changes: ServiceChanges) {
        let ServiceChanges { service_entries, workload_entries, destination_rules, encodes } = changes;
        self.encodes += encodes;
        for (all, changes) in [
            (&mut self.service_entries, service_entries),
            (&mut self.workload_entries, workload_entries),
            (&mut self.destination_rules, destination_rules),
        ] {
            for (place, resource) in changes {
                match resource {
                    Some(resource) => put(all, place, resource),
                    None => remove(all, place),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::proto::istio::networking::v1alpha3::ServiceEntry;

    #[test]
    fn what_is_put_stays_in_whatever_order() {
        let resource =
            || Resource::service_entry("n/a".into(), BTreeMap::new(), BTreeMap::new(), &ServiceEntry::default());
        let place = || (3, Arc::from("n/a"));
        let comes = || ServiceChanges {
            service_entries: vec![(place(), Some(resource()))],
            encodes: 1,
            ..ServiceChanges::default()
        };
        let goes = || ServiceChanges {
            service_entries: vec![(place(), None)],
            workload_entries: vec![(place(), None)],
            encodes: 1,
            ..ServiceChanges::default()
        };
        for changes in [[comes(), goes()], [goes(), comes()]] {
            let mut all = RoundChanges::default();
            changes.into_iter().for_each(|changes| all.add(changes));
            assert!(all.service_entries[&place()].is_some() && all.workload_entries[&place()].is_none());
            assert_eq!(all.encodes, 2);
        }
    }
}

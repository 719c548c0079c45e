//! What the documents say of all services.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::{
    policy::Consumers,
    visibility::{Names, ServiceId, UNKNOWN, page::Page},
};

/// In which namespaces the consumers of each service are; of a service that is not named nobody is known to consume it.
#[derive(Debug, Default)]
pub struct Seen {
    services: HashMap<ServiceId, Arc<Consumers>>,
}

impl Seen {
    /// All that any of the pages says.
    pub fn of<'a>(pages: impl IntoIterator<Item = &'a Page>) -> Self {
        let mut services: HashMap<ServiceId, Arc<Consumers>> = HashMap::new();
        // Most services have the same few sets.
        let mut sets: HashMap<&Names, Arc<Consumers>> = HashMap::new();
        for (id, names) in pages.into_iter().flat_map(Page::services) {
            let consumers = sets.entry(names).or_insert_with(|| Arc::new(consumers(names)));
            match services.entry(id) {
                Entry::Vacant(place) => drop(place.insert(Arc::clone(consumers))),
                Entry::Occupied(mut place) => Arc::make_mut(place.get_mut()).add(consumers),
            }
        }
        Self { services }
    }

    /// The consumers of a service; `None`: nobody is known to consume it.
    pub fn get(&self, id: ServiceId) -> Option<&Arc<Consumers>> {
        self.services.get(&id)
    }

    /// How many services somebody consumes.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Has a service be seen by more.
    pub fn widen(&mut self, id: ServiceId, more: &Consumers) {
        Arc::make_mut(self.services.entry(id).or_default()).add(more);
    }

    /// For tests: a service and the namespaces of its consumers.
    #[cfg(test)]
    pub fn with(pairs: &[(&str, &[&str])]) -> Self {
        let of = |names: &[&str]| consumers(&names.iter().map(|name| Arc::from(*name)).collect());
        Self { services: pairs.iter().map(|(id, names)| (ServiceId::of(id), Arc::new(of(names)))).collect() }
    }
}

impl Clone for Seen {
    fn clone(&self) -> Self {
        Self { services: self.services.clone() }
    }
}

/// Namespaces, and whether there are others.
pub fn consumers(names: &Names) -> Consumers {
    let unknown = names.contains(UNKNOWN);
    Consumers { namespaces: names.iter().filter(|name| ***name != *UNKNOWN).cloned().collect(), unknown }
}

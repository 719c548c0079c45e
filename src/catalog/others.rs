//! Which services dataInfoIds have beside their main ones.

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::HashMap;

use crate::catalog::key::ServiceKey;

/// The services beside the main ones that a round has a word on: served, waiting or quarantined. Most ids have none, and are
/// not in it.
#[derive(Debug, Default)]
pub struct Others {
    by_id: HashMap<Box<str>, BTreeSet<ServiceKey>>,
}

impl Others {
    /// Takes note of a service; a main one is none of these.
    pub fn note(&mut self, key: &ServiceKey, is_there: bool) {
        if key.other().is_none() {
            return;
        }
        if is_there {
            match self.by_id.get_mut(key.id()) {
                Some(others) => drop(others.insert(key.clone())),
                None => drop(self.by_id.insert(key.id().into(), BTreeSet::from([key.clone()]))),
            }
        } else if let Some(others) = self.by_id.get_mut(key.id())
            && others.remove(key)
            && others.is_empty()
        {
            self.by_id.remove(key.id());
        }
    }

    /// The services beside the main one of a dataInfoId.
    pub fn of<'a>(&'a self, id: &str) -> impl Iterator<Item = &'a ServiceKey> + use<'a> {
        self.by_id.get(id).into_iter().flatten()
    }

    /// All services of a dataInfoId, the main one first.
    pub fn with_main(&self, id: &Arc<str>) -> Vec<ServiceKey> {
        std::iter::once(ServiceKey::main(id)).chain(self.of(id).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_leaves_nothing() {
        let id: Arc<str> = "com.example.A@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA".into();
        let [main, tri, rest] =
            [ServiceKey::main(&id), ServiceKey::beside(&id, "tri"), ServiceKey::beside(&id, "rest")];
        let mut others = Others::default();
        [&main, &tri, &rest, &tri].into_iter().for_each(|key| others.note(key, true));
        assert_eq!(others.with_main(&id), [main.clone(), rest.clone(), tri.clone()]);
        [&main, &rest].into_iter().for_each(|key| others.note(key, false));
        assert_eq!(others.of(&id).collect::<Vec<_>>(), [&tri]);
        others.note(&tri, false);
        others.note(&tri, false);
        assert!(others.by_id.is_empty());
    }
}

//! The key that a service goes by in a round.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    istio::names::{ID_ANNOTATION, PROTOCOL_ANNOTATION},
    policy::{Policy, Rules},
    registry::store::Store,
    translate::payload::Client,
};

/// Stands where a protocol would, before the host of an application's entry, which is no service.
const ENTRY: &str = "application";

/// Stands where a protocol would, before a dataInfoId that would else read as the key of another service.
const MAIN: &str = "dubbo";

/// A service: the main one of a dataInfoId, or one that an id of Dubbo's client has beside it, by another protocol.
///
/// A text that is the dataInfoId itself, so that most keys cost no memory, or `<protocol>://<dataInfoId>`. An id that reads so
/// is told apart by `dubbo://` in front of it, and no other key begins with that; so no publisher chooses an id that is the key
/// of another's service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey(Arc<str>);

/// Protocol and dataInfoId of a key that is not just a dataInfoId. Behind [`MAIN`] stands any dataInfoId, so that an id which
/// begins with that, or as the name of an entry does, is itself wrapped; other protocols stand before an id of Dubbo's client
/// only.
fn split(text: &str) -> Option<(&str, &str)> {
    text.split_once("://").filter(|(protocol, id)| [MAIN, ENTRY].contains(protocol) || Client::of(id).names_protocols())
}

/// The name of an application's entry among the keys of services: the key of none, as a host is no dataInfoId of Dubbo's
/// client.
pub fn of_entry(host: &str) -> Arc<str> {
    format!("{ENTRY}://{host}").into()
}

impl ServiceKey {
    /// The main service of a dataInfoId.
    pub fn main(id: &Arc<str>) -> Self {
        match split(id) {
            None => Self(Arc::clone(id)),
            Some(_) => Self::beside(id, MAIN),
        }
    }

    /// The service that an id of Dubbo's client has by another protocol.
    pub fn beside(id: &str, protocol: &str) -> Self {
        Self(format!("{protocol}://{id}").into())
    }

    /// The service that a resource with these annotations is of; `None`: it is an application's.
    pub fn annotated(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let id = annotations.get(ID_ANNOTATION)?;
        Some(match annotations.get(PROTOCOL_ANNOTATION) {
            None => Self::main(&id.as_str().into()),
            Some(protocol) => Self::beside(id, protocol),
        })
    }

    /// The key that has this text.
    pub fn of_text(text: Arc<str>) -> Self {
        Self(text)
    }

    /// The text, for reports and for what does not look into it.
    pub fn text(&self) -> &Arc<str> {
        &self.0
    }

    /// The dataInfoId.
    pub fn id(&self) -> &str {
        split(&self.0).map_or(&self.0, |(_, id)| id)
    }

    /// The protocol of a service that is not its dataInfoId's main one.
    pub fn other(&self) -> Option<&str> {
        split(&self.0).map(|(protocol, _)| protocol).filter(|protocol| *protocol != MAIN)
    }

    /// Whether this names the entry of an application, which is no service.
    pub fn is_entry(&self) -> bool {
        split(&self.0).is_some_and(|(protocol, id)| protocol == ENTRY && !Client::of(id).names_protocols())
    }

    /// Whether the registry knows its dataInfoId.
    pub fn is_known(&self, store: &Store) -> bool {
        store.has(self.id())
    }

    /// The rules that a policy has for the service.
    pub fn rules<'p>(&self, policy: &'p Policy) -> Rules<'p> {
        let rules = policy.rules(self.id());
        if self.other().is_some() { rules.beside() } else { rules }
    }
}

#[cfg(test)]
impl From<&str> for ServiceKey {
    fn from(id: &str) -> Self {
        Self::main(&id.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::driver::Driver;

    const ID: &str = "com.example.A@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA";
    const APPLICATION: &str = "shop#@#DEFAULT_INSTANCE_ID#@#dubbo";
    /// No id of Dubbo's client, but what stands behind its `://` is.
    const FOUR_PARTS: &str = "a#@#b://c@dubbo#@#I#@#SOFA";

    proptest! {
        /// Where a key gives back what it is of, no two are alike.
        #[test]
        fn a_key_of_any_text_gives_back_what_it_is_of(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "dubbo", "application", "tri", "p80.x.app", "a", "://", "#@#", "@dubbo", "c@dubbo#@#I#@#SOFA", "c#@#I#@#dubbo", ":",
                ]),
                0..12,
            )
        ) {
            let id: Arc<str> = parts.concat().into();
            let main = ServiceKey::main(&id);
            prop_assert_eq!((main.id(), main.other()), (&*id, None));
            prop_assert_ne!(main.text(), &of_entry("p80.x.app"));
            prop_assert!(!main.is_entry() && ServiceKey::of_text(of_entry("p80.x.app")).is_entry());
            if Client::of(&id).names_protocols() {
                let key = ServiceKey::beside(&id, "tri");
                prop_assert_eq!((key.id(), key.other()), (&*id, Some("tri")));
            }
        }
    }

    #[test]
    fn every_service_of_an_id_is_known_with_it() {
        let driver = Driver::new(serde_json::json!({}));
        for id in [ID, APPLICATION, FOUR_PARTS] {
            let keys = [ServiceKey::from(id), ServiceKey::beside(id, "tri")];
            assert!(keys.iter().all(|key| !key.is_known(&driver.store)));
            driver.publish(id, "a", 1, &["10.0.0.1:80"]);
            let known = if id == FOUR_PARTS { &keys[..1] } else { &keys[..] };
            for key in known {
                assert!(ServiceKey::of_text(Arc::clone(key.text())).is_known(&driver.store), "{key:?}");
            }
        }
    }

    #[test]
    fn a_key_gives_back_what_it_is_of_and_no_two_are_alike() {
        let mut ids: Vec<String> =
            ["", "a", "a://b", ID, APPLICATION, "com.example.A:1.0@DEFAULT#@#a#@#SOFA", FOUR_PARTS]
                .map(str::to_owned)
                .into();
        for protocol in ["tri", "dubbo", "application", "", "a b"] {
            for n in 0..ids.len().min(24) {
                ids.push(format!("{protocol}://{}", ids[n]));
            }
        }
        let mut keys = std::collections::BTreeSet::from([ServiceKey::of_text(of_entry("a"))]);
        for id in ids {
            let id: Arc<str> = id.into();
            let main = ServiceKey::main(&id);
            assert_eq!((main.id(), main.other()), (&*id, None));
            assert!(keys.insert(main), "{id}");
            for protocol in ["tri", "a+b"] {
                if Client::of(&id).names_protocols() {
                    let key = ServiceKey::beside(&id, protocol);
                    assert_eq!((key.id(), key.other()), (&*id, Some(protocol)));
                    assert_eq!(ServiceKey::of_text(Arc::clone(key.text())), key);
                    assert!(keys.insert(key), "{protocol} of {id}");
                }
            }
        }
        for id in [ID, APPLICATION].map(Arc::<str>::from) {
            assert!(Arc::ptr_eq(ServiceKey::main(&id).text(), &id), "the key of most is their id");
        }
    }
}

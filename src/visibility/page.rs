//! One of the rows that together say in which namespaces the consumers of each service are.
//!
//! What holds of a service is all that any page says of it. So who writes has to know one page only, whatever else is written at the
//! same time: what is new goes into a page that has room, and nothing is taken from a page but what nobody needs any more.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::visibility::{Names, ServiceId};

/// Namespaces by service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Page {
    services: BTreeMap<ServiceId, Names>,
}

/// As it stands in the row: services of the same namespaces together, so that a service takes little more than its eight bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    groups: Vec<Group>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Group {
    namespaces: Vec<Arc<str>>,
    /// Base64 of eight bytes for each, in their order.
    services: String,
}

impl Page {
    /// The services, with their namespaces.
    pub fn services(&self) -> impl Iterator<Item = (ServiceId, &Names)> {
        self.services.iter().map(|(id, names)| (*id, names))
    }

    /// The namespaces of a service.
    pub fn get(&self, id: ServiceId) -> Option<&Names> {
        self.services.get(&id)
    }

    /// How many services it names.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Adds a namespace.
    pub fn add(&mut self, id: ServiceId, name: &Arc<str>) {
        self.services.entry(id).or_default().insert(Arc::clone(name));
    }

    /// Takes a namespace out.
    pub fn remove(&mut self, id: ServiceId, name: &str) {
        if let Some(names) = self.services.get_mut(&id) {
            names.remove(name);
            if names.is_empty() {
                self.services.remove(&id);
            }
        }
    }
}

impl From<Page> for Wire {
    fn from(page: Page) -> Self {
        let mut groups: BTreeMap<Vec<Arc<str>>, Vec<u8>> = BTreeMap::new();
        for (id, names) in page.services {
            groups.entry(names.into_iter().collect()).or_default().extend(id.0.to_be_bytes());
        }
        let group = |(namespaces, ids)| Group { namespaces, services: STANDARD_NO_PAD.encode(ids) };
        Self { groups: groups.into_iter().map(group).collect() }
    }
}

impl TryFrom<Wire> for Page {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        let mut page = Self::default();
        for Group { namespaces, services } in wire.groups {
            let bytes = STANDARD_NO_PAD.decode(services).map_err(|error| format!("services are no base64: {error}"))?;
            let ids = bytes.chunks(8).map(|id| id.try_into().map(u64::from_be_bytes));
            let ids: Vec<u64> =
                ids.collect::<Result<_, _>>().map_err(|_| "services have eight bytes each".to_owned())?;
            for id in ids {
                page.services.entry(ServiceId(id)).or_default().extend(namespaces.iter().cloned());
            }
        }
        page.services.retain(|_, names| !names.is_empty());
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_it_was_written() {
        let mut page = Page::default();
        for n in 0..100 {
            page.add(ServiceId::of(&n.to_string()), &["shop", "pay", "?"][n % 3].into());
            page.add(ServiceId::of(&n.to_string()), &"all".into());
        }
        let text = serde_json::to_string(&page).unwrap();
        assert_eq!(serde_json::from_str::<Page>(&text).unwrap(), page);
        assert!(text.len() < 100 * 11 + 200, "{}", text.len());
        page.remove(ServiceId::of("0"), "shop");
        page.remove(ServiceId::of("0"), "all");
        assert_eq!((page.len(), page.get(ServiceId::of("0"))), (99, None));
        for wrong in [
            r#"{"groups":[{"namespaces":["a"],"services":"!"}]}"#,
            r#"{"groups":[{"namespaces":["a"],"services":"AAAA"}]}"#,
            r#"{"groups":[],"more":1}"#,
        ] {
            assert!(serde_json::from_str::<Page>(wrong).is_err(), "{wrong}");
        }
    }
}

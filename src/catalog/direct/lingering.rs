//! Addresses whose provider went, and which their entries have for a while yet.
//!
//! A consumer hears of a provider that goes later than its proxy does. Until then it dials the provider's address, past the
//! mesh if no entry has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hashbrown::HashMap;
use serde::Serialize;

use crate::{catalog::key::ServiceKey, model::Millis, translate::service_entry::Member};

/// An application and its port: what there is an entry for. A name is as long as a publisher says, so there is one of it.
pub type Key = (Arc<str>, u16);

/// Most addresses that linger, and those of one entry: each is a listener in every proxy that sees the entry.
const MOST: usize = 10_000;
const MOST_OF_ENTRY: usize = 1_000;

/// An address that lingers, for the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lingers {
    /// Whose entry has it.
    pub application: Arc<str>,
    /// When its provider went, in milliseconds since the epoch.
    pub since: Millis,
}

/// The addresses that linger. There is no provider at any of them.
#[derive(Debug, Clone, Default)]
pub struct Lingering {
    by_place: HashMap<(IpAddr, u16), (Lingers, ServiceKey)>,
    /// The providers that went, by entry.
    by_entry: BTreeMap<Key, BTreeMap<IpAddr, Member>>,
    /// The longest gone first.
    order: BTreeSet<(Millis, IpAddr, u16)>,
    /// Addresses that began to linger, or no longer do.
    changed: Vec<(SocketAddr, Option<Lingers>)>,
    /// How many addresses do not linger since too many did, so far.
    refused: u64,
}

impl Lingering {
    /// The providers that went from an entry.
    pub fn of(&self, key: &Key) -> Option<&BTreeMap<IpAddr, Member>> {
        self.by_entry.get(key)
    }

    /// The last provider at an address of this entry went, an endpoint of a service. Where too many linger, this one does not.
    pub fn begin(&mut self, now: Millis, key: &Key, address: IpAddr, id: &ServiceKey, member: &Member) {
        let most = self.by_entry.get(key).is_some_and(|entry| entry.len() >= MOST_OF_ENTRY);
        if most || self.by_place.len() >= MOST {
            self.refused += 1;
            return;
        }
        let (application, port) = key.clone();
        let lingers = Lingers { application: Arc::clone(&application), since: now };
        self.changed.push((SocketAddr::new(address, port), Some(lingers.clone())));
        self.by_place.insert((address, port), (lingers, id.clone()));
        self.order.insert((now, address, port));
        self.by_entry.entry((application, port)).or_default().insert(address, member.alone());
    }

    /// An address lingers no longer; returns the entry that had it.
    pub fn end(&mut self, address: IpAddr, port: u16) -> Option<Key> {
        let (Lingers { application, since }, _) = self.by_place.remove(&(address, port))?;
        self.order.remove(&(since, address, port));
        let key = (application, port);
        if let Some(entry) = self.by_entry.get_mut(&key) {
            entry.remove(&address);
            if entry.is_empty() {
                self.by_entry.remove(&key);
            }
        }
        self.changed.push((SocketAddr::new(address, port), None));
        Some(key)
    }

    /// Ends what has lingered since `over` or longer; returns the entries that had it.
    pub fn end_since(&mut self, over: Millis) -> BTreeSet<Key> {
        let mut touched = BTreeSet::new();
        while let Some((since, address, port)) = self.order.first().copied().filter(|(since, ..)| *since <= over) {
            // Whatever else there may be of it, it is not the first any more.
            self.order.remove(&(since, address, port));
            touched.extend(self.end(address, port));
        }
        touched
    }

    /// Ends all but what is to stay; returns the entries that had it.
    pub fn retain(&mut self, stays: impl Fn(&ServiceKey, &str, IpAddr, &Member) -> bool) -> BTreeSet<Key> {
        let all = self.by_entry.iter().flat_map(|(key, entry)| entry.iter().map(move |at| (key, at)));
        let over = all.filter(|((application, port), (address, member))| {
            let of = self.by_place.get(&(**address, *port));
            !of.is_some_and(|(_, id)| stays(id, application, **address, member))
        });
        let over: Vec<(IpAddr, u16)> = over.map(|((_, port), (address, _))| (*address, *port)).collect();
        over.into_iter().filter_map(|(address, port)| self.end(address, port)).collect()
    }

    /// Since when the first one that will be over lingers.
    pub fn first(&self) -> Option<Millis> {
        self.order.first().map(|(since, ..)| *since)
    }

    /// How many linger.
    pub fn count(&self) -> usize {
        self.by_place.len()
    }

    /// How many addresses did not linger since too many did, so far.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Addresses that began to linger or no longer do, since the last call.
    pub fn changed(&mut self) -> Vec<(SocketAddr, Option<Lingers>)> {
        std::mem::take(&mut self.changed)
    }
}

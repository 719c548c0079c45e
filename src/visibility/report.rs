//! What one session server says of its subscribers.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::visibility::{Names, ServiceId, UNKNOWN};

/// A client that subscribes to services.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client {
    /// Its application, as it says itself; `None`: it says none, or the session server does not tell.
    pub application: Option<Arc<str>>,
    /// Its address, if that is one.
    pub address: Option<IpAddr>,
    /// The cell that it names.
    pub cell: Option<Arc<str>>,
}

/// What is other with the clients of a session server.
#[derive(Debug, Default)]
pub struct Part {
    /// Who is at these places by now.
    pub clients: Vec<(u32, Option<Client>)>,
    /// Services with the places of all their clients.
    pub services: Vec<(Arc<str>, Box<[u32]>)>,
}

/// The clients of a session server, and what each subscribes to.
#[derive(Debug, Default)]
pub struct Report {
    /// The clients; a place may be empty.
    pub clients: Vec<Option<Client>>,
    /// Each service, with the places of its clients among those.
    pub services: BTreeMap<Arc<str>, Box<[u32]>>,
}

impl Report {
    /// The namespaces of the services' clients, by those of each client; none where it is not known where one is.
    pub fn names(&self, of: &dyn Fn(&Client) -> Vec<Arc<str>>) -> HashMap<ServiceId, Arc<Names>> {
        // Half a million subscriptions are of a few thousand clients in a few dozen namespaces, so a set of those is bits.
        let mut known: Vec<Arc<str>> = vec![UNKNOWN.into()];
        let mut numbers: HashMap<Arc<str>, usize> = HashMap::new();
        let mut number = |name: Arc<str>| {
            *numbers.entry(name).or_insert_with_key(|name| {
                known.push(Arc::clone(name));
                known.len() - 1
            })
        };
        let places: Vec<Vec<usize>> = self
            .clients
            .iter()
            .map(|client| match client.as_ref().map(of) {
                None => Vec::new(),
                Some(none) if none.is_empty() => vec![0],
                Some(names) => names.into_iter().map(&mut number).collect(),
            })
            .collect();
        let mut sets: HashMap<Vec<u64>, Arc<Names>> = HashMap::new();
        let mut all = HashMap::with_capacity(self.services.len());
        for (id, clients) in &self.services {
            let mut bits = vec![0_u64; known.len().div_ceil(64)];
            for n in clients.iter().filter_map(|client| places.get(*client as usize)).flatten() {
                bits[n / 64] |= 1 << (n % 64);
            }
            if bits.iter().all(|word| *word == 0) {
                continue;
            }
            let set = sets.entry(bits).or_insert_with_key(|bits| {
                let is_in = |n: &usize| bits[n / 64] & (1 << (n % 64)) != 0;
                Arc::new((0..known.len()).filter(is_in).map(|n| Arc::clone(&known[n])).collect())
            });
            all.insert(ServiceId::of(id), Arc::clone(set));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_a_service_are_those_of_its_clients() {
        let client = |n: u8| Some(Client { application: None, address: Some([10, 0, 0, n].into()), cell: None });
        let services =
            [("a", vec![0, 1]), ("b", vec![1]), ("c", vec![2]), ("none", vec![]), ("odd", vec![9]), ("empty", vec![3])];
        let report = Report {
            clients: (0..3).map(client).chain([None]).collect(),
            services: services.into_iter().map(|(id, clients)| (id.into(), clients.into())).collect(),
        };
        let of = |client: &Client| match client.address {
            Some(IpAddr::V4(ip)) if ip.octets()[3] == 0 => (0..70).map(|n| format!("n{n}").into()).collect(),
            Some(IpAddr::V4(ip)) if ip.octets()[3] == 1 => vec!["shop".into()],
            _ => Vec::new(),
        };
        let names = report.names(&of);
        assert_eq!(names.len(), 3);
        assert_eq!(names[&ServiceId::of("a")].len(), 71);
        assert_eq!(names[&ServiceId::of("b")].iter().map(|name| &**name).collect::<Vec<_>>(), ["shop"]);
        assert_eq!(names[&ServiceId::of("c")].iter().map(|name| &**name).collect::<Vec<_>>(), ["?"]);
    }
}

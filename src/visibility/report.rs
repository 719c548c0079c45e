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
        self.names_among(self.services.iter().map(|(id, clients)| (ServiceId::of(id), &**clients)), of)
    }

    /// The same of some services, each with the places of its clients. Those without clients are left out.
    pub fn names_among<'s>(
        &self,
        services: impl Iterator<Item = (ServiceId, &'s [u32])>,
        of: &dyn Fn(&Client) -> Vec<Arc<str>>,
    ) -> HashMap<ServiceId, Arc<Names>> {
        // Half a million subscriptions are of a few thousand clients in a few dozen namespaces, so a set of those is bits.
        let mut known: Vec<Arc<str>> = vec![UNKNOWN.into()];
        let mut numbers: HashMap<Arc<str>, usize> = HashMap::from([(UNKNOWN.into(), 0)]);
        let mut number = |known: &mut Vec<Arc<str>>, name: Arc<str>| {
            *numbers.entry(name).or_insert_with_key(|name| {
                known.push(Arc::clone(name));
                known.len() - 1
            })
        };
        let mut places: Vec<Option<Box<[usize]>>> = vec![None; self.clients.len()];
        let mut sets: HashMap<Vec<u64>, Arc<Names>> = HashMap::new();
        let mut all = HashMap::new();
        for (id, clients) in services {
            // As short as can be, so that equal sets are equal.
            let mut bits: Vec<u64> = Vec::new();
            for at in clients.iter().map(|client| *client as usize) {
                let Some(Some(client)) = self.clients.get(at) else { continue };
                let numbers = places[at].get_or_insert_with(|| match of(client) {
                    none if none.is_empty() => [0].into(),
                    names => names.into_iter().map(|name| number(&mut known, name)).collect(),
                });
                for n in numbers {
                    bits.resize(bits.len().max(*n / 64 + 1), 0);
                    bits[*n / 64] |= 1 << (*n % 64);
                }
            }
            if bits.is_empty() {
                continue;
            }
            let set = sets.entry(bits).or_insert_with_key(|bits| {
                let is_in = |n: &usize| bits.get(n / 64).is_some_and(|word| word & (1 << (n % 64)) != 0);
                Arc::new((0..known.len()).filter(is_in).map(|n| Arc::clone(&known[n])).collect())
            });
            all.insert(id, Arc::clone(set));
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

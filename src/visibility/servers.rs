//! The last word of each session server on its subscribers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::visibility::{
    Names, ServiceId,
    report::{Client, Part, Report},
};

/// A report that was read: which services it is of, and where their clients are. Takes as long as there are subscriptions, so it is
/// made while nobody waits.
#[derive(Debug)]
pub struct Read {
    report: Report,
    ids: Vec<(ServiceId, Arc<str>)>,
    names: HashMap<ServiceId, Arc<Names>>,
}

impl Read {
    /// By the namespaces of each client; none: not known.
    pub fn new(report: Report, places: &dyn Fn(&Client) -> Vec<Arc<str>>) -> Self {
        let names = report.names(places);
        let ids = report.services.keys().map(|id| (ServiceId::of(id), Arc::clone(id))).collect();
        Self { report, ids, names }
    }

    /// Where the clients of each service are.
    pub(super) fn names(&self) -> &HashMap<ServiceId, Arc<Names>> {
        &self.names
    }
}

/// A service whose clients on a session server were looked up anew.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) id: ServiceId,
    /// Where they were; `None`: there were none.
    pub(super) before: Option<Arc<Names>>,
    /// Where they are.
    pub(super) after: Option<Arc<Names>>,
}

#[derive(Debug)]
struct Server {
    said: Read,
    /// Since the last round ended.
    is_new: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Servers(BTreeMap<Arc<str>, Server>);

impl Servers {
    /// Whether a session server's clients are in these namespaces already.
    pub(super) fn has(&self, server: &str, read: &Read) -> bool {
        self.0.get(server).is_some_and(|before| before.said.names == read.names)
    }

    /// Takes a session server's word, in the place of the one before.
    pub(super) fn take(&mut self, server: &str, said: Read) {
        self.0.insert(server.into(), Server { said, is_new: true });
    }

    /// Takes what is other with a session server's subscribers, of which it has at most so many. `None`: the rest is not known, or
    /// there is no room.
    pub(super) fn take_part(
        &mut self,
        server: &str,
        part: Part,
        places: &dyn Fn(&Client) -> Vec<Arc<str>>,
        most: usize,
    ) -> Option<Vec<Moved>> {
        let Server { said: Read { report, ids, names }, is_new } = self.0.get_mut(server)?;
        let is_known = |id: &Arc<str>| report.services.contains_key(id);
        let more = part.services.iter().filter(|(id, _)| !is_known(id)).count();
        let room = part.clients.iter().all(|(at, _)| (*at as usize) < most) && report.clients.len() <= most;
        if !room || report.services.len() + more > most {
            return None;
        }
        *is_new = true;
        for (at, client) in part.clients {
            let at = at as usize;
            report.clients.resize(report.clients.len().max(at + 1), None);
            report.clients[at] = client;
        }
        let (mut told, mut lost) = (Vec::with_capacity(part.services.len()), false);
        for (text, clients) in part.services {
            let id = ServiceId::of(&text);
            told.push((id, Arc::clone(&text)));
            if clients.is_empty() {
                lost |= report.services.remove(&text).is_some();
            } else if report.services.insert(Arc::clone(&text), clients).is_none() {
                ids.push((id, text));
            }
        }
        let services = told.iter().map(|(id, text)| (*id, report.services.get(text).map(|clients| &**clients)));
        let moved = look_up(report, names, &services.collect::<Vec<_>>(), places);
        if lost {
            ids.retain(|(_, id)| report.services.contains_key(id));
        }
        Some(moved)
    }

    /// A session server that said what it has before has the same still; whether it did.
    pub(super) fn same(&mut self, server: &str) -> bool {
        self.0.get_mut(server).map(|server| server.is_new = true).is_some()
    }

    /// Looks up anew where these clients are, with the others of their services; of each session server that has any of them.
    pub(super) fn replace(
        &mut self,
        are: &dyn Fn(&Client) -> bool,
        places: &dyn Fn(&Client) -> Vec<Arc<str>>,
    ) -> impl Iterator<Item = Vec<Moved>> {
        self.0.values_mut().filter_map(move |Server { said: Read { report, ids, names }, .. }| {
            let concerned: Vec<bool> = report.clients.iter().map(|client| client.as_ref().is_some_and(are)).collect();
            if !concerned.contains(&true) {
                return None;
            }
            let is_concerned = |client: &u32| concerned.get(*client as usize) == Some(&true);
            let clients_of = |(id, text): &(ServiceId, Arc<str>)| {
                let clients = &**report.services.get(text)?;
                clients.iter().any(is_concerned).then_some((*id, Some(clients)))
            };
            let services: Vec<_> = ids.iter().filter_map(clients_of).collect();
            Some(look_up(report, names, &services, places))
        })
    }

    /// Forgets who is not listed; whether that is anybody.
    pub(super) fn retain(&mut self, listed: &BTreeSet<Arc<str>>) -> bool {
        let before = self.0.len();
        self.0.retain(|server, _| listed.contains(server));
        self.0.len() < before
    }

    /// The listed ones that said nothing since this was asked last.
    pub(super) fn silent(&mut self, listed: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        let has = |server: &&Arc<str>| self.0.get(&***server).is_some_and(|server| server.is_new);
        let silent = listed.iter().filter(|server| !has(server)).cloned().collect();
        self.0.values_mut().for_each(|server| server.is_new = false);
        silent
    }

    /// Whether a consumer of a service is in a namespace.
    pub(super) fn is_there(&self, id: ServiceId, name: &str) -> bool {
        self.0.values().any(|server| server.said.names.get(&id).is_some_and(|names| names.contains(name)))
    }

    /// Every service of every session server, with its dataInfoId and where the clients of it there are.
    pub(super) fn services(&self) -> impl Iterator<Item = (ServiceId, &Arc<str>, &Names)> {
        self.0.values().flat_map(|Server { said: Read { ids, names, .. }, .. }| {
            ids.iter().filter_map(|(id, text)| Some((*id, text, &**names.get(id)?)))
        })
    }

    /// The clients of a service, each with the session server that it is connected to.
    pub(super) fn clients<'a>(&'a self, id: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a Client)> {
        self.0.iter().flat_map(move |(name, Server { said: Read { report, .. }, .. })| {
            let clients = report.services.get(id).into_iter().flat_map(|clients| clients.iter());
            clients.filter_map(move |client| Some((name, report.clients.get(*client as usize)?.as_ref()?)))
        })
    }

    /// Every client, with its session server.
    pub(super) fn all_clients(&self) -> impl Iterator<Item = (&Arc<str>, &Client)> {
        self.0.iter().flat_map(|(name, server)| server.clients().map(move |client| (name, client)))
    }

    /// The clients of a session server; `None`: nothing is known of it.
    pub(super) fn clients_of(&self, server: &str) -> Option<impl Iterator<Item = &Client>> {
        self.0.get(server).map(Server::clients)
    }
}

impl Server {
    fn clients(&self) -> impl Iterator<Item = &Client> {
        self.said.report.clients.iter().flatten()
    }
}

/// Looks up where the clients of some services are, each with the places of these; `None`: it has none any more.
fn look_up(
    report: &Report,
    names: &mut HashMap<ServiceId, Arc<Names>>,
    services: &[(ServiceId, Option<&[u32]>)],
    places: &dyn Fn(&Client) -> Vec<Arc<str>>,
) -> Vec<Moved> {
    let with_clients = services.iter().filter_map(|(id, clients)| Some((*id, (*clients)?)));
    let next = report.names_among(with_clients, places);
    let moved = |(id, _): &(ServiceId, Option<&[u32]>)| {
        let after = next.get(id).cloned();
        let before = match &after {
            Some(after) => names.insert(*id, Arc::clone(after)),
            None => names.remove(id),
        };
        Moved { id: *id, before, after }
    };
    services.iter().map(moved).collect()
}

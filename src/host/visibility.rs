//! Who subscribes to what, as an engine follows it: the shell around [`Keeper`](crate::visibility::keeper::Keeper), whose lock is that of the documents.
//!
//! The host asks whether this server is to collect subscribers, and of which groups; hands in what each session server says; and says
//! when all were asked. A document that is to be written then goes the way of every other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    config::Scope,
    documents::{Documents, Name, NotWritten, Stamp, Write},
    host::{
        desk::Following,
        documents::OURSELVES,
        engine::Engine,
        watching::{ClientShown, OwnClients, Said, VisibilityStatus, Watching},
    },
    kubernetes::{Changed, PodWatch},
    model,
    policy::{Consumers, Mode, Policy, Source, visibility::covers},
    visibility::{
        Names, ServiceId, UNKNOWN,
        keeper::{self, Wanted, World},
        report::{Client, Part, Report},
        seen,
        servers::Read,
    },
};

/// So many clients of a session server are told apart, and so many services taken whether or not the registry has them.
const MOST: usize = 200_000;
/// Names that clients choose are cut to so many characters.
const MOST_NAME: usize = 256;
/// Another server reads 16 MiB.
const MOST_LINES: usize = 15 << 20;
/// Says that clients at any address may have other applications than those that are named.
const MORE: &str = "*||\n";
/// After so long without a word of the host it is not known who subscribes here.
const FRESH: Duration = Duration::from_secs(10);
/// For so long the groups of services that were found count.
const GROUPS: Duration = Duration::from_secs(10);
/// How often a page that is too large for its row is tried with fewer services.
const TRIES: usize = 8;

/// So long, in milliseconds, a consumer of unknown namespace is waited for to be a pod's: its client is often there before the API server
/// shows its address, and whoever begins to compute has yet to list all pods.
const PATIENCE: model::Millis = 60_000;

/// A page shows this many of a kind.
pub(super) const SHOWN: usize = 100;

/// The first clients of some, in their order.
#[derive(Debug)]
pub(super) struct Clients {
    /// How many there are.
    pub(super) count: usize,
    /// As many as a page shows.
    pub(super) first: Vec<ClientShown>,
}

/// Who consumes a service.
#[derive(Debug)]
pub(super) struct Consumed {
    /// Whether `exportTo` follows them.
    pub(super) mode: Mode,
    /// Whether it is known who they are.
    pub(super) known: bool,
    /// `exportTo` without regard to them.
    pub(super) policy: Vec<String>,
    /// Namespaces of the consumers.
    pub(super) consumers: Option<Consumers>,
    /// `exportTo` by the consumers.
    pub(super) visible: Vec<String>,
    /// The consumers themselves, where this server computes.
    pub(super) clients: Clients,
    /// Whether this server computes.
    pub(super) computing: bool,
    /// The session server that computes.
    pub(super) holder: Option<Arc<str>>,
}

/// Services and clients that an operator has to decide about.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Services that fewer see, or would, than by the policy alone.
    pub(super) narrowed: BTreeSet<Arc<str>>,
    /// Services that nobody subscribes to.
    pub(super) unused: BTreeSet<Arc<str>>,
    /// Services with consumers of which it is not known where they are.
    pub(super) unknown: BTreeSet<Arc<str>>,
    /// These consumers; `None`: another server knows them.
    pub(super) clients_nowhere: Option<Clients>,
}

/// Clients of the keeper, copied so that its lock is held no longer than that takes.
fn copied<'k>(clients: impl Iterator<Item = (&'k Arc<str>, &'k Client)>) -> Vec<(Client, Arc<str>)> {
    clients.map(|(server, client)| (client.clone(), Arc::clone(server))).collect()
}

fn shown(where_are: &Places<'_>, mut clients: Vec<(Client, Arc<str>)>) -> Clients {
    clients.sort_unstable();
    clients.dedup();
    let count = clients.len();
    let shown = |(client, server): (Client, Arc<str>)| {
        let (namespaces_by, namespaces) = where_are.place(&client).unzip();
        let Client { application, address, cell } = client;
        ClientShown { application, address, cell, server, namespaces: namespaces.unwrap_or_default(), namespaces_by }
    };
    Clients { count, first: clients.into_iter().take(SHOWN).map(shown).collect() }
}

fn documents(all: &Documents) -> keeper::Documents<'_> {
    let (lease, pages, refused) = (all.lease(), all.pages(), all.refused_visibility());
    keeper::Documents { lease, pages, beat: all.beat(), content: all.content(), refused }
}

/// Whether this server computes who sees what.
fn computes(following: &Following, now: model::Millis) -> bool {
    let Following { documents: all, watching, .. } = following;
    all.as_ref().is_some_and(|all| watching.keeper.computes(now, &documents(all)))
}

/// Clients, a line each; the last one is [`MORE`] where there are more of them than another server reads.
fn lines<'c>(clients: impl Iterator<Item = &'c Client>) -> Arc<str> {
    let mut lines = String::new();
    for Client { application, address, cell } in clients {
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        let (cell, application) = (cell.as_deref().unwrap_or_default(), application.as_deref().unwrap_or_default());
        if lines.len() + address.len() + cell.len() + application.len() > MOST_LINES {
            lines.push_str(MORE);
            break;
        }
        lines.extend([&*address, "|", cell, "|", application, "\n"]);
    }
    lines.into()
}

/// A client as the host says it: address, cell and application with a `|` between; nothing where there is none.
fn read(text: &str) -> Option<Client> {
    if text.is_empty() {
        return None;
    }
    let mut parts = text.splitn(3, '|');
    let address = parts.next().and_then(|address| address.parse().ok()).map(|it: IpAddr| it.to_canonical());
    let cut = |part: &str| Arc::from(part.chars().take(MOST_NAME).collect::<String>());
    let mut named = || parts.next().filter(|part| !part.is_empty()).map(cut);
    let (cell, application) = (named(), named());
    Some(Client { application, address, cell })
}

/// The places of a service's clients.
fn places_of(places: &str) -> Box<[u32]> {
    let places = places.split(' ').filter_map(|place| place.parse().ok());
    let mut places: Vec<u32> = places.map(|place: u32| place.min(MOST as u32)).collect();
    places.dedup();
    places.into()
}

/// In which namespaces clients are: what the policy says, then what Kubernetes says where the policy has it asked.
#[derive(Debug, Clone, Copy)]
struct Places<'a> {
    policy: &'a Policy,
    pods: Option<&'a PodWatch>,
}

impl Places<'_> {
    /// `None`: it is not known where it is.
    fn place(&self, client: &Client) -> Option<(Source, Vec<Arc<str>>)> {
        self.by_policy(client).or_else(|| Some((Source::Kubernetes, vec![self.by_pod(client)?.0])))
    }

    fn by_policy(&self, client: &Client) -> Option<(Source, Vec<Arc<str>>)> {
        let by_policy = self.policy.place_of(client.application.as_deref(), client.address);
        by_policy.map(|(source, names)| (source, names.to_vec()))
    }

    /// The namespace of the client's pod, and whether that is gone.
    fn by_pod(&self, client: &Client) -> Option<(Arc<str>, bool)> {
        self.pods?.namespace(client.address?)
    }

    /// The namespaces that a client counts in. Who has the address of a pod that is gone may be a new one that is shown later.
    fn names(&self, client: &Client) -> Vec<Arc<str>> {
        let Some((_, names)) = self.by_policy(client) else {
            let Some((namespace, is_gone)) = self.by_pod(client) else { return Vec::new() };
            let unknown = is_gone.then(|| UNKNOWN.into());
            return [namespace].into_iter().chain(unknown).collect();
        };
        names
    }
}

impl Engine {
    /// Whether consumers are followed here. With local scope a session server knows the services of its own clients only, so
    /// it neither computes for others nor goes by what they computed.
    fn asks(&self, policy: &Policy) -> bool {
        policy.asks_for_consumers() && self.config().scope == Scope::Cluster
    }

    /// Lends what a keeper goes by.
    fn with_world<T>(&self, policy: &Policy, work: impl FnOnce(&World<'_>) -> T) -> T {
        // Who does not know the registry does not know which groups to ask for.
        let asks = self.asks(policy);
        let hold = policy.document().visibility.hold.as_millis() as model::Millis;
        let (knows, keeps) =
            (|id: &str| self.shared.store.has(id), |id: &str, names: &Names| self.keeps(policy, id, names));
        let pods = self.places(policy).pods;
        let (locates, patience) = (pods.is_none_or(PodWatch::is_current), pods.map_or(0, |_| PATIENCE));
        work(&World { asks, hold, knows: &knows, keeps: &keeps, locates, patience })
    }

    /// Whether consumers in these namespaces see a service as long as nobody is known to consume it.
    fn keeps(&self, policy: &Policy, id: &str, names: &Names) -> bool {
        let (rules, namespace) = (policy.rules(id), &*self.config().namespace);
        let with = rules.visible_to(Some(&seen::consumers(names)), namespace);
        covers(&rules.visible_to(None, namespace), &with, namespace)
    }

    fn places<'a>(&'a self, policy: &'a Policy) -> Places<'a> {
        Places { policy, pods: policy.asks_for_pods().then_some(&self.pods) }
    }

    /// Whether this server is to collect who subscribes to what, and of which groups of services.
    pub fn collects(&self, server: &str) -> Value {
        let (policy, now) = (self.shared.policy.load_full(), self.shared.clock.now());
        let computes = {
            let mut following = self.documents.lock();
            following.watching.keeper.is(server);
            self.asks(&policy) && computes(&following, now)
        };
        self.pods.want(computes && policy.asks_for_pods());
        if !computes {
            return json!({ "asks": self.asks(&policy), "collect": false });
        }
        json!({ "asks": true, "collect": true, "groups": self.groups() })
    }

    /// The groups of services there are; a new one is seen within the time of a round.
    fn groups(&self) -> Arc<BTreeSet<String>> {
        let known = self.documents.lock().watching.groups.clone();
        if let Some((groups, _)) = known.filter(|(_, at)| at.elapsed() < GROUPS) {
            return groups;
        }
        let ids = self.shared.store.ids();
        let groups: BTreeSet<&str> =
            ids.iter().filter_map(|id| id.rsplit_once("#@#")).map(|(_, group)| group).collect();
        let groups = Arc::new(groups.into_iter().map(str::to_owned).collect());
        self.documents.lock().watching.groups = Some((Arc::clone(&groups), Instant::now()));
        groups
    }

    /// Takes the subscribers of a session server: of each client its address, cell and application. Returns whether documents are to
    /// be written now.
    pub fn consumers(&self, server: &str, own: bool, clients: &[String], services: BTreeMap<Arc<str>, String>) -> bool {
        let mut clients: Vec<Option<Client>> = clients.iter().map(|text| read(text)).collect();
        let told = own.then(|| OwnClients {
            server: server.into(),
            lines: Some(lines(clients.iter().flatten())),
            at: Instant::now(),
        });
        // Whoever is not told apart may be anywhere, so services are seen by more. A server whose word is not taken would be silent.
        if clients.len() > MOST {
            clients.truncate(MOST);
            clients.push(Some(Client { application: None, address: None, cell: None }));
        }
        let is_bounded = services.len() <= MOST;
        let services = services.into_iter().filter(|(id, _)| is_bounded || self.shared.store.has(id));
        let services = services.map(|(id, places)| (id, places_of(&places))).collect();
        let policy = self.shared.policy.load_full();
        let (places, pods) = (self.places(&policy), self.pods.version());
        let read = Read::new(Report { clients, services }, &|client| places.names(client));
        let mut following = self.documents.lock();
        following.watching.clients = told.or(following.watching.clients.take());
        following.watching.keeper.report(server, read);
        // What changed since it was read where clients are.
        following.watching.pods = following.watching.pods.min(pods);
        self.follow_places(&mut following, &policy);
        // The news of others are looked for once, when all have answered.
        own && self.is_due(&mut following, &policy)
    }

    /// Takes what is other with this server's subscribers: of clients their places and who is there, and services with all of their clients.
    /// Returns whether the rest is known, without which nothing is taken, and whether documents are to be written now.
    pub fn consumers_part(
        &self,
        server: &str,
        clients: &[String],
        services: BTreeMap<Arc<str>, String>,
    ) -> (bool, bool) {
        let client = |text: &String| {
            let (at, client) = text.split_once(' ')?;
            Some((at.parse().ok()?, read(client)))
        };
        let services = services.into_iter().map(|(id, places)| (id, places_of(&places)));
        let part = Part { clients: clients.iter().filter_map(client).collect(), services: services.collect() };
        let (policy, now) = (self.shared.policy.load_full(), self.shared.clock.now());
        let (places, pods) = (self.places(&policy), self.pods.version());
        let mut following = self.documents.lock();
        if !computes(&following, now) {
            return (false, false);
        }
        self.follow_places(&mut following, &policy);
        let watching = &mut following.watching;
        if !watching.keeper.report_part(server, part, &|client| places.names(client), MOST) {
            return (false, false);
        }
        watching.pods = watching.pods.min(pods);
        watching.clients = Some(OwnClients { server: server.into(), lines: None, at: Instant::now() });
        (true, self.is_due(&mut following, &policy))
    }

    /// Says that a session server has the subscribers that it had; `false`: it is not known which those are.
    pub fn consumers_same(&self, server: &str, own: bool) -> bool {
        let (policy, now) = (self.shared.policy.load_full(), self.shared.clock.now());
        let mut following = self.documents.lock();
        self.follow_places(&mut following, &policy);
        let told = following.watching.clients.as_mut().filter(|_| own);
        let is_told = told.map(|told| told.at = Instant::now()).is_some();
        if computes(&following, now) { following.watching.keeper.same(server) } else { is_told }
    }

    /// The own clients that subscribe, a line each: address, cell and application with a `|` between. `None`: the host has not said
    /// for a while who they are.
    pub(super) fn consumer_lines(&self) -> Option<Arc<str>> {
        let mut following = self.documents.lock();
        let Watching { keeper, clients, .. } = &mut following.watching;
        let told = clients.as_mut().filter(|told| told.at.elapsed() < FRESH)?;
        if told.lines.is_none() {
            told.lines = Some(lines(keeper.clients_of(&told.server)?));
        }
        told.lines.clone()
    }

    /// Ends a round in which all these session servers were asked. Returns whether documents are to be written now.
    pub fn consumers_round(&self, listed: &BTreeSet<Arc<str>>) -> bool {
        let (policy, now) = (self.shared.policy.load_full(), self.shared.clock.now());
        let mut following = self.documents.lock();
        self.follow_places(&mut following, &policy);
        let Following { documents: all, watching, .. } = &mut *following;
        if let Some(all) = all {
            self.with_world(&policy, |world| watching.keeper.end_round(now, listed, &documents(all), world));
        }
        self.is_due(&mut following, &policy)
    }

    fn is_due(&self, following: &mut Following, policy: &Policy) -> bool {
        let Following { documents: all, watching, .. } = following;
        let (now, keeper) = (self.shared.clock.now(), &mut watching.keeper);
        let is_due = |all| self.with_world(policy, |world| keeper.is_due(now, &documents(all), world));
        all.as_ref().is_some_and(is_due)
    }

    /// Has clients be where the policy says and the pods are.
    fn follow_places(&self, following: &mut Following, policy: &Arc<Policy>) {
        let (watching, places) = (&mut following.watching, self.places(policy));
        let before = watching.policy.replace(Arc::clone(policy));
        let since = places.pods.map_or(0, |pods| std::mem::replace(&mut watching.pods, pods.version()));
        if before.is_some_and(|before| !Arc::ptr_eq(&before, policy) && !before.places_as(policy)) {
            watching.keeper.replace(&|_| true, &|client| places.names(client), true);
            return;
        }
        match places.pods.map(|pods| pods.changed(since)) {
            None => {}
            Some(Changed::Any) => watching.keeper.replace(&|_| true, &|client| places.names(client), false),
            Some(Changed::These(addresses)) if addresses.is_empty() => {}
            Some(Changed::These(addresses)) => {
                let are = |client: &Client| client.address.is_some_and(|address| addresses.contains(&address));
                watching.keeper.replace(&are, &|client| places.names(client), false);
            }
        }
    }

    /// The document of who consumes what that is to be written now, if there is one.
    pub(super) fn write_seen(&self, following: &mut Following) -> Option<Write> {
        if self.config().scope == Scope::Local {
            return None;
        }
        let (policy, now) = (self.shared.policy.load_full(), self.shared.clock.now());
        self.follow_places(following, &policy);
        self.with_world(&policy, |world| self.write_next(following, now, world))
    }

    fn write_next(&self, following: &mut Following, now: model::Millis, world: &World<'_>) -> Option<Write> {
        let Following { documents: Some(all), watching, .. } = following else { return None };
        // Whoever cannot collect lets another take the lease.
        let collects = watching.clients.as_ref().is_some_and(|told| told.at.elapsed() < FRESH);
        if world.asks && !(collects && self.view().complete) {
            watching.keeper.look(now, &documents(all));
            return None;
        }
        let why = "who subscribes to what".to_owned();
        let stamp = Stamp { by: OURSELVES.to_owned(), when: model::date(), why };
        for _ in 0..TRIES {
            match watching.keeper.next(now, &documents(all), world)? {
                Wanted::Lease(lease) => return all.set_lease(lease, &stamp),
                Wanted::Page(n, page) => {
                    let services = page.len();
                    match all.set_page(n, page, &stamp) {
                        Ok(write) => return Some(write),
                        Err(NotWritten::TooLarge) => watching.keeper.too_large(n, services),
                        Err(_) => return None,
                    }
                }
            }
        }
        None
    }

    /// From now on that counts which the documents say of who consumes what. Where only the lease was renewed they say what they did.
    pub(super) fn put_seen_in_force(&self, following: &mut Following) {
        let documents = following.documents.as_ref().filter(|_| self.config().scope == Scope::Cluster);
        let said = documents.and_then(|all| {
            all.lease().map(|lease| Said { settled: lease.settled, pages: lease.pages, content: all.content() })
        });
        if following.watching.said.replace(said) == Some(said) {
            return;
        }
        let seen = documents.and_then(Documents::seen);
        self.shared.seen.store(seen.map(Arc::new));
        self.shared.store.wake().wake();
    }

    /// The keys of the documents' rows that the host reads beside those it reads always.
    pub(super) fn visibility_keys(&self) -> BTreeMap<Name, String> {
        if self.config().scope == Scope::Local {
            return BTreeMap::new();
        }
        let asks = self.asks(&self.shared.policy.load());
        let following = self.documents.lock();
        let names = following.documents.as_ref().map(|all| all.visibility_names(asks)).unwrap_or_default();
        names.into_iter().map(|name| (name, name.key())).collect()
    }

    /// Who consumes a service, and what follows from that.
    pub(super) fn consumed(&self, id: &str) -> Consumed {
        let (policy, now) = (self.shared.policy.load_full(), self.shared.clock.now());
        let (rules, seen) = (policy.rules(id), self.shared.seen.load_full());
        let consumers = seen.as_ref().and_then(|seen| seen.get(ServiceId::of(id)).cloned());
        let visible = match &seen {
            Some(_) => rules.visible_to(consumers.as_deref(), &self.config().namespace).into_owned(),
            None => rules.export_to.to_vec(),
        };
        let (computing, clients, holder) = {
            let following = self.documents.lock();
            let lease = following.documents.as_ref().and_then(Documents::lease);
            let holder = lease.map(|lease| Arc::clone(&lease.holder));
            (computes(&following, now), copied(following.watching.keeper.clients(id)), holder)
        };
        Consumed {
            mode: rules.visibility,
            known: seen.is_some(),
            policy: rules.export_to.to_vec(),
            consumers: consumers.map(|consumers| (*consumers).clone()),
            visible,
            clients: shown(&self.places(&policy), clients),
            computing,
            holder,
        }
    }

    /// Services and clients that an operator has to decide about; `None`: it is not known who consumes what.
    pub(super) fn visibility_lists(&self) -> Option<Lists> {
        let (policy, now) = (self.shared.policy.load_full(), self.shared.clock.now());
        let seen = self.shared.seen.load_full()?;
        let mut lists = Lists::default();
        for id in self.shared.store.ids() {
            let (rules, consumers) = (policy.rules(&id), seen.get(ServiceId::of(&id)));
            let namespace = &*self.config().namespace;
            let visible = rules.visible_to(consumers.map(|it| &**it), namespace);
            if !covers(&visible, rules.export_to, namespace) {
                lists.narrowed.insert(Arc::clone(&id));
            }
            match consumers {
                None => drop(lists.unused.insert(id)),
                Some(consumers) if consumers.unknown => drop(lists.unknown.insert(id)),
                Some(_) => {}
            }
        }
        let clients = {
            let following = self.documents.lock();
            computes(&following, now).then(|| copied(following.watching.keeper.all_clients()))
        };
        lists.clients_nowhere = clients.map(|mut clients| {
            let places = self.places(&policy);
            clients.retain(|(client, _)| places.place(client).is_none());
            shown(&places, clients)
        });
        Some(lists)
    }

    pub(super) fn visibility_status(&self) -> VisibilityStatus {
        let (policy, now) = (self.shared.policy.load_full(), self.shared.clock.now());
        let (seen, held) = (self.shared.seen.load_full(), self.shared.report.lock().narrowing);
        let following = self.documents.lock();
        let lease = following.documents.as_ref().and_then(Documents::lease);
        let asks = self.asks(&policy);
        let computing = asks && computes(&following, now);
        let is_local = !asks && policy.asks_for_consumers();
        VisibilityStatus {
            mode: policy.document().visibility.mode,
            asks,
            off: is_local.then_some("mox.scope is local: a session server knows the services of its own clients only"),
            known: seen.is_some(),
            services: seen.map_or(0, |seen| seen.len()),
            holder: lease.filter(|_| asks).map(|lease| Arc::clone(&lease.holder)),
            computing,
            counts: computing.then(|| following.watching.keeper.counts().clone()),
            kubernetes: (computing && policy.asks_for_pods()).then(|| self.pods.report()),
            held,
        }
    }
}

#[cfg(test)]
mod tests;

//! The session server that computes: who it is, what it was told, and what it writes next.
//!
//! Any may. The lease says who does, and whoever sees that nothing was written for a minute takes it; nobody's clock but its own tells it
//! that. Should two compute, each writes over what it has read only, and what holds is all that any page says: so they come to
//! the union.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    model::Millis,
    visibility::{
        Lease, Names, PAGES, ServiceId, UNKNOWN,
        absences::Absences,
        page::Page,
        report::{Client, Part},
        servers::{Moved, Read, Servers},
    },
};

/// Nobody writes more often.
pub const PACE: Millis = 10_000;
/// The holder of the lease writes as often at least.
const RENEW: Millis = 20_000;
/// Who has not written for so long holds the lease no more.
const LEASE: Millis = 60_000;
/// So many services in a page have room in a row, if there are few sets of namespaces.
const MOST_SERVICES: usize = 5_000;

/// The documents as they stand.
#[derive(Debug, Clone, Copy)]
pub struct Documents<'a> {
    /// The lease; `None`: there is none.
    pub lease: Option<&'a Lease>,
    /// The pages, each if it is there.
    pub pages: [Option<&'a Page>; PAGES],
    /// Another number whenever any of them is another one.
    pub beat: u64,
    /// Another number whenever a page says otherwise.
    pub content: u64,
    /// Their rows that are refused.
    pub refused: RefusedRows,
}

/// The rows that are refused, whatever document is held of an earlier one.
#[derive(Debug, Clone, Copy, Default)]
pub struct RefusedRows {
    /// That of the lease.
    pub lease: Option<Refused>,
    /// Those of the pages.
    pub pages: [Option<Refused>; PAGES],
}

/// A row that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Its version.
    pub version: i64,
    /// No release can read it; else only an operator, or an upgrade, helps.
    pub is_damaged: bool,
}

impl Documents<'_> {
    /// How many pages there are, from the first on.
    fn count(&self) -> usize {
        self.pages.iter().rposition(Option::is_some).map_or(0, |n| n + 1)
    }
}

/// The questions to the policy and the registry.
pub struct World<'a> {
    /// Whether the policy asks who consumes what.
    pub asks: bool,
    /// How long a namespace keeps a service that nobody in it consumes.
    pub hold: Millis,
    /// Whether the registry has a service.
    pub knows: &'a dyn Fn(&str) -> bool,
    /// Whether these consumers see a service as long as no page has it.
    pub keeps: &'a dyn Fn(&str, &Names) -> bool,
    /// Whether it is known of all clients where they are by now, as far as anybody can tell: where not, a round removes nothing.
    pub locates: bool,
    /// How long a client of unknown place is waited for to be somewhere.
    pub patience: Millis,
}

/// A document to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The lease.
    Lease(Lease),
    /// A page.
    Page(usize, Page),
}

/// Counts, for status.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Rounds that every session server answered, with all of their clients known to be where they are.
    pub complete: u64,
    /// All other rounds, which removed nothing.
    pub incomplete: u64,
    /// Session servers that did not answer the last round.
    pub silent: BTreeSet<Arc<str>>,
    /// Namespaces of services that nobody in them consumes and that keep them for now.
    pub held: usize,
    /// Namespaces taken from services.
    pub removed: u64,
    /// There is no room for all services: `exportTo` is the policy's until there is.
    pub full: bool,
    /// How often the namespaces of a session server's clients were looked up anew, since policy or pods are others.
    pub replaced: u64,
    /// Of how many services that was, taken together.
    pub replaced_services: u64,
    /// Services with consumers that are waited for to be in a known namespace.
    pub awaited: usize,
    /// How often a session server's subscribers were read, which they are where they are others than before.
    pub told: u64,
    /// How often what was other of them was read alone.
    pub parts: u64,
    /// How often it was looked through all services for what is new, since something was other than before.
    pub looked: u64,
    /// How often it was looked through all services for what is missing, likewise.
    pub compared: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Keeper {
    me: Option<Arc<str>>,
    servers: Servers,
    absences: Absences,
    /// The documents' last beat, and when that was.
    beat: Option<(u64, Millis)>,
    wrote: Option<Millis>,
    /// Rounds that every session server answered since this server computes, whether or not it was known where clients are.
    rounds: u64,
    /// What the pages said when this server looked at them last.
    content: Option<u64>,
    /// Nothing was new or awaited when that was looked for last, and nothing came since: to look costs as much as there are services.
    clean: bool,
    /// Services that somebody consumes and that the registry did not have when that was looked for.
    strangers: HashSet<Arc<str>>,
    /// Services with consumers of unknown place of which no page says so yet, and since when they have.
    unknown_since: HashMap<ServiceId, Millis>,
    /// Rows that are refused, the lease's as the place behind the pages: their versions, and since when each has had it.
    refused: BTreeMap<usize, (i64, Millis)>,
    /// How many services a page had when it was too large for its row.
    caps: BTreeMap<usize, usize>,
    counts: Counts,
}

impl Keeper {
    /// Says who this server is: its address, and behind a slash what tells this start of it from others.
    pub fn is(&mut self, me: &str) {
        if self.me.as_deref() != Some(me) {
            self.me = Some(me.into());
        }
    }

    /// Whether this server computes.
    pub fn computes(&self, now: Millis, documents: &Documents<'_>) -> bool {
        let holds = |lease: &Lease| self.me.as_ref() == Some(&lease.holder);
        documents.lease.is_some_and(holds) && !self.is_dead(now)
    }

    /// Takes what a session server says of its subscribers, in the place of what it said before.
    pub fn report(&mut self, server: &str, read: Read) {
        self.counts.told += 1;
        if !self.servers.has(server, &read) {
            self.absences.end_all(read.names());
            self.look_again();
        }
        self.servers.take(server, read);
    }

    /// Takes what is other with a session server's subscribers, of which it has at most so many. `false`: the rest is not known.
    pub fn report_part(
        &mut self,
        server: &str,
        part: Part,
        places: &dyn Fn(&Client) -> Vec<Arc<str>>,
        most: usize,
    ) -> bool {
        let Some(moved) = self.servers.take_part(server, part, places, most) else { return false };
        self.counts.parts += 1;
        for Moved { id, before, after } in moved {
            after.iter().for_each(|names| self.absences.end(id, names));
            if before != after {
                self.look_again();
            }
        }
        true
    }

    /// A session server that said what it has before has the same still.
    pub fn same(&mut self, server: &str) -> bool {
        self.servers.same(server)
    }

    /// These clients may be elsewhere than they were said to be, by pods or by another policy. Takes as long as their services have
    /// subscriptions, and next to nothing where they are nobody's.
    ///
    /// Who is of no unknown place any more by another policy was so by the one before. By pods that says nothing of who else was.
    pub fn replace(
        &mut self,
        are: &dyn Fn(&Client) -> bool,
        places: &dyn Fn(&Client) -> Vec<Arc<str>>,
        is_by_policy: bool,
    ) {
        let is_unknown = |names: &Option<Arc<Names>>| names.as_ref().is_some_and(|names| names.contains(UNKNOWN));
        let mut is_other = false;
        for moved in self.servers.replace(are, places) {
            self.counts.replaced += 1;
            self.counts.replaced_services += moved.len() as u64;
            for Moved { id, before, after } in moved {
                after.iter().for_each(|names| self.absences.end(id, names));
                is_other |= before != after;
                if is_by_policy && is_unknown(&before) && !is_unknown(&after) {
                    self.absences.found(id);
                }
            }
        }
        if is_other {
            self.look_again();
        }
    }

    /// Pages or consumers are others, so what is new and what is missing is looked for again.
    fn look_again(&mut self) {
        self.clean = false;
        self.absences.doubt();
    }

    /// Whether something new is to be written, and may be now.
    pub fn is_due(&mut self, now: Millis, documents: &Documents<'_>, world: &World<'_>) -> bool {
        if self.clean || !self.computes(now, documents) || self.wrote.is_some_and(|wrote| now - wrote < PACE) {
            return false;
        }
        !self.additions(now, documents, world).is_empty()
    }

    /// Ends a round: every one of the listed session servers was to report since the last. What nobody consumes any more counts only
    /// where all have.
    pub fn end_round(
        &mut self,
        now: Millis,
        listed: &BTreeSet<Arc<str>>,
        documents: &Documents<'_>,
        world: &World<'_>,
    ) {
        if self.servers.retain(listed) {
            self.absences.doubt();
        }
        // Services may have come that somebody subscribed to before.
        self.clean &= !self.strangers.iter().any(|id| (world.knows)(id));
        let silent = self.servers.silent(listed);
        let is_answered = silent.is_empty() && !listed.is_empty();
        let is_complete = is_answered && world.locates;
        self.counts.silent = silent;
        self.clean &= self.rounds > 0 || !is_answered;
        self.rounds += u64::from(is_answered);
        if !is_complete {
            self.counts.incomplete += 1;
            self.absences.end_incomplete();
            return;
        }
        self.counts.complete += 1;
        let servers = &self.servers;
        let is_there = |id, name: &str| servers.is_there(id, name);
        if self.absences.end_complete(now, world.hold, pairs(documents), is_there) {
            self.counts.compared += 1;
            self.counts.held = self.absences.count();
        }
    }

    /// Takes note of the documents as they stand now.
    pub fn look(&mut self, now: Millis, documents: &Documents<'_>) {
        if self.beat.is_none_or(|(beat, _)| beat != documents.beat) {
            self.beat = Some((documents.beat, now));
        }
        if self.content.replace(documents.content) != Some(documents.content) {
            self.look_again();
        }
        let refused = documents.refused.pages.into_iter().chain([documents.refused.lease]).enumerate();
        let versions = refused.filter_map(|(n, row)| Some((n, row?.version)));
        let before = |n: usize| self.refused.get(&n).copied();
        let since = |(n, version)| (n, before(n).filter(|before| before.0 == version).unwrap_or((version, now)));
        self.refused = versions.map(since).collect();
        let holds = documents.lease.is_some_and(|lease| self.me.as_ref() == Some(&lease.holder));
        if !holds {
            self.forget();
        }
    }

    /// Who computes next begins with nothing.
    fn forget(&mut self) {
        let Self { me, beat, wrote, caps, refused, .. } = std::mem::take(self);
        *self = Self { me, beat, wrote, caps, refused, ..Self::default() };
    }

    fn is_dead(&self, now: Millis) -> bool {
        self.beat.is_some_and(|(_, at)| now - at >= LEASE)
    }

    /// Whether a row may be written over; `n`: the page, or [`PAGES`] for the lease. A row that is refused may be right for servers with
    /// another token, of which one computes and writes: so it is written over only once it was the same for as long as a lease holds.
    fn may_write(&self, n: usize, row: Option<Refused>, now: Millis) -> bool {
        let is_old = || self.refused.get(&n).is_some_and(|(_, since)| now - since >= LEASE);
        row.is_none_or(|row| row.is_damaged && is_old())
    }

    /// The document to write now, if there is one.
    pub fn next(&mut self, now: Millis, documents: &Documents<'_>, world: &World<'_>) -> Option<Wanted> {
        self.look(now, documents);
        let me = self.me.clone()?;
        if !world.asks {
            // What is asked for again later is asked for anew.
            self.forget();
        }
        if self.wrote.is_some_and(|wrote| now - wrote < PACE) {
            return None;
        }
        let wanted = match documents.lease {
            Some(lease) if !world.asks => {
                let mine = lease.holder == me || self.is_dead(now) || is_of(&lease.holder, &me);
                (lease.settled && mine).then(|| Wanted::Lease(Lease { settled: false, ..lease.clone() }))
            }
            None if !world.asks => None,
            None => Some(Wanted::Lease(Lease { holder: me, settled: false, pages: documents.count() })),
            Some(lease) if lease.holder == me && !self.is_dead(now) => self.work(now, lease, documents, world),
            Some(lease) if self.is_dead(now) || is_of(&lease.holder, &me) => {
                Some(Wanted::Lease(Lease { holder: me, ..lease.clone() }))
            }
            Some(_) => None,
        };
        let may =
            |wanted: &Wanted| matches!(wanted, Wanted::Page(..)) || self.may_write(PAGES, documents.refused.lease, now);
        let wanted = wanted.filter(may);
        if wanted.is_some() {
            self.wrote = Some(now);
        }
        wanted
    }

    /// What the holder of the lease writes.
    fn work(&mut self, now: Millis, lease: &Lease, documents: &Documents<'_>, world: &World<'_>) -> Option<Wanted> {
        let new = if self.clean { BTreeMap::new() } else { self.additions(now, documents, world) };
        self.counts.full = false;
        if !new.is_empty() {
            if let Some(page) = self.place(new, now, documents, world) {
                return Some(page);
            }
            self.counts.full = true;
            if lease.settled {
                return Some(Wanted::Lease(Lease { settled: false, ..lease.clone() }));
            }
        }
        let settles = self.clean && self.rounds > 0;
        // A page that is lost: who is there is in another one by now, and nothing counts before all pages are there.
        let refused = documents.refused.pages;
        let may = |n: &usize| self.may_write(*n, refused[*n], now);
        let lost = || (0..lease.pages.min(PAGES)).find(|n| documents.pages[*n].is_none() && may(n));
        if let Some(n) = lost().filter(|_| settles) {
            return Some(Wanted::Page(n, Page::default()));
        }
        // A page whose row is damaged: whoever starts now could not read it. Nothing counts of those behind the last.
        let is_known = |n: &usize| documents.pages[*n].is_some() || *n >= lease.pages;
        if let Some(n) = (0..PAGES).find(|n| refused[*n].is_some() && is_known(n) && may(n)) {
            return Some(Wanted::Page(n, documents.pages[n].cloned().unwrap_or_default()));
        }
        let pages = documents.count().max(lease.pages);
        if pages > lease.pages || (settles && !lease.settled) {
            return Some(Wanted::Lease(Lease { settled: lease.settled || settles, pages, ..lease.clone() }));
        }
        let removal = |page: &Page| self.without_dead(page, now, world);
        let pages = documents.pages.iter().enumerate().filter(|(n, _)| may(n));
        let pages = pages.filter_map(|(n, page)| Some((n, removal((*page)?)?)));
        if let Some((n, (page, removed))) = pages.max_by_key(|(_, (_, removed))| *removed) {
            self.counts.removed += removed as u64;
            return Some(Wanted::Page(n, page));
        }
        let renews = self.wrote.is_none_or(|wrote| now - wrote >= RENEW);
        renews.then(|| Wanted::Lease(lease.clone()))
    }

    /// The namespaces that consumers are in and that no page has, of services that the registry has. Who may be found soon is not yet
    /// of unknown place, by which all would see the service; nor is then a service in a page that all see as long as it is in none.
    fn additions(&mut self, now: Millis, documents: &Documents<'_>, world: &World<'_>) -> BTreeMap<ServiceId, Names> {
        let mut new: BTreeMap<ServiceId, Names> = BTreeMap::new();
        let before = std::mem::take(&mut self.unknown_since);
        let (mut since_when, mut lost) = (HashMap::new(), HashSet::new());
        // Of what is not settled nothing counts.
        let counts = documents.lease.is_some_and(|lease| lease.settled);
        let mut unused: BTreeMap<ServiceId, &Arc<str>> = BTreeMap::new();
        let mut strangers = HashSet::new();
        self.counts.looked += 1;
        for (id, text, names) in self.servers.services() {
            let is_new = |name: &&Arc<str>| {
                let has = |page: &&Page| page.get(id).is_some_and(|names| names.contains(*name));
                !documents.pages.iter().flatten().any(has)
            };
            let mut missing = names.iter().filter(is_new).peekable();
            if missing.peek().is_none() {
                continue;
            }
            if !(world.knows)(text) {
                strangers.insert(Arc::clone(text));
                continue;
            }
            if counts && !documents.pages.iter().flatten().any(|page| page.get(id).is_some()) {
                unused.insert(id, text);
            }
            for name in missing {
                let mut may_be_found = || {
                    let since = *since_when.entry(id).or_insert_with(|| before.get(&id).copied().unwrap_or(now));
                    now - since < world.patience
                };
                if **name == *UNKNOWN && may_be_found() {
                    lost.insert(id);
                } else {
                    new.entry(id).or_default().insert(Arc::clone(name));
                }
            }
        }
        // Who else consumes it is not known before all have answered.
        let may_narrow = |id: &ServiceId| self.rounds > 0 && !lost.contains(id);
        let waits = |id: &ServiceId, names: &Names| {
            !names.contains(UNKNOWN) && unused.get(id).is_some_and(|text| !may_narrow(id) && (world.keeps)(text, names))
        };
        new.retain(|id, names| !waits(id, names));
        self.counts.awaited = lost.len();
        self.clean = new.is_empty() && lost.is_empty();
        (self.unknown_since, self.strangers) = (since_when, strangers);
        new
    }

    /// The first page that has room, with as much of what is new as it has room for.
    fn place(
        &mut self,
        new: BTreeMap<ServiceId, Names>,
        now: Millis,
        documents: &Documents<'_>,
        world: &World<'_>,
    ) -> Option<Wanted> {
        for (n, page) in documents.pages.iter().enumerate() {
            if !self.may_write(n, documents.refused.pages[n], now) {
                continue;
            }
            let cap = self.caps.get(&n).copied();
            let mut next = page.cloned().unwrap_or_default();
            if let Some((without, removed)) = self.without_dead(&next, now, world) {
                self.counts.removed += removed as u64;
                next = without;
            }
            let before = next.clone();
            for (id, names) in &new {
                // Where a row was too large the services that it has count as well, since more of them may have another set.
                let has_room = next.len() < cap.unwrap_or(MOST_SERVICES);
                if has_room || (cap.is_none() && next.get(*id).is_some()) {
                    names.iter().for_each(|name| next.add(*id, name));
                }
            }
            if next != before {
                return Some(Wanted::Page(n, next));
            }
        }
        None
    }

    /// A page without what nobody has needed for long enough, and how much that is; `None`: it needs all.
    fn without_dead(&self, page: &Page, now: Millis, world: &World<'_>) -> Option<(Page, usize)> {
        if !self.absences.are_fresh(now) {
            return None;
        }
        let is_dead = |id: ServiceId, name: &Arc<str>| {
            self.absences.is_over(id, name, world.hold) && !self.servers.is_there(id, name)
        };
        let dead: Vec<(ServiceId, Arc<str>)> = page
            .services()
            .flat_map(|(id, names)| names.iter().map(move |name| (id, name)))
            .filter(|(id, name)| is_dead(*id, name))
            .map(|(id, name)| (id, Arc::clone(name)))
            .collect();
        let mut next = page.clone();
        dead.iter().for_each(|(id, name)| next.remove(*id, name));
        (!dead.is_empty()).then_some((next, dead.len()))
    }

    /// A page of so many services was too large for its row.
    pub fn too_large(&mut self, n: usize, services: usize) {
        self.caps.insert(n, services * 3 / 4);
        self.wrote = None;
    }

    /// For status.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The clients of a service, each with the session server that it is connected to.
    pub fn clients<'a>(&'a self, id: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a Client)> {
        self.servers.clients(id)
    }

    /// Every client.
    pub fn all_clients(&self) -> impl Iterator<Item = (&Arc<str>, &Client)> {
        self.servers.all_clients()
    }

    /// The clients of a session server; `None`: nothing is known of it.
    pub fn clients_of(&self, server: &str) -> Option<impl Iterator<Item = &Client>> {
        self.servers.clients_of(server)
    }
}

/// Everything that the pages say.
fn pairs<'a>(documents: &Documents<'a>) -> impl Iterator<Item = (ServiceId, &'a Arc<str>)> {
    let services = documents.pages.into_iter().flatten().flat_map(Page::services);
    services.flat_map(|(id, names)| names.iter().map(move |name| (id, name)))
}

/// Whether two are the same session server, started at different times.
fn is_of(one: &str, other: &str) -> bool {
    let address = |name: &str| name.split('/').next().map(str::to_owned);
    address(one) == address(other)
}

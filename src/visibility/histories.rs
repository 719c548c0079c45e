//! Random histories of consumers that come, go and move, and of session servers that compute, are killed, paused, cut off from the store,
//! do not answer, or do not know where pods are: a service is never hidden from a namespace in which somebody consumed it within the
//! hold, and in the end everybody who is there is seen.
//!
//! `MOX_VISIBILITY_HISTORIES` (100) histories, from the seed `MOX_SEED`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};

use crate::{
    model::Millis,
    visibility::{
        Lease, PAGES, ServiceId,
        absences::BLIND,
        keeper::{Documents, Keeper, RefusedRows, Wanted, World},
        page::Page,
        report::{Client, Report},
        servers::Read,
    },
};

const SERVERS: usize = 3;
const CONSUMERS: usize = 8;
const SERVICES: usize = 6;
const HOLD: Millis = 300_000;
const STEPS: usize = 80;
const TICK: Millis = 3_000;
/// How often the holder asks all.
const ROUND: Millis = 15_000;
/// How long who has no known place may still turn out to have one.
const PATIENCE: Millis = 60_000;
/// How long meta lists a session server that is gone.
const LISTED: Millis = 30_000;

struct Random(TestRng);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }
}

/// The rows of the store, each with its version.
#[derive(Debug, Clone, Default)]
struct Rows {
    lease: (u64, Option<Lease>),
    pages: BTreeMap<usize, (u64, Page)>,
    writes: u64,
}

impl Rows {
    fn documents(&self) -> Documents<'_> {
        let pages = std::array::from_fn(|n| self.pages.get(&n).map(|(_, page)| page));
        let beat = self.lease.0 * 1_000_003 + self.pages.values().map(|(version, _)| version).sum::<u64>();
        let content = self.pages.iter().map(|(n, (version, _))| version << (4 * n)).sum();
        Documents { lease: self.lease.1.as_ref(), pages, beat, content, refused: RefusedRows::default() }
    }

    /// The services that a consumer of unknown place sees.
    fn shown_to_all(&self) -> BTreeSet<String> {
        let pairs =
            if self.lease.1.as_ref().is_some_and(|lease| lease.settled) { self.pairs() } else { BTreeSet::new() };
        let is_shown = |id: &String| {
            let id = ServiceId::of(id);
            pairs.contains(&(id, "?".into())) || !pairs.iter().any(|(of, _)| *of == id)
        };
        (0..SERVICES).map(service).filter(is_shown).collect()
    }

    fn pairs(&self) -> BTreeSet<(ServiceId, Arc<str>)> {
        let services = self.pages.values().flat_map(|(_, page)| page.services());
        services.flat_map(|(id, names)| names.iter().map(move |name| (id, Arc::clone(name)))).collect()
    }
}

#[derive(Debug)]
struct Server {
    keeper: Keeper,
    /// As it read the rows last.
    known: Rows,
    is_alive: bool,
    /// Until when meta lists it.
    listed_until: Millis,
    is_paused: bool,
    is_cut: bool,
    is_silent: bool,
    /// It does not know where pods are: who is in the first two namespaces is so by a pod.
    is_blind: bool,
    starts: usize,
    asked_at: Millis,
}

#[derive(Debug, Clone)]
struct Consumer {
    /// Its namespace; `None`: nobody knows.
    namespace: Option<usize>,
    server: Option<usize>,
    services: BTreeSet<usize>,
}

struct Model {
    now: Millis,
    rows: Rows,
    servers: Vec<Server>,
    consumers: Vec<Consumer>,
    /// When a consumer of a service was in a namespace last, after it had been there for so long that whoever asks had to see it.
    had: BTreeMap<(ServiceId, Arc<str>), Millis>,
    /// Since when each consumer subscribes to a service at a server.
    since: BTreeMap<(usize, usize, usize), Millis>,
    asks: bool,
    wrote: Vec<Millis>,
}

fn service(n: usize) -> String {
    format!("com.example.S{n}")
}

fn name_of(consumer: &Consumer) -> Arc<str> {
    consumer.namespace.map_or_else(|| "?".into(), |n| format!("n{n}").into())
}

/// Where a client is, as its application says.
fn places(client: &Client, is_blind: bool) -> Vec<Arc<str>> {
    let is_known = |name: &&Arc<str>| ***name != *"?" && !(is_blind && matches!(&***name, "n0" | "n1"));
    client.application.iter().filter(is_known).cloned().collect()
}

impl Model {
    fn new() -> Self {
        let server = |n: usize| {
            let mut keeper = Keeper::default();
            keeper.is(&format!("10.0.0.{n}/0"));
            Server {
                keeper,
                known: Rows::default(),
                is_alive: true,
                listed_until: Millis::MAX,
                is_paused: false,
                is_cut: false,
                is_silent: false,
                is_blind: false,
                starts: 0,
                asked_at: 0,
            }
        };
        let consumer = |n: usize| Consumer {
            namespace: [Some(0), Some(1), Some(2), None][n % 4],
            server: None,
            services: BTreeSet::new(),
        };
        Self {
            now: 1_700_000_000_000,
            rows: Rows::default(),
            servers: (0..SERVERS).map(server).collect(),
            consumers: (0..CONSUMERS).map(consumer).collect(),
            had: BTreeMap::new(),
            since: BTreeMap::new(),
            asks: true,
            wrote: Vec::new(),
        }
    }

    fn report_of(consumers: &[Consumer], n: usize) -> Report {
        let all: Vec<&Consumer> = consumers.iter().filter(|consumer| consumer.server == Some(n)).collect();
        let mut services: BTreeMap<Arc<str>, Vec<u32>> = BTreeMap::new();
        for (at, consumer) in all.iter().enumerate() {
            for id in &consumer.services {
                services.entry(service(*id).into()).or_default().push(at as u32);
            }
        }
        let client =
            |consumer: &&Consumer| Some(Client { application: Some(name_of(consumer)), address: None, cell: None });
        Report {
            clients: all.iter().map(client).collect(),
            services: services.into_iter().map(|(id, clients)| (id, clients.into())).collect(),
        }
    }

    /// What three seconds bring.
    fn tick(&mut self, random: &mut Random) {
        self.now += TICK;
        let mut since = BTreeMap::new();
        for (n, consumer) in self.consumers.iter().enumerate() {
            for id in consumer.services.iter().filter(|_| consumer.server.is_some()) {
                let run = (n, consumer.server.unwrap(), *id);
                let began = self.since.get(&run).copied().unwrap_or(self.now);
                since.insert(run, began);
                if self.now - began > BLIND + ROUND + TICK {
                    self.had.insert((ServiceId::of(&service(*id)), name_of(consumer)), self.now);
                }
            }
        }
        self.since = since;
        // One is not in the registry.
        let knows = |id: &str| id != service(SERVICES - 1);
        let listed: Vec<usize> = (0..SERVERS).filter(|n| self.servers[*n].listed_until > self.now).collect();
        let names: BTreeSet<Arc<str>> = listed.iter().map(|n| n.to_string().into()).collect();
        let answers: Vec<bool> =
            self.servers.iter().map(|server| server.is_alive && !server.is_paused && !server.is_silent).collect();
        for n in 0..SERVERS {
            let before = self.rows.clone();
            let server = &mut self.servers[n];
            if !server.is_alive || server.is_paused {
                continue;
            }
            // Who was paused may write by what it read before.
            if !server.is_cut && random.below(8) > 0 {
                server.known = self.rows.clone();
            }
            let known = server.known.clone();
            let is_blind = server.is_blind;
            let places = |client: &Client| places(client, is_blind);
            let world = World {
                asks: self.asks,
                hold: HOLD,
                knows: &knows,
                keeps: &|_, _| true,
                locates: !is_blind,
                patience: PATIENCE,
            };
            server.keeper.look(self.now, &known.documents());
            if server.keeper.computes(self.now, &known.documents()) {
                server.keeper.report(&n.to_string(), Read::new(Self::report_of(&self.consumers, n), &places));
                if self.now - server.asked_at >= ROUND {
                    server.asked_at = self.now;
                    for other in listed.iter().filter(|other| **other != n && answers[**other]) {
                        let report = Self::report_of(&self.consumers, *other);
                        self.servers[n].keeper.report(&other.to_string(), Read::new(report, &places));
                    }
                    let server = &mut self.servers[n];
                    server.keeper.end_round(self.now, &names, &known.documents(), &world);
                }
            }
            let server = &mut self.servers[n];
            let wanted = server.keeper.next(self.now, &known.documents(), &world);
            if server.is_cut {
                continue;
            }
            match wanted {
                Some(Wanted::Lease(lease)) if self.rows.lease.0 == known.lease.0 => {
                    self.rows.lease = (known.lease.0 + 1, Some(lease));
                    self.rows.writes += 1;
                    self.wrote.push(self.now);
                }
                Some(Wanted::Page(at, page)) => {
                    let version = |rows: &Rows| rows.pages.get(&at).map_or(0, |(version, _)| *version);
                    if version(&self.rows) == version(&known) {
                        self.rows.pages.insert(at, (version(&known) + 1, page));
                        self.rows.writes += 1;
                        self.wrote.push(self.now);
                    }
                }
                _ => {}
            }
            if self.rows.writes == before.writes {
                continue;
            }
            let (shown, shown_now) = (before.shown_to_all(), self.rows.shown_to_all());
            for id in shown.difference(&shown_now) {
                let mut clients = self.servers[n].keeper.clients(id);
                let is_unknown = |client: &Client| client.application.as_deref() == Some("?");
                assert!(
                    !clients.any(|(_, client)| is_unknown(client)),
                    "{id} is hidden from a consumer that is somewhere"
                );
            }
            let (before, after) = (before.pairs(), self.rows.pairs());
            for (id, name) in before.difference(&after) {
                let last = self.had.get(&(*id, Arc::clone(name))).copied().unwrap_or(Millis::MIN / 2);
                assert!(self.now - last >= HOLD, "{name} loses {id:?} {} ms after its last consumer", self.now - last);
            }
        }
    }

    fn step(&mut self, random: &mut Random) {
        let (c, s) = (random.below(CONSUMERS), random.below(SERVERS));
        match random.below(16) {
            0..=2 => {
                self.consumers[c].services.insert(random.below(SERVICES));
                if self.servers[s].is_alive {
                    self.consumers[c].server.get_or_insert(s);
                }
            }
            3 => drop(self.consumers[c].services.pop_first()),
            4..=5 => self.consumers[c].server = Some(s).filter(|s| self.servers[*s].is_alive),
            6 => self.consumers[c].server = None,
            7 => {
                let server = &mut self.servers[s];
                (server.is_alive, server.listed_until) = (false, self.now + LISTED);
                for consumer in self.consumers.iter_mut().filter(|consumer| consumer.server == Some(s)) {
                    consumer.server = None;
                }
            }
            8 => self.start(s),
            9 => self.servers[s].is_paused = random.below(2) == 0,
            10 => self.servers[s].is_cut = random.below(2) == 0,
            11 => self.servers[s].is_silent = random.below(2) == 0,
            13 => {
                let server = &mut self.servers[s];
                server.is_blind = random.below(2) == 0;
                let is_blind = server.is_blind;
                server.keeper.replace(&|_| true, &|client| places(client, is_blind), false);
            }
            12 if random.below(4) == 0 => self.asks = !self.asks,
            _ => {}
        }
        let ticks = [1, 3, 10, 40, 150][random.below(5)];
        (0..ticks).for_each(|_| self.tick(random));
    }

    fn start(&mut self, s: usize) {
        let server = &mut self.servers[s];
        if !server.is_alive {
            server.starts += 1;
            (server.is_alive, server.is_paused, server.listed_until) = (true, false, Millis::MAX);
            server.keeper = Keeper::default();
            server.keeper.is(&format!("10.0.0.{s}/{}", server.starts));
        }
    }

    /// In the end all that is there is in the documents, and all that is not is gone from them.
    fn settle(&mut self, random: &mut Random) {
        for s in 0..SERVERS {
            self.start(s);
            let server = &mut self.servers[s];
            (server.is_paused, server.is_cut, server.is_silent, server.is_blind) = (false, false, false, false);
        }
        self.asks = true;
        (0..1_000 / 3).for_each(|_| self.tick(random));
        let mut there = BTreeSet::new();
        for consumer in self.consumers.iter().filter(|consumer| consumer.server.is_some()) {
            there.extend(consumer.services.iter().map(|id| (*id, name_of(consumer))));
        }
        let known: BTreeSet<(ServiceId, Arc<str>)> = there
            .into_iter()
            .filter(|(id, _)| *id != SERVICES - 1)
            .map(|(id, name)| (ServiceId::of(&service(id)), name))
            .collect();
        assert_eq!(self.rows.pairs(), known);
        assert!(self.rows.lease.1.as_ref().is_some_and(|lease| lease.settled));
    }
}

fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

#[test]
fn a_service_is_never_hidden_from_where_somebody_consumed_it_lately() {
    let first = number("MOX_SEED", 0);
    let (mut writes, mut removed) = (0, 0);
    for seed in first..first + number("MOX_VISIBILITY_HISTORIES", 100) {
        let mut random = Random(TestRng::from_seed(RngAlgorithm::XorShift, &(seed as u128 + 1).to_le_bytes()));
        let mut model = Model::new();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..STEPS).for_each(|_| model.step(&mut random));
            model.settle(&mut random);
        }));
        if let Err(panic) = done {
            eprintln!("MOX_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        writes += model.rows.writes;
        removed += model.servers.iter().map(|server| server.keeper.counts().removed).sum::<u64>();
    }
    assert!(writes > 1_000 && removed > 10, "{writes} writes and {removed} removals say little");
}

#[test]
fn one_writes_no_more_often_than_every_ten_seconds() {
    let mut random = Random(TestRng::from_seed(RngAlgorithm::XorShift, &7_u128.to_le_bytes()));
    let mut model = Model::new();
    for (n, consumer) in model.consumers.iter_mut().enumerate() {
        (consumer.server, consumer.services) = (Some(n % SERVERS), (0..SERVICES).collect());
    }
    (0..400).for_each(|_| model.tick(&mut random));
    let few = model.wrote.windows(2).filter(|pair| pair[1] - pair[0] < super::keeper::PACE).count();
    // Two may take the lease at the very first.
    assert!(few <= 1 && model.wrote.len() > 40, "{few} of {}", model.wrote.len());
    assert!(PAGES >= 4 && model.rows.pages.len() == 1);
}

/// A page that is lost is not missed for ever: nothing counts without it, so it begins anew once everybody who is there is in another.
#[test]
fn a_page_that_is_lost_begins_anew() {
    let (mut keeper, now) = (Keeper::default(), 1_700_000_000_000);
    keeper.is("10.0.0.1/1");
    let world = World { asks: true, hold: HOLD, knows: &|_| true, keeps: &|_, _| true, locates: true, patience: 0 };
    let lease = Lease { holder: "10.0.0.1/1".into(), settled: true, pages: 2 };
    let mut page = Page::default();
    let documents = |page: &'static Page| {
        let pages = std::array::from_fn(|n| Some(page).filter(|_| n == 0));
        Documents {
            lease: Some(Box::leak(Box::new(lease.clone()))),
            pages,
            beat: page.len() as u64,
            content: page.len() as u64,
            refused: RefusedRows::default(),
        }
    };
    let empty = documents(Box::leak(Box::new(page.clone())));
    keeper.look(now, &empty);
    let client = Client { application: Some("shop".into()), address: None, cell: None };
    let report = Report { clients: vec![Some(client)], services: BTreeMap::from([("a".into(), [0].into())]) };
    keeper.report("10.0.0.1", Read::new(report, &|client| client.application.iter().cloned().collect()));
    keeper.end_round(now, &["10.0.0.1".into()].into(), &empty, &world);
    page.add(ServiceId::of("a"), &"shop".into());
    assert_eq!(keeper.next(now, &empty, &world), Some(Wanted::Page(0, page.clone())), "first who is there");
    let written = documents(Box::leak(Box::new(page)));
    assert_eq!(keeper.next(now + 10_000, &written, &world), Some(Wanted::Page(1, Page::default())));
}

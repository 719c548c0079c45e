//! What the holder of the lease writes, step by step.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
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
        keeper::{Documents, Keeper, Refused, RefusedRows, Wanted, World},
        page::Page,
        report::{Client, Part, Report},
        servers::Read,
    },
};

const NOW: Millis = 1_700_000_000_000;
const ROUND: Millis = 15_000;
const MINUTE: Millis = 60_000;
const WORLD: World<'static> =
    World { asks: true, hold: MINUTE, knows: &|_| true, keeps: &|_, _| true, locates: true, patience: 0 };

/// The rows, and the server that holds the lease.
struct Desk {
    keeper: Keeper,
    lease: Lease,
    pages: [Option<Page>; PAGES],
    refused: RefusedRows,
    beat: u64,
    now: Millis,
    world: World<'static>,
}

fn page(services: &[(&str, &str)]) -> Page {
    let mut page = Page::default();
    services.iter().for_each(|(id, name)| page.add(ServiceId::of(id), &(*name).into()));
    page
}

/// A client is where its application says, but for `x`.
fn places(client: &Client) -> Vec<Arc<str>> {
    client.application.iter().filter(|name| ***name != *"x").cloned().collect()
}

impl Desk {
    fn new(services: &[(&str, &str)]) -> Self {
        let mut keeper = Keeper::default();
        keeper.is("10.0.0.1/1");
        let lease = Lease { holder: "10.0.0.1/1".into(), settled: true, pages: 1 };
        let pages = std::array::from_fn(|n| (n == 0).then(|| page(services)));
        let mut desk = Self { keeper, lease, pages, refused: RefusedRows::default(), beat: 0, now: NOW, world: WORLD };
        desk.act(|keeper, now, documents| keeper.look(now, documents));
        desk
    }

    /// Another number for other pages.
    fn content(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        for page in self.pages.iter().flatten() {
            page.services().for_each(|all| all.hash(&mut hash));
        }
        hash.finish()
    }

    fn act<T>(&mut self, act: impl FnOnce(&mut Keeper, Millis, &Documents<'_>) -> T) -> T {
        let pages = std::array::from_fn(|n| self.pages[n].as_ref());
        let documents = Documents {
            lease: Some(&self.lease),
            pages,
            beat: self.beat,
            content: self.content(),
            refused: self.refused,
        };
        act(&mut self.keeper, self.now, &documents)
    }

    fn report(&mut self, subscribed: &[(&str, &str)]) {
        let client = |(_, application): &(&str, &str)| {
            let application = Some((*application).into());
            Some(Client { application, address: None, cell: None })
        };
        let services = subscribed.iter().enumerate().map(|(n, (id, _))| (Arc::from(*id), [n as u32].into()));
        let report = Report { clients: subscribed.iter().map(client).collect(), services: services.collect() };
        self.keeper.report("10.0.0.1", Read::new(report, &places));
    }

    /// What a round after a while finds.
    fn round(&mut self, after: Millis, subscribed: &[(&str, &str)]) {
        self.now += after;
        self.beat += 1;
        self.report(subscribed);
        let listed = ["10.0.0.1".into()].into();
        let world = World { ..self.world };
        self.act(|keeper, now, documents| {
            keeper.look(now, documents);
            keeper.end_round(now, &listed, documents, &world);
        });
    }

    fn next(&mut self) -> Option<Wanted> {
        let world = World { ..self.world };
        self.act(|keeper, now, documents| keeper.next(now, documents, &world))
    }
}

#[test]
fn who_comes_and_goes_between_two_rounds_has_been_there() {
    let mut desk = Desk::new(&[("a", "shop")]);
    desk.round(ROUND, &[]);
    desk.round(ROUND, &[]);
    desk.report(&[("a", "shop")]);
    desk.round(ROUND, &[]);
    for _ in 0..3 {
        desk.round(ROUND, &[]);
        assert!(!matches!(desk.next(), Some(Wanted::Page(..))), "the hold is not over");
    }
    desk.round(ROUND, &[]);
    assert_eq!(desk.next(), Some(Wanted::Page(0, Page::default())));
}

#[test]
fn what_becomes_known_by_a_policy_is_no_longer_unknown_and_all_else_keeps_its_hold() {
    let mut desk = Desk::new(&[("a", "?"), ("b", "?")]);
    desk.round(ROUND, &[("a", "x")]);
    desk.keeper.replace(&|_| true, &|_| vec!["shop".into()], true);
    desk.round(ROUND, &[("a", "shop")]);
    assert_eq!(desk.next(), Some(Wanted::Page(0, page(&[("a", "shop"), ("b", "?")]))));
}

#[test]
fn who_is_found_soon_is_never_of_unknown_place() {
    let mut desk = Desk::new(&[]);
    desk.world.patience = 60_000;
    let all = [("a", "x"), ("b", "pay")];
    desk.round(ROUND, &all);
    assert_eq!(desk.next(), Some(Wanted::Page(0, page(&[("b", "pay")]))), "who is known does not wait");
    desk.pages[0] = Some(page(&[("b", "pay")]));
    desk.lease.settled = false;
    desk.round(ROUND, &all);
    assert!(!matches!(desk.next(), Some(Wanted::Lease(Lease { settled: true, .. }))), "not all consumers are in");
    // The pod is listed.
    let shop = |_: &Client| vec!["shop".into()];
    desk.keeper.replace(&|client| client.application.as_deref() == Some("y"), &shop, false);
    assert_eq!(desk.keeper.counts().replaced, 0, "nobody is concerned");
    desk.keeper.replace(&|client| client.application.as_deref() == Some("x"), &shop, false);
    desk.now += ROUND;
    let Some(Wanted::Page(0, next)) = desk.next() else { panic!("it is not written") };
    assert_eq!(next.get(ServiceId::of("a")), Some(&[Arc::from("shop")].into()));
    assert_eq!((desk.keeper.counts().replaced, desk.keeper.counts().awaited), (1, 0));

    // Whoever is not found in a minute may be anywhere.
    desk.pages[0] = Some(next);
    desk.lease.settled = true;
    let mut wrote = Vec::new();
    for _ in 0..6 {
        desk.round(ROUND, &[("a", "shop"), ("b", "pay"), ("c", "x")]);
        wrote.push(matches!(desk.next(), Some(Wanted::Page(..))));
    }
    assert_eq!(wrote, [false, false, false, false, true, true]);
}

#[test]
fn who_is_found_says_nothing_of_who_else_was_of_unknown_place() {
    let mut desk = Desk::new(&[("a", "?")]);
    desk.world.patience = MINUTE;
    desk.round(ROUND, &[("a", "x")]);
    desk.keeper.replace(&|_| true, &|_| vec!["shop".into()], false);
    let wrote = |desk: &mut Desk| {
        desk.round(ROUND, &[("a", "shop")]);
        let Some(Wanted::Page(0, page)) = desk.next() else { return false };
        desk.pages[0] = Some(page);
        true
    };
    assert!(wrote(&mut desk));
    assert_eq!(desk.pages[0], Some(page(&[("a", "shop"), ("a", "?")])), "it may have been another one's");
    let rounds = (1..).find(|_| wrote(&mut desk)).unwrap();
    assert_eq!((rounds, &desk.pages[0]), (MINUTE / ROUND, &Some(page(&[("a", "shop")]))), "the hold is over");
}

#[test]
fn a_service_that_all_see_is_not_hidden_from_whom_is_waited_for() {
    let mut desk = Desk::new(&[("b", "pay")]);
    desk.world.patience = MINUTE;
    let both = |keeper: &mut Keeper| {
        let client = |name: &&str| Some(Client { application: Some((*name).into()), address: None, cell: None });
        let clients = ["pay", "x", "shop"].iter().map(client).collect();
        let services = [("a", vec![1, 2]), ("b", vec![0, 1]), ("c", vec![2])];
        let services = services.into_iter().map(|(id, clients)| (id.into(), clients.into())).collect();
        keeper.report("10.0.0.1", Read::new(Report { clients, services }, &places));
    };
    // Before all have answered nobody knows who else consumes it.
    both(&mut desk.keeper);
    assert!(!matches!(desk.next(), Some(Wanted::Page(..))));
    let end = |desk: &mut Desk| {
        (desk.now, desk.beat) = (desk.now + ROUND, desk.beat + 1);
        both(&mut desk.keeper);
        let world = World { ..desk.world };
        desk.act(|keeper, now, documents| {
            keeper.look(now, documents);
            keeper.end_round(now, &["10.0.0.1".into()].into(), documents, &world);
        });
        desk.next()
    };
    let Some(Wanted::Page(0, written)) = end(&mut desk) else { panic!("c has no consumer that is waited for") };
    assert_eq!(written, page(&[("b", "pay"), ("c", "shop")]));
    desk.pages[0] = Some(written);
    let written = std::iter::repeat_with(|| end(&mut desk)).find_map(|wanted| match wanted {
        Some(Wanted::Page(0, page)) => Some(page),
        _ => None,
    });
    let everything = page(&[("a", "shop"), ("a", "?"), ("b", "pay"), ("b", "?"), ("c", "shop")]);
    assert_eq!(written, Some(everything), "with the unknown ones");

    // Where it is hidden from all anyway nobody waits; nor where nothing counts yet.
    for (is_settled, is_kept) in [(true, false), (false, true)] {
        let mut desk = Desk::new(&[]);
        desk.world.patience = MINUTE;
        desk.lease.settled = is_settled;
        if !is_kept {
            desk.world.keeps = &|_, _| false;
        }
        both(&mut desk.keeper);
        assert_eq!(desk.next(), Some(Wanted::Page(0, page(&[("a", "shop"), ("b", "pay"), ("c", "shop")]))));
    }
}

#[test]
fn who_was_found_and_went_between_two_rounds_has_been_there() {
    let mut desk = Desk::new(&[("a", "batch")]);
    for _ in 0..4 {
        desk.round(ROUND, &[]);
    }
    desk.report(&[("a", "x")]);
    desk.keeper.replace(&|_| true, &|_| vec!["batch".into()], false);
    let rounds = (1..).find(|_| {
        desk.round(ROUND, &[]);
        matches!(desk.next(), Some(Wanted::Page(..)))
    });
    assert_eq!(rounds, Some(1 + MINUTE / ROUND), "the hold begins anew");
}

#[test]
fn services_of_clients_that_stay_are_not_looked_up_anew() {
    let mut desk = Desk::new(&[]);
    desk.report(&[("a", "shop"), ("b", "x"), ("c", "pay"), ("d", "x")]);
    let is_x = |client: &Client| client.application.as_deref() == Some("x");
    let asked = std::cell::Cell::new(0);
    desk.keeper.replace(
        &is_x,
        &|_| {
            asked.set(asked.get() + 1);
            vec!["batch".into()]
        },
        false,
    );
    let counts = desk.keeper.counts();
    assert_eq!((counts.replaced, counts.replaced_services, asked.get()), (1, 2, 2));
    desk.round(ROUND, &[("a", "shop"), ("b", "batch"), ("c", "pay"), ("d", "batch")]);
    let all = page(&[("a", "shop"), ("b", "batch"), ("c", "pay"), ("d", "batch")]);
    assert_eq!(desk.next(), Some(Wanted::Page(0, all)));
}

#[test]
fn while_it_is_not_known_where_clients_are_nothing_is_removed_and_all_are_told() {
    let mut desk = Desk::new(&[("a", "shop")]);
    (desk.lease.settled, desk.world.locates) = (false, false);
    for _ in 0..20 {
        desk.round(ROUND, &[]);
        match desk.next() {
            Some(Wanted::Lease(lease)) => desk.lease = lease,
            other => assert_eq!(other, None),
        }
    }
    assert!(desk.lease.settled, "those of unknown place are in as such");
    assert_eq!((desk.keeper.counts().complete, desk.keeper.counts().removed), (0, 0));
    // The hold begins with the first round in which it is known.
    desk.world.locates = true;
    let mut rounds = 0;
    while !matches!(desk.next(), Some(Wanted::Page(..))) {
        desk.round(ROUND, &[]);
        rounds += 1;
    }
    assert_eq!(rounds, 1 + MINUTE / ROUND);
}

#[test]
fn a_page_that_is_refused_keeps_nothing_else_from_being_written() {
    for is_damaged in [true, false] {
        let mut desk = Desk::new(&[("a", "shop")]);
        desk.refused.pages[0] = Some(Refused { version: 5, is_damaged });
        let all = [("a", "shop"), ("b", "pay")];
        desk.round(ROUND, &all);
        let wanted = Wanted::Page(1, page(&[("b", "pay")]));
        assert_eq!(desk.next().as_ref(), Some(&wanted), "what is new goes elsewhere");
        desk.pages[1] = Some(page(&[("b", "pay")]));
        desk.round(ROUND, &all);
        desk.lease.pages = 2;
        desk.round(ROUND, &all);
        assert_eq!(desk.next(), Some(Wanted::Lease(desk.lease.clone())), "the lease is renewed");
        desk.round(ROUND, &all);
        desk.round(ROUND, &all);
        let wanted = Wanted::Page(0, page(&[("a", "shop")]));
        assert_eq!(desk.next() == Some(wanted), is_damaged, "it is written over if no release can read it");
    }
}

#[test]
fn a_damaged_page_of_which_nothing_is_known_begins_anew_when_all_have_answered() {
    // Of the pages that count one is damaged, and the one behind them.
    for (pages, counts) in [(2, true), (1, false)] {
        let mut desk = Desk::new(&[("a", "shop")]);
        desk.lease.pages = pages;
        desk.refused.pages[1] = Some(Refused { version: 5, is_damaged: true });
        let begins = Some(Wanted::Page(1, Page::default()));
        let mut wanted = None;
        for _ in 0..5 {
            (desk.now, desk.beat) = (desk.now + ROUND, desk.beat + 1);
            desk.report(&[("a", "shop")]);
            wanted = desk.next();
        }
        assert_eq!(wanted == begins, !counts, "{wanted:?}");
        desk.round(ROUND, &[("a", "shop")]);
        assert_eq!(desk.next(), begins);
    }
}

#[test]
fn a_lease_that_is_refused_is_written_over_if_nobody_renews_it() {
    let mut desk = Desk::new(&[]);
    for n in 0..10 {
        desk.refused.lease = Some(Refused { version: n, is_damaged: true });
        desk.round(ROUND, &[]);
        assert_eq!(desk.next(), None, "servers with another token renew it");
    }
    let wanted: Vec<bool> = (0..4)
        .map(|_| {
            desk.round(ROUND, &[]);
            desk.next().is_some()
        })
        .collect();
    assert_eq!(wanted, [false, false, false, true]);
}

#[test]
fn where_nothing_is_new_nothing_is_looked_through() {
    let mut desk = Desk::new(&[("a", "shop"), ("b", "pay")]);
    let all = [("a", "shop"), ("b", "pay"), ("none", "shop")];
    desk.world.knows = &|id| id != "none";
    // Everybody is told of anew, and the lease is renewed again and again; b's consumer goes.
    desk.round(ROUND, &all);
    desk.next();
    desk.round(ROUND, &all[..1]);
    desk.next();
    let before = desk.keeper.counts().clone();
    let mut renewed = 0;
    for _ in 0..3 {
        desk.round(ROUND, &all[..1]);
        renewed += usize::from(matches!(desk.next(), Some(Wanted::Lease(_))));
    }
    let counts = desk.keeper.counts().clone();
    assert_eq!((counts.looked, counts.compared, renewed > 0), (before.looked, before.compared, true));
    assert_eq!(counts.complete, before.complete + 3);
    desk.round(ROUND, &all[..1]);
    assert_eq!(desk.next(), Some(Wanted::Page(0, page(&[("a", "shop")]))), "the hold goes on meanwhile");
    desk.pages[0] = Some(page(&[("a", "shop")]));
    desk.round(ROUND, &[("a", "shop"), ("none", "shop")]);
    assert_eq!(desk.next(), None, "the registry does not have it");
    let before = desk.keeper.counts().looked;
    desk.round(ROUND, &[("a", "shop"), ("none", "shop")]);
    desk.next();
    assert_eq!(desk.keeper.counts().looked, before);
    desk.world.knows = &|_| true;
    desk.round(ROUND, &[("a", "shop"), ("none", "shop")]);
    assert_eq!(desk.next(), Some(Wanted::Page(0, page(&[("a", "shop"), ("none", "shop")]))), "now it has");
}

/// Whatever changes, a part leaves what the whole would say.
#[test]
fn parts_add_up_to_the_whole() {
    const SERVICES: usize = 5;
    let mut random = TestRng::from_seed(RngAlgorithm::XorShift, &3_u128.to_le_bytes());
    let mut below = move |bound: usize| (random.next_u64() % bound as u64) as usize;
    let name = |n: usize| ["shop", "pay", "x", "batch"][n % 4];
    let client =
        |n: usize| Client { application: Some(name(n).into()), address: None, cell: Some(n.to_string().into()) };
    let mut desk = Desk::new(&[("s0", "shop")]);
    let id = |n: usize| Arc::<str>::from(format!("s{n}"));
    desk.keeper.report("10.0.0.1", Read::new(Report::default(), &places));
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut services: BTreeMap<Arc<str>, Box<[u32]>> = BTreeMap::new();
    for _ in 0..500 {
        let mut part = Part::default();
        for _ in 0..below(3) {
            let service = id(below(SERVICES));
            let mut all = BTreeSet::new();
            for _ in 0..below(4) {
                let (at, who) = (below(6), below(9));
                let is_free = !services.values().flatten().any(|used| *used as usize == at);
                if clients.len() <= at || (clients[at].is_none() && is_free) {
                    clients.resize(clients.len().max(at + 1), None);
                    clients[at] = Some(client(who));
                    part.clients.push((at as u32, clients[at].clone()));
                }
                all.insert(at as u32);
            }
            let all: Box<[u32]> = all.into_iter().collect();
            part.services.push((Arc::clone(&service), all.clone()));
            if all.is_empty() {
                services.remove(&service);
            } else {
                services.insert(service, all);
            }
        }
        let free = (0..clients.len()).find(|at| !services.values().flatten().any(|used| *used as usize == *at));
        if let Some(at) = free.filter(|_| below(2) == 0) {
            clients[at] = None;
            part.clients.push((at as u32, None));
        }
        assert!(desk.keeper.report_part("10.0.0.1", part, &places, 100));
        let mut whole = Desk::new(&[("s0", "shop")]);
        let report = Report { clients: clients.clone(), services: services.clone() };
        whole.keeper.report("10.0.0.1", Read::new(report, &places));
        for service in (0..SERVICES).map(id) {
            let all = |desk: &Desk| desk.keeper.clients(&service).map(|(_, it)| it.clone()).collect::<Vec<_>>();
            assert_eq!(all(&desk), all(&whole));
        }
        (desk.now, whole.now) = (desk.now + ROUND, desk.now + ROUND);
        let listed = ["10.0.0.1".into()].into();
        let wanted = [&mut desk, &mut whole].map(|desk| {
            desk.beat += 1;
            let new = desk.act(|keeper, now, documents| {
                keeper.look(now, documents);
                keeper.end_round(now, &listed, documents, &WORLD);
                keeper.is_due(now, documents, &WORLD)
            });
            (new, desk.keeper.counts().held)
        });
        assert_eq!(wanted[0], wanted[1]);
    }
    assert!(!desk.keeper.report_part("10.0.0.2", Part::default(), &places, 100), "nothing is known of it");
    let far = Part { clients: vec![(100, None)], services: Vec::new() };
    assert!(!desk.keeper.report_part("10.0.0.1", far, &places, 100), "there is no room");
    assert_eq!(desk.keeper.counts().told, 1);
}

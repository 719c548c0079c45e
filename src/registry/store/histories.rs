//! Random histories of a service in a registry of two session servers, one of which is ours, against a model of its data
//! server: what the store holds has to be what the data server says.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::{
    model::RegisterVersion,
    registry::frame::{self, Publisher},
};

const ID: &str = "id";
const OURS: usize = 0;
const CLIENTS: usize = 3;
/// So long no read may come.
const LONGEST_STEP: Millis = 20_000;

/// A publisher as the data server keeps it; as its `PublisherGroup` does.
#[derive(Debug, Clone, Copy)]
struct Held {
    version: RegisterVersion,
    session: usize,
    live: bool,
}

#[derive(Debug, Clone, Copy)]
enum Write {
    Publish,
    Unpublish,
    Off,
}

#[derive(Debug, Default)]
struct DataServer {
    publishers: BTreeMap<usize, Held>,
    version: i64,
    /// How far the leader's clock is ahead.
    ahead: Millis,
}

impl DataServer {
    fn bump(&mut self, now: Millis) {
        let by_clock = (now + self.ahead) << 15;
        self.version = if self.version >> 15 == by_clock >> 15 { self.version + 1 } else { by_clock };
    }

    fn write(&mut self, write: Write, client: usize, version: RegisterVersion, session: usize, now: Millis) {
        let known = self.publishers.get(&client).copied();
        match (write, known) {
            (Write::Off, Some(known)) if known.live && known.version <= version && known.session == session => {
                let version = RegisterVersion { timestamp: version.timestamp + 1, ..version };
                self.publishers.insert(client, Held { version, session, live: false });
                self.bump(now);
            }
            (Write::Off, _) => {}
            (_, Some(known)) if known.version >= version => {}
            (write, known) => {
                let live = matches!(write, Write::Publish);
                self.publishers.insert(client, Held { version, session, live });
                // Registered again with the same data: nobody is told.
                let same = known.is_some_and(|known| known.live && live && known.version.version == version.version);
                if !same && (live || known.is_some()) {
                    self.bump(now);
                }
            }
        }
    }

    fn live(&self) -> BTreeMap<usize, RegisterVersion> {
        self.publishers.iter().filter(|(_, held)| held.live).map(|(client, held)| (*client, held.version)).collect()
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A client registers, or registers something else.
    Publish(usize),
    Unpublish(usize),
    /// A client goes to the other session server; the one it left notices after so many steps.
    Move(usize, usize),
    /// A session server sends what it has to send.
    Send(usize),
    /// The session server loses what it would have sent next.
    Lose(usize),
    /// The slot gets a leader whose clock is so far ahead.
    Leader(Millis),
    /// A read begins; is answered; is taken in. The first of those under way, or the last.
    Begin,
    Answer(bool),
    Take(bool),
}

fn steps(lossy: bool) -> impl Strategy<Value = Vec<(Millis, Step)>> {
    let client = 0..CLIENTS;
    let step = prop_oneof![
        3 => client.clone().prop_map(Step::Publish),
        1 => client.clone().prop_map(Step::Unpublish),
        3 => (client, 0usize..4).prop_map(|(client, after)| Step::Move(client, after)),
        6 => (0usize..2).prop_map(Step::Send),
        u32::from(lossy) => (0usize..2).prop_map(Step::Lose),
        1 => (-20_000i64..20_000).prop_map(Step::Leader),
        4 => Just(Step::Begin),
        4 => any::<bool>().prop_map(Step::Answer),
        4 => any::<bool>().prop_map(Step::Take),
    ];
    prop::collection::vec((prop_oneof![5 => 0i64..800, 1 => 0..LONGEST_STEP], step), 1..60)
}

#[derive(Debug, Clone, Default)]
struct Client {
    version: i64,
    /// Where it is, what it is registered with there, and whether it is.
    at: usize,
    registered: Option<RegisterVersion>,
}

/// When, what the store holds, what the data server has, and who has unregistered with us when.
type Moment = (Millis, BTreeMap<usize, RegisterVersion>, BTreeMap<usize, RegisterVersion>, BTreeMap<usize, Millis>);
type Answered = (i64, BTreeMap<usize, RegisterVersion>);

struct World {
    store: Store,
    data: DataServer,
    clients: Vec<Client>,
    /// Events that session servers have to send.
    queues: [VecDeque<(Write, usize, RegisterVersion)>; 2],
    /// Clients whose leaving is noticed after so many steps: by whom, and what they had.
    leaving: Vec<(usize, usize, usize, RegisterVersion)>,
    reads: VecDeque<(Millis, Option<Answered>)>,
    ahead: [Millis; 2],
    now: Millis,
    /// When our session server last heard of an unregistration.
    unpublished: BTreeMap<usize, Millis>,
}

impl World {
    fn new(ahead: [Millis; 2]) -> Self {
        Self {
            store: Store::new(Limits::NONE),
            data: DataServer::default(),
            clients: vec![Client::default(); CLIENTS],
            queues: Default::default(),
            leaving: Vec::new(),
            reads: VecDeque::new(),
            ahead,
            now: 1_000_000,
            unpublished: BTreeMap::new(),
        }
    }

    fn apply(&self, frame: Vec<u8>) {
        for event in frame::decode(&frame).unwrap() {
            self.store.apply(&event, self.now).unwrap();
        }
    }

    fn publisher(client: usize, version: RegisterVersion) -> Publisher<'static> {
        Publisher { register_id: client.to_string().into(), version, ..Publisher::default() }
    }

    /// A session server takes what a client says: it is heard at once where it is ours, and sent later.
    fn session(&mut self, session: usize, write: Write, client: usize, version: RegisterVersion) {
        let id = client.to_string();
        if session == OURS {
            self.apply(match write {
                Write::Publish => frame::encode_publish(REGISTRY, ID, &Self::publisher(client, version)).unwrap(),
                Write::Unpublish => frame::encode_unpublish(REGISTRY, ID, &id, version).unwrap(),
                Write::Off => frame::encode_lost(REGISTRY, ID, &id, version).unwrap(),
            });
            if matches!(write, Write::Unpublish) {
                self.unpublished.insert(client, self.now);
            }
        }
        self.queues[session].push_back((write, client, version));
    }

    fn say(&mut self, client: usize, write: Write) {
        let at = self.clients[client].at;
        let version = RegisterVersion { version: self.clients[client].version, timestamp: self.now + self.ahead[at] };
        self.clients[client].registered = matches!(write, Write::Publish).then_some(version);
        self.session(at, write, client, version);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish(client) => {
                self.clients[client].version += 1;
                self.say(client, Write::Publish);
            }
            Step::Unpublish(client) if self.clients[client].registered.is_some() => {
                self.clients[client].version += 1;
                self.say(client, Write::Unpublish);
            }
            Step::Move(client, after) => {
                let Client { at, registered, .. } = self.clients[client];
                self.clients[client].at = 1 - at;
                if let Some(had) = registered {
                    self.leaving.push((after, at, client, had));
                    self.say(client, Write::Publish);
                }
            }
            Step::Send(session) => self.send(session),
            Step::Lose(session) => drop(self.queues[session].pop_front()),
            Step::Leader(ahead) => {
                self.data.ahead = ahead;
                self.data.bump(self.now);
            }
            Step::Begin if self.reads.len() < 3 => self.reads.push_back((self.now, None)),
            Step::Answer(first) => {
                let answer = (self.data.version, self.data.live());
                let mut open = self.reads.iter_mut().filter(|(_, answered)| answered.is_none());
                if let Some(read) = if first { open.next() } else { open.next_back() } {
                    read.1 = Some(answer);
                }
            }
            Step::Take(first) => {
                let mut ready = (0..self.reads.len()).filter(|n| self.reads[*n].1.is_some());
                if let Some(n) = if first { ready.next() } else { ready.next_back() } {
                    self.take(n);
                }
            }
            Step::Unpublish(_) | Step::Begin => {}
        }
        for leaving in &mut self.leaving {
            leaving.0 = leaving.0.saturating_sub(1);
        }
        while let Some(n) = self.leaving.iter().position(|(after, ..)| *after == 0) {
            let (_, session, client, had) = self.leaving.remove(n);
            // Only what is still of the connection that has gone.
            if self.clients[client].at != session || self.clients[client].registered == Some(had) {
                self.session(session, Write::Off, client, had);
            }
        }
    }

    fn send(&mut self, session: usize) {
        if let Some((write, client, version)) = self.queues[session].pop_front() {
            self.data.write(write, client, version, session, self.now);
        }
    }

    fn take(&mut self, n: usize) {
        if let Some((begun, Some((version, live)))) = self.reads.remove(n) {
            let named: Vec<_> = live.into_iter().map(|(client, version)| Self::publisher(client, version)).collect();
            self.apply(frame::encode_replace(REGISTRY, ID, version, self.now - begun, &named).unwrap());
        }
    }

    fn read(&mut self) {
        self.reads.push_back((self.now, Some((self.data.version, self.data.live()))));
        self.take(self.reads.len() - 1);
    }

    fn held(&self) -> BTreeMap<usize, RegisterVersion> {
        let entries = self.store.read(ID);
        entries.iter().map(|entry| (entry.body().register_id.as_str().parse().unwrap(), entry.version)).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    /// Reads pass each other, leaders' and session servers' clocks differ, writes are lost: a last read settles it.
    #[test]
    fn after_a_last_read_the_store_holds_what_the_registry_says(
        ahead in [-30_000i64..30_000, -30_000i64..30_000],
        steps in steps(true),
    ) {
        let mut world = World::new(ahead);
        for (after, step) in steps {
            world.now += after;
            world.step(step);
        }
        for session in [0, 1] {
            while !world.queues[session].is_empty() {
                world.send(session);
            }
        }
        world.now += READ_MARGIN_MILLIS + 1;
        world.read();
        prop_assert_eq!(world.held(), world.data.live());
        prop_assert_eq!(world.store.unconfirmed(world.now + TOMBSTONE_MILLIS, 9).len(), 0);
    }

    /// The feed reads a service when its version changes and when a client is lost. A publisher that reads name for 2 s
    /// before and after a moment is held at that moment, unless its client has just unregistered at our session server.
    #[test]
    fn what_reads_keep_naming_is_never_absent(
        ahead in [-30_000i64..30_000, -30_000i64..30_000],
        steps in steps(false),
    ) {
        let mut world = World::new(ahead);
        let mut moments: Vec<Moment> = Vec::new();
        for (after, step) in steps {
            world.now += after.max(1);
            if !matches!(step, Step::Begin | Step::Answer(_) | Step::Take(_)) {
                world.step(step);
            }
            // Before the feed had the time to read.
            let held = world.held();
            moments.push((world.now, held, world.data.live(), world.unpublished.clone()));
            world.now += 1;
            world.read();
            moments.push((world.now, world.held(), world.data.live(), world.unpublished.clone()));
        }
        for (at, held, _, unpublished) in &moments {
            let around = moments.iter().filter(|(other, ..)| (other - at).abs() <= 2_000);
            let before = moments.iter().rev().find(|(other, ..)| at - other > 2_000);
            let after = moments.iter().find(|(other, ..)| other - at > 2_000);
            let (Some(before), Some(after)) = (before, after) else { continue };
            for client in 0..CLIENTS {
                let told = |client| unpublished.get(&client).is_some_and(|told| at - told <= READ_MARGIN_MILLIS + LONGEST_STEP);
                let named = |moment: &Moment| moment.2.contains_key(&client);
                if around.clone().chain([before, after]).all(named) && !told(client) {
                    prop_assert!(held.contains_key(&client), "{} at {} is absent", client, at);
                }
            }
        }
    }
}

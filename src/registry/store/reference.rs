//! The store against a model of its rules, over histories of everything that can happen to it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    model::RegisterVersion,
    registry::frame::{self, Part, Publisher},
};

const SOURCES: [&str; 3] = [REGISTRY, "one", "two"];
const SERVICES: [&str; 3] = ["a.A:1.0@DEFAULT#@#x#@#SOFA", "b", "c"];
const REGISTER_IDS: [&str; 3] = ["r1", "r2", "r3"];

/// For how long a removal is remembered, how far a read may lag, and how long it may wait for its next piece; the rule's
/// own numbers.
const SPAN: Millis = 180_000;
const MARGIN: Millis = 15_000;
const PATIENCE: Millis = 60_000;

/// Source and service, by number.
type Place = (usize, usize);

#[derive(Debug, Clone, Copy)]
enum Known {
    /// `event`: when it was learned, unless a read said so last. `mark` tells contents apart.
    Live {
        version: RegisterVersion,
        event: Option<Millis>,
        mark: u32,
    },
    Gone {
        version: RegisterVersion,
        at: Millis,
    },
}

#[derive(Debug, Clone, Copy)]
struct Said {
    register_id: usize,
    version: RegisterVersion,
    mark: u32,
}

/// Payloads of a publisher; each is the mark.
fn boxes(mark: u32) -> usize {
    1 + mark as usize % 3
}

/// Bytes of a publisher: those of its body in a frame, with its registerId once more, and 128; and its payloads.
fn size(register_id: usize, mark: u32) -> (usize, usize) {
    let (name, text) = (REGISTER_IDS[register_id].len(), mark.to_string().len());
    (27 + name + boxes(mark) * (4 + text) + name + 128, boxes(mark))
}

/// The rules, as plainly as they can be said.
struct Model {
    limits: Limits,
    /// Of each service; of removals that are equally old those of the first shard go first.
    shards: [usize; SERVICES.len()],
    sources: Vec<usize>,
    keys: BTreeMap<(Place, usize), Known>,
    /// The last applied read of each source and service, and when it was applied.
    reads: BTreeMap<Place, (i64, Millis)>,
    /// The read of each source and service that is not whole: its number, what it has said, and when its last piece came.
    unfinished: BTreeMap<Place, (i64, Vec<Said>, Millis)>,
    /// Services that could not be read yet.
    unknown: BTreeSet<usize>,
    /// Services that had publishers, or were unknown, when they were taken last.
    seen: BTreeSet<usize>,
    dirty: BTreeSet<usize>,
    dropped: u64,
    evicted: u64,
}

impl Model {
    fn new(limits: Limits, shards: [usize; SERVICES.len()]) -> Self {
        Self {
            limits,
            shards,
            sources: vec![0],
            keys: BTreeMap::new(),
            reads: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            unknown: BTreeSet::new(),
            seen: BTreeSet::new(),
            dirty: BTreeSet::new(),
            dropped: 0,
            evicted: 0,
        }
    }

    /// Whether there is something to remember of a service, or to tell.
    fn has(&self, service: usize) -> bool {
        let some =
            self.keys.keys().any(|((_, of), _)| *of == service) || self.reads.keys().any(|(_, of)| *of == service);
        some || self.unknown.contains(&service) || self.seen.contains(&service)
    }

    /// Services with publishers, or unknown.
    fn services(&self) -> usize {
        (0..SERVICES.len()).filter(|service| self.counts(*service)).count()
    }

    fn counts(&self, service: usize) -> bool {
        self.unknown.contains(&service) || !self.live(service).is_empty()
    }

    fn live(&self, service: usize) -> Vec<(String, RegisterVersion, u32)> {
        let of = |(((_, of), register_id), known): (&(Place, usize), &Known)| match known {
            Known::Live { version, mark, .. } if *of == service => {
                Some((REGISTER_IDS[*register_id].to_owned(), *version, *mark))
            }
            _ => None,
        };
        let mut live: Vec<_> = self.keys.iter().filter_map(of).collect();
        live.sort();
        live
    }

    fn is_empty(&self, place: Place) -> bool {
        !self.keys.keys().any(|(at, _)| *at == place)
    }

    /// Memories of removals, and of reads of what is empty since, the oldest first: since when, in which order, and
    /// what it takes.
    fn remembered(&self) -> Vec<((Millis, usize, &str, usize, Option<usize>), Place, usize)> {
        let grave = |at: Millis, place: Place, register_id: Option<usize>| {
            let source = self.sources.iter().position(|source| *source == place.0).unwrap();
            let name = register_id.map_or(0, |id| REGISTER_IDS[id].len());
            let order = (at, self.shards[place.1], SERVICES[place.1], source, register_id);
            (order, place, 256 + SERVICES[place.1].len() + 2 * name)
        };
        let gone = self.keys.iter().filter_map(|((place, register_id), known)| match known {
            Known::Gone { at, .. } => Some(grave(*at, *place, Some(*register_id))),
            Known::Live { .. } => None,
        });
        let reads = self.reads.iter().filter(|(place, _)| self.is_empty(**place));
        let mut all: Vec<_> = gone.chain(reads.map(|(place, (_, at))| grave(*at, *place, None))).collect();
        all.sort_unstable();
        all
    }

    fn remembered_bytes(&self) -> usize {
        self.remembered().iter().map(|(.., bytes)| bytes).sum()
    }

    /// Forgets the oldest removal or read.
    fn forget(&mut self) {
        let ((_, _, _, _, register_id), place, _) = self.remembered()[0];
        match register_id {
            Some(register_id) => drop(self.keys.remove(&(place, register_id))),
            None => drop(self.reads.remove(&place)),
        }
        self.dirty.insert(place.1);
        self.tidy();
    }

    /// Of what there is nothing to remember there is nothing to tell.
    fn tidy(&mut self) {
        let has: BTreeSet<usize> = (0..SERVICES.len()).filter(|service| self.has(*service)).collect();
        self.dirty.retain(|service| has.contains(service));
    }

    fn live_sizes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.keys.iter().filter_map(|((_, register_id), known)| match known {
            Known::Live { mark, .. } => Some(size(*register_id, *mark)),
            Known::Gone { .. } => None,
        })
    }

    fn publishers(&self) -> usize {
        self.live_sizes().count()
    }

    /// Bytes and endpoints of all publishers, and of the names of their services.
    fn total(&self) -> (usize, usize) {
        let counted = self.live_sizes().map(|(bytes, boxes)| (bytes, boxes.min(self.limits.endpoints_per_publisher)));
        let names = (0..SERVICES.len()).filter(|service| self.counts(*service)).map(|service| SERVICES[service].len());
        counted.fold((names.sum(), 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    }

    /// Whether there is room for what a publisher says now; `counted`: its service had its own room before.
    fn fits(&self, place: Place, said: Said, counted: bool) -> bool {
        let most = self.limits.endpoints_per_publisher;
        let had = match self.keys.get(&(place, said.register_id)) {
            Some(Known::Live { mark, .. }) => Some(size(said.register_id, *mark)),
            _ => None,
        };
        if had.is_none() {
            let first = !counted && !self.counts(place.1);
            if self.publishers() >= self.limits.publishers || (first && self.services() >= self.limits.services) {
                return false;
            }
        }
        let ((had_bytes, had_boxes), (bytes, boxes)) = (had.unwrap_or_default(), size(said.register_id, said.mark));
        let (had_boxes, boxes, (all_bytes, all_boxes)) = (had_boxes.min(most), boxes.min(most), self.total());
        let name = if self.counts(place.1) { 0 } else { SERVICES[place.1].len() };
        (bytes <= had_bytes || all_bytes + name + bytes - had_bytes <= self.limits.bytes)
            && (boxes <= had_boxes || all_boxes + boxes - had_boxes <= self.limits.endpoints)
    }

    fn admits(&mut self, source: usize) -> bool {
        if !self.sources.contains(&source) {
            if self.sources.len() >= self.limits.sources {
                return false;
            }
            self.sources.push(source);
        }
        true
    }

    /// A read's piece; `None` if there is nothing more to do. After the last one it is a read like any other.
    fn piece(&mut self, place: Place, (part, read): (Part, i64), said: Vec<Said>, now: Millis) -> Option<Vec<Said>> {
        if part == Part::Begin {
            self.unfinished.insert(place, (read, Vec::new(), now));
        }
        match self.unfinished.get_mut(&place) {
            Some((begun, all, touched)) if *begun == read => {
                all.extend(said);
                *touched = now;
            }
            _ => {
                self.dropped += 1;
                return None;
            }
        }
        if part == Part::Commit { self.unfinished.remove(&place).map(|(_, all, _)| all) } else { None }
    }

    /// Whether the event is taken.
    fn apply(&mut self, op: &Op, now: Millis, mark: u32) -> bool {
        if let Op::Piece { .. } | Op::Expire = op {
            self.unfinished.retain(|_, (.., touched)| now - *touched < PATIENCE);
        }
        let mut whole = None;
        let place = match op {
            Op::Publish { place, .. } | Op::Unpublish { place, .. } | Op::Replace { place, .. } => place,
            Op::Piece { place, piece, bodies, .. } => {
                let dropped = self.dropped;
                whole = self.piece(*place, *piece, said(bodies, mark), now);
                if whole.is_none() {
                    return self.dropped == dropped;
                }
                place
            }
            Op::Unknown(service) => {
                self.dirty.insert(*service);
                if !self.reads.contains_key(&(0, *service)) {
                    self.unknown.insert(*service);
                }
                return true;
            }
            Op::Expire => return true,
        };
        let taken = self.admits(place.0) && {
            let before = self.live(place.1);
            let taken = match op {
                Op::Publish { place, register_id, version } => {
                    let said = Said { register_id: *register_id, version: *version, mark };
                    self.publish(*place, said, now)
                }
                Op::Unpublish { place, register_id, version } => self.unpublish(*place, *register_id, *version, now),
                Op::Replace { place, version, lag, bodies } => {
                    self.replace(*place, *version, now - lag, said(bodies, mark), now)
                }
                Op::Piece { place, version, lag, .. } => {
                    self.replace(*place, *version, now - lag, whole.unwrap_or_default(), now)
                }
                Op::Unknown(_) | Op::Expire => unreachable!("they concern no place"),
            };
            if self.reads.contains_key(&(0, place.1)) && self.unknown.remove(&place.1) {
                self.dirty.insert(place.1);
            }
            if before != self.live(place.1) {
                self.dirty.insert(place.1);
            }
            self.tidy();
            while self.remembered_bytes() > self.limits.removals {
                self.forget();
                self.evicted += 1;
            }
            taken
        };
        self.dropped += u64::from(!taken);
        taken
    }

    fn publish(&mut self, place: Place, said: Said, now: Millis) -> bool {
        let Said { register_id, version, mark } = said;
        match self.keys.get(&(place, register_id)) {
            // The newest wins; at a tie a removal.
            Some(Known::Live { version: known, .. } | Known::Gone { version: known, .. }) if version <= *known => true,
            _ if !self.fits(place, said, false) => false,
            _ => {
                self.keys.insert((place, register_id), Known::Live { version, event: Some(now), mark });
                true
            }
        }
    }

    fn unpublish(&mut self, place: Place, register_id: usize, version: RegisterVersion, now: Millis) -> bool {
        match self.keys.get(&(place, register_id)) {
            Some(Known::Live { version: known, .. }) if version < *known => true,
            Some(Known::Gone { version: known, .. }) if version <= *known => true,
            _ => {
                self.keys.insert((place, register_id), Known::Gone { version, at: now });
                true
            }
        }
    }

    fn replace(&mut self, place: Place, version: i64, started: Millis, bodies: Vec<Said>, now: Millis) -> bool {
        if self.reads.get(&place).is_some_and(|(applied, at)| version <= *applied && started < *at) {
            return true;
        }
        let counted = self.counts(place.1);
        self.keys.retain(|(at, register_id), known| {
            let named = bodies.iter().any(|said| said.register_id == *register_id);
            match known {
                _ if *at != place || named => true,
                Known::Live { event: Some(learned), .. } => started - *learned <= MARGIN,
                Known::Live { event: None, .. } => false,
                Known::Gone { .. } => true,
            }
        });
        // Of those with one registerId the newest counts; at a tie the larger content. By registerId, so that the same ones
        // are refused everywhere.
        let mut newest: BTreeMap<usize, Said> = BTreeMap::new();
        for said in bodies {
            let order = |said: &Said| (said.version, boxes(said.mark), said.mark);
            let known = newest.entry(said.register_id).or_insert(said);
            if order(known) < order(&said) {
                *known = said;
            }
        }
        let mut all = true;
        for said @ Said { register_id, version, mark } in newest.into_values() {
            let key = (place, register_id);
            let fits = self.fits(place, said, counted);
            match self.keys.get_mut(&key) {
                Some(Known::Live { version: known, event, .. }) if version == *known => *event = None,
                // Only an event that is fresh yet is newer than a read that was taken in.
                Some(Known::Live { version: known, event: Some(at), .. })
                    if version < *known && started - *at <= MARGIN => {}
                Some(Known::Gone { version: known, at }) if version <= *known && started - *at < MARGIN => {}
                _ if !fits => all = false,
                _ => drop(self.keys.insert(key, Known::Live { version, event: None, mark })),
            }
        }
        if all {
            self.reads.insert(place, (version, now));
        }
        all
    }

    fn expire(&mut self, now: Millis) {
        while self.remembered().first().is_some_and(|((at, ..), ..)| now - *at >= SPAN) {
            self.forget();
        }
    }

    fn take(&mut self) {
        for service in std::mem::take(&mut self.dirty) {
            match self.counts(service) {
                true => self.seen.insert(service),
                false => self.seen.remove(&service),
            };
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Publish { place: Place, register_id: usize, version: RegisterVersion },
    Unpublish { place: Place, register_id: usize, version: RegisterVersion },
    Replace { place: Place, version: i64, lag: Millis, bodies: Vec<(usize, RegisterVersion)> },
    Piece { place: Place, piece: (Part, i64), version: i64, lag: Millis, bodies: Vec<(usize, RegisterVersion)> },
    Unknown(usize),
    Expire,
}

fn said(bodies: &[(usize, RegisterVersion)], mark: u32) -> Vec<Said> {
    bodies.iter().map(|(id, version)| Said { register_id: *id, version: *version, mark }).collect()
}

fn version() -> impl Strategy<Value = RegisterVersion> {
    (0i64..3, 0i64..3).prop_map(|(version, timestamp)| RegisterVersion { version, timestamp })
}

fn op() -> impl Strategy<Value = Op> {
    // Mostly one place, so that events meet.
    let place = || {
        (prop_oneof![4 => Just(0usize), 2 => 1..2usize, 1 => 2..3usize], prop_oneof![3 => 0..1usize, 1 => 1..3usize])
    };
    let lag = prop::sample::select(vec![0, 1, 5_000, 14_999, 15_000, 15_001, 40_000, 200_000]);
    let bodies = || prop::collection::vec((0..3usize, version()), 0..4);
    let part = prop::sample::select(vec![Part::Begin, Part::Append, Part::Commit]);
    prop_oneof![
        4 => (place(), 0..3usize, version())
            .prop_map(|(place, register_id, version)| Op::Publish { place, register_id, version }),
        3 => (place(), 0..3usize, version())
            .prop_map(|(place, register_id, version)| Op::Unpublish { place, register_id, version }),
        3 => (place(), 0i64..8, lag.clone(), bodies())
            .prop_map(|(place, version, lag, bodies)| Op::Replace { place, version, lag, bodies }),
        4 => (place(), (part, 0i64..2), 0i64..8, lag, bodies())
            .prop_map(|(place, piece, version, lag, bodies)| Op::Piece { place, piece, version, lag, bodies }),
        1 => (0..3usize).prop_map(Op::Unknown),
        2 => Just(Op::Expire),
    ]
}

fn step() -> impl Strategy<Value = (Op, Millis, bool)> {
    let pause = prop::sample::select(vec![0, 0, 0, 1, 5_000, 14_999, 15_000, 15_001, 90_000, SPAN - 1, SPAN]);
    (op(), pause, any::<bool>())
}

fn limits() -> impl Strategy<Value = Limits> {
    let counts = (1..4usize, 1..6usize, 1..4usize, 1..9usize, 1..4usize);
    let tight = (counts, 150..900usize, 0..1_200usize).prop_map(|(counts, bytes, removals)| {
        let (services, publishers, sources, endpoints, endpoints_per_publisher) = counts;
        Limits { services, publishers, sources, bytes, endpoints, endpoints_per_publisher, removals }
    });
    let counts = tight.clone().prop_map(|limits| Limits { bytes: usize::MAX, endpoints: usize::MAX, ..limits });
    prop_oneof![2 => Just(Limits::NONE), 1 => counts, 1 => tight]
}

fn publisher(register_id: usize, version: RegisterVersion, mark: u32) -> Publisher<'static> {
    let payloads = (0..boxes(mark)).map(|_| mark.to_string().into_bytes().into()).collect();
    Publisher { register_id: REGISTER_IDS[register_id].into(), version, payloads, ..Publisher::default() }
}

fn apply(store: &Store, op: &Op, now: Millis, mark: u32) -> bool {
    let frame = match op {
        Op::Publish { place, register_id, version } => {
            frame::encode_publish(SOURCES[place.0], SERVICES[place.1], &publisher(*register_id, *version, mark))
        }
        Op::Unpublish { place, register_id, version } => {
            frame::encode_unpublish(SOURCES[place.0], SERVICES[place.1], REGISTER_IDS[*register_id], *version)
        }
        Op::Replace { place, version, lag, bodies } => {
            let bodies: Vec<_> = bodies.iter().map(|(id, version)| publisher(*id, *version, mark)).collect();
            frame::encode_replace(SOURCES[place.0], SERVICES[place.1], *version, *lag, &bodies)
        }
        Op::Piece { place, piece, version, lag, bodies } => {
            let bodies: Vec<_> = bodies.iter().map(|(id, version)| publisher(*id, *version, mark)).collect();
            frame::encode_piece(*piece, SOURCES[place.0], SERVICES[place.1], *version, *lag, &bodies)
        }
        Op::Unknown(service) => {
            store.set_unknown(&[SERVICES[*service]]);
            return true;
        }
        Op::Expire => {
            store.expire(now);
            return true;
        }
    };
    let frame = frame.unwrap();
    frame::decode(&frame).unwrap().into_iter().all(|event| store.apply(&event, now).is_ok())
}

fn contents(entries: &[Arc<Publication>]) -> Vec<(String, RegisterVersion, u32)> {
    let content = |entry: &Arc<Publication>| {
        let body = entry.body();
        let mark = std::str::from_utf8(body.details().unwrap().payloads[0]).unwrap().parse().unwrap();
        assert_eq!(body.version, entry.version);
        (body.register_id.as_str().to_owned(), entry.version, mark)
    };
    let mut contents: Vec<_> = entries.iter().map(content).collect();
    contents.sort();
    contents
}

/// Counts are what is there, and every grave is one of a tombstone or of the read of an empty source.
pub(super) fn audit(store: &Store) {
    let (mut live, mut buried, mut records, mut graves, mut services, mut bytes, mut grave_bytes) =
        (0, 0, 0, 0, 0, 0, 0);
    for shard in &store.shards {
        let state = shard.state.lock();
        graves += state.graves.len();
        grave_bytes += state.graves.iter().map(Grave::bytes).sum::<usize>();
        records += state.services.len();
        let oldest = state.graves.first().map_or(Millis::MAX, |grave| grave.set_at);
        assert_eq!(shard.oldest(), oldest);
        assert_eq!(state.dirty.len(), state.services.iter().filter(|service| service.dirty).count());
        for service in &state.services {
            if service.counts() {
                services += 1;
                bytes += service.data_info_id.len();
            }
            assert_eq!(service.live, service.live().count());
            assert!(!service.is_over() && !service.is_read());
            bytes += service.live().map(|entry| entry.size().bytes).sum::<usize>();
        }
        for (_, source) in state.services.iter().flat_map(|service| &service.sources) {
            let gone = source.slots.values().filter(|slot| slot.set_at().is_some()).count();
            live += source.slots.len() - gone;
            buried += gone + usize::from(source.slots.is_empty() && source.read.is_some());
        }
    }
    let counts = store.counts();
    assert_eq!((counts.publishers, counts.services, counts.bytes), (live, records, bytes));
    assert_eq!((counts.tombstones, graves, counts.tombstone_bytes), (buried, buried, grave_bytes));
    assert_eq!(store.budget.services.load(Ordering::Relaxed), services);
    let dropped = store.dropped();
    assert_eq!(counts.dropped, dropped.values().map(|dropped| dropped.events).sum::<u64>());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 8 * ProptestConfig::default().cases,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_store_keeps_to_its_rules(limits in limits(), history in prop::collection::vec(step(), 1..40)) {
        let store = Store::new(limits);
        let mut model = Model::new(limits, SERVICES.map(|id| shard_of(store.hash(id.as_bytes()))));
        let mut now = 1_000_000;
        for (mark, (op, pause, take)) in history.iter().enumerate() {
            now += pause;
            let mark = mark as u32;
            prop_assert_eq!(apply(&store, op, now, mark), model.apply(op, now, mark), "taken or refused");
            if let Op::Expire = op {
                model.expire(now);
            }
            for (service, id) in SERVICES.iter().enumerate() {
                prop_assert_eq!(contents(&store.read(id)), model.live(service), "{}", id);
            }
            audit(&store);
            let counts = store.counts();
            prop_assert_eq!((counts.bytes, counts.endpoints), model.total());
            prop_assert_eq!(counts.publishers, model.publishers());
            prop_assert_eq!((counts.tombstones, counts.tombstone_bytes), (model.remembered().len(), model.remembered_bytes()));
            prop_assert_eq!(counts.tombstones_evicted, model.evicted);
            prop_assert_eq!(store.pieces.unfinished().0, model.unfinished.len());
            prop_assert_eq!(counts.services, (0..SERVICES.len()).filter(|service| model.has(*service)).count());
            prop_assert_eq!(counts.dropped, model.dropped);
            if *take {
                let taken = store.take_dirty();
                let number = |taken: &Taken| SERVICES.iter().position(|id| **id == *taken.data_info_id).unwrap();
                let mut numbers: Vec<usize> = taken.iter().map(number).collect();
                numbers.sort();
                let unique: BTreeSet<usize> = numbers.iter().copied().collect();
                prop_assert_eq!(unique.len(), numbers.len(), "each is taken once");
                prop_assert_eq!(&unique, &model.dirty);
                for taken in &taken {
                    prop_assert_eq!(contents(&taken.entries), model.live(number(taken)));
                    prop_assert_eq!(taken.unknown, model.unknown.contains(&number(taken)));
                }
                model.take();
            }
        }
    }

    #[test]
    fn the_order_of_events_does_not_matter(
        (events, other) in prop::collection::vec((any::<bool>(), 0..2usize, 0..2usize, 0..2usize, version()), 1..16)
            .prop_flat_map(|events| (Just(events.clone()), Just(events).prop_shuffle())),
        pauses in prop::collection::vec(0..SPAN / 16, 16),
    ) {
        let run = |events: &[(bool, usize, usize, usize, RegisterVersion)]| {
            let store = Store::new(Limits::NONE);
            let mut now = 0;
            for ((publish, source, service, register_id, version), pause) in events.iter().zip(&pauses) {
                let (place, register_id, version) = ((*source, *service), *register_id, *version);
                now += pause;
                store.expire(now);
                let op = match publish {
                    true => Op::Publish { place, register_id, version },
                    false => Op::Unpublish { place, register_id, version },
                };
                // A version of a publisher is one state of it.
                apply(&store, &op, now, (version.version * 10 + version.timestamp) as u32);
            }
            SERVICES.map(|id| contents(&store.read(id)))
        };
        prop_assert_eq!(run(&events), run(&other));
    }
}

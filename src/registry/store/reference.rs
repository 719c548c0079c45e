//! The store against a model of its rules, over histories of everything that can happen to it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::registry::frame::{self, Part, Publisher};

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

/// The rules, as plainly as they can be said.
struct Model {
    limits: Limits,
    sources: Vec<usize>,
    /// Services that have a record. One that need not be known any more loses it when it is taken.
    services: BTreeSet<usize>,
    keys: BTreeMap<(Place, usize), Known>,
    /// The last applied read of each source and service, and when it was applied.
    reads: BTreeMap<Place, (i64, Millis)>,
    /// The read of each source and service that is not whole: its number, what it has said, and when its last piece came.
    unfinished: BTreeMap<Place, (i64, Vec<Said>, Millis)>,
    /// Services that could not be read yet.
    unknown: BTreeSet<usize>,
    dirty: BTreeSet<usize>,
    /// Services of which something was refused; whether they are dirty does not matter.
    refused: BTreeSet<usize>,
    dropped: u64,
}

impl Model {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            sources: vec![0],
            services: BTreeSet::new(),
            keys: BTreeMap::new(),
            reads: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            unknown: BTreeSet::new(),
            dirty: BTreeSet::new(),
            refused: BTreeSet::new(),
            dropped: 0,
        }
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

    /// Removals, and reads of what is empty since.
    fn remembered(&self) -> usize {
        let gone = self.keys.values().filter(|known| matches!(known, Known::Gone { .. })).count();
        gone + self.reads.keys().filter(|place| self.is_empty(**place)).count()
    }

    fn publishers(&self) -> usize {
        self.keys.values().filter(|known| matches!(known, Known::Live { .. })).count()
    }

    /// Whether there is no room for another key at a place, the first of which takes the place of a read.
    fn is_full(&self, place: Place) -> bool {
        let read = usize::from(self.is_empty(place) && self.reads.contains_key(&place));
        self.publishers() + self.remembered() - read >= self.limits.publishers
    }

    fn admits(&mut self, (source, service): Place) -> bool {
        if !self.sources.contains(&source) {
            if self.sources.len() >= self.limits.sources {
                return false;
            }
            self.sources.push(source);
        }
        if !self.services.contains(&service) && self.services.len() >= self.limits.services {
            return false;
        }
        self.services.insert(service);
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
                self.services.insert(*service);
                self.dirty.insert(*service);
                if !self.reads.contains_key(&(0, *service)) {
                    self.unknown.insert(*service);
                }
                return true;
            }
            Op::Expire => return true,
        };
        let taken = self.admits(*place) && {
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
            if !taken {
                self.refused.insert(place.1);
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
            None if self.is_full(place) => false,
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
            None if self.is_full(place) => false,
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
        self.keys.retain(|(at, register_id), known| {
            let named = bodies.iter().any(|said| said.register_id == *register_id);
            match known {
                _ if *at != place || named => true,
                Known::Live { event: Some(learned), .. } => started - *learned <= MARGIN,
                Known::Live { event: None, .. } => false,
                Known::Gone { .. } => true,
            }
        });
        let mut all = true;
        for (n, Said { register_id, version, mark }) in bodies.iter().copied().enumerate() {
            // Of those with one registerId the newest counts; at a tie the larger content, and of equals the first.
            let better = |(other, said): (usize, &Said)| {
                let order = (said.version, said.mark).cmp(&(version, mark));
                said.register_id == register_id && (order.is_gt() || (order.is_eq() && other < n))
            };
            if bodies.iter().enumerate().any(better) {
                continue;
            }
            let key = (place, register_id);
            let read = Known::Live { version, event: None, mark };
            let full = self.is_full(place);
            match self.keys.get_mut(&key) {
                None if full => all = false,
                None => drop(self.keys.insert(key, read)),
                Some(Known::Live { version: known, event, .. }) if version == *known => *event = None,
                // Only an event that is fresh yet is newer than a read that was taken in.
                Some(Known::Live { version: known, event: Some(at), .. })
                    if version < *known && started - *at <= MARGIN => {}
                Some(Known::Gone { version: known, at }) if version <= *known && started - *at < MARGIN => {}
                Some(known) => *known = read,
            }
        }
        if all {
            self.reads.insert(place, (version, now));
        }
        all
    }

    fn expire(&mut self, now: Millis) {
        let over = |at: Millis| now - at >= SPAN;
        let dirty = &mut self.dirty;
        self.keys.retain(|((_, service), _), known| match known {
            Known::Gone { at, .. } if over(*at) => {
                dirty.insert(*service);
                false
            }
            _ => true,
        });
        let empty: Vec<Place> = self.reads.keys().copied().filter(|place| self.is_empty(*place)).collect();
        for place in empty {
            if over(self.reads[&place].1) {
                self.reads.remove(&place);
                self.dirty.insert(place.1);
            }
        }
    }

    fn take(&mut self) {
        let needed = |service: &usize| {
            self.unknown.contains(service)
                || self.keys.keys().any(|((_, of), _)| of == service)
                || self.reads.keys().any(|(_, of)| of == service)
        };
        self.services.retain(needed);
        self.dirty.clear();
        self.refused.clear();
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
    let roomy = Just(Limits { services: 9, publishers: 99, sources: 9 });
    let tight = (1..4usize, 1..6usize, 1..4usize).prop_map(|(services, publishers, sources)| Limits {
        services,
        publishers,
        sources,
    });
    prop_oneof![2 => roomy, 1 => tight]
}

fn publisher(register_id: usize, version: RegisterVersion, mark: u32) -> Publisher<'static> {
    let payloads = vec![mark.to_string().into_bytes().into()];
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
            frame::encode_replace(SOURCES[place.0], SERVICES[place.1], *version, now - lag, &bodies)
        }
        Op::Piece { place, piece, version, lag, bodies } => {
            let bodies: Vec<_> = bodies.iter().map(|(id, version)| publisher(*id, *version, mark)).collect();
            frame::encode_piece(*piece, SOURCES[place.0], SERVICES[place.1], *version, now - lag, &bodies)
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
    let (mut live, mut buried, mut services, mut graves) = (0, 0, 0, 0);
    for shard in &store.shards {
        let shard = shard.lock();
        graves += shard.graves.len();
        services += shard.services.len();
        for (_, source) in shard.services.iter().flat_map(|service| &service.sources) {
            let gone = source.slots.values().filter(|slot| slot.set_at().is_some()).count();
            live += source.slots.len() - gone;
            buried += gone + usize::from(source.slots.is_empty() && source.read.is_some());
        }
    }
    let counts = store.counts();
    assert_eq!((counts.publishers, counts.services), (live, services));
    assert_eq!((counts.tombstones, graves), (buried, buried));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_store_keeps_to_its_rules(limits in limits(), history in prop::collection::vec(step(), 1..40)) {
        let (store, mut model) = (Store::new(limits), Model::new(limits));
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
            prop_assert_eq!(counts.publishers, model.publishers());
            prop_assert_eq!(counts.tombstones, model.remembered());
            prop_assert_eq!(store.pieces.unfinished().0, model.unfinished.len());
            prop_assert_eq!((counts.services, counts.dropped), (model.services.len(), model.dropped));
            if *take {
                let taken = store.take_dirty();
                let number = |taken: &Taken| SERVICES.iter().position(|id| **id == *taken.data_info_id).unwrap();
                let mut numbers: Vec<usize> = taken.iter().map(number).collect();
                numbers.sort();
                let unique: BTreeSet<usize> = numbers.iter().copied().collect();
                prop_assert_eq!(unique.len(), numbers.len(), "each is taken once");
                prop_assert!(model.dirty.is_subset(&unique), "dirty {:?}, taken {:?}", model.dirty, unique);
                let needless: Vec<_> = unique.difference(&model.dirty).filter(|s| !model.refused.contains(s)).collect();
                prop_assert!(needless.is_empty(), "nothing happened to {:?}", needless);
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
            let store = Store::new(Limits { services: 9, publishers: 99, sources: 9 });
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

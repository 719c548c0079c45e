//! Where objects stand on their way to a write.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use tokio::time::Instant;

use crate::kubernetes::objects::{ObjectKey, ObjectKind};

/// Where an object stands.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Standing {
    /// Nothing is to be done about it.
    #[default]
    Idle,
    /// The object waits for another one of a group, for the list of its kind, or for the watch.
    Waiting(Option<u128>),
    /// The object is to be written as soon as may be; the smallest priority comes first.
    Ready(usize),
    /// The object rests until then.
    Later(Instant),
    /// The breaker withholds the object's removal, or a change of it that removes endpoints.
    Withheld,
    /// A write of the object is under way.
    InFlight,
}

/// Equally urgent objects of a kind, which take turns by name, so that an object which is to be written again
/// and again holds up no other.
#[derive(Debug, Default)]
struct Queue {
    keys: BTreeSet<ObjectKey>,
    last: Option<ObjectKey>,
}

impl Queue {
    fn next(&self) -> Option<&ObjectKey> {
        let after = self.last.as_ref().and_then(|last| self.after(last));
        after.or_else(|| self.keys.first())
    }

    fn after(&self, last: &ObjectKey) -> Option<&ObjectKey> {
        self.keys.range((Bound::Excluded(last), Bound::Unbounded)).next()
    }
}

/// The objects by place.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    ready: BTreeMap<(usize, ObjectKind), Queue>,
    later: BTreeSet<(Instant, ObjectKey)>,
    waiting: usize,
    withheld: BTreeSet<ObjectKey>,
    in_flight: usize,
}

impl Schedule {
    /// Moves an object from one place to another.
    pub(super) fn shift(&mut self, key: &ObjectKey, from: Standing, to: Standing) {
        match from {
            Standing::Idle => {}
            Standing::Waiting(_) => self.waiting -= 1,
            Standing::Ready(priority) => {
                if let Some(queue) = self.ready.get_mut(&(priority, key.kind)) {
                    queue.keys.remove(key);
                    if to == Standing::InFlight {
                        queue.last = Some(key.clone());
                    }
                }
            }
            Standing::Later(at) => drop(self.later.remove(&(at, key.clone()))),
            Standing::Withheld => drop(self.withheld.remove(key)),
            Standing::InFlight => self.in_flight -= 1,
        }
        match to {
            Standing::Idle => {}
            Standing::Waiting(_) => self.waiting += 1,
            Standing::Ready(priority) => {
                self.ready.entry((priority, key.kind)).or_default().keys.insert(key.clone());
            }
            Standing::Later(at) => drop(self.later.insert((at, key.clone()))),
            Standing::Withheld => drop(self.withheld.insert(key.clone())),
            Standing::InFlight => self.in_flight += 1,
        }
    }

    /// The next object of each priority and kind, the most urgent first.
    pub(super) fn next_ready(&self) -> impl DoubleEndedIterator<Item = &ObjectKey> {
        self.ready.values().filter_map(Queue::next)
    }

    /// Of what is ready of a kind, the object after `last` by name; after the last comes the first.
    pub(super) fn ready_after(&self, kind: ObjectKind, last: &ObjectKey) -> Option<&ObjectKey> {
        let queues = || self.ready.iter().filter(move |((_, of), _)| *of == kind).map(|(_, queue)| queue);
        let next = queues().filter_map(|queue| queue.after(last)).min();
        next.or_else(|| queues().filter_map(|queue| queue.keys.first()).min())
    }

    pub(super) fn ready_of(&self, kind: ObjectKind) -> impl Iterator<Item = &ObjectKey> {
        self.ready.iter().filter(move |((_, of), _)| *of == kind).flat_map(|(_, queue)| &queue.keys)
    }

    pub(super) fn has_ready(&self) -> bool {
        self.ready.values().any(|queue| !queue.keys.is_empty())
    }

    /// An object whose rest is over.
    pub(super) fn due(&self, now: Instant) -> Option<&ObjectKey> {
        self.later.first().filter(|(at, _)| *at <= now).map(|(_, key)| key)
    }

    /// When the next rest is over.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    pub(super) fn withheld(&self) -> &BTreeSet<ObjectKey> {
        &self.withheld
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many objects are yet to be written, or tried again.
    pub(super) fn pending(&self) -> usize {
        self.ready.values().map(|queue| queue.keys.len()).sum::<usize>()
            + self.later.len()
            + self.waiting
            + self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(kind: ObjectKind, name: &str) -> ObjectKey {
        ObjectKey { kind, name: name.into() }
    }

    #[test]
    fn an_object_is_in_one_place() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        let a = key(ObjectKind::ServiceEntry, "a");
        let places = [
            Standing::Waiting(Some(1)),
            Standing::Ready(2),
            Standing::Ready(0),
            Standing::Later(now + Duration::from_secs(1)),
            Standing::Withheld,
            Standing::InFlight,
            Standing::Idle,
        ];
        let mut from = Standing::Idle;
        for to in places {
            schedule.shift(&a, from, to);
            let pending = usize::from(!matches!(to, Standing::Idle | Standing::Withheld));
            assert_eq!(
                (schedule.pending(), schedule.has_ready()),
                (pending, matches!(to, Standing::Ready(_))),
                "{to:?}"
            );
            let places = (schedule.in_flight(), schedule.withheld().len(), schedule.next_due().is_some());
            assert_eq!(
                places,
                (
                    (to == Standing::InFlight).into(),
                    (to == Standing::Withheld).into(),
                    matches!(to, Standing::Later(_))
                )
            );
            from = to;
        }
    }

    #[test]
    fn objects_of_a_kind_take_turns() {
        let mut schedule = Schedule::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| key(ObjectKind::ServiceEntry, name));
        schedule.shift(&key(ObjectKind::DestinationRule, "b1"), Standing::Idle, Standing::Ready(0));
        for (key, priority) in [(&a, 1), (&b, 0), (&c, 1)] {
            schedule.shift(key, Standing::Idle, Standing::Ready(priority));
        }
        let after = |last| schedule.ready_after(ObjectKind::ServiceEntry, last).unwrap().clone();
        assert_eq!((after(&a), after(&b), after(&c)), (b.clone(), c.clone(), a.clone()));
        assert_eq!(schedule.next_ready().next(), Some(&b));
        assert_eq!(schedule.ready_after(ObjectKind::WorkloadEntry, &a), None);
        assert_eq!(schedule.ready_of(ObjectKind::ServiceEntry).count(), 3);
        // An object that is ready again after its write comes after the others.
        schedule.shift(&a, Standing::Ready(1), Standing::InFlight);
        schedule.shift(&a, Standing::InFlight, Standing::Ready(1));
        assert_eq!(schedule.next_ready().last(), Some(&c));
    }
}

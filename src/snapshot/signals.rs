//! Wakes the streams whose partition has changed, and no other streams, and says when that was.

use std::ops::Range;

use tokio::{sync::watch, time::Instant};

use crate::snapshot::{
    partition::{MAX_PARTITIONS, Partition, SLICES},
    view::Catalog,
};

/// A signal for each possible partition: when it last changed. Beside the view and not in it, since what is served has no time.
#[derive(Debug)]
pub struct Signals(Vec<watch::Sender<Option<Instant>>>);

impl Default for Signals {
    fn default() -> Self {
        Self((0..2 * MAX_PARTITIONS).map(|_| watch::Sender::new(None)).collect())
    }
}

impl Signals {
    /// Follows a partition; the value is when it last changed, `None` if it did not.
    pub fn subscribe(&self, partition: Partition) -> watch::Receiver<Option<Instant>> {
        self.0[partition.number()].subscribe()
    }

    /// Wakes the streams of the partitions in which `new` differs from `old`, after `show` has let them see it. The time is there
    /// before: a stream that looks without being woken finds when what it sees was published, which this returns.
    pub fn tell<C: Catalog>(&self, old: &C, new: &C, show: impl FnOnce()) -> Instant {
        let mut changed = [false; 2 * SLICES];
        for slice in 0..SLICES {
            changed[SLICES + slice] =
                C::BENEATH.iter().chain(C::ABOVE).any(|kind| match (old.resources(*kind), new.resources(*kind)) {
                    (Some(old), Some(new)) => !new.shares(slice, old),
                    (old, new) => old.is_some() != new.is_some(),
                });
        }
        // A partition has changed if one of its halves has.
        for number in (1..SLICES).rev() {
            changed[number] = changed[2 * number] || changed[2 * number + 1];
        }
        let numbers: Range<usize> = 1..2 * SLICES;
        let changed: Vec<_> = numbers.filter(|number| changed[*number]).map(|number| &self.0[number]).collect();
        let now = Instant::now();
        for signal in &changed {
            signal.send_if_modified(|at| {
                *at = Some(now);
                false
            });
        }
        show();
        for signal in changed.iter().filter(|signal| signal.receiver_count() > 0) {
            signal.send_modify(|_| {});
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::{
        proto::istio::networking::v1alpha3::ServiceEntry,
        snapshot::{Changes, Resource, view::View},
    };

    #[test]
    fn those_are_woken_whose_part_changed() {
        let signals = Signals::default();
        let all = |count| {
            Partition::all_of(count).map(|partition| (partition, signals.subscribe(partition))).collect::<Vec<_>>()
        };
        let mut receivers: Vec<_> = [1, 2, 16, 128].into_iter().flat_map(all).collect();
        let woken = |receivers: &mut Vec<(Partition, watch::Receiver<Option<Instant>>)>| {
            let woken = receivers.iter_mut().filter(|(_, receiver)| receiver.has_changed().unwrap());
            woken.map(|(partition, receiver)| (receiver.mark_unchanged(), partition.to_string()).1).collect::<Vec<_>>()
        };
        let hidden = View::default();
        let shown = View { shown: true, ..View::default() };
        signals.tell(&hidden, &shown, || ());
        assert_eq!(woken(&mut receivers).len(), 1 + 2 + 16 + 128);
        let entry = Resource::service_entry("a".into(), BTreeMap::new(), BTreeMap::new(), &ServiceEntry::default());
        let change: Changes = [((127, "a".into()), Some(entry))].into();
        let next = View { service_entries: Arc::new(shown.service_entries.with(&change)), ..shown.clone() };
        let late = signals.subscribe(Partition::WHOLE);
        let seen = |receiver: &watch::Receiver<_>| (*receiver.borrow(), receiver.has_changed().unwrap());
        let mut while_shown = None;
        let told = signals.tell(&shown, &next, || while_shown = Some(seen(&late)));
        let (at, woken_before) = while_shown.unwrap();
        assert_eq!((at, woken_before), (Some(told), false), "the time is there before, the call after");
        assert_eq!(woken(&mut receivers), ["all", "1/2", "15/16", "127/128"]);
        assert_eq!(seen(&late), (Some(told), true));
        signals.tell(&next, &next, || ());
        assert_eq!(woken(&mut receivers), [""; 0]);
        assert_eq!(seen(&late).0, Some(told), "nothing changed since");
    }
}

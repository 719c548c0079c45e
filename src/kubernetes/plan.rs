//! Decides about writes: what is desired, observed, refused and owed goes in, the next writes come out.
//!
//! A value without lock, channel, clock, log or IO: the caller says what time it is, carries out the writes and logs the
//! notices. Costs are proportional to what changed. For any order of changes, events of the watch, answers and failures:
//!
//! - **In sync in the end.** Once failures end, the API has what is desired, and nothing waits for ever: whatever is not
//!   as it should be waits for an answer, an event or a time, or is named as a problem.
//! - **Nothing foreign is touched.** A write is over a state of an object that was seen to be ours (uid and
//!   resourceVersion), or creates an object of a name that is not known to be taken, and takes none over.
//! - **A ServiceEntry never selects what is not there.** It begins to select when every WorkloadEntry that its service
//!   wants is there. As long as a ServiceEntry of ours selects in the API and is not to go on selecting, its WorkloadEntries
//!   stay; so they do while it may come to select, since a write of it is under way or, for 30 s, without a known outcome.
//!   Not waited for are a WorkloadEntry that the API server refuses for itself or did not answer for three times in a row,
//!   and a WorkloadEntry whose name is another's. A WorkloadEntry that others delete is missing until it is written again.
//! - **Removals that the breaker withholds** are not made: while it holds, a service has no fewer endpoints in the API.
//! - **An object that is refused, slow or never done holds up no other** of another service; a kind or the whole API server
//!   is left alone for a while only when two objects fail in a row as all would.
//! - No write begins while writing is frozen or after the lease's deadline, and an object has one write under way at most.

mod answers;
mod decide;
mod entry;
mod groups;
#[cfg(test)]
mod history;
mod hold;
#[cfg(test)]
mod model;
mod notice;
mod patience;
mod schedule;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

pub(super) use notice::Notice;

use super::{
    objects::{Converted, Manifest, ObjectKey, ObjectKind, ObjectState, Observed, is_older},
    orders::SinkOrders,
    pace::Jitter,
    report::{FirstSync, Problem},
};
use crate::{
    catalog::breaker::{Breaker, Lost},
    config::Protect,
};
use decide::Action;
use entry::{Desired, DesiredText, InFlight, ObjectEntry};
use groups::Groups;
use notice::Notices;
use patience::Patience;
use schedule::{Schedule, Standing};

/// How often progress is told while there is something to do.
const PROGRESS: Duration = Duration::from_secs(10);
/// No list takes longer than this from its begin to [`Plan::listed`]: the API server forgets the version of one whose next
/// page is not asked for within five minutes.
const LIST: Duration = Duration::from_secs(300);
/// Most bytes of manifests that are kept until they are written. A resource that finds no room is converted again then.
const ROOM: usize = 32 << 20;

/// The settings of a plan.
#[derive(Debug, Clone)]
pub(super) struct PlanSettings {
    /// Most writes under way.
    pub(super) concurrency: usize,
    /// Most writes in a second.
    pub(super) rate: usize,
    pub(super) protect: Protect,
}

/// A write to be carried out; its outcome is told to [`Plan::answered`].
#[derive(Debug, Clone)]
pub(super) struct PlannedWrite {
    pub(super) key: ObjectKey,
    pub(super) request: WriteRequest,
    /// The manifest to write; `None` for a delete.
    pub(super) source: Option<ManifestSource>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum WriteRequest {
    /// Make the object; if there is one of this name, take nothing over from others.
    Create,
    /// PlannedWrite over this state.
    Update(ObjectState),
    /// PlannedWrite over this state, whose endpoints are kept beside the new ones: the breaker holds.
    Unite(ObjectState),
    /// Delete this state.
    Delete(ObjectState),
}

/// Where the manifest of a write is.
#[derive(Debug, Clone)]
pub(super) enum ManifestSource {
    Kept(Arc<Manifest>),
    /// To be converted from the resource of this name in the view.
    View {
        name: Arc<str>,
        selects: bool,
    },
}

/// The outcome of a write that did not fail.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// The object is written; this is what the API server made of it.
    Applied(Observed),
    /// In the same moment somebody else made an object of this name, which is left as it was.
    Foreign(Observed),
    Deleted,
}

/// Outcomes of the writes of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct WriteCounts {
    pub(super) applies: u64,
    pub(super) deletes: u64,
    pub(super) refused: u64,
    pub(super) conflicts: u64,
    pub(super) pauses: u64,
}

impl WriteCounts {
    /// Writes that went well.
    pub(super) fn done(&self) -> u64 {
        self.applies + self.deletes
    }
}

#[derive(Debug)]
pub(super) struct Plan {
    settings: PlanSettings,
    orders: SinkOrders,
    /// No write begins from then on.
    lease_until: Instant,
    objects: HashMap<ObjectKey, ObjectEntry>,
    /// How many objects are desired.
    desired: usize,
    /// Bytes of manifests that are kept until they are written.
    kept: usize,
    /// The WorkloadEntries made of the endpoints of a ServiceEntry.
    split: HashMap<ObjectKey, Vec<ObjectKey>>,
    listed: BTreeSet<ObjectKind>,
    groups: Groups,
    schedule: Schedule,
    /// When outcomes that are unknown no longer matter.
    doubts: BTreeSet<(Instant, ObjectKey)>,
    /// Deletes that went well in the last [`LIST`], with the version that was deleted.
    deleted: VecDeque<(Instant, ObjectKey, Arc<str>)>,
    /// Objects to be looked at by [`Plan::settle`].
    touched: BTreeSet<ObjectKey>,
    patience: Patience,
    breaker: Breaker,
    /// Whether what is desired was compared with the API, and so may be written.
    judged: bool,
    /// Groups whose desired endpoints are to be counted again while removals are withheld.
    recount: BTreeSet<u128>,
    problems: BTreeMap<ObjectKey, Problem>,
    counts: WriteCounts,
    began: Instant,
    first_sync: Option<FirstSync>,
    progress: Instant,
    wake: Option<Instant>,
    notices: Notices,
    /// How many objects were looked at.
    #[cfg(test)]
    decisions: usize,
}

impl Plan {
    /// A plan that knows nothing yet. `jitter` makes its waits differ from those of others.
    pub(super) fn new(
        settings: PlanSettings,
        orders: SinkOrders,
        lease_until: Instant,
        jitter: Jitter,
        now: Instant,
    ) -> Self {
        Self {
            orders,
            lease_until,
            objects: HashMap::new(),
            desired: 0,
            kept: 0,
            split: HashMap::new(),
            listed: BTreeSet::new(),
            groups: Groups::default(),
            schedule: Schedule::default(),
            doubts: BTreeSet::new(),
            deleted: VecDeque::new(),
            touched: BTreeSet::new(),
            patience: Patience::new(settings.rate, now, jitter),
            breaker: Breaker::new(settings.protect.clone(), usize::MAX),
            judged: false,
            recount: BTreeSet::new(),
            problems: BTreeMap::new(),
            counts: WriteCounts::default(),
            began: now,
            first_sync: None,
            progress: now + PROGRESS,
            wake: None,
            notices: Notices::new(now),
            #[cfg(test)]
            decisions: 0,
            settings,
        }
    }

    // Desired objects.

    /// Whether a view can be taken: the API was listed, so that what is not desired any more is known.
    pub(super) fn takes_views(&self) -> bool {
        self.listed.contains(&ObjectKind::ServiceEntry) && self.listed.contains(&ObjectKind::WorkloadEntry)
    }

    /// Whether the endpoints of a ServiceEntry stand in WorkloadEntries of their own, as far as is known.
    pub(super) fn selects(&self, key: &ObjectKey) -> bool {
        let Some(entry) = self.objects.get(key) else { return false };
        let desired = entry.desired.as_ref().map(|desired| desired.fingerprint.selects);
        desired.unwrap_or_else(|| entry.own().is_some_and(|own| own.fingerprint.selects))
    }

    /// The resource of the view named `name`, whose own object is `key`, asks for these objects from now on; for none if it
    /// is gone. [`Plan::view_taken`] follows when all changes of a view are in.
    pub(super) fn desire(&mut self, key: &ObjectKey, name: &Arc<str>, objects: Vec<Converted>) {
        let before = self.split.remove(key).unwrap_or_default();
        let mut gone: BTreeSet<ObjectKey> = before.into_iter().chain([key.clone()]).collect();
        let mut split = Vec::new();
        for Converted { key: of, fingerprint, manifest } in objects {
            gone.remove(&of);
            let text = if of == *key {
                DesiredText::Resource(Arc::clone(name), Some(manifest))
            } else {
                split.push(of.clone());
                DesiredText::Split(manifest)
            };
            self.set_desired(&of, Some(Desired { fingerprint, text }));
        }
        if !split.is_empty() {
            self.split.insert(key.clone(), split);
        }
        gone.iter().for_each(|key| self.set_desired(key, None));
    }

    /// All changes of a view are in.
    pub(super) fn view_taken(&mut self, now: Instant) {
        if self.judged {
            self.judge(now);
        } else {
            self.judged = true;
            self.begin_judging(now);
            self.touch_all();
        }
        self.settle(now);
    }

    fn set_desired(&mut self, key: &ObjectKey, mut desired: Option<Desired>) {
        let digest = |desired: &Desired| desired.fingerprint.digest;
        let known = self.objects.get(key).and_then(|entry| entry.desired.as_ref());
        if known.map(digest) == desired.as_ref().map(digest) {
            return;
        }
        let holds = self.breaker.held().is_some();
        let room = ROOM.saturating_sub(self.kept);
        let (before, after) = self.change(key, |entry| {
            let digest = entry.own().map(|own| own.fingerprint.digest);
            if let Some(Desired { fingerprint, text: DesiredText::Resource(_, kept) }) = &mut desired {
                // An object that the API has already need not be written.
                kept.take_if(|manifest| manifest.len() > room || digest == Some(fingerprint.digest));
            }
            if desired.is_none() {
                entry.adjusted = None;
            }
            let before = std::mem::replace(&mut entry.desired, desired);
            let sum = |desired: Option<&Desired>| desired.map(|d| (d.kept(), d.fingerprint.group));
            (sum(before.as_ref()), sum(entry.desired.as_ref()))
        });
        self.desired = self.desired - usize::from(before.is_some()) + usize::from(after.is_some());
        self.kept = self.kept - before.map_or(0, |(kept, _)| kept) + after.map_or(0, |(kept, _)| kept);
        if holds {
            self.recount.extend([before, after].into_iter().flatten().filter_map(|(_, group)| group));
        }
    }

    /// The manifest of an object is not needed for now.
    fn drop_manifest(&mut self, key: &ObjectKey) {
        let desired = self.objects.get_mut(key).and_then(|entry| entry.desired.as_mut());
        if let Some(Desired { text: DesiredText::Resource(_, kept), .. }) = desired {
            self.kept -= kept.take().map_or(0, |manifest| manifest.len());
        }
    }

    // Observed objects.

    /// All objects of a kind as of `version`, which is not before `began`. Changes since then are shown next.
    pub(super) fn listed(
        &mut self,
        now: Instant,
        kind: ObjectKind,
        began: Instant,
        version: &str,
        objects: impl IntoIterator<Item = (Arc<str>, Observed)>,
    ) {
        let deleted: HashMap<ObjectKey, Arc<str>> = {
            let since = self.deleted.iter().filter(|(at, ..)| *at >= began);
            since.map(|(_, key, version)| (key.clone(), Arc::clone(version))).collect()
        };
        let mut listed: HashMap<ObjectKey, Observed> =
            objects.into_iter().map(|(name, observed)| (ObjectKey { kind, name }, observed)).collect();
        let known = self.objects.keys().filter(|key| key.kind == kind).cloned();
        let keys: BTreeSet<ObjectKey> = known.chain(listed.keys().cloned()).collect();
        for key in keys {
            match listed.remove(&key) {
                _ if self.knows_later(&key, began, version) => {}
                // The list is from before our delete of this state.
                Some(observed) if deleted.get(&key) == Some(observed.version()) => {}
                Some(observed) => self.set_observed(&key, Some(observed)),
                None => self.set_gone(&key, &version.into()),
            }
        }
        if self.listed.insert(kind) {
            self.touch_all();
        }
        self.settle(now);
    }

    /// Whether the state of an object is known, from the answer to a write, that is later than a list as of this version.
    /// The list must have begun before the answer, else its version is not later but of an API server that lost data.
    fn knows_later(&self, key: &ObjectKey, began: Instant, version: &str) -> bool {
        let entry = self.objects.get(key);
        entry.and_then(ObjectEntry::own).is_some_and(|own| is_older(version, &own.state.version))
            && entry.and_then(|entry| entry.written.as_ref()).is_some_and(|written| written.at >= began)
    }

    /// The watch shows an object.
    pub(super) fn shown(&mut self, now: Instant, key: &ObjectKey, observed: Observed) {
        if !self.knows_newer(key, &observed, true) {
            self.set_observed(key, Some(observed));
            self.settle(now);
        }
    }

    /// The watch shows that an object is gone, and how it was last.
    pub(super) fn gone(&mut self, now: Instant, key: &ObjectKey, last: &Observed) {
        if !self.knows_newer(key, last, false) {
            self.set_gone(key, last.version());
            self.settle(now);
        }
    }

    /// Whether a newer state of an object is known, or with `or_same` this one.
    fn knows_newer(&self, key: &ObjectKey, observed: &Observed, or_same: bool) -> bool {
        let known = self.objects.get(key).and_then(|entry| entry.observed.as_ref());
        known.is_some_and(|known| {
            is_older(observed.version(), known.version()) || (or_same && observed.version() == known.version())
        })
    }

    /// There is no such object as of this version.
    fn set_gone(&mut self, key: &ObjectKey, version: &Arc<str>) {
        self.set_observed(key, None);
        if let Some(in_flight) = self.objects.get_mut(key).and_then(|entry| entry.in_flight.as_mut()) {
            in_flight.gone = Some(Arc::clone(version));
        }
    }

    fn set_observed(&mut self, key: &ObjectKey, observed: Option<Observed>) {
        let known = self.objects.get(key).and_then(|entry| entry.observed.as_ref());
        if known == observed.as_ref() {
            return;
        }
        let doubt = self.change(key, |entry| {
            entry.observed = observed;
            entry.doubt.take_if(|doubt| !doubt.outlives_a_state())
        });
        if let Some(doubt) = doubt {
            self.doubts.remove(&(doubt.until, key.clone()));
        }
    }

    // Orders, the lease and time.

    /// An operator decided something.
    pub(super) fn obey(&mut self, now: Instant, orders: SinkOrders) {
        let before = std::mem::replace(&mut self.orders, orders);
        if orders.releases != before.releases {
            self.breaker.release();
            self.judge(now);
        }
        if orders.purging != before.purging {
            self.touch_all();
        }
        self.settle(now);
    }

    /// The lease was renewed; no write begins from then on.
    pub(super) fn renewed(&mut self, until: Instant) {
        self.lease_until = until;
    }

    /// Time has passed; to be called at [`Plan::wake`], and whenever else.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some(key) = self.schedule.due(now).cloned() {
            // An object that rests longer by now is put there again.
            self.move_to(&key, Standing::Idle);
            self.decide(&key, now);
        }
        while let Some((at, key)) = self.doubts.first().cloned()
            && at <= now
        {
            self.doubts.pop_first();
            self.change(&key, |entry| entry.doubt = None);
        }
        self.judge(now);
        self.settle(now);
        if now >= self.progress {
            self.progress = now + PROGRESS;
            if self.schedule.has_ready() {
                let (written, problems) = (self.counts.done(), self.problems.len());
                self.notices.give(Notice::Progress { written, to_go: self.pending(), problems });
            }
        }
    }

    // The output.

    /// The next write, if there is one that may begin now.
    pub(super) fn next(&mut self, now: Instant) -> Option<PlannedWrite> {
        let until = loop {
            if self.orders.frozen || now >= self.lease_until || self.schedule.in_flight() >= self.settings.concurrency {
                break None;
            }
            let Some(key) = self.patience.pick(&self.schedule, now) else {
                break self.patience.next_probe(&self.schedule);
            };
            let Action::Write(request) = self.action(&key) else {
                // The object was decided about before something else changed.
                self.decide(&key, now);
                continue;
            };
            match self.patience.admit(&key, now) {
                Ok(()) => {
                    let write = self.begin(key, request);
                    self.settle(now);
                    return Some(write);
                }
                Err(at) => break Some(at),
            }
        };
        let deadline = self.breaker_deadline();
        let doubt = self.doubts.first().map(|(at, _)| *at);
        let progress = (self.pending() > 0).then_some(self.progress);
        self.wake = [until, self.schedule.next_due(), deadline, doubt, progress].into_iter().flatten().min();
        self.note_first_sync(now);
        None
    }

    fn begin(&mut self, key: ObjectKey, request: WriteRequest) -> PlannedWrite {
        let is_delete = matches!(request, WriteRequest::Delete(_));
        let source = self.change(&key, |entry| {
            let desired = entry.desired.as_ref().filter(|_| !is_delete);
            let selects = desired.filter(|desired| desired.fingerprint.selects);
            let selects = selects.and_then(|desired| desired.fingerprint.group);
            let source = desired.map(Desired::source);
            let in_flight = InFlight { request: request.clone(), basis: entry.basis(), selects, gone: None };
            entry.in_flight = Some(Box::new(in_flight));
            source
        });
        self.move_to(&key, Standing::InFlight);
        PlannedWrite { key, request, source }
    }

    /// When [`Plan::tick`] is to be called although nothing happens, as of the last call of [`Plan::next`].
    pub(super) fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// Notices to be logged, since the last time.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        self.notices.take()
    }

    /// How many objects are to be in the API.
    pub(super) fn objects(&self) -> usize {
        if self.orders.purging { 0 } else { self.desired }
    }

    /// How many objects are yet to be written or deleted, or tried again.
    pub(super) fn pending(&self) -> usize {
        self.schedule.pending()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.schedule.in_flight()
    }

    /// Whether the API has what is desired, all of it.
    pub(super) fn in_sync(&self) -> bool {
        self.judged && self.pending() == 0 && self.problems.is_empty()
    }

    /// Whether a view was taken.
    pub(super) fn is_judged(&self) -> bool {
        self.judged
    }

    pub(super) fn is_purging(&self) -> bool {
        self.orders.purging
    }

    /// Services and endpoints whose removal the breaker withholds.
    pub(super) fn withheld(&self) -> Option<Lost> {
        self.breaker.held()
    }

    pub(super) fn counts(&self) -> WriteCounts {
        self.counts
    }

    /// Objects that are not as they should be, and why.
    pub(super) fn problems(&self) -> &BTreeMap<ObjectKey, Problem> {
        &self.problems
    }

    /// How the first comparison went, once it is through.
    pub(super) fn first_sync(&self) -> Option<FirstSync> {
        self.first_sync
    }

    fn note_first_sync(&mut self, now: Instant) {
        if self.judged && self.pending() == 0 && self.first_sync.is_none() {
            let millis = now.duration_since(self.began).as_millis() as u64;
            let first = FirstSync { objects: self.desired, writes: self.counts.done(), millis };
            self.first_sync = Some(first);
            self.notices.give(Notice::Compared(first));
        }
    }

    // The one way to change an entry.

    /// Changes what is known of an object, and with it the groups; it is looked at by the next [`Plan::settle`], and so
    /// are those that waited for it.
    fn change<R>(&mut self, key: &ObjectKey, alter: impl FnOnce(&mut ObjectEntry) -> R) -> R {
        let entry = self.objects.entry(key.clone()).or_default();
        let before = entry.groups();
        let result = alter(entry);
        let (after, missing) = (entry.groups(), entry.is_missing_in(key.kind));
        let was_missing = std::mem::replace(&mut entry.missing_in, missing);
        if was_missing != missing {
            // A group lives as long as it has members, so the count of a group that is left goes first.
            self.touched.extend(self.groups.shift_missing(was_missing, None));
        }
        self.groups.shift(key, &before, &after);
        if was_missing != missing {
            self.groups.shift_missing(None, missing);
        }
        if key.kind == ObjectKind::ServiceEntry {
            for id in before.into_iter().chain(after).flatten() {
                self.touched.extend(self.groups.wake(id));
            }
        }
        self.touched.insert(key.clone());
        result
    }

    fn touch_all(&mut self) {
        self.touched.extend(self.objects.keys().cloned());
    }

    /// Decides about everything that was touched.
    fn settle(&mut self, now: Instant) {
        while let Some(key) = self.touched.pop_first() {
            self.decide(&key, now);
        }
    }

    fn move_to(&mut self, key: &ObjectKey, to: Standing) {
        let Some(entry) = self.objects.get_mut(key) else { return };
        let from = std::mem::replace(&mut entry.standing, to);
        self.schedule.shift(key, from, to);
        if let Standing::Waiting(Some(group)) = from {
            self.groups.wait_no_more(group, key);
        }
        if let Standing::Waiting(Some(group)) = to {
            self.groups.wait(group, key);
        }
    }
}

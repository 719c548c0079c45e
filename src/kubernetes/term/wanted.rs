//! What is wanted, and what was seen in the API.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use tokio::{task, time::Instant};

use super::{Source, Term, Want, set, snapshot};
use crate::{
    kubernetes::{
        api::Failure,
        objects::{Key, Kind, Seen, object_name, wanted},
        reflect::{Event, is_older},
    },
    snapshot::view::View,
};

impl Term {
    /// Brings what is wanted in line with a view, once the objects are known.
    pub(super) fn follow(&mut self, view: &View) {
        let listed = self.listed.contains(&Kind::ServiceEntry) && self.listed.contains(&Kind::WorkloadEntry);
        if !(view.complete && listed) {
            return;
        }
        let same = Kind::ALL.into_iter().all(|kind| Arc::ptr_eq(snapshot(view, kind), snapshot(&self.view, kind)));
        if self.judged && same {
            return;
        }
        let mut touched = BTreeSet::new();
        task::block_in_place(|| {
            let before = std::mem::replace(&mut self.view, view.clone());
            for kind in Kind::ALL {
                let (new, old) = (set(view, kind), set(&before, kind));
                let difference = new.since(&old);
                for name in difference.removed {
                    self.want_resource(kind, name, None, &mut touched);
                }
                for item in difference.changed {
                    self.want_resource(kind, item.name(), Some(item.framed()), &mut touched);
                }
            }
        });
        if !self.judged {
            self.judged = true;
            self.begin_judging();
            touched.extend(self.want.keys().chain(self.seen.keys()).cloned());
        } else {
            self.judge();
        }
        self.mark(touched);
    }

    fn want_resource(
        &mut self,
        kind: Kind,
        name: &Arc<str>,
        framed: Option<&bytes::Bytes>,
        touched: &mut BTreeSet<Key>,
    ) {
        let key = Key { kind, name: object_name(name) };
        let selects = match (self.want.get(&key), self.seen.get(&key)) {
            (Some(want), _) => want.form.selects,
            (None, Some(Seen::Ours { form, .. })) => form.selects,
            _ => false,
        };
        let owner = &self.given.owner;
        let objects = framed.and_then(|framed| wanted(kind, framed, owner, selects)).unwrap_or_default();
        let mut gone: BTreeSet<Key> = self.parts.remove(&key).unwrap_or_default().into_iter().collect();
        gone.insert(key.clone());
        let mut parts = Vec::new();
        for object in objects {
            gone.remove(&object.key);
            let source = if object.key == key {
                Source::Resource(Arc::clone(name))
            } else {
                parts.push(object.key.clone());
                Source::Content(Box::new(object.content))
            };
            touched.insert(object.key.clone());
            self.set_want(object.key, Some(Want { form: object.form, source }));
        }
        if !parts.is_empty() {
            self.parts.insert(key, parts);
        }
        for key in gone {
            self.set_want(key.clone(), None);
            touched.insert(key);
        }
    }

    fn set_want(&mut self, key: Key, want: Option<Want>) {
        let group = want.as_ref().and_then(|want| want.form.group);
        let before = match want {
            Some(want) => self.want.insert(key.clone(), want),
            None => self.want.remove(&key),
        };
        let before = before.and_then(|want| want.form.group);
        if !self.want.contains_key(&key) {
            self.adjusted.remove(&key);
        }
        if self.breaker.held().is_some() {
            self.recount.extend(group.into_iter().chain(before));
        }
        self.regroup(&key, group.into_iter().chain(before));
    }

    fn set_seen(&mut self, key: Key, seen: Option<Seen>) {
        let group = |seen: &Option<Seen>| match seen {
            Some(Seen::Ours { form, .. }) => form.group,
            _ => None,
        };
        let new = group(&seen);
        let before = match seen {
            Some(seen) => self.seen.insert(key.clone(), seen),
            None => self.seen.remove(&key),
        };
        self.regroup(&key, new.into_iter().chain(group(&before)));
    }

    /// Keeps who belongs to these services, of which one object is another now, and wakes who waits in them.
    fn regroup(&mut self, key: &Key, groups: impl Iterator<Item = u128>) {
        let wanted = self.want.get(key).and_then(|want| want.form.group);
        let seen = match self.seen.get(key) {
            Some(Seen::Ours { form, .. }) => form.group,
            _ => None,
        };
        for id in groups {
            if let Some(group) = self.groups.get_mut(&id) {
                self.woken.append(&mut group.waiting);
            }
            if wanted == Some(id) || seen == Some(id) {
                self.groups.entry(id).or_default().members.insert(key.clone());
            } else if let Some(group) = self.groups.get_mut(&id) {
                group.members.remove(key);
                group.missing.remove(key);
                if group.members.is_empty() {
                    self.groups.remove(&id);
                }
            }
        }
    }

    /// Takes a state of an object that is not older than the one known; returns who is to be looked at.
    pub(super) fn see(&mut self, key: &Key, seen: Seen, gone: bool) -> BTreeSet<Key> {
        if let (Some(Seen::Ours { version: known, .. }), Seen::Ours { version, .. }) = (self.seen.get(key), &seen)
            && (is_older(version, known) || (version == known && !gone))
        {
            return BTreeSet::new();
        }
        self.set_seen(key.clone(), (!gone).then_some(seen));
        [key.clone()].into()
    }

    /// Whether a list that began then may be older than what we wrote, whose state is known from the answer. The watch that
    /// follows the list has what has become of it since. (A delete that a list does not have yet is made again, and finds
    /// nothing.)
    fn wrote_since(&self, key: &Key, began: Instant, listed: Option<&Seen>) -> bool {
        let Some(Seen::Ours { version: known, .. }) = self.seen.get(key) else { return false };
        let older = match listed {
            Some(Seen::Ours { version, .. }) => is_older(version, known),
            Some(Seen::Foreign) => false,
            None => true,
        };
        older && self.written.get(key).is_some_and(|written| written.at >= began)
    }

    /// Takes what a reflector says; a failure that it returns ends the term.
    pub(super) fn hear(&mut self, kind: Kind, event: Event) -> Option<Failure> {
        let key = |name| Key { kind, name };
        let touched = match event {
            Event::Listed(began, items) => {
                let mut touched: BTreeSet<Key> = self.seen.keys().filter(|key| key.kind == kind).cloned().collect();
                touched.extend(self.want.keys().filter(|key| key.kind == kind).cloned());
                let mut listed: HashMap<Key, Seen> = items.into_iter().map(|(name, seen)| (key(name), seen)).collect();
                touched.extend(listed.keys().cloned());
                for key in &touched {
                    let seen = listed.remove(key);
                    if !self.wrote_since(key, began, seen.as_ref()) {
                        self.set_seen(key.clone(), seen);
                    }
                }
                self.listed.insert(kind);
                self.given.report.lock().failure = None;
                touched
            }
            Event::Put(name, seen) => self.see(&key(name), seen, false),
            Event::Gone(name, seen) => self.see(&key(name), seen, true),
            Event::Failed(failure) => {
                tracing::warn!(kind = kind.name(), %failure, "objects cannot be followed; they are listed again");
                let text = format!("{}: {failure}", kind.plural());
                self.given.report.lock().failure = Some(text.into());
                // The kind may be gone, or served in another version.
                return (failure.code() == Some(404)).then_some(failure);
            }
        };
        self.mark(touched);
        None
    }
}

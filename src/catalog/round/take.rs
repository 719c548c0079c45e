//! The services that the next round is to look at: those that changed, and those that another policy touches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashSet;

use crate::{
    catalog::{
        breaker::{Ahead, Totals},
        key::ServiceKey,
        narrowing::{exported, is_same},
        notices::Notice,
        orders::Orders,
        round::{Round, Stage},
    },
    model::{Millis, PROTOCOLS},
    policy::Policy,
    registry::store::{Store, Taken},
    translate::{
        payload::{Client, PROTOCOLS_OF_INSTANCE},
        port::port,
    },
    visibility::{ServiceId, seen::Seen},
};

/// How a service has to be looked at when one policy follows on another.
enum Touch {
    /// Not at all.
    Not,
    /// The service may have another form, with the same endpoints under the same host.
    Form,
    /// The service or some of its endpoints may come or go, or it may have another host.
    Whole,
}

/// How many services and endpoints so many payloads of a dataInfoId make at most; how many protocols they name is not known
/// before they are read.
fn most_of(id: &str, payloads: usize) -> Totals {
    match Client::of(id).names_protocols() {
        true => Totals { services: payloads * PROTOCOLS_OF_INSTANCE, endpoints: payloads * PROTOCOLS_OF_INSTANCE },
        false => Totals { services: payloads.min(1), endpoints: payloads },
    }
}

impl Round {
    /// Takes from the store the services that the next round is to look at: those that changed, and those that another
    /// policy touches. The services that may go or come by the policy, or have another host, are taken at once, so that
    /// they are judged and placed as a whole; services that get another form only are taken in parts, and so are many that
    /// changed, where no breaker could trip over all of them together and no hold ends. Where what certainly goes is enough for the
    /// hold that all of them would begin, that begins before.
    pub fn take(&mut self, now: Millis, store: &Store, policy: &Arc<Policy>, orders: &Orders) -> Vec<Taken> {
        let ends_hold = orders.release || self.breaker.is_due(now) || self.additions.is_due(now);
        // Who waits for what was said before does not wait for what comes after.
        let is_awaited = std::mem::replace(&mut self.flushes, orders.flushes) != orders.flushes;
        let is_whole = self.stage != Stage::Live || self.is_other(policy) || ends_hold || is_awaited;
        let due = self.due(policy, || store.ids());
        // The form of a service under the policy in force may be refused, and then nothing goes of it.
        let follows = !due.is_empty() || !self.pending.is_empty();
        store.mark_dirty(&due);
        let mut taken = store.take_dirty();
        for taken in &taken {
            self.pending.remove(&taken.data_info_id);
        }
        let named: HashSet<&str> = taken.iter().map(|taken| &*taken.data_info_id).collect();
        let mut forgotten = Vec::new();
        for id in due.iter().filter(|id| !named.contains(&***id)) {
            // A service that is there and was not taken is being read: what it has is not known before the end of that.
            if store.has(id) {
                self.pending.insert(Arc::clone(id));
            } else {
                forgotten.push(Taken { data_info_id: Arc::clone(id), entries: Vec::new(), unknown: false });
            }
        }
        drop(named);
        taken.extend(forgotten);
        self.waits_for_reads = store.has_put_off();
        let part = self.part + due.len();
        // The backlog was found harmless beside the hold.
        let is_other = std::mem::take(&mut self.ended_hold) || !taken.is_empty();
        if taken.len() <= part && self.backlog.is_empty() {
            taken
        } else if is_whole || (is_other && self.may_trip(now, &taken) && (follows || !self.hold_ahead(now, &taken))) {
            self.backlog.whole(taken)
        } else {
            self.backlog.portion(taken, part)
        }
    }

    /// Begins the hold that a mass is worth, together with what is left of others, if that is certain. Returns whether a hold began
    /// and no breaker could trip over the rest, so that all of them can go in portions.
    fn hold_ahead(&mut self, now: Millis, taken: &[Taken]) -> bool {
        let (mut mass, mut to_come) = (Vec::new(), Totals::default());
        self.breaker.begin(now, self.services.totals());
        let came: HashSet<&str> = taken.iter().map(|taken| &*taken.data_info_id).collect();
        let left = self.backlog.services().filter(|left| !came.contains(&*left.data_info_id));
        let mut back: HashSet<&str> = HashSet::new();
        for Taken { data_info_id: id, entries, unknown } in taken.iter().chain(left) {
            for key in self.others.with_main(id) {
                let Some(service) = self.services.get(&key) else { continue };
                // Of a quarantined service the next form may be refused as well, and then it stays.
                let goes = entries.is_empty() && !unknown && !self.quarantined.has(key.text());
                mass.push(Ahead { id: Arc::clone(key.text()), served: service.endpoints, goes });
            }
            let payloads: usize = entries.iter().map(|entry| usize::from(entry.boxes())).sum();
            let Totals { services, endpoints } = most_of(id, payloads);
            to_come.services += services;
            to_come.endpoints += endpoints;
            if payloads > 0 || *unknown {
                back.insert(&**id);
            }
        }
        let gone = self.breaker.lost().map(|text| ServiceKey::of_text(Arc::clone(text)));
        let gone = gone.filter(|key| back.contains(key.id()) && self.services.get(key).is_none());
        mass.extend(gone.map(|key| Ahead { id: Arc::clone(key.text()), served: 0, goes: false }));
        let served = self.services.iter().map(|(key, service)| (key.text(), service.endpoints));
        let of_tenant = |tenant: &str| self.services.totals_of(tenant);
        drop(back);
        let Some(lost) = self.breaker.hold_ahead(now, &mass, to_come, of_tenant, served) else { return false };
        self.notices.give(now, Notice::MassDeleteHeld(lost));
        // The services are named before their turn, since the end of the hold is to have them looked at.
        for Ahead { id, .. } in mass.into_iter().filter(|service| service.goes) {
            if self.breaker.withholds(&id) {
                self.set_withheld(&ServiceKey::of_text(id), true);
            }
        }
        !self.may_trip(now, taken)
    }

    /// Whether a breaker could trip over services and what is left of others, whatever became of them.
    fn may_trip(&self, now: Millis, taken: &[Taken]) -> bool {
        let came = taken.iter().map(|taken| &taken.data_info_id).filter(|id| !self.backlog.has(id));
        let (mut served, mut new) = (Vec::new(), 0);
        for id in came.chain(self.backlog.ids()) {
            // Most of a mass is in the hold that it began, and has no other service.
            if self.breaker.withholds(id) && self.others.of(id).next().is_none() {
                continue;
            }
            let before = served.len();
            let endpoints = |key: ServiceKey| self.services.get(&key).map(|service| (key, service.endpoints));
            served.extend(self.others.with_main(id).into_iter().filter_map(endpoints));
            if served.len() == before {
                // How many protocols it has is not known before it is read.
                new += if Client::of(id).names_protocols() { PROTOCOLS.len() } else { 1 };
            }
        }
        let served = served.iter().map(|(key, endpoints)| (key.text(), *endpoints));
        let of_tenant = |tenant: &str| self.services.totals_of(tenant);
        self.additions.may_trip(new) || self.breaker.may_trip(now, self.services.totals(), served, of_tenant)
    }

    /// Like [`Round::take`], for a copy: from what was read of the registry before. A service that is `None` there was being read.
    pub fn take_of(&mut self, registry: &BTreeMap<Arc<str>, Option<Taken>>, policy: &Arc<Policy>) -> Vec<Taken> {
        let now = self.due(policy, || registry.keys().cloned().collect());
        let nothing = |id: &Arc<str>| Taken { data_info_id: Arc::clone(id), entries: Vec::new(), unknown: false };
        let read = now.iter().filter_map(|id| registry.get(id).cloned().unwrap_or_else(|| Some(nothing(id))));
        let taken: Vec<Taken> = read.collect();
        for id in &now {
            self.pending.remove(id);
        }
        taken
    }

    /// The services to look at since a policy follows on another: see [`Round::take`]. `ids` are those that the store has.
    fn due(&mut self, policy: &Arc<Policy>, ids: impl FnOnce() -> Vec<Arc<str>>) -> Vec<Arc<str>> {
        let mut now = Vec::new();
        let is_other = self.is_other(policy);
        let seen = self.narrowing.seen().cloned();
        if is_other || !is_same(self.seen.as_ref(), seen.as_ref()) {
            let mut ids = ids();
            let known: HashSet<&str> = ids.iter().map(|id| &**id).collect();
            // With those that the store has forgotten, since they have no publishers left.
            let served = self.services.iter().filter(|(_, served)| !served.is_unheard()).map(|(key, _)| key.id());
            let forgotten: BTreeSet<&str> = served.filter(|id| !known.contains(id)).collect();
            let forgotten: Vec<Arc<str>> = forgotten.into_iter().map(Arc::from).collect();
            drop(known);
            ids.extend(forgotten);
            for id in &ids {
                let seen = seen.as_deref();
                let touch = match &self.policy {
                    Some(before) if is_other => self.touch(before, policy, seen, id),
                    Some(_) if !self.sees_alike(policy, seen, id) => Touch::Form,
                    Some(_) => Touch::Not,
                    None => Touch::Whole,
                };
                match touch {
                    Touch::Not => {}
                    Touch::Form => {
                        self.pending.insert(Arc::clone(id));
                    }
                    Touch::Whole => now.push(Arc::clone(id)),
                }
            }
        }
        let part = if self.stage == Stage::Live { self.part } else { usize::MAX };
        while now.len() < part
            && let Some(id) = self.pending.pop_first()
        {
            now.push(id);
        }
        now
    }

    /// Whether a policy is not that of the round before.
    fn is_other(&self, policy: &Arc<Policy>) -> bool {
        self.policy.as_ref().is_none_or(|before| !Arc::ptr_eq(before, policy))
    }

    /// How the services of a dataInfoId have to be looked at when one policy follows on another.
    fn touch(&self, before: &Policy, after: &Policy, seen: Option<&Seen>, id: &Arc<str>) -> Touch {
        let (old, new, namespace) = (before.rules(id), after.rules(id), &*self.config.namespace);
        let names_protocols = Client::of(id).names_protocols();
        if !after.admits_as(before)
            || before.serves(id) != after.serves(id)
            || old.host != new.host
            || (names_protocols && !after.knows_as(before))
        {
            return Touch::Whole;
        }
        let has_other_port = |key: &ServiceKey| {
            let port = |policy| port(key.id(), key.other(), &key.rules(policy));
            port(before) != port(after)
        };
        if before.reading(names_protocols) != after.reading(names_protocols)
            || exported(&old, id, self.seen.as_deref(), namespace) != exported(&new, id, seen, namespace)
            || old.warmup != new.warmup
            || port(id, None, &old) != port(id, None, &new)
            || self.others.of(id).any(has_other_port)
        {
            Touch::Form
        } else {
            Touch::Not
        }
    }

    /// Whether a service is exported as in the round before, under the policy of then.
    fn sees_alike(&self, policy: &Policy, seen: Option<&Seen>, id: &Arc<str>) -> bool {
        let get = |seen: Option<&Seen>| seen.map(|seen| seen.get(ServiceId::of(id)).cloned());
        get(self.seen.as_deref()) == get(seen) || {
            let (rules, namespace) = (policy.rules(id), &*self.config.namespace);
            exported(&rules, id, self.seen.as_deref(), namespace) == exported(&rules, id, seen, namespace)
        }
    }
}

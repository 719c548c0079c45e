//! The changes that a policy would make, found out by the engine itself: a copy of the round is taken through the rounds that
//! follow on the policy, and the views before and after are compared. The round, the view that is served and the registry stay
//! untouched.
//!
//! A copy is made of what is served, of the round's [`Outline`] and of the registry, read as the store has it. None of the
//! three is held for longer than a change needs, so nothing that goes out waits for a dry run; and what came in meanwhile is
//! looked at first, under the policy in force, so that the policy alone is what the two views differ by.
//!
//! A freeze is left out of account: what is told is what the policy changes from the thaw on.

pub mod difference;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;

use crate::{
    catalog::{
        assignment::Pins,
        breaker::{HoldState, Totals},
        changes::RoundChanges,
        dry_run::difference::{Difference, Listed, difference},
        last_good::LastGood,
        narrowing,
        orders::Orders,
        report::Quarantine,
        round::{Input, Outline, Output, Round},
    },
    model::Millis,
    policy::{GlobMatches, Matches, Policy},
    registry::store::{Store, Taken},
    snapshot::view::View,
    visibility::seen::Seen,
};

/// The changes that a policy would make, as they are told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    /// The changes that go out at once.
    #[serde(flatten)]
    pub changes: Difference,
    /// All changes, once what the breakers hold is released; only where they hold anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released: Option<Difference>,
    /// Everything else.
    #[serde(flatten)]
    pub findings: Findings,
}

/// Findings of a dry run beside the changes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Hash of the document that was tried.
    pub hash: String,
    /// Hash of the one in force.
    pub in_force: String,
    /// Services with endpoints and their endpoints, under the policy in force and the one that was tried.
    pub serving: [Totals; 2],
    /// Services, and entries of applications by their host, whose new form Istio would refuse, so that they stay as they are.
    pub refused: Listed<Refused>,
    /// The breakers after the policy.
    pub breakers: Breakers,
    /// How many services, or applications, each glob of the document matches.
    pub globs: Vec<GlobMatches>,
    /// Services that were left out, since they were being read just then.
    pub being_read: usize,
}

/// Something that stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The text of the service's key: its dataInfoId, or `<protocol>://<dataInfoId>` of a service beside the main one; or
    /// `application://<host>` of an application's entry.
    pub name: Arc<str>,
    /// The rule that its new form would break.
    #[serde(flatten)]
    pub why: Quarantine,
}

/// The breakers, as they would be after the policy.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Breakers {
    /// How much would go, if nothing were withheld, in percent of what is served: services that lose all endpoints, and
    /// endpoints net of those that come.
    pub loss: [f64; 2],
    /// `mox.protect.mass-delete-share`.
    pub allowed: usize,
    /// Removals that would be withheld from then on.
    pub mass_delete: Vec<HoldState>,
    /// Services of which something would be withheld.
    pub withheld: Listed<Arc<str>>,
    /// New services that would wait.
    pub waiting: Listed<Arc<str>>,
    /// The tenant whose new services would wait, if those of others would not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_tenant: Option<Box<str>>,
    /// Services that would be hidden from namespaces that see them, and would stay with those for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub narrowing: Option<narrowing::Held>,
}

/// A copy of a round and of what it serves.
#[derive(Debug)]
struct Copy {
    round: Round,
    /// The view that was asked for last, and the changes since: each application rewrites most pages, so all rounds have one.
    view: View,
    changes: RoundChanges,
    now: Millis,
    pins: Arc<Pins>,
    /// The documents' word of who consumes what.
    word: Option<Arc<Seen>>,
    /// Of the rounds since it was asked last.
    refused: BTreeMap<Arc<str>, Option<Quarantine>>,
    withheld: BTreeSet<Arc<str>>,
    waiting: BTreeSet<Arc<str>>,
}

/// A dry run: what would be served, and what was found.
#[derive(Debug)]
pub struct Trial {
    /// Everything that came in so far is served.
    pub before: View,
    /// The policy is followed.
    pub after: View,
    /// The breakers have released what they held; `None`: they held nothing.
    pub released: Option<View>,
    findings: Findings,
    /// Everything that a dry run needed and an answer does not: to let go of it takes as long as a tenth of the dry run.
    _spent: (Copy, BTreeMap<Arc<str>, Option<Taken>>),
}

impl Copy {
    fn of(outline: Outline, view: &View, now: Millis) -> Result<Self, String> {
        let served = LastGood::of_view(view, &outline.graces, 0)?;
        let (pins, word) = (Arc::clone(&outline.pins), outline.word());
        let round = Round::copy(outline, now, served);
        let (refused, withheld, waiting) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let changes = RoundChanges::default();
        Ok(Self { round, view: view.clone(), changes, now, pins, word, refused, withheld, waiting })
    }

    fn see(&mut self, policy: &Arc<Policy>, release: bool) {
        let orders = Orders { release, ..Orders::default() };
        self.round.see(self.now, policy, self.word.as_ref(), &orders);
    }

    fn round(&mut self, dirty: Vec<Taken>, policy: &Arc<Policy>, release: bool) {
        let orders = Orders { loaded: true, release, ..Orders::default() };
        let (policy, pins) = (Arc::clone(policy), Arc::clone(&self.pins));
        let input = Input { now: self.now, dirty, policy, orders, publishers: 0, pins };
        let Output { changes, findings, .. } = self.round.round(input);
        self.changes.then(changes);
        self.refused.extend(findings.names.quarantined);
        for (all, names) in [(&mut self.withheld, findings.names.withheld), (&mut self.waiting, findings.names.waiting)]
        {
            for (id, is_named) in names {
                if is_named {
                    all.insert(id)
                } else {
                    all.remove(&id)
                };
            }
        }
    }

    /// What is served after the rounds so far.
    fn view(&mut self) -> View {
        self.view = std::mem::take(&mut self.changes).apply(&self.view);
        self.view.clone()
    }
}

/// Takes a copy of a round through a change of policy. An error is a bug: what is served was encoded here.
pub fn run(outline: Outline, view: &View, store: &Store, policy: Policy, now: Millis) -> Result<Trial, String> {
    let (in_force, policy) = (Arc::clone(&outline.policy), Arc::new(policy.on_trial()));
    let mut copy = Copy::of(outline, view, now)?;
    let mut registry: BTreeMap<Arc<str>, Option<Taken>> =
        store.ids().into_iter().map(|id| (Arc::clone(&id), store.peek(&id))).collect();
    // With those that are served and that the store has forgotten, since they have no publishers left.
    for (key, _) in copy.round.services().iter() {
        let id: Arc<str> = key.id().into();
        let nothing = || Some(Taken { data_info_id: Arc::clone(&id), entries: Vec::new(), unknown: false });
        registry.entry(Arc::clone(&id)).or_insert_with(nothing);
    }
    let breakers = copy.round.breakers();
    copy.round(registry.values().flatten().cloned().collect(), &in_force, false);
    copy.round.end_copying();
    let before = copy.view();
    if before.versions() == view.versions() {
        // Nothing is new: the breakers would not have taken note of anything.
        copy.round.rewind(breakers);
    }
    let totals = copy.round.services().totals();
    let (next_hold, was_adding) = (copy.round.breaker().next_hold(), copy.round.additions().is_holding());
    let (withheld, waiting) = (copy.withheld.clone(), copy.waiting.clone());
    copy.refused.clear();
    let was_narrowing = copy.round.narrowing().held().is_some();
    copy.see(&policy, false);
    loop {
        let taken = copy.round.take_of(&registry, &policy);
        copy.round(taken, &policy, false);
        if copy.round.is_settled() {
            break;
        }
    }
    let (after, serving) = (copy.view(), [totals, copy.round.services().totals()]);
    let mass_delete = copy.round.breaker().holds_from(next_hold);
    let is_adding = copy.round.additions().is_holding() && !was_adding;
    let waiting_tenant = copy.round.additions().held_tenant().filter(|_| is_adding).map(Into::into);
    let newly = |all: &BTreeSet<Arc<str>>, before: &BTreeSet<Arc<str>>| {
        let mut listed = Listed::default();
        all.difference(before).for_each(|id| listed.add(|| Arc::clone(id)));
        listed
    };
    let (withheld, waiting) = (newly(&copy.withheld, &withheld), newly(&copy.waiting, &waiting));
    let mut refused = Listed::default();
    for (name, why) in copy.refused.iter().filter_map(|(name, why)| Some((name, why.as_ref()?))) {
        refused.add(|| Refused { name: Arc::clone(name), why: why.clone() });
    }
    let known =
        registry.iter().filter(|(_, taken)| taken.as_ref().is_none_or(|it| it.unknown || !it.entries.is_empty()));
    let services = copy.round.services();
    let applications: BTreeSet<&str> = services
        .iter()
        .flat_map(|(_, service)| &service.members)
        .filter_map(|member| member.endpoint().application())
        .collect();
    let mut globs = Matches::new(&policy);
    known.for_each(|(id, _)| globs.service(id));
    applications.into_iter().for_each(|application| globs.application(application));
    let globs = globs.all();
    let narrowing = copy.round.narrowing().held().filter(|_| !was_narrowing);
    let released = (!mass_delete.is_empty() || waiting.count > 0 || narrowing.is_some()).then(|| {
        copy.see(&policy, true);
        let taken = copy.round.take_of(&registry, &policy);
        copy.round(taken, &policy, true);
        while !copy.round.is_settled() {
            let taken = copy.round.take_of(&registry, &policy);
            copy.round(taken, &policy, false);
        }
        copy.view()
    });
    let loss = loss(totals, copy.round.services().totals());
    let share = copy.round.breaker().share();
    let findings = Findings {
        hash: policy.hash().to_owned(),
        in_force: in_force.hash().to_owned(),
        serving,
        refused,
        breakers: Breakers { loss, allowed: share, mass_delete, withheld, waiting, waiting_tenant, narrowing },
        globs,
        being_read: registry.values().filter(|taken| taken.is_none()).count(),
    };
    let _spent = (copy, registry);
    Ok(Trial { before, after, released, findings, _spent })
}

impl Trial {
    /// The answer to who asked. An error is a bug, as in [`run`].
    pub fn told(&self) -> Result<DryRun, String> {
        let Self { before, after, released, findings, .. } = self;
        let released = released.as_ref().map(|released| difference(before, released)).transpose()?;
        Ok(DryRun { changes: difference(before, after)?, released, findings: findings.clone() })
    }
}

/// The share of services and endpoints that goes, in percent with one digit.
fn loss(before: Totals, after: Totals) -> [f64; 2] {
    let lost = |before: usize, after: usize| {
        let lost = before.saturating_sub(after) as f64 * 1_000.0 / before.max(1) as f64;
        lost.round() / 10.0
    };
    [lost(before.services, after.services), lost(before.endpoints, after.endpoints)]
}

#[cfg(test)]
mod tests;

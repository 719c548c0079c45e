//! The findings of rounds, for status, metrics and tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use hashbrown::HashMap;
use serde::Serialize;

use crate::{
    catalog::{
        assignment::claims::Contest,
        breaker::{Lost, Totals},
        direct::lingering::Lingers,
        narrowing,
    },
    istio::rule::Rule,
    model::Millis,
    snapshot::view::Held,
    translate::payload::Reject,
};

/// Status shows this many names of a kind.
const SHOWN: usize = 100;

/// Why a service is not served as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantine {
    /// The rule of Istio's that it would break, or `panic`.
    pub reason: &'static str,
    /// The field and value that break it, and the remedy.
    pub detail: String,
}

impl Quarantine {
    /// A service's data brings out a bug.
    pub fn by_panic() -> Self {
        Self { reason: "panic", detail: "a bug; the log says where".to_owned() }
    }
}

/// Entries for consumers that dial addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectCounts {
    /// Entries served.
    pub entries: usize,
    /// Addresses and ports that two applications claim; whoever connects from there has it, else the newest.
    pub contested: usize,
    /// Endpoints of services that name no application, or one by more than 256 bytes, and so are in no entry.
    pub unnamed: usize,
    /// Entries of which some addresses only are to be called with mTLS, so that none is.
    pub mixed_mtls: usize,
    /// Addresses left out since their entry has too many.
    pub left_out: usize,
    /// Addresses that are still in their entry since their provider went a short while ago.
    pub lingering: usize,
    /// Addresses that went with their provider since too many lingered, as long as there are such entries.
    pub not_lingering: u64,
    /// Endpoints left out, with `direct.balance: mesh`, since their address is not their publisher's own and the policy does not
    /// vouch for it.
    pub not_own: usize,
    /// Some of those: address, port, application and dataInfoId.
    pub not_own_sample: Vec<Box<str>>,
}

/// How often something else became of a service's place since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Moves {
    /// Services that were served got another host.
    pub hosts: u64,
    /// Services that were served got another virtual address for the same host.
    pub vips: u64,
}

/// The unknown services, for the status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnknownReport {
    /// Unknown services of which the last good form is served.
    pub last_good: usize,
    /// Unknown services that have no last good form and are missing in the mesh.
    pub missing: usize,
    /// Some of them by dataInfoId, first those that are missing.
    pub sample: Vec<Arc<str>>,
}

/// The state after a round. Every service that is not served as the registry and the policy have it is named.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Why the served state is not the newest.
    pub held: Option<Held>,
    /// Rounds so far.
    pub rounds: u64,
    /// Services translated so far, each time counted.
    pub translations: u64,
    /// Resources encoded so far.
    pub encodes: u64,
    /// Snapshots handed to streams and sinks so far.
    pub snapshots: u64,
    /// Payloads that are not served, by reason.
    pub rejects: BTreeMap<Reject, u64>,
    /// Services of which endpoints are left out, since they or their publishers have more than `mox.limits` lets them, and how
    /// many.
    pub cut: BTreeMap<Arc<str>, u32>,
    /// How many of those services a summary leaves out.
    pub cut_left_out: usize,
    /// Endpoints left out since Istio would refuse their service with them, by the rule that they break.
    pub invalid_endpoints: BTreeMap<Rule, u64>,
    /// How many are quarantined, by reason.
    pub quarantined_by: BTreeMap<&'static str, u64>,
    /// Services by the texts of their keys, and entries of applications as `application://<host>`, whose newest form cannot
    /// be made. An older form is served on where there is one.
    pub quarantined: BTreeMap<Arc<str>, Quarantine>,
    /// How many quarantined services a summary leaves out.
    pub quarantined_left_out: usize,
    /// Services that could not be read yet.
    pub unknown: UnknownReport,
    /// Services and endpoints that are missing since the window of the breaker began, while it withholds removals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Lost>,
    /// Services that something is withheld of: while a mass deletion is held, and before the view is complete.
    pub withheld_services: BTreeSet<Arc<str>>,
    /// How many new services wait, while too many came at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<usize>,
    /// Services that would be hidden from namespaces that see them, while they are too many at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub narrowing: Option<narrowing::Held>,
    /// Services that wait.
    pub waiting_services: BTreeSet<Arc<str>>,
    /// Totals of the served services with endpoints; another session server's first view is judged by it.
    pub serving: Totals,
    /// The first complete view was judged against nothing.
    pub no_baseline: bool,
    /// Entries for consumers that dial addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<DirectCounts>,
    /// Addresses and ports that are still in the entry of an application since their provider went a short while ago.
    pub lingering: BTreeMap<SocketAddr, Lingers>,
    /// How many services have lost their last endpoint and keep their entry for a while.
    pub in_grace: usize,
    /// Services in their grace, and when the last endpoint went, in milliseconds since the epoch.
    pub graces: BTreeMap<Arc<str>, Millis>,
    /// Services that do not have their first host, since another has it.
    pub hosts_moved: usize,
    /// Hosts that do not have their first VIP, since another has it.
    pub vips_moved: usize,
    /// Hosts and VIPs that several services want.
    pub contested: BTreeMap<Arc<str>, Contest<Arc<str>>>,
    /// Each service that would rather have hosts and VIPs that others have, with these.
    #[serde(skip)]
    pub standing_back: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// Changes of hosts and VIPs so far.
    pub moves: Moves,
}

/// The findings of one round: all counts, and the names that changed.
#[derive(Debug, Default)]
pub struct Findings {
    /// See [`Report::held`].
    pub held: Option<Held>,
    /// See [`Report::rounds`].
    pub rounds: u64,
    /// See [`Report::translations`].
    pub translations: u64,
    /// See [`Report::encodes`].
    pub encodes: u64,
    /// See [`Report::rejects`].
    pub rejects: BTreeMap<Reject, u64>,
    /// See [`Report::invalid_endpoints`].
    pub invalid_endpoints: BTreeMap<Rule, u64>,
    /// See [`Report::quarantined_by`].
    pub quarantined_by: BTreeMap<&'static str, u64>,
    /// See [`Report::unknown`]; `None`: as before.
    pub unknown: Option<UnknownReport>,
    /// See [`Report::withheld`].
    pub withheld: Option<Lost>,
    /// See [`Report::waiting`].
    pub waiting: Option<usize>,
    /// See [`Report::narrowing`].
    pub narrowing: Option<narrowing::Held>,
    /// See [`Report::serving`].
    pub serving: Totals,
    /// See [`Report::no_baseline`].
    pub no_baseline: bool,
    /// See [`Report::direct`].
    pub direct: Option<DirectCounts>,
    /// See [`Report::hosts_moved`].
    pub hosts_moved: usize,
    /// See [`Report::vips_moved`].
    pub vips_moved: usize,
    /// See [`Report::moves`].
    pub moves: Moves,
    /// The names that changed.
    pub names: Names,
}

/// Changes of who is named in a [`Report`], in the order in which they came about; `None` and `false`: no longer.
#[derive(Debug, Default)]
pub struct Names {
    /// See [`Report::quarantined`].
    pub quarantined: Vec<(Arc<str>, Option<Quarantine>)>,
    /// See [`Report::cut`]; 0: no longer.
    pub cut: Vec<(Arc<str>, u32)>,
    /// See [`Report::withheld_services`].
    pub withheld: Vec<(Arc<str>, bool)>,
    /// See [`Report::waiting_services`].
    pub waiting: Vec<(Arc<str>, bool)>,
    /// See [`Report::graces`].
    pub graces: Vec<(Arc<str>, Option<Millis>)>,
    /// See [`Report::contested`].
    pub contested: Vec<(Arc<str>, Option<Contest<Arc<str>>>)>,
    /// See [`Report::standing_back`]; none: it stands back no more.
    pub standing_back: Vec<(Arc<str>, Vec<Arc<str>>)>,
    /// See [`Report::lingering`].
    pub lingering: Vec<(SocketAddr, Option<Lingers>)>,
}

impl Report {
    /// Before the first round.
    pub fn new() -> Self {
        Self { held: Some(Held::NotLoaded), ..Self::default() }
    }

    /// Takes what a round found; `handed_on`: its snapshot was new. Costs what changed.
    pub fn take(&mut self, findings: Findings, handed_on: bool) {
        let Findings { held, rounds, translations, encodes, rejects, invalid_endpoints, quarantined_by, .. } = findings;
        let Findings {
            unknown,
            withheld,
            waiting,
            narrowing,
            serving,
            no_baseline,
            direct,
            hosts_moved,
            vips_moved,
            moves,
            names,
            ..
        } = findings;
        for (id, why) in names.quarantined {
            match why {
                Some(why) => drop(self.quarantined.insert(id, why)),
                None => drop(self.quarantined.remove(&id)),
            }
        }
        for (id, endpoints) in names.cut {
            match endpoints {
                0 => self.cut.remove(&id),
                _ => self.cut.insert(id, endpoints),
            };
        }
        let named = [(&mut self.withheld_services, names.withheld), (&mut self.waiting_services, names.waiting)];
        for (all, changes) in named {
            for (id, is_named) in changes {
                if is_named {
                    all.insert(id)
                } else {
                    all.remove(&id)
                };
            }
        }
        for (id, since) in names.graces {
            match since {
                Some(since) => self.graces.insert(id, since),
                None => self.graces.remove(&id),
            };
        }
        for (name, contest) in names.contested {
            match contest {
                Some(contest) => drop(self.contested.insert(name, contest)),
                None => drop(self.contested.remove(&name)),
            }
        }
        for (id, places) in names.standing_back {
            match places.is_empty() {
                true => drop(self.standing_back.remove(&id)),
                false => drop(self.standing_back.insert(id, places)),
            }
        }
        for (address, lingers) in names.lingering {
            match lingers {
                Some(lingers) => drop(self.lingering.insert(address, lingers)),
                None => drop(self.lingering.remove(&address)),
            }
        }
        *self = Self {
            held,
            rounds,
            translations,
            encodes,
            snapshots: self.snapshots + u64::from(handed_on),
            rejects,
            cut: std::mem::take(&mut self.cut),
            cut_left_out: 0,
            invalid_endpoints,
            quarantined_by,
            quarantined: std::mem::take(&mut self.quarantined),
            quarantined_left_out: 0,
            unknown: unknown.unwrap_or_else(|| std::mem::take(&mut self.unknown)),
            withheld,
            withheld_services: std::mem::take(&mut self.withheld_services),
            waiting,
            narrowing,
            waiting_services: std::mem::take(&mut self.waiting_services),
            serving,
            no_baseline,
            direct,
            lingering: std::mem::take(&mut self.lingering),
            in_grace: self.graces.len(),
            graces: std::mem::take(&mut self.graces),
            hosts_moved,
            vips_moved,
            contested: std::mem::take(&mut self.contested),
            standing_back: std::mem::take(&mut self.standing_back),
            moves,
        };
    }

    /// Forgets who is named; the next round names everybody again.
    pub fn forget_names(&mut self) {
        self.quarantined.clear();
        self.cut.clear();
        self.withheld_services.clear();
        self.waiting_services.clear();
        self.graces.clear();
        self.contested.clear();
        self.standing_back.clear();
        self.lingering.clear();
        self.unknown = UnknownReport::default();
    }

    /// The report with the first hundred names of each kind.
    pub fn summary(&self) -> Self {
        let Self { quarantined, cut, withheld_services, waiting_services, graces, .. } = self;
        let Self { rejects, invalid_endpoints, quarantined_by, .. } = self;
        let contest = |(name, contest): (&Arc<str>, &Contest<Arc<str>>)| (Arc::clone(name), contest.clone());
        let lingers = |(address, lingers): (&SocketAddr, &Lingers)| (*address, lingers.clone());
        let pair = |(id, since): (&Arc<str>, &Millis)| (Arc::clone(id), *since);
        Self {
            rejects: rejects.clone(),
            invalid_endpoints: invalid_endpoints.clone(),
            quarantined_by: quarantined_by.clone(),
            quarantined_left_out: quarantined.len().saturating_sub(SHOWN),
            cut: cut.iter().take(SHOWN).map(|(id, endpoints)| (Arc::clone(id), *endpoints)).collect(),
            cut_left_out: cut.len().saturating_sub(SHOWN),
            unknown: self.unknown.clone(),
            direct: self.direct.clone(),
            quarantined: quarantined.iter().take(SHOWN).map(|(id, why)| (Arc::clone(id), why.clone())).collect(),
            withheld_services: withheld_services.iter().take(SHOWN).cloned().collect(),
            waiting_services: waiting_services.iter().take(SHOWN).cloned().collect(),
            graces: graces.iter().take(SHOWN).map(pair).collect(),
            contested: self.contested.iter().take(SHOWN).map(contest).collect(),
            standing_back: BTreeMap::new(),
            lingering: self.lingering.iter().take(SHOWN).map(lingers).collect(),
            ..*self
        }
    }
}

/// Counts by service and kind, and their sums by kind.
#[derive(Debug)]
pub struct Tally<K> {
    by_service: HashMap<Arc<str>, BTreeMap<K, u32>>,
    sums: BTreeMap<K, u64>,
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self { by_service: HashMap::new(), sums: BTreeMap::new() }
    }
}

impl<K: Ord + Copy> Tally<K> {
    /// Replaces the counts of a service; returns what they were.
    pub fn set(&mut self, id: &Arc<str>, counts: impl IntoIterator<Item = (K, u32)>) -> BTreeMap<K, u32> {
        let before = self.by_service.remove(id).unwrap_or_default();
        for (kind, count) in &before {
            *self.sums.entry(*kind).or_default() -= u64::from(*count);
        }
        let counts: BTreeMap<K, u32> = counts.into_iter().collect();
        for (kind, count) in &counts {
            *self.sums.entry(*kind).or_default() += u64::from(*count);
        }
        self.sums.retain(|_, sum| *sum > 0);
        if !counts.is_empty() {
            self.by_service.insert(Arc::clone(id), counts);
        }
        before
    }

    /// Whether a service has counts.
    pub fn has(&self, id: &str) -> bool {
        self.by_service.contains_key(id)
    }

    /// The services with counts.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_service.keys()
    }

    /// Sums over all services; none is 0.
    pub fn sums(&self) -> &BTreeMap<K, u64> {
        &self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_the_sum_of_its_changes() {
        let mut report = Report::new();
        let why = || Quarantine { reason: "export-to", detail: "exportTo \".\"".to_owned() };
        let address = |n| SocketAddr::from(([10, 0, 0, n], 80));
        let lingers = || Lingers { application: "x".into(), since: 7 };
        let contest = || Contest { holder: "g".into(), waiting: vec!["G".into()], count: 1 };
        let names = Names {
            quarantined: vec![("a".into(), Some(why())), ("b".into(), Some(why())), ("a".into(), None)],
            cut: vec![("b".into(), 3), ("a".into(), 4)],
            withheld: vec![("c".into(), true)],
            waiting: vec![("e".into(), true), ("f".into(), true), ("f".into(), false)],
            graces: vec![("d".into(), Some(7))],
            contested: vec![("e.sofa.mesh".into(), Some(contest())), ("f.sofa.mesh".into(), Some(contest()))],
            standing_back: vec![("g".into(), vec!["e.sofa.mesh".into()]), ("h".into(), vec!["f.sofa.mesh".into()])],
            lingering: vec![(address(1), Some(lingers())), (address(2), Some(lingers()))],
        };
        report.take(Findings { names, encodes: 3, ..Findings::default() }, true);
        assert_eq!((report.quarantined.len(), report.quarantined.contains_key("b")), (1, true));
        assert_eq!((report.cut["a"], report.cut["b"]), (4, 3));
        assert!(report.waiting_services.iter().eq(&["e".into()]));
        assert_eq!((report.withheld_services.len(), report.graces["d"], report.in_grace), (1, 7, 1));
        let names = Names {
            quarantined: vec![("b".into(), None)],
            cut: vec![("a".into(), 0), ("b".into(), 2)],
            withheld: vec![("c".into(), false)],
            waiting: vec![("e".into(), false)],
            graces: vec![("d".into(), None)],
            contested: vec![("e.sofa.mesh".into(), None)],
            standing_back: vec![("g".into(), vec![])],
            lingering: vec![(address(1), None)],
        };
        report.take(Findings { names, encodes: 4, ..Findings::default() }, false);
        assert!(report.waiting_services.is_empty());
        assert!(report.quarantined.is_empty() && report.withheld_services.is_empty() && report.graces.is_empty());
        assert_eq!((report.encodes, report.snapshots, report.in_grace), (4, 1, 0));
        assert_eq!(report.contested.keys().map(|name| &**name).collect::<Vec<_>>(), ["f.sofa.mesh"]);
        assert_eq!(report.standing_back, BTreeMap::from([("h".into(), vec!["f.sofa.mesh".into()])]));
        assert_eq!(report.cut, BTreeMap::from([("b".into(), 2)]));
        assert_eq!(report.lingering, BTreeMap::from([(address(2), lingers())]));
    }

    #[test]
    fn a_summary_names_a_hundred_and_counts_all() {
        let mut report = Report::new();
        let why = || Quarantine { reason: "host", detail: "long".to_owned() };
        let names = Names {
            quarantined: (0..250).map(|n| (format!("{n:03}").into(), Some(why()))).collect(),
            cut: (0..250).map(|n| (format!("{n:03}").into(), 1)).collect(),
            graces: (0..250).map(|n| (format!("{n:03}").into(), Some(n))).collect(),
            ..Names::default()
        };
        report.take(Findings { names, rounds: 7, ..Findings::default() }, false);
        let summary = report.summary();
        assert_eq!((summary.quarantined.len(), summary.quarantined_left_out, summary.rounds), (100, 150, 7));
        assert_eq!((summary.graces.len(), summary.in_grace), (100, 250));
        assert_eq!((summary.cut.len(), summary.cut_left_out), (100, 150));
        assert_eq!(summary.graces.keys().next_back().map(|id| &**id), Some("099"));
        assert_eq!((report.quarantined.len(), report.quarantined_left_out, report.graces.len()), (250, 0, 250));
    }

    #[test]
    fn a_tally_keeps_sums_and_forgets_zeros() {
        let mut tally = Tally::default();
        assert!(tally.set(&"a".into(), [('x', 2), ('y', 1)]).is_empty());
        tally.set(&"b".into(), [('x', 3)]);
        assert_eq!(tally.sums(), &BTreeMap::from([('x', 5), ('y', 1)]));
        assert_eq!(tally.set(&"a".into(), []), BTreeMap::from([('x', 2), ('y', 1)]));
        assert_eq!(tally.sums(), &BTreeMap::from([('x', 3)]));
        assert_eq!(tally.by_service.len(), 1);
    }
}

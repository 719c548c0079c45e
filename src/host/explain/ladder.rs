//! The steps from the registry to the proxies, each with what was found there: a function of [`Facts`] and nothing else.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Serialize;

use crate::{
    host::{
        explain::{
            facts::{Facts, Freeze, Publisher, Told},
            find, remedies,
        },
        page::counted,
    },
    policy::{Globs, Mode, Policy, Refusal},
    registry::store::{Dropped, UNFINISHED_READS},
    snapshot::view::Held,
    translate::{payload::Reject, reading::Reading, service_entry::Member},
};

/// Keys of the reasons for which no client of this session server can have a service.
const UNTOLD: [&str; 3] = ["not-listening", "fenced", "no-istiod"];
/// HTTP status of the API server for what may not be done.
const FORBIDDEN: u16 = 403;
/// Reasons of one step that are told.
const TOLD: usize = 20;

/// A step, in the order of the data's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The registry has publishers of it.
    Registry,
    /// This session server has read them.
    Read,
    /// The policy lets it in.
    Policy,
    /// Payloads are endpoints.
    Payloads,
    /// The service has a host, and a virtual address.
    Names,
    /// Istio takes it.
    Istio,
    /// Nothing holds it back.
    Held,
    /// The service is served as the registry has it.
    Served,
    /// Namespaces see it.
    ExportTo,
    /// Kubernetes has it, where it is written there.
    Kubernetes,
    /// Clients have it.
    Clients,
}

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All is well.
    Passed,
    /// The step is passed, but for a part.
    Partly,
    /// The way ends here.
    Failed,
}

/// Why a step did not pass, or not whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// A stable name.
    pub key: String,
    /// The state of things.
    pub says: String,
    /// The remedy.
    pub remedy: String,
}

/// A step with what was found there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rung {
    /// The step.
    pub step: Step,
    /// Its outcome.
    pub verdict: Verdict,
    /// A sentence on what was found.
    pub found: String,
    /// Why it did not pass, the worst first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// The page that tells more.
    pub page: &'static str,
}

fn reason(key: impl Into<String>, says: impl Into<String>, remedy: impl Into<String>) -> Reason {
    Reason { key: key.into(), says: says.into(), remedy: remedy.into() }
}

impl Rung {
    fn passed(step: Step, found: impl Into<String>) -> Self {
        Self { step, verdict: Verdict::Passed, found: found.into(), reasons: Vec::new(), page: page(step) }
    }

    /// Passed where there are no reasons.
    fn of(step: Step, verdict: Verdict, found: impl Into<String>, mut reasons: Vec<Reason>) -> Self {
        reasons.truncate(TOLD);
        let verdict = if reasons.is_empty() { Verdict::Passed } else { verdict };
        Self { step, verdict, found: found.into(), reasons, page: page(step) }
    }
}

/// The page of the documentation about a step.
fn page(step: Step) -> &'static str {
    match step {
        Step::Registry | Step::Read => "docs/protection.md",
        Step::Policy | Step::ExportTo => "docs/policy.md",
        Step::Payloads => "docs/providers.md",
        Step::Names | Step::Istio | Step::Served => "docs/istio.md",
        Step::Held => "docs/concepts.md",
        Step::Kubernetes => "docs/kubernetes.md",
        Step::Clients => "docs/operations.md",
    }
}

/// The ladder, whole: who looks for one fault may have two.
pub fn ladder(facts: &Facts) -> Vec<Rung> {
    let steps = [registry, read, policy, payloads, names, istio, held, served, export_to, kubernetes, clients];
    let mut ladder: Vec<Rung> = steps.iter().filter_map(|step| step(facts)).collect();
    // A service that is served all the same, as while a removal is withheld, is in the mesh whatever the steps before say.
    let is_there = facts.served.is_some() && facts.shown && facts.address.is_none();
    let before = ladder.iter_mut().take_while(|rung| rung.step != Step::Served);
    before.filter(|rung| is_there && rung.verdict == Verdict::Failed).for_each(|rung| rung.verdict = Verdict::Partly);
    ladder
}

/// Reasons for which a part of the mesh has something else than the registry, the weightiest first: each decides, whatever steps
/// before it say.
const DECIDING: [&str; 8] =
    ["mass-delete", "frozen", "last-good", "nack", "too-large", "kubernetes-problem", "mass-add", "not-loaded"];
/// The reason that is as somebody wants it, as a rule, and so is told after those that nobody wants.
const WANTED: &str = "exported-to-some";
/// Reasons beside the first that a sentence tells.
const BESIDE: usize = 3;

/// The reasons of a ladder that kept its service, or a part of it, out: first the one that decides, then a few more.
fn weighed(ladder: &[Rung]) -> Vec<&Reason> {
    let others = |reason: &Reason| DECIDING.len() + usize::from(reason.key == WANTED);
    let weight = |reason: &Reason| DECIDING.iter().position(|key| *key == reason.key).unwrap_or_else(|| others(reason));
    let is_told = |rung: &&Rung| rung.verdict != Verdict::Passed && rung.step != Step::Served;
    let told = ladder.iter().filter(is_told);
    let mut all: Vec<&Reason> = told
        .flat_map(|rung| {
            let first = rung.reasons.first();
            let deciding = rung.reasons.iter().skip(1).filter(|it| weight(it) < DECIDING.len());
            first.into_iter().chain(deciding)
        })
        .collect();
    all.sort_by_key(|reason| weight(reason));
    all
}

/// A reason with its remedy, and the states of a few others.
fn told(reasons: &[&Reason]) -> String {
    let Some((first, others)) = reasons.split_first() else { return String::new() };
    let mut told = format!("{}. To do: {}.", first.says, first.remedy);
    let mut said: Vec<&str> = vec![&first.says];
    for other in others.iter().filter(|other| other.key != first.key) {
        if !said.contains(&&*other.says) && said.len() <= BESIDE {
            told += &format!(" Also: {}.", other.says);
            said.push(&other.says);
        }
    }
    told
}

/// The ladder in a sentence: the reason that decides comes first, whichever step has it.
pub fn answer(ladder: &[Rung]) -> String {
    if let Some(at) = ladder.iter().position(|rung| rung.verdict == Verdict::Failed) {
        let rung = &ladder[at];
        // That it is not served follows from a step before, if any says so.
        let causes = if rung.step == Step::Served { weighed(&ladder[..at]) } else { Vec::new() };
        let causes = if causes.is_empty() { rung.reasons.iter().take(1).collect() } else { causes };
        return format!("Not in the mesh: {}", if causes.is_empty() { rung.found.clone() } else { told(&causes) });
    }
    let last = ladder.iter().rev().find(|rung| rung.step == Step::Served).map_or("", |rung| &rung.found);
    // Proxies have it from this server's clients, or by Kubernetes; without either it is not known here whether any has it.
    let untold = |rung: &&Rung| rung.step == Step::Clients && rung.reasons.iter().any(|it| UNTOLD.contains(&&*it.key));
    let elsewhere = ladder.iter().any(|rung| rung.step == Step::Kubernetes);
    let mut parts = weighed(ladder);
    if let Some(nobody) = ladder.iter().find(untold).filter(|_| !elsewhere) {
        let first: Vec<&Reason> = nobody.reasons.iter().take(1).collect();
        parts.retain(|part| !nobody.reasons.contains(part));
        let more = if parts.is_empty() { String::new() } else { format!(" And for a part: {}", told(&parts)) };
        return format!("Served, {last}, but nobody is told of it here: {}{more}", told(&first));
    }
    match parts.first() {
        Some(_) => format!("In the mesh, {last}, but: {}", told(&parts)),
        None => format!("In the mesh, {last}."),
    }
}

fn registry(facts: &Facts) -> Option<Rung> {
    let id = facts.key.id();
    let count = facts.publishers;
    if facts.being_read {
        return Some(Rung::passed(Step::Registry, "a read of it is being applied"));
    }
    let mut reasons = Vec::new();
    let feed = facts.feed.as_ref();
    for refused in feed.iter().flat_map(|feed| &feed.refused).filter(|it| it.data_info_id == id) {
        reasons.push(reason(
            format!("refused-{}", refused.reason),
            format!("publisher {} is left out: {}", refused.register_id, refused.reason),
            "tell the client's owner what it publishes; docs/protection.md has the bounds",
        ));
    }
    for (limit, dropped) in facts.dropped.iter().filter(|(_, it)| !it.last.is_empty() && id.starts_with(&*it.last)) {
        reasons.push(reason(
            format!("limit-{limit}"),
            format!("{}, the last one of this service", at_limit(&facts.used, limit, dropped.events)),
            match *limit != UNFINISHED_READS {
                true => format!("raise mox.limits.{limit}, or find who publishes so much"),
                false => "reads of the data servers do not come to their end; feed.lastFailure of the status says why"
                    .to_owned(),
            },
        ));
    }
    if count > 0 {
        return Some(Rung::of(Step::Registry, Verdict::Partly, counted(count, "publisher"), reasons));
    }
    if facts.unknown {
        return Some(Rung::passed(Step::Registry, "the registry names it, and it could not be read yet"));
    }
    // Who has just begun, or hears of nothing, does not know what the registry says.
    let is_unread = matches!(facts.held, Some(Held::NotLoaded | Held::LastGood));
    let is_stale = feed.is_some_and(|feed| feed.stale);
    let (key, says, remedy) = if is_unread {
        (
            "not-read",
            "the first view of this session server is not complete, so it may not have read its publishers yet",
            "wait, or ask another session server; feed.owed of the status counts what is still to be read",
        )
    } else if is_stale {
        (
            "not-heard",
            "this session server knows no publisher of it, and has not heard of some data servers for a while",
            "ask another session server, and look after those data servers",
        )
    } else if facts.is_local() {
        (
            "no-publisher",
            "no client of this session server publishes it (mox.scope=local)",
            "see which session server the provider is connected to, or set mox.scope=cluster",
        )
    } else {
        (
            "no-publisher",
            "the registry names no publisher of it in this data center",
            "see that the provider runs, is connected, and registers this very dataId, instance and group; its case counts",
        )
    };
    let dropped = |(limit, it): &(&&str, &Dropped)| **limit != UNFINISHED_READS && it.events > 0;
    let limits: Vec<String> =
        facts.dropped.iter().filter(dropped).map(|(limit, it)| at_limit(&facts.used, limit, it.events)).collect();
    if !limits.is_empty() && reasons.is_empty() {
        let says = format!("{}, perhaps of this service", limits.join("; "));
        reasons.push(reason("may-be-limit", says, "raise that limit, or find who publishes so much"));
    }
    reasons.push(reason(key, says, remedy));
    // A service in its grace, or of the last good state, is served without publishers.
    let verdict = if facts.served.is_some() { Verdict::Partly } else { Verdict::Failed };
    Some(Rung::of(Step::Registry, verdict, "no publisher", reasons))
}

/// The events that were dropped at a limit, with how much of it is used.
pub fn at_limit(used: &BTreeMap<&'static str, (usize, usize)>, limit: &str, events: u64) -> String {
    let used = used.get(limit).map(|(used, most)| format!(" ({used} of {most} used)")).unwrap_or_default();
    format!("{} dropped at mox.limits.{limit}{used}", counted(events as usize, "event"))
}

fn read(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    if facts.unknown {
        let says = "its data server could not be read, or what was read could not be taken in, since the start";
        reasons.push(reason(
            "unknown",
            says,
            "look after the slot's data server; feed.lastFailure of the status says why",
        ));
    }
    if facts.being_read {
        reasons.push(reason("being-read", "a read of it is being applied right now", "ask again in a second"));
    }
    if facts.feed.as_ref().is_some_and(|feed| feed.stale) {
        let says = "this session server has not heard of some data servers for longer than mox.protect.max-staleness";
        reasons.push(reason("stale", says, "look after those data servers, or the network to them"));
    }
    let verdict = if facts.unknown && facts.served.is_none() { Verdict::Failed } else { Verdict::Partly };
    let found = if facts.is_local() { "what clients of this session server say" } else { "read from the data servers" };
    Some(Rung::of(Step::Read, verdict, found, reasons))
}

fn policy(facts: &Facts) -> Option<Rung> {
    let (id, document) = (facts.key.id(), facts.policy.document());
    if facts.policy.serves(id) {
        return Some(Rung::passed(Step::Policy, format!("the policy {} lets it in", short(facts.policy.hash()))));
    }
    let exclude = Globs::new(document.exclude.iter().map(String::as_str)).matching(id);
    let mut reasons = vec![match exclude.first().and_then(|at| document.exclude.get(*at)) {
        Some(glob) => reason(
            "excluded",
            format!("the policy's exclude has \"{glob}\", which matches it"),
            "take that glob out of exclude, or make it narrower",
        ),
        None => reason(
            "not-included",
            "no glob of the policy's include matches it",
            "add its dataId to include; POST /mox/policy?dryRun tells what that changes",
        ),
    }];
    // Who has let it in by a document that does not count looks for that here.
    reasons.extend(facts.policy_refused.as_ref().map(|why| {
        let says = format!("a newer document of the policy is refused, so the one before counts: {why}");
        reason("policy-refused", says, "set the policy anew, by POST /mox/policy or in the console")
    }));
    Some(Rung::of(
        Step::Policy,
        Verdict::Failed,
        format!("the policy {} keeps it out", short(facts.policy.hash())),
        reasons,
    ))
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// The payloads, or those at the address that is asked for.
fn payloads(facts: &Facts) -> Option<Rung> {
    if facts.publishers == 0 {
        return None;
    }
    if facts.address.is_some() {
        return Some(payloads_at(facts));
    }
    let reasons = facts
        .rejects
        .iter()
        .map(|(why, (count, sample))| rejected(&facts.policy, *why, &format!("{count}, such as"), sample));
    // A decision of a publisher's is no fault.
    let mut reasons: Vec<(bool, Reason)> = facts.rejects.keys().map(|why| why.is_decision()).zip(reasons).collect();
    reasons.sort_by_key(|(is_decision, _)| *is_decision);
    if facts.wanted.is_empty()
        && reasons.is_empty()
        && facts.policy.serves(facts.key.id())
        && facts.quarantine.is_none()
    {
        let says = match facts.key.other() {
            Some(protocol) => format!("no publisher has an endpoint of protocol {protocol}"),
            None => "no publisher has an endpoint; those of another protocol than the dataInfoId's are services of their own".to_owned(),
        };
        reasons.push((
            false,
            reason("no-endpoint", says, "see the payloads at /mox/services/<dataInfoId>, and the services beside it"),
        ));
    }
    let verdict = if facts.wanted.is_empty() { Verdict::Failed } else { Verdict::Partly };
    let found = counted(facts.wanted.len(), "endpoint");
    Some(Rung::of(Step::Payloads, verdict, found, reasons.into_iter().map(|(_, reason)| reason).collect()))
}

/// Why the payload with this text is left out; `of` says whose it is, or how many such there are.
fn rejected(policy: &Policy, why: Reject, of: &str, text: &str) -> Reason {
    let (means, remedy) = remedies::of_reject(why);
    let means = match why {
        Reject::Denied => denied(policy, text).unwrap_or_else(|| means.to_owned()),
        _ => means.to_owned(),
    };
    reason(why.to_string(), format!("{means} ({of} {text})"), remedy)
}

/// The range of the policy that denies the address in a text, or that none allows it.
fn denied(policy: &Policy, text: &str) -> Option<String> {
    let parts = text.split(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c)));
    let address = |part: &str| {
        [part, part.trim_matches(['[', ']'])].into_iter().find_map(find::address).map(|(address, _)| address)
    };
    let denied = |address: &IpAddr| policy.check_address(*address) == Err(Refusal::Denied);
    let address = parts.filter_map(address).find(denied)?;
    Some(match policy.denied_by(address) {
        Some(range) => format!("the policy's endpoints.deny has {range}, in which {address} is"),
        None => format!("no range of the policy's endpoints.allow has {address}"),
    })
}

fn payloads_at(facts: &Facts) -> Rung {
    let mut reasons = Vec::new();
    let Some((ip, port)) = facts.address else { return Rung::passed(Step::Payloads, "") };
    let mut served = 0;
    for Publisher { register_id, readings, .. } in &facts.looked_at {
        for Reading { text, made } in readings.iter().filter(|reading| reading.is_at(ip, port)) {
            match made {
                Err(why) => reasons.push(rejected(&facts.policy, *why, &format!("publisher {register_id},"), text)),
                // Of another protocol, and so of a service beside this one.
                Ok((protocol, _)) if protocol.as_deref() != facts.key.other() => {}
                Ok((_, endpoint)) => {
                    let is_it = |member: &&Member| member.key() == (&endpoint.address, endpoint.port);
                    match facts.wanted.iter().find(is_it) {
                        Some(member) if member.register_id() == register_id => served += 1,
                        Some(member) => reasons.push(reason(
                            "newer-publisher",
                            format!("publisher {} registered the same address and port later than {register_id}", member.register_id()),
                            "nothing, if both are the same provider; else one of them should not publish it",
                        )),
                        None if endpoint.weight == 0 => {
                            reasons.push(rejected(&facts.policy, Reject::ZeroWeight, &format!("publisher {register_id},"), text));
                        }
                        None => reasons.push(reason(
                            "cut",
                            format!("publisher {register_id} has it, and the service or the publisher has too many endpoints"),
                            "raise mox.limits.endpoints-per-service or mox.limits.endpoints-per-publisher",
                        )),
                    }
                }
            }
        }
    }
    for place in &facts.lingering {
        reasons.push(reason(
            "lingering",
            format!("{place} stays in the entry of its application for a while, though its provider went"),
            "nothing; direct.linger of the policy says for how long",
        ));
    }
    let verdict = if served == 0 { Verdict::Failed } else { Verdict::Partly };
    Rung::of(Step::Payloads, verdict, counted(served, "endpoint") + " at that address", reasons)
}

fn names(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    for (place, contest) in &facts.contests {
        reasons.push(reason(
            "contested",
            format!(
                "{place}, which it would rather have, is {}'s{}",
                contest.holder,
                case(facts.key.text(), &contest.holder)
            ),
            "give one of them a host of its own: overrides.<glob>.host",
        ));
    }
    if let Some(rivals) = &facts.rivals {
        let named: Vec<String> =
            rivals.waiting.iter().map(|rival| format!("{rival}{}", case(facts.key.text(), rival))).collect();
        let more = rivals.count.saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        reasons.push(reason(
            "wanted-by-others",
            format!("its host is what {}{more} would rather have, and calls may be meant for that", named.join(", ")),
            "give one of them a host of its own: overrides.<glob>.host",
        ));
    }
    let found = match &facts.served {
        Some(served) => format!("host {}", served.host),
        None if facts.wanted.is_empty() => return None,
        None => "no host yet".to_owned(),
    };
    Some(Rung::of(Step::Names, Verdict::Partly, found, reasons))
}

/// That two names are the same but for their case, which hosts have none of.
fn case(one: &str, other: &str) -> &'static str {
    if one.eq_ignore_ascii_case(other) { " (they differ by the case of letters only)" } else { "" }
}

fn istio(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    if let Some(quarantine) = &facts.quarantine {
        reasons.push(reason(
            format!("quarantined-{}", quarantine.reason),
            format!("Istio would refuse its newest form ({}): {}", quarantine.reason, quarantine.detail),
            match facts.served.is_some() {
                true => "change what it says; its last good form is served until then",
                false => "change what it says; it has no good form to be served",
            },
        ));
    }
    for (rule, (count, invalid)) in &facts.invalid {
        let says = format!(
            "{count} endpoints are left out, since Istio would refuse the service with them: {}",
            invalid.detail
        );
        reasons.push(reason(format!("invalid-{}", rule.name()), says, rule.remedy()));
    }
    let nothing = facts.quarantine.is_some() && facts.served.is_none();
    let verdict = if nothing { Verdict::Failed } else { Verdict::Partly };
    Some(Rung::of(Step::Istio, verdict, "as Istio's own validation has it", reasons))
}

fn held(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    let mut failed = false;
    let hold = |held: Held, detail: &str| {
        let (means, remedy) = remedies::of_held(held);
        match facts.freeze.as_ref().filter(|_| held == Held::Frozen) {
            Some(Freeze { says, remedy }) => {
                reason(held.to_string(), format!("{detail}what is served is frozen, {says}"), *remedy)
            }
            None => reason(held.to_string(), format!("{detail}{means}"), remedy),
        }
    };
    if !facts.shown && facts.held != Some(Held::NotLoaded) {
        failed = true;
        reasons.push(hold(facts.held.unwrap_or(Held::NotLoaded), "clients are told nothing yet: "));
    }
    if facts.waiting {
        failed |= facts.served.is_none();
        reasons.push(hold(Held::MassAdd, "it waits: "));
    }
    if facts.withheld {
        reasons.push(hold(Held::MassDelete, "what went of it is still served: "));
    }
    match facts.held {
        Some(held @ Held::NotLoaded) => {
            failed = true;
            reasons.push(hold(held, ""));
        }
        Some(held @ (Held::LastGood | Held::Frozen)) if facts.shown && !facts.is_as_wanted() => {
            failed |= facts.served.is_none() && !facts.wanted.is_empty();
            reasons.push(hold(held, ""));
        }
        // Others' removals and additions are no matter of this service.
        Some(Held::LastGood | Held::Frozen | Held::MassDelete | Held::MassAdd) | None => {}
    }
    if facts.grace.is_some() && facts.served.is_some() {
        let says = "its last endpoint went a short while ago, and its entry stays without any";
        reasons.push(reason("in-grace", says, "nothing; mox.protect.empty-grace says for how long"));
    }
    let verdict = if failed { Verdict::Failed } else { Verdict::Partly };
    Some(Rung::of(Step::Held, verdict, "breakers, freeze and the first view", reasons))
}

fn served(facts: &Facts) -> Option<Rung> {
    let Some(served) = &facts.served else {
        let says = "it is not served, and the steps before say why; where none does, its round is under way";
        let wanted = !facts.wanted.is_empty() && facts.policy.serves(facts.key.id());
        let remedy = if wanted { "ask again in a second" } else { "see the first step that failed" };
        return Some(Rung::of(
            Step::Served,
            Verdict::Failed,
            "no ServiceEntry",
            vec![reason("not-served", says, remedy)],
        ));
    };
    let mut reasons = Vec::new();
    if let (Some((ip, port)), Some(places)) = (facts.address, &served.places) {
        let is_at = |place: &(String, u16)| place.0 == ip.to_string() && port.is_none_or(|port| port == place.1);
        if !places.iter().any(is_at) {
            reasons.push(reason(
                "endpoint-not-served",
                "no endpoint of the entry is at that address",
                "see the steps before",
            ));
        }
    }
    let found = format!(
        "ServiceEntry {} with {}, version {}",
        served.name,
        counted(served.endpoints, "endpoint"),
        served.version
    );
    let verdict = if facts.address.is_some() { Verdict::Failed } else { Verdict::Partly };
    Some(Rung::of(Step::Served, verdict, found, reasons))
}

fn export_to(facts: &Facts) -> Option<Rung> {
    let to = &facts.served.as_ref()?.export_to;
    let found = if to.is_empty() { "every namespace".to_owned() } else { to.join(", ") };
    if to.is_empty() || to.iter().any(|to| to == "*") {
        return Some(Rung::passed(Step::ExportTo, found));
    }
    let rules = facts.key.rules(&facts.policy);
    let by = match (rules.visibility, rules.export_to_glob) {
        (Mode::On, _) => "by who subscribes to it, as visibility says".to_owned(),
        // What is served may be of a policy before.
        _ if rules.export_to != to => "by an earlier policy".to_owned(),
        (_, Some(glob)) => format!("by overrides.{glob}.exportTo of the policy"),
        (_, None) => "by exportTo of the policy".to_owned(),
    };
    if to.iter().all(|to| to == "~") {
        let says = format!("its exportTo is \"~\", {by}: istiod has it, and no proxy hears of it");
        let remedy = "name namespaces, or \"*\", in exportTo or overrides.<glob>.exportTo of the policy; where visibility is on, nobody is known to subscribe to it";
        return Some(Rung::of(
            Step::ExportTo,
            Verdict::Failed,
            found,
            vec![reason("exported-to-nobody", says, remedy)],
        ));
    }
    let own = |to: &str| match to {
        "." => format!("{} (its own)", facts.config.namespace),
        other => other.to_owned(),
    };
    let names: Vec<String> = to.iter().map(|to| own(to)).collect();
    let says = format!("visible only to {}, {by}", names.join(", "));
    let remedy = "nothing, if its callers are there; else name their namespaces in that";
    Some(Rung::of(Step::ExportTo, Verdict::Partly, found, vec![reason("exported-to-some", says, remedy)]))
}

fn kubernetes(facts: &Facts) -> Option<Rung> {
    if !facts.config.kubernetes.enabled {
        return None;
    }
    let name = facts.served.as_ref().and_then(|served| served.name.rsplit('/').next());
    let problem = facts.kubernetes.as_ref().map(|problem| {
        let words = &problem.message;
        // What is refused to one object is not tried for each.
        let is_own = name.is_some_and(|name| words.contains(&format!("\"{name}\"")));
        let says = match problem.code == Some(FORBIDDEN) && !is_own {
            true => format!("its object is not written, as others are not; of another, for example: {words}"),
            false => format!("its object is not written: {words}"),
        };
        let user = words.split_once("User \"").and_then(|(_, rest)| rest.split('"').next());
        let remedy = match (problem.code, user) {
            (Some(FORBIDDEN), Some(user)) => {
                format!("apply what /mox/kubernetes/rbac prints; its subject must be {user}, who was refused")
            }
            (Some(FORBIDDEN), None) => {
                "apply what /mox/kubernetes/rbac prints; its subject must be who was refused".to_owned()
            }
            _ => "see /mox/kubernetes".to_owned(),
        };
        reason("kubernetes-problem", says, remedy)
    });
    let found = "written to Kubernetes by the session server that has the lease";
    Some(Rung::of(Step::Kubernetes, Verdict::Partly, found, problem.into_iter().collect()))
}

fn clients(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    if !facts.listening {
        let says = "nothing listens at mox.listen";
        reasons.push(reason("not-listening", says, "see the log; the port may be another's"));
    } else if facts.fenced {
        let says = "streams are refused, since another session server has fresher data";
        reasons.push(reason(
            "fenced",
            says,
            "istiods are at that one; look after the data servers that this one cannot reach",
        ));
    }
    let concerned: Vec<&Told> = facts.streams.iter().filter(|told| told.asked && told.has_it).collect();
    if concerned.is_empty() && reasons.is_empty() && !facts.config.kubernetes.enabled {
        let says = match facts.streams.is_empty() {
            true => "no istiod is connected to this session server",
            false => "no stream here asked for the ServiceEntries of its part",
        };
        reasons.push(reason("no-istiod", says, "see meshConfig.configSources, and ask the other session servers"));
    }
    // A stream's part has other services, too, so that the last ACK may be of a change of theirs: what matters is whether any
    // response was taken at all. Other session servers may have the clients that this one has not.
    let none_has = !concerned.is_empty() && !concerned.iter().any(|told| told.ever) && !facts.config.kubernetes.enabled;
    for told in &concerned {
        let Told { client, error, too_large, sent, acked, waits, delta, .. } = told;
        if let Some(error) = error {
            reasons.push(reason(
                "nack",
                match told.ever {
                    true => format!("{client} refused the last response, and keeps all that it had before: {error}"),
                    false => format!("{client} refused the response, and has nothing: {error}"),
                },
                "please report it, with these words",
            ));
        } else if *too_large {
            let says = format!("{client} keeps its last response, since the newest state is too large for one");
            reasons.push(reason(
                "too-large",
                says,
                "set mox.partitions, and list the parts in meshConfig.configSources",
            ));
        } else if !*sent && !*delta && waits.is_none() {
            let says =
                format!("{client} is to be told of a change of its part, which may be of this service or of another");
            reasons.push(reason("behind", says, "wait; mox.push.max bounds it"));
        } else if !*acked && waits.is_some() {
            let says = format!("{client} has not acknowledged its part for {} ms", waits.unwrap_or_default());
            reasons.push(reason(
                "unacknowledged",
                says,
                "see that istiod's load; it stays connected however long that takes",
            ));
        }
    }
    for client in &facts.wrong {
        let address = client.address.map(|address| address.to_string()).unwrap_or_default();
        let says = format!("{} ({address}): {}", client.node, client.wrong.unwrap_or_default());
        reasons.push(reason(
            "wrong-partitions",
            says,
            "paste what /mox/istio-config prints into meshConfig.configSources",
        ));
    }
    // Of reasons of several clients those first for which one lags until something is done.
    let lags = |key: &str| UNTOLD.contains(&key) || ["nack", "too-large"].contains(&key);
    reasons.sort_by_key(|reason| !lags(&reason.key));
    let ever = concerned.iter().filter(|told| told.ever && told.error.is_none()).count();
    let found = format!("its part is taken by {ever} of {}", counted(concerned.len(), "stream"));
    Some(Rung::of(Step::Clients, if none_has { Verdict::Failed } else { Verdict::Partly }, found, reasons))
}

impl Facts {
    /// Whether the endpoints are served that the registry and the policy want.
    fn is_as_wanted(&self) -> bool {
        let Some(served) = &self.served else { return self.wanted.is_empty() };
        // Endpoints that Istio would refuse are wanted and left out.
        let invalid: u32 = self.invalid.values().map(|(count, _)| count).sum();
        let is_whole = served.endpoints + invalid as usize == self.wanted.len();
        let wanted = || self.wanted.iter().map(|it| (it.endpoint().address.to_string(), it.endpoint().port)).collect();
        is_whole && served.places.as_ref().is_none_or(|places| places.is_subset(&wanted()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{assignment::claims::Contest, key::ServiceKey, report::Quarantine},
        config::Config,
        host::{
            engine::Engine,
            feed::{Feed, Refused},
        },
        istio::rule::{Invalid, Rule},
        kubernetes::report::Problem,
        model::RegisterVersion,
        registry::{
            frame::{self, Publisher as Sent},
            store::Dropped,
        },
        snapshot::partition::Partition,
        xds::streams::ClientState,
    };

    const ID: &str = "com.example.A:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";

    /// A service that is served, and everything well.
    async fn served() -> Facts {
        let engine = Engine::open(Config::default()).unwrap();
        engine.loaded();
        let sent = Sent {
            register_id: "a".into(),
            version: RegisterVersion { version: 1, timestamp: 0 },
            payloads: vec![b"10.0.0.1:80".as_slice().into()],
            ..Sent::default()
        };
        engine.apply(&frame::encode_publish("registry", ID, &sent).unwrap()).unwrap();
        engine.flush().await;
        let mut facts = Facts::of(&engine, &ServiceKey::from(ID), None);
        facts.listening = true;
        facts.streams = vec![told()];
        facts.feed = Some(Feed::default());
        facts
    }

    fn told() -> Told {
        Told {
            client: "istiod (10.0.0.9)".into(),
            asked: true,
            has_it: true,
            sent: true,
            acked: true,
            ever: true,
            delta: false,
            error: None,
            too_large: false,
            waits: None,
        }
    }

    fn refused() -> Feed {
        let refused = Refused { data_info_id: ID.into(), reason: "cell".into(), register_id: "b".into(), count: 1 };
        Feed { refused: vec![refused], ..Feed::default() }
    }

    type Change = fn(&mut Facts);

    /// What is one by one not as it should be, where it shows, and whether the service is in the mesh all the same.
    const TROUBLES: [(Change, Step, Verdict, &str); 30] = [
        (|it| it.feed = Some(refused()), Step::Registry, Verdict::Partly, "refused-cell"),
        (
            |it| drop(it.dropped.insert("bytes", Dropped { events: 2, last: ID.into() })),
            Step::Registry,
            Verdict::Partly,
            "limit-bytes",
        ),
        (|it| it.publishers = 0, Step::Registry, Verdict::Partly, "no-publisher"),
        (|it| (it.publishers, it.held) = (0, Some(Held::LastGood)), Step::Registry, Verdict::Partly, "not-read"),
        (|it| it.unknown = true, Step::Read, Verdict::Partly, "unknown"),
        (|it| (it.being_read, it.publishers) = (true, 0), Step::Read, Verdict::Partly, "being-read"),
        (|it| it.feed = Some(Feed { stale: true, ..Feed::default() }), Step::Read, Verdict::Partly, "stale"),
        (
            |it| {
                let contest = Contest { holder: "b".into(), waiting: vec![ID.into()], count: 1 };
                it.contests = vec![("a.sofa.mesh".into(), contest)];
            },
            Step::Names,
            Verdict::Partly,
            "contested",
        ),
        (
            |it| it.rivals = Some(Contest { holder: ID.into(), waiting: vec!["b".into()], count: 1 }),
            Step::Names,
            Verdict::Partly,
            "wanted-by-others",
        ),
        (
            |it| it.served.as_mut().unwrap().export_to = vec!["risk".into()],
            Step::ExportTo,
            Verdict::Partly,
            "exported-to-some",
        ),
        (
            |it| it.streams = vec![Told { error: Some("no".into()), acked: false, ..told() }],
            Step::Clients,
            Verdict::Partly,
            "nack",
        ),
        (|it| it.quarantine = Some(Quarantine::by_panic()), Step::Istio, Verdict::Partly, "quarantined-panic"),
        (
            |it| {
                it.quarantine = Some(Quarantine { reason: "export-to", detail: "exportTo: …".into() });
                it.served = None;
            },
            Step::Istio,
            Verdict::Failed,
            "quarantined-export-to",
        ),
        (
            |it| {
                let invalid = Invalid { rule: Rule::WeightSum, detail: "weight".into() };
                it.invalid = [(Rule::WeightSum, (1, invalid))].into();
            },
            Step::Istio,
            Verdict::Partly,
            "invalid-weight-sum",
        ),
        (|it| (it.held, it.shown) = (Some(Held::NotLoaded), false), Step::Held, Verdict::Failed, "not-loaded"),
        (|it| (it.held, it.shown) = (Some(Held::MassDelete), false), Step::Held, Verdict::Failed, "mass-delete"),
        (|it| (it.held, it.wanted) = (Some(Held::Frozen), Vec::new()), Step::Payloads, Verdict::Partly, "no-endpoint"),
        (|it| (it.held, it.wanted) = (Some(Held::LastGood), Vec::new()), Step::Held, Verdict::Partly, "last-good"),
        (|it| (it.held, it.served) = (Some(Held::Frozen), None), Step::Held, Verdict::Failed, "frozen"),
        (|it| it.withheld = true, Step::Held, Verdict::Partly, "mass-delete"),
        (|it| (it.waiting, it.served) = (true, None), Step::Held, Verdict::Failed, "mass-add"),
        (|it| it.grace = Some(1), Step::Held, Verdict::Partly, "in-grace"),
        (|it| it.served = None, Step::Served, Verdict::Failed, "not-served"),
        (
            |it| it.served.as_mut().unwrap().export_to = vec!["~".into()],
            Step::ExportTo,
            Verdict::Failed,
            "exported-to-nobody",
        ),
        (|it| it.listening = false, Step::Clients, Verdict::Partly, "not-listening"),
        (|it| it.fenced = true, Step::Clients, Verdict::Partly, "fenced"),
        (|it| it.streams.clear(), Step::Clients, Verdict::Partly, "no-istiod"),
        (
            |it| it.streams = vec![Told { sent: false, acked: false, ..told() }],
            Step::Clients,
            Verdict::Partly,
            "behind",
        ),
        (
            |it| it.streams.push(Told { too_large: true, acked: false, ..told() }),
            Step::Clients,
            Verdict::Partly,
            "too-large",
        ),
        (
            |it| {
                let wrong = Some("it does not take every partition");
                let partitions = [Partition::WHOLE].into();
                it.wrong = vec![ClientState { address: None, node: "x".into(), streams: 1, partitions, wrong }];
            },
            Step::Clients,
            Verdict::Partly,
            "wrong-partitions",
        ),
    ];

    #[tokio::test]
    async fn a_read_that_is_being_applied_is_told() {
        let engine = Engine::open(Config::default()).unwrap();
        engine.loaded();
        let sent =
            Sent { register_id: "a".into(), payloads: vec![b"10.0.0.1:80".as_slice().into()], ..Sent::default() };
        engine.apply(&frame::encode_publish("registry", ID, &sent).unwrap()).unwrap();
        engine.flush().await;
        engine.shared().store.begin_read(ID);
        let ladder = ladder(&Facts::of(&engine, &ServiceKey::from(ID), None));
        let read = ladder.iter().find(|rung| rung.step == Step::Read).unwrap();
        assert_eq!((read.verdict, &*read.reasons[0].key), (Verdict::Partly, "being-read"));
        assert!(answer(&ladder).contains("a read of it is being applied right now"), "{}", answer(&ladder));
    }

    /// The words of the API server are of this object, or are said to be another's.
    #[tokio::test]
    async fn what_kubernetes_forbids_is_told_with_who_was_refused() {
        let own = "com.example.a";
        for (object, wanted) in [(own, "its object is not written: "), ("b", "of another, for example: ")] {
            let mut facts = served().await;
            let mut config = Config::default();
            config.kubernetes.enabled = true;
            facts.config = config.into();
            let message = format!("x \"{object}\" is forbidden: User \"system:serviceaccount:a:b\" cannot patch");
            facts.kubernetes = Some(Problem { code: Some(FORBIDDEN), message: message.into(), attempts: 2 });
            let answer = answer(&ladder(&facts));
            assert!(answer.starts_with("In the mesh") && answer.contains(wanted), "{answer}");
            let remedy = "/mox/kubernetes/rbac prints; its subject must be system:serviceaccount:a:b, who was refused";
            assert!(answer.contains(remedy), "{answer}");
        }
    }

    #[tokio::test]
    async fn every_trouble_shows_where_it_is_and_nowhere_else() {
        let facts = served().await;
        let all_well = ladder(&facts);
        assert!(all_well.iter().all(|rung| rung.verdict == Verdict::Passed), "{all_well:#?}");
        assert!(answer(&all_well).starts_with("In the mesh, ServiceEntry"));
        for (change, step, verdict, key) in TROUBLES {
            let mut facts = served().await;
            change(&mut facts);
            let ladder = ladder(&facts);
            let rung = ladder.iter().find(|rung| rung.step == step).unwrap();
            let reason = rung.reasons.iter().find(|reason| reason.key == key);
            let Some(reason) = reason else { panic!("{key} is not in {rung:#?}") };
            assert_eq!(rung.verdict, verdict, "{key}");
            assert!(!reason.says.is_empty() && !reason.remedy.is_empty(), "{key}");
            let answer = answer(&ladder);
            // A proxy has it wherever it is served and told to somebody.
            let in_mesh = facts.served.as_ref().is_some_and(|it| it.export_to != ["~"]) && facts.shown;
            let untold = UNTOLD.contains(&key);
            assert_eq!(answer.starts_with("In the mesh"), in_mesh && !untold, "{key}: {answer}");
            assert_eq!(answer.starts_with("Served, ServiceEntry"), untold, "{key}: {answer}");
            // Others are told only where one follows from the other.
            let others = ladder.iter().filter(|rung| rung.step != step && rung.verdict != Verdict::Passed);
            let others: Vec<Step> = others.map(|rung| rung.step).collect();
            let follow = [Step::Served, Step::Names, Step::Payloads, Step::Held];
            assert!(others.iter().all(|other| follow.contains(other)), "{key}: {others:?}");
        }
    }
}

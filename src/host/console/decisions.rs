//! The list of all that an operator has to look at, each with where to.

use maud::{Markup, html};

use crate::{
    host::{desk, explain::facts::Freeze, page::counted, status::Status},
    snapshot::view::Held,
};

/// Something to decide, or to look after, and the page about it.
pub type Decision = (String, &'static str);

const STATUS: &str = "/mox/status";
const STREAMS: &str = "/mox/streams";
const VISIBILITY: &str = "/mox/visibility";

/// The decisions that a status asks for; of services that are withheld and of contests all are counted, which the status names some of.
pub fn of(status: &Status, (withheld, contested): (usize, usize), freeze: Option<&Freeze>) -> Vec<Decision> {
    let rounds = &status.rounds;
    let (feed, kubernetes) = (status.feed.as_ref(), status.kubernetes.as_ref());
    let mut all: Vec<Decision> = Vec::new();
    let mut add = |count: usize, of: &str, what: &str, to: &'static str| {
        if count > 0 {
            all.push((format!("{} {what}", counted(count, of)), to));
        }
    };
    add(withheld, "service", "of which removals are withheld: release them, or wait", "/mox/services?state=withheld");
    let waiting = rounds.waiting.unwrap_or_default();
    let remedy = "waiting: release them, or find who publishes them";
    add(waiting, "new service", remedy, "/mox/services?state=waiting");
    let narrowed = rounds.narrowing.map_or(0, |held| held.services);
    add(narrowed, "service", "that namespaces would no longer see: release that, or wait", VISIBILITY);
    let quarantined = rounds.quarantined.len() + rounds.quarantined_left_out;
    add(quarantined, "service", "that Istio would refuse", "/mox/services?state=quarantined");
    add(contested, "contest", "of several services for a host or an address", "/mox/services?state=contested");
    let unknown = rounds.unknown.last_good + rounds.unknown.missing;
    add(unknown, "service", "that could not be read", "/mox/services?state=unknown");
    let refused = status.streams.iter().filter(|stream| stream.types.values().any(|it| it.error.is_some())).count();
    add(refused, "stream", "whose client refuses what it was sent: please report its words", STREAMS);
    add(status.totals.wrong, "client", "with wrong parts: paste what istio-config prints", STREAMS);
    add(status.totals.too_large, "response", "too large: set mox.partitions", STREAMS);
    let left_out: u64 = feed.iter().flat_map(|feed| feed.refused_publishers.values()).sum();
    add(left_out as usize, "publisher", "that cannot be taken", STATUS);
    for (limit, dropped) in &status.dropped {
        add(dropped.events as usize, "event", &format!("dropped at mox.limits.{limit} since the start"), STATUS);
    }
    let cut = rounds.cut.len() + rounds.cut_left_out;
    add(cut, "service", "with more endpoints than mox.limits lets them have", STATUS);
    let silent = status.visibility.counts.as_ref().map_or(0, |counts| counts.silent.len());
    add(silent, "session server", "that does not say who subscribes there", VISIBILITY);
    let problems = kubernetes.map_or(0, |report| report.problem_count);
    add(problems, "object", "that cannot be written to Kubernetes", "/mox/kubernetes");
    let lost = kubernetes.and_then(|report| report.withheld).map_or(0, |lost| lost.endpoints);
    let remedy = "withheld from a mass deletion in Kubernetes: release, or wait";
    add(lost, "endpoint", remedy, "/mox/kubernetes");
    // First what is about everything.
    let mut whole: Vec<Decision> = Vec::new();
    let mut is = |so: bool, what: &str, to: &'static str| {
        if so {
            whole.push((what.to_owned(), to));
        }
    };
    let held = |held| status.served.held == Some(held);
    is(status.listening.is_none(), "nothing listens at mox.listen: the log says why", STATUS);
    let says = "streams are refused, since another session server has fresher data: look after the data servers";
    is(status.fenced, says, STATUS);
    let says = "some data servers are silent for longer than mox.protect.max-staleness";
    is(feed.is_some_and(|feed| feed.stale) && !status.fenced, says, STATUS);
    is(held(Held::NotLoaded), "the view is not complete yet: streams are told nothing", STATUS);
    is(held(Held::LastGood), "the view is not complete yet: the last good state is served", STATUS);
    let says = match freeze {
        Some(Freeze { says, remedy }) => format!("what is served is frozen, {says}: {remedy}"),
        None => "what is served is frozen: thaw it when it may change again".to_owned(),
    };
    is(held(Held::Frozen), &says, STATUS);
    let unreachable = status.documents.state == desk::State::Unreachable;
    let says = "the registry's database cannot be read: neither policy nor freeze can be changed";
    is(unreachable, says, STATUS);
    for (name, refused) in status.documents.documents.iter().filter_map(|(name, it)| Some((name, it.refused.as_ref()?)))
    {
        let detail: String = refused.detail.chars().take(DETAIL).collect();
        is(
            true,
            &format!("the document {} is refused, and the last one that counted stays: {detail}", name.as_str()),
            STATUS,
        );
    }
    let visibility = &status.visibility;
    let full = visibility.counts.as_ref().is_some_and(|counts| counts.full);
    let says = "there is no room for who consumes which service: each is exported as the policy says";
    is(full, says, VISIBILITY);
    if let Some(why) = visibility.kubernetes.as_ref().and_then(|pods| pods.failure.as_deref()) {
        let why: String = why.chars().take(DETAIL).collect();
        is(true, &format!("no namespace loses a service, since it is not known where pods are: {why}"), VISIBILITY);
    }
    whole.append(&mut all);
    whole
}

/// How much is told of the reason why a document is refused, or why it is not known where pods are, in characters.
const DETAIL: usize = 300;

/// As a list.
pub fn shown(all: &[Decision]) -> Markup {
    html! {
        @if all.is_empty() {
            p { "Nothing." }
        } @else {
            ul.decide { @for (what, to) in all { li { a href=(to) { (what) } } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        catalog::{breaker::Lost, narrowing, report::UnknownReport},
        config::Config,
        documents::{Name, Reason, Refusal, Shown},
        host::{engine::Engine, feed::Feed, status::Bound},
        kubernetes::report::{KubernetesReport, PodsReport},
        registry::store::Dropped,
        visibility::keeper::Counts,
    };

    fn well() -> Status {
        let mut status = Engine::open(Config::default()).unwrap().status();
        let mox = ([127, 0, 0, 1], 9700).into();
        status.listening = Some(Bound { mox, partitions: BTreeMap::new(), admin: None });
        status.served.held = None;
        status
    }

    type Change = fn(&mut Status);

    const STATES: [(Change, &str, &str); 17] = [
        (|it| it.listening = None, "nothing listens", STATUS),
        (|it| it.fenced = true, "streams are refused", STATUS),
        (|it| it.feed = Some(Feed { stale: true, ..Feed::default() }), "data servers are silent", STATUS),
        (|it| it.served.held = Some(Held::NotLoaded), "streams are told nothing", STATUS),
        (|it| it.served.held = Some(Held::LastGood), "the last good state", STATUS),
        (|it| it.served.held = Some(Held::Frozen), "thaw it", STATUS),
        (|it| it.documents.state = desk::State::Unreachable, "database cannot be read", STATUS),
        (
            |it| {
                let detail = "it has no signature".to_owned();
                let refused = Some(Refusal { reason: Reason::Unsigned, detail, revision: 4 });
                let shown = Shown { revision: 3, stamp: None, refused, refusals: BTreeMap::new() };
                it.documents.documents.insert(Name::Policy, shown);
            },
            "the document policy is refused, and the last one that counted stays: it has no signature",
            STATUS,
        ),
        (
            |it| it.rounds.unknown = UnknownReport { missing: 2, ..Default::default() },
            "2 services that could not be read",
            "/mox/services?state=unknown",
        ),
        (
            |it| drop(it.dropped.insert("services", Dropped { events: 3, last: "x".into() })),
            "3 events dropped at mox.limits.services",
            STATUS,
        ),
        (
            |it| it.rounds.narrowing = Some(narrowing::Held { services: 7, of: 9, until: 0 }),
            "7 services that namespaces would no longer see",
            VISIBILITY,
        ),
        (
            |it| {
                let withheld = Some(Lost { services: 1, endpoints: 8 });
                it.kubernetes = Some(KubernetesReport { withheld, ..KubernetesReport::default() });
            },
            "8 endpoints withheld",
            "/mox/kubernetes",
        ),
        (|it| it.rounds.waiting = Some(3), "3 new services waiting", "/mox/services?state=waiting"),
        (|it| it.totals.too_large = 1, "1 response too large", STREAMS),
        (
            |it| it.visibility.counts = Some(Counts { silent: ["10.0.0.2".into()].into(), ..Counts::default() }),
            "1 session server that does not say who subscribes there",
            VISIBILITY,
        ),
        (
            |it| it.visibility.counts = Some(Counts { full: true, ..Counts::default() }),
            "no room for who consumes which service",
            VISIBILITY,
        ),
        (
            |it| {
                let failure = Some("pods may not be listed and watched: forbidden".into());
                it.visibility.kubernetes = Some(PodsReport { failure, ..PodsReport::default() });
            },
            "not known where pods are: pods may not be listed",
            VISIBILITY,
        ),
    ];

    #[tokio::test]
    async fn each_state_says_what_is_to_be_done_and_all_is_quiet_without() {
        assert_eq!(of(&well(), (0, 0), None), []);
        for (change, says, to) in STATES {
            let mut status = well();
            change(&mut status);
            let all = of(&status, (0, 0), None);
            let [(what, page)] = &all[..] else { panic!("{says}: {all:?}") };
            assert!(what.contains(says) && *page == to, "{says}: {all:?}");
        }
        let mut frozen = well();
        frozen.served.held = Some(Held::Frozen);
        let freeze = Freeze { says: "by an order of \"ann\"".to_owned(), remedy: "thaw it" };
        let [(what, _)] = &of(&frozen, (0, 0), Some(&freeze))[..] else { panic!("it is all that there is") };
        assert_eq!(what, "what is served is frozen, by an order of \"ann\": thaw it");
        let all = of(&well(), (101, 102), None);
        assert!(all[0].0.contains("101 services of which removals") && all[1].0.contains("102 contests"), "{all:?}");
        assert_eq!(
            all.iter().map(|(_, to)| *to).collect::<Vec<_>>(),
            ["/mox/services?state=withheld", "/mox/services?state=contested",]
        );
    }
}

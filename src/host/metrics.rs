//! The status as metrics, for Prometheus. Names begin with `mox_`; counters, which only grow while the process lives, end
//! with `_total`; times are in seconds and sizes in bytes.

use std::fmt::{self, Display, Write};

use serde::Serialize;

use crate::{
    documents::{Name, Reason, Shown},
    histogram::{BOUNDS, Counted},
    host::{
        desk::{DocumentsStatus, State},
        engine::Engine,
        feed::Feed,
        status::Status,
        watching::VisibilityStatus,
    },
    kubernetes::report::KubernetesReport,
    model,
    snapshot::view::Held,
};

/// Prometheus' type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A value that goes up and down.
    Gauge,
    /// A value that only grows.
    Counter,
    /// How many values are within each bound, and their sum; they only grow.
    Histogram,
}

/// A value of a metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The end of the series' name behind that of the metric: of a histogram `_bucket`, `_sum` or `_count`, else nothing.
    pub suffix: &'static str,
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}

/// A metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// Name, with the prefix `mox_`.
    pub name: &'static str,
    /// Help text.
    pub help: &'static str,
    /// Prometheus' type.
    pub kind: Kind,
    /// Values, one for each set of labels.
    pub samples: Vec<Sample>,
}

/// All metrics of an engine, in the text format of Prometheus.
pub fn text(engine: &Engine) -> String {
    let mut text = String::new();
    for metric in of(&engine.status()) {
        // A String takes everything.
        let _ = write!(text, "{metric}");
    }
    text
}

/// All metrics that a status holds.
pub fn of(status: &Status) -> Vec<Metric> {
    let Status { served, store, rounds, totals, times, .. } = status;
    let rejects = |decided: bool| {
        let of = rounds.rejects.iter().filter(move |(reason, _)| reason.is_decision() == decided);
        of.map(|(reason, count)| (name(reason), *count))
    };
    let [sotw, delta] = times.responses;
    let variants = [(("variant", "sotw"), sotw), (("variant", "delta"), delta)];
    let mut all = vec![
        labelled("mox_info", "Version of the library, always 1.", "release", [(status.release.to_owned(), 1)]),
        labelled("mox_policy", "Hash of the policy, always 1.", "hash", [(status.policy.clone(), 1)]),
        gauge("mox_translation", "Number of the translation; other numbers serve other bytes.", status.translation),
        labelled(
            "mox_held",
            "1 for the reason why the served state is not the newest.",
            "reason",
            [Held::NotLoaded, Held::LastGood, Held::MassDelete, Held::MassAdd, Held::Frozen]
                .map(|held| (name(&held), u64::from(served.held == Some(held)))),
        ),
        gauge(
            "mox_fenced",
            "1 while streams are refused, since another session server has fresher data.",
            status.fenced,
        ),
        gauge("mox_listening", "1 while istiod can connect.", status.listening.is_some()),
        gauge("mox_services", "ServiceEntries that are served, those of direct mode included.", served.services as u64),
        gauge("mox_endpoints", "Served endpoints.", served.endpoints),
        gauge("mox_bytes", "Encoded size of the served ServiceEntries and WorkloadEntries.", status.bytes as u64),
        gauge(
            "mox_known_services",
            "Services that the registry named, those just gone included.",
            store.services as u64,
        ),
        gauge("mox_publishers", "Publishers.", store.publishers as u64),
        gauge("mox_publisher_bytes", "Bytes that publishers brought, of at most mox.limits.bytes.", store.bytes as u64),
        gauge(
            "mox_publisher_endpoints",
            "Endpoints that publishers brought, of at most mox.limits.endpoints.",
            store.endpoints as u64,
        ),
        gauge("mox_tombstones", "Remembered removals.", store.tombstones as u64),
        counter(
            "mox_tombstones_evicted_total",
            "Removals forgotten before their time, since there were too many.",
            store.tombstones_evicted,
        ),
        Metric {
            kind: Kind::Counter,
            ..labelled(
                "mox_events_dropped_total",
                "Events dropped at a limit, by the limit.",
                "limit",
                status.dropped.iter().map(|(limit, dropped)| ((*limit).to_owned(), dropped.events)),
            )
        },
        gauge(
            "mox_cut_services",
            "Services with more endpoints, or with a publisher of more, than mox.limits lets them have.",
            (rounds.cut.len() + rounds.cut_left_out) as u64,
        ),
        gauge("mox_withheld_services", "Services withheld from a mass deletion.", lost(status).0),
        gauge("mox_withheld_endpoints", "Endpoints withheld from a mass deletion.", lost(status).1),
        gauge(
            "mox_no_baseline",
            "1 where the first view after the start was judged against nothing.",
            rounds.no_baseline,
        ),
        gauge(
            "mox_waiting_services",
            "New services that wait since too many came at once.",
            rounds.waiting.unwrap_or_default() as u64,
        ),
        gauge("mox_grace_services", "Services that lost their last endpoint a while ago.", rounds.in_grace as u64),
        gauge(
            "mox_lingering_addresses",
            "Addresses that are still in the entry of an application since their provider went a short while ago.",
            rounds.direct.as_ref().map_or(0, |direct| direct.lingering) as u64,
        ),
        labelled(
            "mox_rejected_payloads",
            "Payloads that are not served by mistake, by reason.",
            "reason",
            rejects(false),
        ),
        labelled(
            "mox_payloads_out_of_service",
            "Payloads that are not served as their publishers want it, by reason.",
            "reason",
            rejects(true),
        ),
        labelled(
            "mox_invalid_endpoints",
            "Endpoints left out since Istio would refuse them, by rule.",
            "rule",
            rounds.invalid_endpoints.iter().map(|(rule, count)| (name(rule), *count)),
        ),
        labelled(
            "mox_quarantined_services",
            "Services that keep their last good form, by reason.",
            "reason",
            rounds.quarantined_by.iter().map(|(reason, count)| ((*reason).to_owned(), *count)),
        ),
        gauge(
            "mox_hosts_contested",
            "Services that do not have their first host, since another service has it.",
            rounds.hosts_moved as u64,
        ),
        gauge(
            "mox_vips_contested",
            "Hosts that do not have their first virtual address, since another host has it.",
            rounds.vips_moved as u64,
        ),
        counter("mox_hosts_moved_total", "Services that were served and got another host.", rounds.moves.hosts),
        counter(
            "mox_vips_moved_total",
            "Services that were served and got another virtual address for the same host.",
            rounds.moves.vips,
        ),
        labelled(
            "mox_services_unknown",
            "Services of the registry that could not be read, by what the mesh has of them.",
            "served",
            [("last-good", rounds.unknown.last_good), ("nothing", rounds.unknown.missing)]
                .map(|(served, count)| (served.to_owned(), count as u64)),
        ),
        counter("mox_rounds_total", "Rounds from what changed to a snapshot.", rounds.rounds),
        counter("mox_translations_total", "Services translated.", rounds.translations),
        counter("mox_snapshots_total", "Snapshots handed to streams and sinks.", rounds.snapshots),
        gauge("mox_streams", "Open streams.", totals.streams as u64),
        gauge(
            "mox_unacknowledged",
            "Types on streams whose last response was not accepted, or not yet.",
            totals.unacknowledged as u64,
        ),
        histogram(
            "mox_change_to_published_seconds",
            "From a change of a service to the view that has it; one for each view, for its oldest change.",
            [(None, times.published)],
        ),
        histogram(
            "mox_published_to_sent_seconds",
            "From a view to the first response of a stream that has its change; one for each response that no client asked for.",
            variants.map(|(variant, of)| (Some(variant), of.sent)),
        ),
        histogram(
            "mox_sent_to_acked_seconds",
            "From a response to the client's ACK.",
            variants.map(|(variant, of)| (Some(variant), of.acked)),
        ),
        counter("mox_pushes_total", "Responses sent, without priming.", status.pushes),
        counter("mox_pushed_bytes_total", "Bytes of those.", status.pushed_bytes),
        counter("mox_nacks_total", "Responses that a client did not accept.", status.nacks),
        gauge(
            "mox_clients_with_wrong_partitions",
            "Clients that take some of the partitions of a number, or partitions beside everything; /mox/streams says which.",
            totals.wrong as u64,
        ),
        gauge(
            "mox_responses_too_large",
            "Types on streams that keep their last response, since the newest set is too large for one.",
            totals.too_large as u64,
        ),
        counter("mox_slow_readers_total", "Streams ended since their client read too slowly.", status.slow_readers),
        gauge(
            "mox_pinned_bytes",
            "Bytes of pages that were served before and that somebody still holds, mostly slow clients.",
            status.pinned_bytes as u64,
        ),
        counter(
            "mox_streams_relieved_total",
            "Streams ended since they held the oldest of more such bytes than mox.limits.pinned-bytes.",
            status.relieved,
        ),
        gauge(
            "mox_stream_bytes",
            "Bytes that streams make us keep: what they ask for, and requests that come in.",
            status.stream_bytes as u64,
        ),
        counter(
            "mox_streams_over_budget_total",
            "Streams ended since they wanted more bytes than mox.limits.stream-bytes or streams-bytes.",
            status.over_budget,
        ),
        counter(
            "mox_connections_flooded_total",
            "Connections ended since their client sent too many frames of HTTP/2.",
            status.floods,
        ),
        counter("mox_refused_total", "Connections and streams refused, for whatever reason.", status.refused),
        counter(
            "mox_pages_refused_total",
            "Large admin pages refused, since another one was being read.",
            status.pages.refused,
        ),
        counter(
            "mox_pages_ended_total",
            "Large admin pages ended, since their reader was too slow.",
            status.pages.ended,
        ),
    ];
    all.extend(of_documents(&status.documents));
    if !status.visibility.is_off() {
        all.extend(of_visibility(&status.visibility));
    }
    if let Some(feed) = &status.feed {
        all.extend(of_feed(feed));
    }
    if let Some(report) = &status.kubernetes {
        all.extend(of_kubernetes(report));
    }
    all
}

fn of_documents(status: &DocumentsStatus) -> Vec<Metric> {
    let of = |name, help, samples: Vec<Sample>| Metric { name, help, kind: Kind::Gauge, samples };
    let all = || status.documents.iter();
    let labels = |document: &Name| vec![("name", document.as_str().to_owned())];
    let age = |shown: &Shown| shown.stamp.as_ref().map(|stamp| (model::date() - stamp.when) as f64 / 1e3);
    let mut metrics = vec![
        gauge("mox_documents", "1 while documents are read from the registry's store.", status.state == State::On),
        of(
            "mox_document_revision",
            "Revision of the document that is in force, 0 for none.",
            all().map(|(name, shown)| sample(labels(name), shown.revision as f64)).collect(),
        ),
        of(
            "mox_document_age_seconds",
            "Time since the document was written, by the clocks of its writer and of this server.",
            all().filter_map(|(name, shown)| Some(sample(labels(name), age(shown)?))).collect(),
        ),
        of(
            "mox_document_refused",
            "1 while the row of a document is refused, by reason; the last document that counted stays.",
            all()
                .flat_map(|(document, shown)| {
                    Reason::ALL.map(|reason| {
                        let is_refused = shown.refused.as_ref().is_some_and(|it| it.reason == reason);
                        let labels = vec![("name", document.as_str().to_owned()), ("reason", name(&reason))];
                        sample(labels, f64::from(u8::from(is_refused)))
                    })
                })
                .collect(),
        ),
    ];
    if let Some(millis) = status.read_millis_ago {
        let samples = vec![sample(vec![], millis as f64 / 1e3)];
        metrics.push(of("mox_documents_silence_seconds", "Time since the store was read.", samples));
    }
    metrics
}

fn of_visibility(status: &VisibilityStatus) -> Vec<Metric> {
    let mut all = vec![
        gauge(
            "mox_visibility_known",
            "1 while the documents say of all services where their consumers are.",
            status.known,
        ),
        gauge("mox_visibility_services", "Services that somebody is known to consume.", status.services as u64),
        gauge("mox_visibility_computing", "1 for the session server that asks all who subscribes.", status.computing),
        gauge(
            "mox_visibility_withheld",
            "Services that would be hidden from namespaces that see them, and wait, since they are too many at once.",
            status.held.map_or(0, |held| held.services as u64),
        ),
    ];
    if let Some(pods) = &status.kubernetes {
        let known = "1 while all pods are known, by whose addresses it is known in which namespaces consumers are.";
        all.push(gauge("mox_visibility_pods_known", known, pods.current));
        all.push(gauge("mox_visibility_pods", "Pods that are known.", pods.pods as u64));
    }
    if let Some(counts) = &status.counts {
        let silent = counts.silent.len() as u64;
        all.extend([
            counter(
                "mox_visibility_rounds_total",
                "Rounds that every session server answered and in which it was known where pods are.",
                counts.complete,
            ),
            counter(
                "mox_visibility_incomplete_rounds_total",
                "Rounds that one did not answer, or in which it was not known where pods are.",
                counts.incomplete,
            ),
            gauge("mox_visibility_silent_servers", "Session servers that did not answer the last round.", silent),
            gauge(
                "mox_visibility_leaving",
                "Namespaces of services in which nobody consumes them any more, and which keep them for now.",
                counts.held as u64,
            ),
            gauge("mox_visibility_full", "1 while the documents have no room for all services.", counts.full),
        ]);
    }
    all
}

fn of_kubernetes(report: &KubernetesReport) -> Vec<Metric> {
    vec![
        gauge("mox_kubernetes_writer", "1 for the session server that writes to Kubernetes.", report.writer),
        gauge("mox_kubernetes_in_sync", "1 while nothing is to be written.", report.in_sync),
        gauge("mox_kubernetes_objects", "Objects that are wanted in Kubernetes.", report.objects as u64),
        gauge(
            "mox_kubernetes_pending",
            "Objects that are to be written, deleted or tried again.",
            report.pending as u64,
        ),
        gauge("mox_kubernetes_problems", "Objects that are not as they should be.", report.problem_count as u64),
        gauge(
            "mox_kubernetes_withheld_endpoints",
            "Endpoints in Kubernetes withheld from a mass deletion.",
            report.withheld.map_or(0, |lost| lost.endpoints as u64),
        ),
        counter("mox_kubernetes_applies_total", "Objects written.", report.applies),
        counter("mox_kubernetes_deletes_total", "Objects deleted.", report.deletes),
        counter("mox_kubernetes_refused_total", "Writes that the API server refused.", report.refused),
        counter("mox_kubernetes_pauses_total", "How often all writes were put off.", report.pauses),
    ]
}

fn of_feed(feed: &Feed) -> Vec<Metric> {
    let seconds = |millis: Option<u64>| millis.map(|millis| millis as f64 / 1_000.0);
    let mut all = vec![
        gauge(
            "mox_feed_stale",
            "1 while the data servers are silent for longer than mox.protect.max-staleness.",
            feed.stale,
        ),
        gauge("mox_feed_push_stopped", "1 while the registry has stopped its pushes.", feed.push_stopped),
        gauge("mox_feed_slots", "Slots of the registry's slot table.", feed.slots),
        gauge("mox_feed_services", "Services that the data servers have, as far as it is known.", feed.ids),
        gauge("mox_feed_owed", "Services found different and not read since.", feed.owed),
        gauge(
            "mox_feed_unreadable",
            "Services that cannot be read although their data server answers, or cannot be taken in.",
            feed.unreadable,
        ),
        labelled(
            "mox_feed_refused_publishers",
            "Publishers that are not taken, or not whole, by reason.",
            "reason",
            feed.refused_publishers.iter().map(|(reason, count)| (reason.clone(), *count)),
        ),
        Metric {
            kind: Kind::Counter,
            ..labelled(
                "mox_feed_refused_events_total",
                "What clients of this session server published and is not taken, or not whole, by reason.",
                "reason",
                feed.refused_events.iter().map(|(reason, count)| (reason.clone(), *count)),
            )
        },
        gauge("mox_feed_dirty", "Services that are to be read now.", feed.dirty),
        counter("mox_feed_notices_total", "Notices of changed services.", feed.notices),
        counter("mox_feed_reads_total", "Reads of a service.", feed.reads),
        counter("mox_feed_read_bytes_total", "Bytes of publishers' data in them.", feed.read_bytes),
        counter("mox_feed_read_failures_total", "Reads that failed.", feed.read_failures),
        counter("mox_feed_compares_total", "Comparisons of a slot.", feed.compares),
        counter("mox_feed_compare_failures_total", "Comparisons that failed.", feed.compare_failures),
        counter("mox_feed_differences_total", "Services of which a comparison found another state.", feed.differences),
        counter("mox_feed_reconciled_total", "Comparisons of everything without a failure.", feed.reconciled),
    ];
    for (name, help, value) in [
        ("mox_feed_reconciled_age_seconds", "How long ago the last one began.", seconds(feed.reconciled_millis_ago)),
        (
            "mox_feed_silence_seconds",
            "For how long a slot's leader was not heard of.",
            seconds(feed.oldest_contact_millis),
        ),
        ("mox_feed_bootstrap_seconds", "How long the first complete view took.", seconds(feed.bootstrap_millis)),
        (
            "mox_feed_fresh_peers",
            "Other session servers with fresh data, asked while this one is cut off.",
            feed.fresh_peers.map(|n| n as f64),
        ),
    ] {
        if let Some(value) = value {
            all.push(Metric { name, help, kind: Kind::Gauge, samples: vec![sample(vec![], value)] });
        }
    }
    all
}

fn lost(status: &Status) -> (u64, u64) {
    status.rounds.withheld.map_or((0, 0), |lost| (lost.services as u64, lost.endpoints as u64))
}

fn gauge(name: &'static str, help: &'static str, value: impl Into<u64>) -> Metric {
    plain(name, help, Kind::Gauge, value.into())
}

fn counter(name: &'static str, help: &'static str, value: u64) -> Metric {
    plain(name, help, Kind::Counter, value)
}

fn plain(name: &'static str, help: &'static str, kind: Kind, value: u64) -> Metric {
    Metric { name, help, kind, samples: vec![sample(vec![], value as f64)] }
}

fn sample(labels: Vec<(&'static str, String)>, value: f64) -> Sample {
    Sample { suffix: "", labels, value }
}

fn labelled(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: impl IntoIterator<Item = (String, u64)>,
) -> Metric {
    let samples = values.into_iter().map(|(value, count)| sample(vec![(label, value)], count as f64)).collect();
    Metric { name, help, kind: Kind::Gauge, samples }
}

/// Durations, by at most one label.
fn histogram<const N: usize>(
    name: &'static str,
    help: &'static str,
    of: [(Option<(&'static str, &'static str)>, Counted); N],
) -> Metric {
    let bounds = || BOUNDS.iter().map(|bound| bound.as_secs_f64().to_string()).chain(["+Inf".to_owned()]);
    let samples = of.into_iter().flat_map(|(label, counted)| {
        let labels = move || label.map(|(label, value)| (label, value.to_owned())).into_iter();
        let bucket = move |(bound, count): (String, u64)| Sample {
            suffix: "_bucket",
            labels: labels().chain([("le", bound)]).collect(),
            value: count as f64,
        };
        let whole = move |suffix, value| Sample { suffix, labels: labels().collect(), value };
        let buckets = bounds().zip(counted.within).map(bucket);
        buckets.chain([whole("_sum", counted.sum.as_secs_f64()), whole("_count", counted.count() as f64)])
    });
    Metric { name, help, kind: Kind::Histogram, samples: samples.collect() }
}

/// As the status writes it.
fn name(reason: &impl Serialize) -> String {
    match serde_json::to_value(reason) {
        Ok(serde_json::Value::String(name)) => name,
        other => unreachable!("a reason is a word: {other:?}"),
    }
}

impl Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        };
        writeln!(f, "# HELP {} {}\n# TYPE {} {kind}", self.name, self.help, self.name)?;
        for Sample { suffix, labels, value } in &self.samples {
            // Labels are words of ours, a release or a rule: nothing to escape.
            let labels: Vec<String> = labels.iter().map(|(label, text)| format!("{label}=\"{text}\"")).collect();
            match &labels[..] {
                [] => writeln!(f, "{}{suffix} {value}", self.name)?,
                labels => writeln!(f, "{}{suffix}{{{}}} {value}", self.name, labels.join(","))?,
            }
        }
        Ok(())
    }
}

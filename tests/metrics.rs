//! The page of metrics: how long what takes, counted on an engine with clients, and the form of the whole page.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use harness::{
    Mox,
    client::{Delta, MoxClient, SERVICE_ENTRY, node},
    nth,
    process::eventually_is,
};
use proptest::prelude::*;
use registry_mox::testing::{histogram::Histogram, host::metrics};
use serde_json::json;

/// A series: the name, and the labels in the order of the page.
type Series = (String, Vec<(String, String)>);

/// A page as Prometheus' text format has it, read by its grammar and nothing else:
/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details>.
struct Page {
    kinds: BTreeMap<String, String>,
    samples: BTreeMap<Series, f64>,
}

fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !text.is_empty() && text.chars().all(is_part) && !text.starts_with(|c: char| c.is_ascii_digit())
}

/// Labels within braces: `a="b",c="d"`.
fn labels(mut text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").unwrap();
        assert!(is_name(name) && !name.contains(':'), "{text}");
        let (mut value, mut rest) = (String::new(), rest.chars());
        loop {
            match rest.next().unwrap() {
                '"' => break,
                '\\' => value.push(match rest.next().unwrap() {
                    'n' => '\n',
                    it @ ('"' | '\\') => it,
                    other => panic!("\\{other} in {text}"),
                }),
                c => value.push(c),
            }
        }
        labels.push((name.to_owned(), value));
        text = rest.as_str();
        text = text.strip_prefix(',').inspect(|rest| assert!(!rest.is_empty())).unwrap_or(text);
    }
    labels
}

impl Page {
    fn read(text: &str) -> Self {
        let (mut kinds, mut samples) = (BTreeMap::new(), BTreeMap::new());
        let mut lines = text.strip_suffix('\n').unwrap().lines().peekable();
        while let Some(help) = lines.next() {
            let (name, help) = help.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
            assert!(is_name(name) && !help.trim().is_empty() && !help.contains('\\'), "{name} {help}");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} stands twice");
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (full, of) = match series.strip_suffix('}') {
                    Some(series) => series.split_once('{').map(|(name, inside)| (name, labels(inside))).unwrap(),
                    None => (series, Vec::new()),
                };
                let suffix = full.strip_prefix(name).unwrap();
                let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(suffixes.contains(&suffix), "{line}");
                let named: BTreeSet<&String> = of.iter().map(|(name, _)| name).collect();
                assert_eq!(named.len(), of.len(), "{line}");
                let value: f64 = value.parse().unwrap();
                assert!(samples.insert((full.to_owned(), of), value).is_none(), "{line} stands twice");
            }
        }
        Self { kinds, samples }
    }

    fn value(&self, name: &str, of: &[(&str, &str)]) -> f64 {
        let of = of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples[&(name.to_owned(), of)]
    }

    /// That every histogram is one: buckets by rising bounds, each with those before it, the last without an end and as many as
    /// there are in all; the sum is one of so many values.
    fn check_histograms(&self) {
        let mut found = 0;
        for name in self.kinds.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
            let mut by_labels: BTreeMap<Vec<(String, String)>, Vec<(f64, f64)>> = BTreeMap::new();
            for ((_, of), count) in self.samples.iter().filter(|((full, _), _)| *full == format!("{name}_bucket")) {
                let (mut of, mut bounds) = (of.clone(), Vec::new());
                of.retain(|(label, bound)| {
                    label != "le" || {
                        bounds.push(bound.parse::<f64>().unwrap());
                        false
                    }
                });
                let [bound] = bounds[..] else { panic!("{name}: {bounds:?}") };
                by_labels.entry(of).or_default().push((bound, *count));
            }
            assert!(!by_labels.is_empty(), "{name} has no buckets");
            for (of, mut buckets) in by_labels {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert_eq!((buckets[0].0, buckets[buckets.len() - 2].0, buckets.len()), (0.001, 60.0, 16), "{name}");
                assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name}: {buckets:?}");
                let (last, all) = buckets[buckets.len() - 1];
                assert_eq!((last, all), (f64::INFINITY, self.samples[&(format!("{name}_count"), of.clone())]));
                let sum = self.samples[&(format!("{name}_sum"), of)];
                let within = |bucket: usize| buckets[bucket].1 - if bucket == 0 { 0.0 } else { buckets[bucket - 1].1 };
                let least: f64 = (1..buckets.len()).map(|bucket| within(bucket) * buckets[bucket - 1].0).sum();
                assert!(sum >= least - 1e-6, "{name}: {sum} < {least}");
                if within(buckets.len() - 1) == 0.0 {
                    let most: f64 = (0..buckets.len() - 1).map(|bucket| within(bucket) * buckets[bucket].0).sum();
                    assert!(sum <= most + 1e-6, "{name}: {sum} > {most}");
                }
                found += 1;
            }
        }
        assert_eq!(found, 5, "one of changes, and two by variant");
    }
}

fn scraped(mox: &Mox) -> Page {
    Page::read(&mox.page("/mox/metrics", "").1)
}

/// Changes, responses and ACKs of a variant, as they are counted.
fn counted(mox: &Mox, variant: &str) -> [f64; 3] {
    let page = scraped(mox);
    page.check_histograms();
    let of = [("variant", variant)];
    [
        page.value("mox_change_to_published_seconds_count", &[]),
        page.value("mox_published_to_sent_seconds_count", &of),
        page.value("mox_sent_to_acked_seconds_count", &of),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_counted_from_the_registry_to_the_ack() {
    let mox = Mox::open(json!({ "push": { "duty": 1.0 } }));
    mox.publish(&nth(0), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    mox.engine.loaded();
    mox.engine.flush().await;
    assert_eq!(counted(&mox, "sotw"), [0.0; 3], "what comes before the first view is no change of it");
    mox.publish(&nth(0), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    assert_eq!(counted(&mox, "sotw"), [0.0; 3], "nothing is served otherwise");

    let mut client = MoxClient::asking(&mox.address(), node("istiod"), SERVICE_ENTRY).await.unwrap();
    client.next_of(SERVICE_ENTRY).await;
    eventually_is(&[0.0, 0.0, 1.0], "what was asked for is no change, and is answered", || counted(&mox, "sotw"));
    for n in 1..=3 {
        mox.publish(&nth(0), "a", 1 + n, &[&format!("10.0.1.{n}:80")]);
        mox.engine.flush().await;
        client.next_of(SERVICE_ENTRY).await;
        let all = [n as f64, n as f64, (n + 1) as f64];
        eventually_is(&all, "a change, its response and the ACK", || counted(&mox, "sotw"));
    }
    client.auto_ack = false;
    mox.publish(&nth(0), "a", 9, &["10.0.2.1:80"]);
    mox.engine.flush().await;
    let refused = client.next_of(SERVICE_ENTRY).await;
    client.nack(&refused, "no").unwrap();
    eventually_is(&1, "the NACK arrives", || mox.engine.status().nacks);
    assert_eq!(counted(&mox, "sotw"), [4.0, 4.0, 4.0], "a NACK is no ACK");
    assert_eq!(counted(&mox, "delta")[1..], [0.0, 0.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_incremental_variant_is_counted_apart() {
    let mox = Mox::open(json!({}));
    mox.engine.loaded();
    mox.publish(&nth(0), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &["*"], &[]);
    client.take().await;
    eventually_is(&[0.0, 1.0], "what was asked for", || counted(&mox, "delta")[1..].try_into().unwrap());
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    client.take().await;
    eventually_is(&[1.0, 2.0], "a change", || counted(&mox, "delta")[1..].try_into().unwrap());
    assert_eq!(counted(&mox, "sotw")[1..], [0.0, 0.0]);
}

#[test]
fn the_page_has_prometheus_own_form() {
    let mox = Mox::open(json!({}));
    mox.publish(&nth(0), "a", 1, &["10.0.0.1:80", "nonsense"]);
    mox.engine.loaded();
    let feed =
        json!({ "oldestContactMillis": 900, "refusedPublishers": { "cell": 3 }, "refusedEvents": { "size": 1 } });
    mox.tell(json!({ "op": "feed", "feed": feed }));
    let text = mox.page("/mox/metrics", "").1;
    Page::read(&text).check_histograms();
    let checks =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut checks = checks.expect("promtool is there; tests/setup installs it, as Debian's prometheus");
    checks.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = checks.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever was counted, and however long it took.
    #[test]
    fn any_times_make_a_page(times in prop::collection::vec((0usize..5, 0u64..200_000_000), 0..60)) {
        let mox = Mox::closed(json!({}));
        let mut status = mox.engine.status();
        let (histograms, mut expected) = (<[Histogram; 5]>::default(), [0u64; 5]);
        for (of, micros) in times {
            histograms[of].note(Duration::from_micros(micros));
            expected[of] += 1;
        }
        let [published, responses @ ..] = histograms.each_ref().map(Histogram::counted);
        status.times.published = published;
        for (of, counted) in status.times.responses.iter_mut().zip(responses.chunks(2)) {
            (of.sent, of.acked) = (counted[0], counted[1]);
        }
        let text: String = metrics::of(&status).iter().map(ToString::to_string).collect();
        let page = Page::read(&text);
        page.check_histograms();
        let of = |name: &str, variant| page.value(&format!("mox_{name}_seconds_count"), &[("variant", variant)]) as u64;
        let (sent, acked) = ("published_to_sent", "sent_to_acked");
        let counted = [of(sent, "sotw"), of(acked, "sotw"), of(sent, "delta"), of(acked, "delta")];
        prop_assert_eq!(&counted, &expected[1..]);
        prop_assert_eq!(page.value("mox_change_to_published_seconds_count", &[]) as u64, expected[0]);
    }
}

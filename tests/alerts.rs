//! The alert rules and the dashboard of `docs/operations`: each alert fires on what an engine in that state says of itself, all of
//! them are quiet while nothing is wrong, and each has its runbook. `promtool` evaluates the rules as Prometheus does.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use harness::{
    Mox, SOON,
    client::{MoxClient, SERVICE_ENTRY, Sotw, node},
    id, nth,
    process::eventually,
    refusing,
    store::{Server, Table},
};
use registry_mox::testing::{
    histogram::{Counted, Histogram},
    host::{metrics, status::Times},
    registry::frame::{self, Publisher},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Minutes of calm before a state, in which no alert even begins to wait, and of the state after it: more than any alert waits.
const CALM: usize = 15;
const AFTER: usize = 200;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[derive(Deserialize)]
struct File {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    r#for: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn alerts() -> PathBuf {
    root().join("docs/operations/alerts.yaml")
}

fn rules() -> Vec<Rule> {
    let file: File = serde_saphyr::from_str(&fs::read_to_string(alerts()).unwrap()).unwrap();
    file.groups.into_iter().flat_map(|group| group.rules).collect()
}

/// What `promtool` says, and whether it is content.
fn promtool(arguments: &[&str], file: &Path) -> (bool, String) {
    let done = Command::new("promtool").args(arguments).arg(file).output();
    let done = done.expect("promtool is there; tests/setup installs it, as Debian's prometheus");
    (
        done.status.success(),
        format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)),
    )
}

/// Session servers in a state, and what keeps them there.
#[derive(Default)]
struct State {
    servers: Vec<Server>,
    /// The metrics of each while all was well; none: those of [`healthy`].
    before: Option<Vec<String>>,
    /// Their metrics; none: what they say.
    after: Option<Vec<String>>,
    clients: Vec<MoxClient>,
}

fn of(mox: Mox) -> State {
    State { servers: vec![Server { mox, table: None, more: json!({}) }], ..State::default() }
}

fn scraped(mox: &Mox) -> String {
    mox.page("/mox/metrics", "").1
}

/// A session server with a few services.
fn shop(config: Value, runtime: &Runtime) -> Mox {
    let mox = Mox::open(config);
    // Nothing that it has is new to it, or more than it should have.
    mox.tell(json!({ "op": "baseline", "services": 20, "endpoints": 20 }));
    (0..20).for_each(|n| mox.publish(&nth(n), "a", 1, &[&format!("10.0.0.{n}:80")]));
    mox.engine.loaded();
    runtime.block_on(mox.engine.flush());
    mox
}

fn healthy(runtime: &Runtime) -> String {
    let mox = shop(json!({}), runtime);
    mox.tell(json!({ "op": "feed", "feed": { "oldestContactMillis": 900 } }));
    let client = runtime.block_on(async {
        let mut client = MoxClient::asking(&mox.address(), node("istiod"), SERVICE_ENTRY).await.unwrap();
        client.next().await.unwrap();
        client
    });
    let text = scraped(&mox);
    drop(client);
    text
}

fn fed(runtime: &Runtime, feed: Value) -> State {
    let mox = shop(json!({}), runtime);
    mox.tell(json!({ "op": "feed", "feed": feed }));
    of(mox)
}

fn mass_delete(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    (0..15).for_each(|n| mox.unpublish(&nth(n), "a", 2));
    runtime.block_on(mox.engine.flush());
    of(mox)
}

fn mass_add(runtime: &Runtime) -> State {
    let mox = shop(json!({ "protect": { "massAddServices": 10, "massAddSettle": "0s" } }), runtime);
    (20..200).for_each(|n| mox.publish(&nth(n), "a", 1, &["10.66.6.6:1"]));
    runtime.block_on(mox.engine.flush());
    of(mox)
}

fn frozen(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    mox.engine.freeze();
    runtime.block_on(mox.engine.flush());
    of(mox)
}

fn not_loaded(_: &Runtime) -> State {
    of(Mox::open(json!({})))
}

/// Where nothing listens.
fn closed(_: &Runtime) -> State {
    of(Mox::closed(json!({})))
}

fn no_baseline(runtime: &Runtime) -> State {
    let mox = Mox::open(json!({ "stateDir": directory("baseline") }));
    (0..20).for_each(|n| mox.publish(&nth(n), "a", 1, &["10.0.0.1:80"]));
    runtime.block_on(mox.engine.flush());
    mox.engine.loaded();
    runtime.block_on(mox.engine.flush());
    of(mox)
}

fn fenced(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    mox.engine.fence(true);
    of(mox)
}

fn stale(runtime: &Runtime) -> State {
    fed(runtime, json!({ "stale": true }))
}

fn silent(runtime: &Runtime) -> State {
    fed(runtime, json!({ "oldestContactMillis": 45_000 }))
}

fn publishers_refused(runtime: &Runtime) -> State {
    fed(runtime, json!({ "refusedPublishers": { "cell": 3 } }))
}

fn unreadable(runtime: &Runtime) -> State {
    fed(runtime, json!({ "unreadable": 3 }))
}

fn unknown(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    mox.engine.unknown(&[nth(99).into()]);
    runtime.block_on(mox.engine.flush());
    of(mox)
}

/// A session server that has noted a time; no test waits that long.
fn slow(runtime: &Runtime, which: fn(&mut Times) -> &mut Counted, took: Duration) -> State {
    let mox = shop(json!({}), runtime);
    let (mut status, histogram) = (mox.engine.status(), Histogram::default());
    let mut scraped = |counted| {
        *which(&mut status.times) = counted;
        Some(vec![metrics::of(&status).iter().map(ToString::to_string).collect()])
    };
    let before = scraped(histogram.counted());
    histogram.note(took);
    let after = scraped(histogram.counted());
    State { before, after, ..of(mox) }
}

fn slow_rounds(runtime: &Runtime) -> State {
    slow(runtime, |times| &mut times.published, Duration::from_secs(6))
}

fn slow_istiod(runtime: &Runtime) -> State {
    slow(runtime, |times| &mut times.responses[0].acked, Duration::from_secs(20))
}

/// A bug of ours leads there, and none is known: this is the status of an engine that met one.
fn quarantined(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    let mut status = mox.engine.status();
    status.rounds.quarantined_by.insert("panic", 1);
    let after = metrics::of(&status).iter().map(ToString::to_string).collect();
    State { after: Some(vec![after]), ..of(mox) }
}

fn one_too_many(mox: &Mox, n: usize) {
    let frame =
        frame::encode_publish("registry", &nth(n), &Publisher { register_id: "a".into(), ..Publisher::default() });
    mox.engine.apply(&frame.unwrap()).unwrap_err();
}

fn dropped(runtime: &Runtime) -> State {
    let mox = shop(json!({ "limits": { "services": 20 } }), runtime);
    let before = scraped(&mox);
    one_too_many(&mox, 99);
    State { before: Some(vec![before]), ..of(mox) }
}

fn dropped_again(runtime: &Runtime) -> State {
    let State { servers, .. } = dropped(runtime);
    let mox = &servers[0].mox;
    let before = scraped(mox);
    one_too_many(mox, 98);
    State { before: Some(vec![before]), servers, ..State::default() }
}

fn cut(runtime: &Runtime) -> State {
    let mox = shop(json!({ "limits": { "endpointsPerPublisher": 1 } }), runtime);
    mox.publish(&nth(1), "a", 2, &["10.0.0.1:80", "10.0.0.2:80"]);
    runtime.block_on(mox.engine.flush());
    of(mox)
}

fn hosts_contested(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    mox.publish(&id("Same"), "a", 1, &["10.0.0.1:80"]);
    mox.publish(&id("SAME"), "a", 1, &["10.0.0.2:80"]);
    runtime.block_on(mox.engine.flush());
    of(mox)
}

fn vips_contested(runtime: &Runtime) -> State {
    of(shop(json!({ "vipCidr": "240.0.0.0/27" }), runtime))
}

fn nacked(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    let before = Some(vec![scraped(&mox)]);
    let clients = vec![runtime.block_on(async {
        let mut client = MoxClient::asking(&mox.address(), node("istiod"), SERVICE_ENTRY).await.unwrap();
        let response = client.next_raw().await.unwrap();
        client.nack_raw(&response, "no").unwrap();
        client
    })];
    eventually(SOON, "the refusal arrives", || (mox.engine.status().nacks == 1).then_some(()));
    State { before, clients, ..of(mox) }
}

fn wrong_partitions(runtime: &Runtime) -> State {
    let mox = shop(json!({ "partitions": [4] }), runtime);
    let part = mox.engine.listen().unwrap().partitions[&4][1].to_string();
    let clients = [part, mox.address()].map(|address| {
        runtime.block_on(async {
            let mut client = MoxClient::asking(&address, node("istiod"), SERVICE_ENTRY).await.unwrap();
            client.next().await.unwrap();
            client
        })
    });
    State { clients: clients.into(), ..of(mox) }
}

fn too_large(runtime: &Runtime) -> State {
    let mox = shop(json!({ "limits": { "response": 1_024 } }), runtime);
    let clients = vec![
        runtime.block_on(async { MoxClient::asking(&mox.address(), node("istiod"), SERVICE_ENTRY).await.unwrap() }),
    ];
    eventually(SOON, "the response is too large", || (mox.engine.status().totals.too_large > 0).then_some(()));
    State { clients, ..of(mox) }
}

fn over_budget(runtime: &Runtime) -> State {
    let mox = shop(json!({ "limits": { "streamBytes": 65_536 } }), runtime);
    let before = Some(vec![scraped(&mox)]);
    let names: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    runtime.block_on(async {
        let mut client = Sotw::connect(&mox.address()).await;
        client.ask(SERVICE_ENTRY, &names);
        client.end().await
    });
    eventually(SOON, "the stream is ended", || (mox.engine.status().over_budget == 1).then_some(()));
    State { before, ..of(mox) }
}

fn refused_by_kubernetes(runtime: &Runtime) -> State {
    let file = refusing::start("alerts-kubernetes", |name| format!("{name} is not wanted here"));
    let mox = shop(json!({ "kubernetes": { "enabled": true, "kubeconfig": file } }), runtime);
    eventually(SOON, "an object is refused", || {
        scraped(&mox).lines().any(|line| line == "mox_kubernetes_problems 20").then_some(())
    });
    of(mox)
}

/// Session servers that share a table.
fn sharing(table: &Table, count: usize, runtime: &Runtime) -> Vec<Server> {
    let start = |_| {
        let server = Server::start(Some(table), json!({ "listen": "127.0.0.1:0" }), |mox| {
            mox.tell(json!({ "op": "baseline", "services": 20, "endpoints": 20 }));
            (0..20).for_each(|n| mox.publish(&nth(n), "a", 1, &["10.0.0.1:80"]));
        });
        server.mox.engine.listen().unwrap();
        runtime.block_on(server.mox.engine.flush());
        server
    };
    (0..count).map(start).collect()
}

fn all_scraped(servers: &[Server]) -> Option<Vec<String>> {
    Some(servers.iter().map(|server| scraped(&server.mox)).collect())
}

fn one_without_documents(runtime: &Runtime) -> State {
    let mut servers = sharing(&Table::default(), 2, runtime);
    let before = all_scraped(&servers);
    servers[1].tell(json!({ "op": "noDocuments", "why": "they are switched off" }));
    servers[1].table = None;
    State { before, servers, ..State::default() }
}

fn database_away(runtime: &Runtime) -> State {
    let mut servers = sharing(&Table::default(), 1, runtime);
    let before = all_scraped(&servers);
    servers[0].table = None;
    servers[0].poll();
    State { before, servers, ..State::default() }
}

fn document_refused(runtime: &Runtime) -> State {
    let table = Table::default();
    let mut servers = sharing(&table, 1, runtime);
    assert_eq!(servers[0].post("/mox/policy", "", "", "{}").0, 200);
    let before = all_scraped(&servers);
    table.set("policy", "{}".to_owned());
    servers[0].poll();
    State { before, servers, ..State::default() }
}

fn policies_differ(runtime: &Runtime) -> State {
    let servers = ["S1", "S2"].map(|name| {
        let mox = shop(json!({ "policy": { "exclude": [format!("*.{name}:*")] } }), runtime);
        Server { mox, table: None, more: json!({}) }
    });
    let before = vec![scraped(&servers[0].mox); 2];
    State { before: Some(before), servers: servers.into(), ..State::default() }
}

/// A session server that follows a policy on who sees what, where one service has a consumer and `listed` are asked, of which
/// the first answers, until it says a line.
fn visibility(runtime: &Runtime, policy: Value, listed: &[&str], line: &str) -> State {
    let mut servers = sharing(&Table::default(), 1, runtime);
    let before = all_scraped(&servers);
    let server = &mut servers[0];
    assert_eq!(server.post("/mox/policy", "", "", &json!({ "visibility": policy }).to_string()).0, 200);
    let own = listed[0];
    eventually(SOON, line, || {
        let wanted = server.tell(json!({ "op": "visibility", "server": format!("{own}/1") }));
        let mut said = json!({ "op": "consumers", "server": own, "own": true });
        if wanted["collect"] == true {
            said["clients"] = json!(["10.1.0.1||shop-web"]);
            said["services"] = json!({ (nth(0)): "0" });
        }
        server.tell(said);
        if wanted["collect"] == true {
            server.tell(json!({ "op": "consumersRound", "listed": listed }));
        }
        server.poll();
        runtime.block_on(server.mox.engine.flush());
        std::thread::sleep(Duration::from_millis(100)); // the pace of the host
        scraped(&server.mox).lines().any(|known| known == line).then_some(())
    });
    State { before, servers, ..State::default() }
}

fn would_be_hidden(runtime: &Runtime) -> State {
    let policy = json!({ "mode": "on", "unused": "hide", "always": ["gateways"] });
    visibility(runtime, policy, &["10.0.0.1"], "mox_visibility_withheld 19")
}

fn consumers_unknown(runtime: &Runtime) -> State {
    visibility(runtime, json!({ "mode": "shadow" }), &["10.0.0.1", "10.0.0.2"], "mox_visibility_silent_servers 1")
}

/// A session server that is to ask Kubernetes where pods are, and has no credentials for it.
fn pods_unknown(runtime: &Runtime) -> State {
    visibility(runtime, json!({ "mode": "shadow", "kubernetes": true }), &["10.0.0.1"], "mox_visibility_pods_known 0")
}

/// The status of a session server that computes for more services than a test makes.
fn visibility_full(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    let mut status = mox.engine.status();
    status.visibility.asks = true;
    status.visibility.counts.get_or_insert_default().full = true;
    let after = metrics::of(&status).iter().map(ToString::to_string).collect();
    State { after: Some(vec![after]), ..of(mox) }
}

/// Of two session servers one is left.
fn one_gone(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    State { before: Some(vec![scraped(&mox); 2]), ..of(mox) }
}

/// Two session servers, the second of a release that serves other bytes.
fn translations_differ(runtime: &Runtime) -> State {
    let mox = shop(json!({}), runtime);
    let (old, mut status) = (scraped(&mox), mox.engine.status());
    status.translation += 1;
    let new = metrics::of(&status).iter().map(ToString::to_string).collect();
    State { before: Some(vec![old.clone(); 2]), after: Some(vec![old, new]), ..of(mox) }
}

/// Each alert with the states in which it fires: one for each part of its expression.
const STATES: [(&str, fn(&Runtime) -> State); 35] = [
    ("MoxNobodyServes", closed),
    ("MoxServerGone", one_gone),
    ("MoxHeld", mass_delete),
    ("MoxHeld", mass_add),
    ("MoxVisibilityWithheld", would_be_hidden),
    ("MoxFrozen", frozen),
    ("MoxNoCompleteView", not_loaded),
    ("MoxNoBaseline", no_baseline),
    ("MoxCutOff", fenced),
    ("MoxCutOff", stale),
    ("MoxFeedSilent", silent),
    ("MoxPublishersRefused", publishers_refused),
    ("MoxServicesUnknown", unknown),
    ("MoxServicesUnknown", unreadable),
    ("MoxServicesQuarantined", quarantined),
    ("MoxEventsDropped", dropped),
    ("MoxEventsDropped", dropped_again),
    ("MoxServicesCut", cut),
    ("MoxRoundsSlow", slow_rounds),
    ("MoxIstiodSlow", slow_istiod),
    ("MoxNamesContested", hosts_contested),
    ("MoxNamesContested", vips_contested),
    ("MoxResponseRefused", nacked),
    ("MoxWrongPartitions", wrong_partitions),
    ("MoxResponsesTooLarge", too_large),
    ("MoxStreamsEnded", over_budget),
    ("MoxKubernetesProblems", refused_by_kubernetes),
    ("MoxDocumentsAway", one_without_documents),
    ("MoxDocumentsAway", database_away),
    ("MoxDocumentRefused", document_refused),
    ("MoxPoliciesDiffer", policies_differ),
    ("MoxTranslationsDiffer", translations_differ),
    ("MoxConsumersUnknown", consumers_unknown),
    ("MoxPodsUnknown", pods_unknown),
    ("MoxVisibilityFull", visibility_full),
];

fn directory(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("mox-alerts-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir); // it is not there, mostly
    dir
}

/// The samples of a scrape, each with the label that Prometheus adds.
fn samples(text: &str, instance: usize) -> BTreeMap<String, String> {
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let instance = format!("instance=\"10.0.0.{instance}:9603\"");
        let series = match series.strip_suffix('}') {
            Some(series) => format!("{series},{instance}}}"),
            None => format!("{series}{{{instance}}}"),
        };
        (series, value.to_owned())
    };
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(sample).collect()
}

fn minutes(span: Option<&str>) -> usize {
    let text = span.unwrap_or("0m");
    let (number, unit) = text.split_at(text.len() - 1);
    number.parse::<usize>().unwrap() * if unit == "h" { 60 } else { 1 }
}

/// A test of promtool's: nothing fires in the calm, and after a change an alert does, with every label that its words name.
fn test_of(name: &str, rule: &Rule, before: &[String], after: &[String]) -> String {
    let mut series: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
    for (at, scrapes) in [before, after].into_iter().enumerate() {
        for (instance, text) in scrapes.iter().enumerate() {
            for (key, value) in samples(text, instance + 1) {
                series.entry(key).or_default()[at] = Some(value);
            }
        }
    }
    let mut test = format!("- name: {name}\n  interval: 1m\n  input_series:\n");
    for (key, [calm, then]) in series {
        // Of what is gone Prometheus notes that it is.
        let part = |value: Option<String>, count: usize, before: bool| match value {
            Some(value) => format!("{value}+0x{}", count - 1),
            None if before => format!("stale _x{}", count - 1),
            None => format!("_x{count}"),
        };
        let was = calm.is_some();
        let _ = writeln!(
            test,
            "  - {{ series: '{key}', values: '{} {}' }}",
            part(calm, CALM, false),
            part(then, AFTER, was)
        );
    }
    let alert = &rule.alert;
    let named = rule.annotations.values().flat_map(|text| text.split("$labels.").skip(1));
    let named = named.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>());
    let labels: String = named.map(|label| format!(", {label}!=\"\"")).collect();
    let fires = CALM + minutes(rule.r#for.as_deref()) + 2;
    let _ = write!(
        test,
        "  promql_expr_test:\n\
         \x20 - {{ expr: 'count(ALERTS)', eval_time: {}m, exp_samples: [] }}\n\
         \x20 - {{ expr: 'clamp_max(count(ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"{labels}}}), 1)', eval_time: {fires}m, \
         exp_samples: [{{ labels: '{{}}', value: 1 }}] }}\n",
        CALM - 1,
    );
    test
}

/// Fires each alert in its states, and returns the metrics that were seen.
fn fire() -> String {
    let (runtime, rules) = (Runtime::new().unwrap(), rules());
    let well = healthy(&runtime);
    let mut text = format!("rule_files: [{}]\nevaluation_interval: 1m\ntests:\n", alerts().display());
    let mut seen = well.clone();
    for (number, (alert, state)) in STATES.iter().enumerate() {
        let rule =
            rules.iter().find(|rule| rule.alert == *alert).unwrap_or_else(|| panic!("there is no alert {alert}"));
        let State { servers, before, after, clients } = state(&runtime);
        let after = after.or_else(|| all_scraped(&servers)).unwrap();
        let before = before.unwrap_or_else(|| vec![well.clone(); servers.len()]);
        text += &test_of(&format!("{alert} {number}"), rule, &before, &after);
        seen.extend(after);
        drop(clients);
        runtime.block_on(async move { tokio::task::spawn_blocking(|| drop(servers)).await.unwrap() });
    }
    let file = std::env::temp_dir().join(format!("mox-alerts-{}.yaml", std::process::id()));
    fs::write(&file, text).unwrap();
    let (passed, said) = promtool(&["test", "rules"], &file);
    assert!(passed, "{}: {said}", file.display());
    fs::remove_file(file).unwrap();
    seen
}

#[test]
fn every_alert_fires_and_is_quiet_while_all_is_well() {
    let fired: BTreeSet<&str> = STATES.iter().map(|(alert, _)| *alert).collect();
    let all = rules();
    let known: BTreeSet<&str> = all.iter().map(|rule| &*rule.alert).collect();
    assert_eq!(known.len(), all.len(), "a name for each");
    assert_eq!(known, fired, "each has a state in which it fires");
    let seen = fire();
    // A value of a label that no engine has would keep a part of an expression from ever firing.
    for rule in &all {
        for matcher in rule.expr.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(inside, _)| inside) {
            let (label, values) = matcher.split_once('=').unwrap();
            for value in values.trim_matches(['~', '"']).split('|') {
                let wanted = format!("{label}=\"{value}\"");
                assert!(seen.contains(&wanted), "{}: no metric has {wanted}", rule.alert);
            }
        }
    }
}

/// A test that passes whatever the rules say would show nothing.
#[test]
fn an_alert_that_does_not_fire_is_seen() {
    let runtime = Runtime::new().unwrap();
    let well = healthy(&runtime);
    let rules = rules();
    let rule = rules.iter().find(|rule| rule.alert == "MoxHeld").unwrap();
    let text = format!(
        "rule_files: [{}]\nevaluation_interval: 1m\ntests:\n{}",
        alerts().display(),
        test_of("quiet", rule, std::slice::from_ref(&well), std::slice::from_ref(&well))
    );
    let file = std::env::temp_dir().join(format!("mox-alerts-quiet-{}.yaml", std::process::id()));
    fs::write(&file, text).unwrap();
    let (passed, said) = promtool(&["test", "rules"], &file);
    assert!(!passed && said.contains("MoxHeld"), "{said}");
    fs::remove_file(file).unwrap();
}

#[test]
fn every_alert_has_its_runbook() {
    let (passed, said) = promtool(&["check", "rules"], &alerts());
    assert!(passed, "{said}");
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let mut sections = BTreeMap::new();
    for section in page.split("\n### ").skip(1) {
        let (title, text) = section.split_once('\n').unwrap();
        let text = text.split("\n## ").next().unwrap();
        let anchor: String =
            title.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -".contains(*c)).collect();
        sections.insert(anchor.replace(' ', "-"), text);
    }
    let rules = rules();
    for Rule { alert, labels, annotations, .. } in &rules {
        let place = annotations["runbook"].strip_prefix("docs/operations.md#");
        let text = place.and_then(|anchor| sections.get(anchor)).unwrap_or_else(|| panic!("{alert}: {annotations:?}"));
        assert!(text.contains(&format!("`{alert}`")), "the runbook of {alert} does not name it");
        assert!(["page", "ticket"].contains(&&*labels["severity"]), "{alert}: {labels:?}");
        assert!(!annotations["summary"].is_empty() && annotations["description"].ends_with('.'), "{alert}");
    }
    // No runbook, and no row, speaks of an alert that there is not.
    let named = page.split('`').filter(|text| text.starts_with("Mox") && text.chars().all(char::is_alphanumeric));
    let unknown: Vec<&str> = named.filter(|text| !rules.iter().any(|rule| rule.alert == **text)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// The names of metrics in an expression.
fn named_in(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("mox_")).map(str::to_owned).collect()
}

/// The expressions of a dashboard's panels.
fn expressions(panel: &Value, found: &mut Vec<String>) {
    match panel {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| expressions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn rules_and_dashboard_name_metrics_of_the_reference() {
    let reference = fs::read_to_string(root().join("docs/reference/metrics.md")).unwrap();
    let known: BTreeMap<&str, &str> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| Some((line.split_once('`')?.0, line.split('|').nth(1)?)))
        .collect();
    assert!(known.len() > 80);
    let text = fs::read_to_string(root().join("docs/operations/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut all = Vec::new();
    expressions(&dashboard, &mut all);
    assert!(all.len() > 15, "{all:#?}");
    let of_panels: String = all.iter().map(|expression| format!("{expression}\n")).collect();
    all.extend(rules().into_iter().map(|rule| rule.expr));
    for expression in &all {
        let named = named_in(expression);
        assert!(!named.is_empty(), "{expression}");
        for name in named {
            let ends = ["_bucket", "_sum", "_count"];
            let of_histogram =
                ends.iter().find_map(|end| name.strip_suffix(end).filter(|name| known.contains_key(name)));
            let kind = known.get(of_histogram.unwrap_or(&name)).map(|kind| kind.trim());
            let kind = kind.unwrap_or_else(|| panic!("{expression}: no metric is called {name}"));
            assert_eq!(kind == "histogram", of_histogram.is_some(), "{expression}: {name} is of a {kind}");
            // What only grows says nothing by itself.
            let rated =
                expression.contains(&format!("rate({name}")) || expression.contains(&format!("increase({name}"));
            assert!(rated || kind == "gauge", "{expression}: {name} is of a {kind}");
        }
    }
    // Prometheus reads each of them, as if it were a rule.
    let rules: Vec<Value> = of_panels
        .lines()
        .enumerate()
        .map(|(n, expression)| json!({ "record": format!("panel:{n}"), "expr": expression.replace("$__rate_interval", "5m").replace("$instance", ".+") }))
        .collect();
    let file = std::env::temp_dir().join(format!("mox-panels-{}.yaml", std::process::id()));
    fs::write(&file, json!({ "groups": [{ "name": "panels", "rules": rules }] }).to_string()).unwrap();
    let (passed, said) = promtool(&["check", "rules"], &file);
    assert!(passed, "{said}");
    fs::remove_file(file).unwrap();
}

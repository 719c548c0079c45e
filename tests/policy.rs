//! The policy while the engine runs: what a change costs, what a mistake in it says, and that its removal leaves no trace.
#![allow(clippy::unwrap_used, missing_docs)]

use bytes::Bytes;
use harness::{
    Mox,
    client::{DESTINATION_RULE, SERVICE_ENTRY, WORKLOAD_ENTRY, node},
    nth as id,
};
use registry_mox::testing::host::admin;
use serde_json::{Value, json};

const SERVICES: usize = 40;

/// Services of an application each, in two zones.
fn open(mode: &str) -> Mox {
    let config = json!({ "endpointMode": mode, "admin": { "token": "sesame" }, "protect": { "massDeleteShare": 100 } });
    let mox = Mox::open(config);
    mox.engine.loaded();
    for n in 0..SERVICES {
        let zone = if n < 4 { "RZ1" } else { "RZ2" };
        let data = |host| format!("10.0.{n}.{host}:12200?app_name=app{n}&zone={zone}&rpcVer=5&weight={host}");
        mox.publish(&id(n), "a", 1, &[&data(1), &data(2), "provider.example.com:12200?app_name=named"]);
    }
    mox
}

/// The answer to a request that sets the policy.
fn ask(mox: &Mox, token: &str, query: &str, if_match: &str, body: &str) -> admin::Page {
    let shown = admin::Credentials { token: token.to_owned(), ..Default::default() };
    let request = admin::Request { path: "/mox/policy", query, if_match, body: body.as_bytes() };
    admin::change(&mox.engine, &shown, request)
}

/// The version and the resources, as they are sent, that a client gets of each type.
async fn sent(mox: &Mox) -> Vec<(String, Vec<Bytes>)> {
    mox.engine.flush().await;
    let mut all = Vec::new();
    for type_url in [SERVICE_ENTRY, WORKLOAD_ENTRY, DESTINATION_RULE] {
        let mut client = mox.client(node("probe")).await;
        client.subscribe(type_url).unwrap();
        let response = client.next().await.unwrap();
        all.push((response.version_info, response.bytes));
    }
    all
}

#[tokio::test]
async fn a_flush_has_every_part_of_a_policy_that_was_set_before() {
    let mox = Mox::closed(json!({}));
    (0..1_600).for_each(|n| mox.publish(&id(n), "a", 1, &[&format!("10.{}.{}.1:12200", n / 250, n % 250)]));
    mox.engine.loaded();
    let before = mox.engine.flush().await;
    let with_port = |port: u32| {
        let (_, page) = mox.page("/mox/dump", "type=ServiceEntry");
        let page: String = page.split_whitespace().collect();
        page.matches(&format!("\"number\":{port},")).count()
    };
    let rounds = mox.engine.status().rounds.rounds;
    mox.policy(json!({ "ports": { "bolt": 81 } }));
    mox.engine.flush().await;
    assert_eq!((with_port(81), mox.engine.status().rounds.rounds - rounds >= 4), (1_600, true), "in parts of 500");
    mox.policy(json!({ "ports": { "bolt": 82 } }));
    mox.policy(json!({}));
    assert_eq!(mox.engine.flush().await, before);
}

#[tokio::test]
async fn a_policy_that_is_taken_back_leaves_no_trace() {
    let direct = json!({ "applications": ["*"] });
    let mtls = json!([{ "applications": ["app1*"], "identities": ["spiffe://cluster.local/ns/a/sa/b"] }]);
    let policies = [
        json!({ "include": ["*.S1:*"] }),
        json!({ "exclude": ["*.S1:*", "*.S2:*"] }),
        json!({ "exportTo": ["~"] }),
        json!({ "ports": { "bolt": 12300 } }),
        json!({ "labels": ["rpcVer"] }),
        json!({ "locality": { "RZ1": "cn/rz1" } }),
        json!({ "endpoints": { "deny": ["10.0.1.0/24"] } }),
        json!({ "direct": direct }),
        json!({ "direct": { "applications": ["*"], "balance": "mesh", "addresses": ["0.0.0.0/0"] } }),
        json!({ "mtls": mtls }),
        json!({ "mtls": mtls, "direct": direct }),
        json!({ "overrides": { "*.S3:*": { "host": "s3.example.com", "port": 80, "protocol": "HTTP", "exportTo": ["."],
                                           "dns": true, "labels": ["rpcVer"], "warmup": "90s" } } }),
    ];
    for mode in ["inline", "workload-entry"] {
        let mox = open(mode);
        let before = sent(&mox).await;
        let endpoints = if mode == "inline" { SERVICES } else { 2 * SERVICES };
        assert_eq!(before[usize::from(mode != "inline")].1.len(), endpoints);
        for policy in &policies {
            mox.policy(policy.clone());
            assert!(sent(&mox).await != before, "{policy} does nothing");
            mox.policy(json!({}));
            assert!(sent(&mox).await == before, "{policy} leaves a trace");
        }
        // Nor does another order or the way there.
        policies.iter().for_each(|policy| mox.policy(policy.clone()));
        mox.engine.flush().await;
        mox.policy(json!({}));
        assert!(sent(&mox).await == before);
    }
}

#[tokio::test]
async fn a_change_costs_what_it_touches() {
    let mox = open("inline");
    let direct = json!({ "applications": ["*"] });
    mox.policy(json!({ "direct": direct }));
    mox.engine.flush().await;
    let mut before = mox.engine.status().rounds;
    assert_eq!(before.encodes, 2 * SERVICES as u64);
    // Services translated, and resources encoded for it.
    for (policy, translated, encoded) in [
        (json!({ "direct": direct }), 0, 0),
        (json!({ "direct": direct, "overrides": { "*.S7:*": { "port": 80 } } }), 1, 1),
        (json!({ "direct": direct }), 1, 1),
        (json!({ "direct": direct, "exclude": ["*.S5:*"] }), 0, 0),
        (json!({ "direct": direct }), 1, 2),
        (json!({ "direct": direct, "locality": { "RZ1": "cn/rz1" } }), 4, 8),
        (json!({ "direct": direct, "locality": { "RZ1": "cn/rz1" }, "labels": ["nobody-has-this"] }), 0, 0),
        (
            json!({ "direct": { "applications": ["*"], "balance": "mesh", "addresses": ["0.0.0.0/0"] } }),
            4,
            4 + SERVICES as u64,
        ),
        (json!({}), 0, 0),
        (json!({ "overrides": { "*.S7:*": { "warmup": "60s" } } }), 1, 2),
        (json!({ "overrides": { "*.S7:*": { "warmup": "60s", "port": 80 } } }), 1, 1),
        (json!({}), 1, 1),
        (json!({ "exportTo": ["."] }), SERVICES as u64, SERVICES as u64),
    ] {
        mox.policy(policy.clone());
        mox.engine.flush().await;
        let now = mox.engine.status().rounds;
        let cost = (now.translations - before.translations, now.encodes - before.encodes);
        assert_eq!(cost, (translated, encoded), "{policy}");
        before = now;
    }
}

/// SOFARPC and Dubbo providers say how long they warm up, and only a consumer of theirs heeds it.
#[tokio::test]
async fn a_warm_up_is_a_destination_rule_of_the_host_where_the_policy_wants_it() {
    for mode in ["inline", "workload-entry"] {
        let mox = Mox::open(json!({ "endpointMode": mode }));
        mox.engine.loaded();
        let sofarpc = "com.example.DemoService:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
        let dubbo = "com.example.DemoService@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA";
        let usual = "rpcVer=51302&weight=100&appName=shop&p=1&v=4.0&_WEIGHT=100&app_name=shop";
        let warming = format!("10.0.0.1:12200?{usual}&warmupWeight=5&warmupTime=60000&startTime=1760000000000");
        mox.publish(sofarpc, "a", 1, &[&warming]);
        mox.publish(sofarpc, "b", 1, &[&format!("10.0.0.2:12200?{usual}&startTime=1750000000000")]);
        let url = "dubbo://10.0.0.3:20880/com.example.DemoService?application=shop&interface=com.example.DemoService\
                   &methods=hello&side=provider&timestamp=1760000000000&warmup=120000";
        mox.publish(dubbo, "c", 1, &[url]);
        let rules = || {
            let page = mox.page("/mox/dump", "type=DestinationRule").1;
            let page: serde_json::Value = serde_json::from_str(&page).unwrap();
            let rule = |rule: &serde_json::Value| {
                (rule["metadata"]["name"].as_str().unwrap().to_owned(), rule["spec"].clone())
            };
            let mut rules: Vec<_> = page["items"].as_array().unwrap().iter().map(rule).collect();
            rules.sort_by(|a, b| a.0.cmp(&b.0));
            rules
        };
        let before = sent(&mox).await;
        assert_eq!(rules(), [], "a publisher's word makes none");
        mox.policy(json!({ "overrides": {
            "com.example.*": { "warmup": "60s" }, "com.example.*@dubbo": { "warmup": "2m 500ms", "exportTo": ["shop"] } } }));
        mox.engine.flush().await;
        let rule = |host: &str, warmup: &str| {
            let load_balancer = json!({ "simple": "LEAST_REQUEST", "warmupDurationSecs": warmup });
            let policy = json!({ "loadBalancer": load_balancer });
            (host.to_owned(), json!({ "host": format!("{host}.sofa.mesh"), "trafficPolicy": policy }))
        };
        let both = [rule("com.example.demoservice", "60s"), rule("dubbo.com.example.demoservice", "120.500s")];
        assert_eq!(rules(), both);
        // Endpoints come and go without another rule, and the last one's grace has it.
        let version = sent(&mox).await[2].0.clone();
        mox.unpublish(sofarpc, "a", 2);
        mox.unpublish(dubbo, "c", 2);
        assert_eq!((sent(&mox).await[2].0.clone(), rules()), (version, both.to_vec()));
        mox.publish(sofarpc, "a", 3, &[&warming]);
        mox.publish(dubbo, "c", 3, &[url]);
        // A service that goes takes its rule with it.
        mox.policy(json!({ "exclude": ["*@DEFAULT"], "overrides": { "com.example.*": { "warmup": "60s" } } }));
        mox.engine.flush().await;
        assert_eq!(rules(), [rule("dubbo.com.example.demoservice", "60s")]);
        mox.policy(json!({}));
        assert!(sent(&mox).await == before);
    }
}

#[tokio::test]
async fn what_is_not_served_is_not_read() {
    let mox = open("inline");
    mox.engine.flush().await;
    let rejects = || serde_json::to_value(mox.engine.status().rounds).unwrap()["rejects"].take();
    assert_eq!(rejects(), json!({ "host-name": SERVICES }));
    mox.policy(json!({ "exclude": ["*"], "include": ["org.*"] }));
    mox.publish(&id(1), "b", 1, &["nonsense"]);
    mox.engine.flush().await;
    assert_eq!(rejects(), json!({}));
}

#[tokio::test]
async fn the_admin_page_takes_a_policy_whole_or_not_at_all() {
    let mox = open("inline");
    let post = |token: &str, body: &str| ask(&mox, token, "", "", body);
    let hash = || mox.engine.status().policy;
    let first = hash();
    assert_eq!((post("guess", "{}").status, hash()), (403, first.clone()));

    let document = json!({ "exclude": ["*"], "exportTo": ["*", "a"], "prots": {}, "mtls": [{}] });
    let refused = post("sesame", &document.to_string());
    assert_eq!((refused.status, refused.body.lines().count()), (400, 3), "{}", refused.body);
    assert_eq!((mox.engine.flush().await.services, hash()), (SERVICES, first.clone()));

    let taken = post("sesame", r#"{"exclude": ["*.S1:*"]}"#);
    assert_eq!(taken.status, 200, "{}", taken.body);
    assert_eq!(mox.engine.flush().await.services, SERVICES - 1);
    assert!(hash() != first && taken.body.contains(&hash()), "{}", taken.body);
    post("sesame", "{}");
    assert_eq!((mox.engine.flush().await.services, hash()), (SERVICES, first));
}

/// What has a slip in it is taken, since it may be about what is yet to come; but it is named.
#[tokio::test]
async fn the_answer_to_a_policy_names_globs_that_match_nothing() {
    let mox = open("inline");
    mox.engine.flush().await;
    let unmatched = |document: Value| {
        let shown = admin::Credentials { token: "sesame".to_owned(), ..Default::default() };
        let document = document.to_string();
        let request = admin::Request { path: "/mox/policy", body: document.as_bytes(), ..Default::default() };
        let answer = admin::change(&mox.engine, &shown, request);
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str::<Value>(&answer.body).unwrap()["unmatched"].clone()
    };
    let document = json!({
        "exclude": ["*.S1:*", "*.Slip:*"],
        "direct": { "applications": ["app1", "ap1"] },
        "mtls": [{ "applications": ["app2*"] }, { "applications": ["nobody"] }],
        "overrides": { "*.S2:1.0@DEFAULT": { "port": 1 }, "*.S2:1.0@DEFAULT#": { "port": 2 } },
    });
    let slips = ["policy.exclude[*.Slip:*]", "policy.mtls[1].applications[nobody]", "policy.direct.applications[ap1]"];
    assert_eq!(unmatched(document), json!([slips[0], slips[1], slips[2], "policy.overrides[*.S2:1.0@DEFAULT#]"]));
    assert_eq!(unmatched(json!({})), json!([]));
    let empty = Mox::closed(json!({}));
    assert_eq!(empty.engine.unmatched(), None, "of an empty registry nothing is known");
}

/// "." is the namespace that it is named beside, which Istio refuses; so does the door, and nothing changes.
#[tokio::test]
async fn what_istio_would_refuse_of_an_export_is_refused_at_the_door() {
    let mox = open("inline");
    let before = (mox.engine.flush().await, mox.engine.status().policy);
    for (document, field) in [
        (json!({ "exportTo": ["sofa-registry", "."] }), "policy.exportTo"),
        (
            json!({ "overrides": { "*.S1:*": { "exportTo": ["sofa-registry", "."] } } }),
            "policy.overrides[*.S1:*].exportTo",
        ),
    ] {
        let says = format!(
            "{field}: \".\" is not possible in \"sofa-registry, .\", in namespace sofa-registry; exportTo is \"*\" or \"~\" \
             alone, or \".\" and namespaces, each once and the own one as \".\" or by name"
        );
        let refused = ask(&mox, "sesame", "", "", &document.to_string());
        assert_eq!((refused.status, refused.body.trim_end()), (400, &*says));
        let error = mox.engine.set_policy(serde_json::from_value(document).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), says);
        assert_eq!((mox.engine.flush().await, mox.engine.status().policy), before);
    }
    mox.policy(json!({ "exportTo": ["sofa-registry", "istio-system"] }));
    assert_eq!(mox.engine.flush().await.services, SERVICES);
    assert!(mox.engine.status().rounds.quarantined.is_empty());
}

/// The answer of a request about the policy: its status, and its body as JSON where it is.
fn post(mox: &Mox, query: &str, if_match: &str, document: &Value) -> (u16, Value) {
    let body = if document.is_null() { String::new() } else { document.to_string() };
    let page = ask(mox, "sesame", query, if_match, &body);
    (page.status, serde_json::from_str(&page.body).unwrap_or_else(|_| page.body.clone().into()))
}

fn policy_page(mox: &Mox, query: &str) -> Value {
    let (status, body) = mox.page("/mox/policy", query);
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_a_policy_changes_and_changes_nothing() {
    for mode in ["inline", "workload-entry"] {
        let mox = open(mode);
        let before = sent(&mox).await;
        let status = |mox: &Mox| {
            let status = mox.engine.status();
            (status.policy, status.rounds.translations, status.rounds.encodes, status.rounds.snapshots)
        };
        let was = status(&mox);
        let document = json!({
            "exclude": ["*.S1:*", "*.Nobody*"], "endpoints": { "deny": ["10.0.2.0/24", "10.0.3.1/32"] }, "labels": ["rpcVer"],
            "overrides": { "*.S4:*": { "host": "four.example.com" } }, "direct": { "applications": ["app5"] },
            "mtls": [{ "applications": ["app5"], "identities": ["spiffe://cluster.local/ns/a/sa/b"] }],
        });
        let (status_code, told) = post(&mox, "dryRun", "", &document);
        assert_eq!(status_code, 200, "{told}");
        let services = &told["services"];
        let gone = json!([{ "dataInfoId": id(1), "host": "com.example.s1.sofa.mesh", "endpoints": 2 }]);
        assert_eq!(services["go"], json!({ "count": 1, "first": gone }), "{mode}");
        let renamed = json!([{ "dataInfoId": id(4), "from": "com.example.s4.sofa.mesh", "to": "four.example.com" }]);
        assert_eq!(services["renamed"], json!({ "count": 1, "first": renamed }));
        assert_eq!((&services["come"]["count"], &services["change"]["count"]), (&json!(0), &json!(SERVICES - 1)));
        assert_eq!(services["emptied"], 1, "both endpoints of S2 are denied");
        let endpoints = json!({ "come": 0, "go": 2 + 2 + 1, "change": 2 * (SERVICES - 3) + 1 });
        assert_eq!(told["endpoints"], endpoints, "{mode}");
        let entry = json!({ "count": 1, "first": ["sofa-registry/p12200.app5.app"] });
        assert_eq!((&told["entries"]["come"], &told["destinationRules"]["come"]["count"]), (&entry, &json!(1)));
        let totals = json!([{ "services": 40, "endpoints": 80 }, { "services": 38, "endpoints": 75 }]);
        assert_eq!(told["serving"], totals);
        assert_eq!(told["breakers"]["loss"], json!([5.0, 6.3]));
        let globs: Vec<(&str, &str, u64)> = told["globs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (it["setting"].as_str().unwrap(), it["glob"].as_str().unwrap(), it["matches"].as_u64().unwrap()))
            .collect();
        let expected = [
            ("policy.include", "*", 40),
            ("policy.exclude", "*.S1:*", 1),
            ("policy.exclude", "*.Nobody*", 0),
            ("policy.mtls[0].applications", "app5", 1),
            ("policy.direct.applications", "app5", 1),
            ("policy.overrides", "*.S4:*", 1),
        ];
        assert_eq!(globs, expected);
        assert_eq!(told["inForce"], policy_page(&mox, "")["hash"]);
        // Nothing is changed: no policy, no translation of the engine's own, not a byte.
        assert_eq!(status(&mox), was);
        assert!(sent(&mox).await == before);
        assert_eq!(policy_page(&mox, "")["revision"], 0);
        // And it comes as it was told.
        assert_eq!(post(&mox, "", "", &document).0, 200);
        mox.engine.flush().await;
        let served = mox.engine.status().rounds.serving;
        assert_eq!((served.services, served.endpoints), (38, 75));
        let (_, again) = post(&mox, "dryRun", "", &document);
        assert_eq!((&again["services"]["change"]["count"], &again["hash"]), (&json!(0), &told["hash"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_a_breaker_would_hold() {
    let mox = Mox::closed(json!({ "admin": { "token": "sesame" } }));
    (0..300).for_each(|n| mox.publish(&id(n), "a", 1, &[&format!("10.0.{}.{}:12200", n / 250, n % 250)]));
    // All of them are there before the first view is complete; what comes in the minute after is judged apart.
    mox.engine.flush().await;
    mox.engine.loaded();
    mox.engine.flush().await;
    let document = json!({ "exclude": ["*.S1*"] });
    let (_, told) = post(&mox, "dryRun=true", "", &document);
    let hold = json!([{ "of": { "services": 300, "endpoints": 300 }, "missing": { "services": 111, "endpoints": 111 },
                        "ofEverything": false, "tenants": ["DEFAULT_INSTANCE_ID"] }]);
    assert_eq!(told["breakers"]["massDelete"], hold);
    assert_eq!(
        (&told["services"]["go"]["count"], &told["released"]["services"]["go"]["count"]),
        (&json!(0), &json!(111))
    );
    let listed = told["released"]["services"]["go"]["first"].as_array().unwrap().len();
    assert_eq!(
        (listed, &told["breakers"]["withheld"]["count"], &told["breakers"]["loss"]),
        (100, &json!(111), &json!([37.0, 37.0]))
    );
    assert_eq!(mox.engine.status().rounds.withheld, None, "and it holds nothing");
    assert_eq!(post(&mox, "", "", &document).0, 200);
    mox.engine.flush().await;
    assert_eq!(mox.engine.status().rounds.withheld.unwrap().services, 111);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_is_not_made_before_there_is_a_view_nor_of_a_mistake() {
    let mox = Mox::closed(json!({ "admin": { "token": "sesame" } }));
    assert_eq!(post(&mox, "dryRun", "", &json!({})).0, 503, "nothing is known");
    mox.engine.loaded();
    mox.engine.flush().await;
    assert_eq!(post(&mox, "dryRun", "", &json!({})).0, 200);
    assert_eq!(post(&mox, "dryRun", "", &json!({ "exlude": [] })).0, 400);
    // Who mistypes it sets nothing.
    for query in ["dryrun", "dryRun=maybe", "dry-run=true&by=ann"] {
        let (status, why) = post(&mox, query, "", &json!({ "exclude": ["*"] }));
        assert_eq!(status, 400, "{query}: {why}");
    }
    assert_eq!(policy_page(&mox, "")["revision"], 0);
    assert_eq!(ask(&mox, "wrong", "dryRun", "", "{}").status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_replaced_by_who_knows_the_one_in_force() {
    let mox = open("inline");
    let (hash, revision) = (policy_page(&mox, "")["hash"].clone(), policy_page(&mox, "")["revision"].clone());
    assert_eq!((&policy_page(&mox, "")["from"], &revision), (&json!("properties"), &json!(0)));
    let [first, second] = [json!({ "exclude": ["*.S1:*"] }), json!({ "exclude": ["*.S2:*"] })];
    let (status, done) = post(&mox, "by=ann%20lee&why=S1+is+%22done%22", hash.as_str().unwrap(), &first);
    assert_eq!((status, &done["revision"], &done["was"]["hash"]), (200, &json!(1), &hash), "{done}");
    assert_eq!((&done["stamp"]["by"], &done["stamp"]["why"]), (&json!("ann lee"), &json!("S1 is \"done\"")));
    // Of two who saw the same one is refused, and told what there is now.
    let (status, present) = post(&mox, "", "0", &second);
    assert_eq!((status, &present["revision"], &present["hash"]), (409, &json!(1), &done["hash"]));
    assert_eq!((&present["policy"]["exclude"], &present["stamp"]["by"]), (&first["exclude"], &json!("ann lee")));
    assert_eq!(post(&mox, "", &format!("\"{}\"", done["hash"].as_str().unwrap()), &second).0, 200);
    assert_eq!(post(&mox, "", "", &json!({ "exclude": ["*.S3:*"] })).0, 200, "who asks for nothing is not asked");
    let page = policy_page(&mox, "");
    let revisions: Vec<&Value> = page["history"].as_array().unwrap().iter().map(|past| &past["revision"]).collect();
    assert_eq!(
        (&page["revision"], &page["from"], revisions),
        (&json!(3), &json!("local"), vec![&json!(2), &json!(1), &json!(0)])
    );
    assert!(page["keptIn"].as_str().unwrap().contains("memory"), "{page}");
    assert_eq!(policy_page(&mox, "revision=1")["policy"]["exclude"], first["exclude"]);
    assert_eq!(mox.page("/mox/policy", "revision=9").0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_back_restores_every_byte() {
    let mox = open("inline");
    let before = sent(&mox).await;
    assert_eq!(post(&mox, "", "", &json!({ "exclude": ["*.S1:*"] })).0, 200);
    let after = sent(&mox).await;
    assert!(after != before);
    let (_, told) = post(&mox, "dryRun&rollback=0", "", &Value::Null);
    assert_eq!((&told["services"]["come"]["count"], &told["services"]["go"]["count"]), (&json!(1), &json!(0)));
    assert!(sent(&mox).await == after, "a dry run of it");
    let (status, done) = post(&mox, "rollback=0", "1", &Value::Null);
    assert_eq!((status, &done["revision"], &done["from"]), (200, &json!(2), &json!("properties")));
    assert_eq!(done["stamp"]["why"], "back to revision 0");
    assert!(sent(&mox).await == before);
    assert_eq!(post(&mox, "rollback=1", "2", &Value::Null).0, 200, "and forth");
    assert!(sent(&mox).await == after);
    assert_eq!(post(&mox, "rollback=7", "", &Value::Null).0, 404);
    assert_eq!(post(&mox, "rollback=1", "", &json!({})).0, 400, "one document of two");
}

#[tokio::test]
async fn what_others_are_asked_has_the_document_itself() {
    let mox = open("inline");
    let ask = |query: &str, body: &str| ask(&mox, "sesame", query, "", body).forward;
    let sent = ask("", r#"{"exclude":["*.S1:*"]}"#).unwrap();
    assert_eq!((&*sent.query, sent.body.contains(r#""exclude":["*.S1:*"]"#)), ("", true));
    let sent = ask("rollback=0&by=ann", "").unwrap();
    assert_eq!(&*sent.query, "by=ann&why=back%20to%20revision%200");
    assert!(sent.body.contains(r#""exclude":[]"#), "another server counts its own revisions: {}", sent.body);
    assert_eq!(ask("local=1", "{}"), None);
    assert_eq!(ask("dryRun", "{}"), None, "one server tells");
    assert_eq!(ask("", "{"), None, "what is refused here");
}

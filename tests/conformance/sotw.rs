//! State of the world.

use std::collections::{BTreeMap, BTreeSet};

use harness::{
    Mox,
    client::{BARRIER, SERVICE_ENTRY, Sotw, node},
    id,
};
use serde_json::json;

use crate::{names, resource, resources, serving, set, with};

/// A first request without names wants everything, which comes in one response.
#[tokio::test]
async fn n13_no_names_at_first_is_everything() {
    let mox = serving(&["A", "B", "C"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let all: BTreeSet<String> = names(&client.take(&[]).await).into_iter().collect();
    assert_eq!(all, ["A", "B", "C"].map(resource).into());
}

/// A first request is answered though there is nothing.
#[tokio::test]
async fn n14_an_empty_set_is_answered() {
    let mox = serving(&[]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    assert_eq!(client.take(&[]).await.resources.len(), 0);
}

/// A first request is initial whatever nonce it carries.
#[tokio::test]
async fn n15_a_foreign_nonce_is_initial() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.request(SERVICE_ENTRY, "2026-01-01 00:00:00 +0000 UTC m=+0.1", &[], None);
    assert_eq!(client.take(&[]).await.resources.len(), 1);
}

/// A version from an earlier stream saves nothing: everything is sent.
#[tokio::test]
async fn n16_a_version_from_before_is_no_reason_to_be_silent() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let version_info = client.take(&[]).await.version_info;
    let mut again = Sotw::connect(&mox.address()).await;
    again.send(registry_mox::proto::envoy::service::discovery::v3::DiscoveryRequest {
        node: Some(node("client")),
        type_url: SERVICE_ENTRY.into(),
        version_info,
        ..Default::default()
    });
    assert_eq!(again.take(&[]).await.resources.len(), 1);
}

/// Nonces are never empty and never repeated on a stream, whatever the type; one of another stream answers nothing.
#[tokio::test]
async fn n17_nonces_are_unique_on_a_stream() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    let mut seen = BTreeSet::new();
    client.ask(SERVICE_ENTRY, &[]);
    for n in 2..6 {
        client.ask(BARRIER, &[]);
        for _ in 0..2 {
            let nonce = client.take(&[]).await.nonce;
            assert!(!nonce.is_empty() && seen.insert(nonce));
        }
        set(&mox, "A", n);
    }
    let mut other = Sotw::connect(&mox.address()).await;
    other.ask(SERVICE_ENTRY, &[]);
    other.next().await;
    other.request(SERVICE_ENTRY, "5", &[], None);
    set(&mox, "A", 7);
    mox.engine.flush().await;
    other.silent().await;
}

/// The version is another whenever any resource is, is the same for the same content on any server and after a restart, and is
/// per type.
#[tokio::test]
async fn n18_a_version_is_its_content() {
    let mut versions = BTreeMap::new();
    for round in 0..2 {
        let mox = serving(&["A", "B"]).await;
        let mut client = Sotw::connect(&mox.address()).await;
        client.ask(SERVICE_ENTRY, &[]);
        for (content, n) in [("1", 2), ("2", 3), ("3", 4)] {
            let version = client.take(&[]).await.version_info;
            let known = versions.entry(content).or_insert_with(|| version.clone());
            assert_eq!(*known, version, "round {round}");
            set(&mox, "A", n);
        }
        let (last, next) = (client.take(&[]).await.version_info, mox.engine.flush().await.version);
        assert_eq!(last, next);
    }
    assert_eq!(versions.values().collect::<BTreeSet<_>>().len(), 3);
}

/// An ACK is answered by nothing.
#[tokio::test]
async fn n19_an_ack_starts_nothing() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    client.take(&[]).await;
    client.silent().await;
}

/// A NACK is an `error_detail`, and only that: a version that is not the last one is none.
#[tokio::test]
async fn n20_a_nack_is_an_error_detail() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let first = client.next().await;
    client.send(registry_mox::proto::envoy::service::discovery::v3::DiscoveryRequest {
        type_url: SERVICE_ENTRY.into(),
        version_info: "another".into(),
        response_nonce: first.nonce,
        ..Default::default()
    });
    client.silent().await;
    assert_eq!(mox.engine.status().nacks, 0);
    set(&mox, "A", 2);
    let second = client.next().await;
    client.request(SERVICE_ENTRY, &second.nonce, &[], Some("no"));
    client.silent().await;
    assert_eq!(mox.engine.status().nacks, 1);
}

/// A refused version is not sent again and is shown with the client's words; the next change is sent.
#[tokio::test]
async fn n21_after_a_nack_only_news_is_sent() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let first = client.next().await;
    client.request(SERVICE_ENTRY, &first.nonce, &[], Some("not today"));
    client.silent().await;
    let shown = mox.engine.status().streams[0].types[SERVICE_ENTRY].clone();
    assert_eq!((shown.error.as_deref(), shown.acked), (Some("not today"), None));
    set(&mox, "A", 2);
    client.take(&[]).await;
    client.silent().await;
    assert_eq!(mox.engine.status().streams[0].types[SERVICE_ENTRY].error, None);
}

/// A stale nonce is answered by nothing and changes nothing.
#[tokio::test]
async fn n22_a_stale_nonce_changes_nothing() {
    let mox = serving(&["A", "B"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let first = client.take(&[]).await;
    set(&mox, "A", 2);
    let second = client.next().await;
    client.request(SERVICE_ENTRY, &first.nonce, &["nothing"], None);
    set(&mox, "A", 3);
    mox.engine.flush().await;
    client.silent().await;
    client.ack(&second, &[]);
    assert_eq!(client.take(&[]).await.resources.len(), 2, "it still wants everything");
}

/// A later request supersedes earlier ones of its type: one response is enough.
#[tokio::test]
async fn n23_the_last_request_counts() {
    let mox = serving(&["A", "B", "C"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    for names in [&["A"], &["B"], &["C"]] {
        client.ask(SERVICE_ENTRY, &[&resource(names[0])]);
    }
    let mut responses = 0;
    loop {
        let response = client.next().await;
        responses += 1;
        if names(&response) == [resource("C")] {
            client.ack(&response, &[&resource("C")]);
            break;
        }
    }
    assert!(responses <= 3);
    client.silent().await;
}

/// An added name is answered although nothing has changed.
#[tokio::test]
async fn n24_an_added_name_is_answered() {
    let mox = serving(&["A", "B"]).await;
    let (a, b) = (resource("A"), resource("B"));
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[&a]);
    let first = client.next().await;
    assert_eq!(names(&first), std::slice::from_ref(&a));
    client.ack(&first, &[&a, &b]);
    assert_eq!(names(&client.take(&[&a, &b]).await).into_iter().collect::<BTreeSet<_>>(), [a, b].into());
}

/// No names after names is nothing, and never everything.
#[tokio::test]
async fn n25_no_names_after_names_is_nothing() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[&resource("A")]);
    client.take(&[]).await;
    set(&mox, "A", 2);
    mox.engine.flush().await;
    client.silent().await;
}

/// The four steps of the specification: none, `*` and a name, the name, none.
#[tokio::test]
async fn n26_the_four_steps_of_the_specification() {
    let mox = serving(&["A", "B"]).await;
    let a = resource("A");
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    assert_eq!(client.take(&["*", &a]).await.resources.len(), 2);
    client.silent().await;
    set(&mox, "B", 2);
    assert_eq!(client.take(&[&a]).await.resources.len(), 2);
    assert_eq!(names(&client.take(&[]).await), [a]);
    set(&mox, "A", 2);
    mox.engine.flush().await;
    client.silent().await;
}

/// A single empty name is a name that nothing has, not everything.
#[tokio::test]
async fn n27_an_empty_name_is_a_name() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[""]);
    assert_eq!(client.take(&[""]).await.resources.len(), 0);
    set(&mox, "A", 2);
    mox.engine.flush().await;
    client.silent().await;
}

/// Every response has all that is wanted; what is absent is gone; all gone is an empty response.
#[tokio::test]
async fn n28_absence_is_deletion() {
    let mox = with(json!({ "protect": { "emptyGrace": "0s", "massDeleteShare": 100 } }), &["A", "B"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    client.take(&[]).await;
    mox.unpublish(&id("A"), "a", 9);
    assert_eq!(names(&client.take(&[]).await), [resource("B")]);
    mox.unpublish(&id("B"), "a", 9);
    assert_eq!(names(&client.take(&[]).await), [""; 0]);
}

/// A name that nothing has is remembered, and sent when there is something.
#[tokio::test]
async fn n29_an_absent_name_is_sent_when_it_comes() {
    let mox = serving(&["A"]).await;
    let later = resource("Later");
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[&later]);
    client.take(&[&later]).await;
    set(&mox, "Other", 1);
    mox.engine.flush().await;
    client.silent().await;
    set(&mox, "Later", 1);
    assert_eq!(names(&client.take(&[&later]).await), [later]);
}

/// Content that did not change is not sent, whether a client wants everything or some names.
#[tokio::test]
async fn n30_equal_content_is_not_sent() {
    let mox = serving(&["A", "B"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    client.take(&[]).await;
    let mut named = Sotw::connect(&mox.address()).await;
    named.ask(SERVICE_ENTRY, &[&resource("A")]);
    named.take(&[&resource("A")]).await;
    mox.publish(&id("A"), "a", 2, &["10.0.0.2:12200"]);
    mox.engine.flush().await;
    client.silent().await;
    set(&mox, "B", 9);
    client.take(&[]).await;
    named.silent().await;
}

/// No response has a name twice.
#[tokio::test]
async fn n31_no_name_stands_twice() {
    let mox = serving(&["A", "B"]).await;
    mox.publish("com.example.a:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA", "x", 1, &["10.0.0.9:1"]);
    mox.engine.flush().await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[&resource("A"), &resource("A")]);
    assert_eq!(names(&client.take(&[]).await), [resource("A")]);
    client.ask(SERVICE_ENTRY, &[]);
    let all = names(&client.take(&[]).await);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(all.len(), 3);
}

/// A type is never divided over responses, though it takes many pages.
#[tokio::test]
async fn n32_a_type_is_in_one_response() {
    let mox = serving(&[]).await;
    for n in 0..2_000 {
        let data = format!("10.0.0.1:1?app_name={}", "x".repeat(60));
        mox.publish(&id(format!("S{n}")), "a", 1, &[&data, "10.0.0.2:1?weight=7"]);
    }
    mox.engine.flush().await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let response = client.take(&[]).await;
    assert_eq!(response.resources.len(), 2_000);
    assert!(response.resources.iter().map(|any| any.value.len()).sum::<usize>() > 256 << 10);
    client.silent().await;
}

/// A response that would be too large is not sent and not cut: the client keeps the last one, and gets the next that fits.
#[tokio::test]
async fn n33_too_large_a_response_is_not_sent() {
    let config =
        json!({ "limits": { "response": 3_000, "endpointsPerPublisher": 500 }, "protect": { "massDeleteShare": 100 } });
    let mox = with(config, &["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    client.take(&[]).await;
    let many: Vec<String> = (1..200).map(|n| format!("10.1.0.{n}:12200")).collect();
    mox.publish(&id("B"), "b", 1, &many.iter().map(String::as_str).collect::<Vec<_>>());
    mox.engine.flush().await;
    client.silent().await;
    assert!(mox.engine.status().streams[0].types[SERVICE_ENTRY].too_large);
    mox.publish(&id("B"), "b", 2, &["10.1.0.1:12200"]);
    assert_eq!(client.take(&[]).await.resources.len(), 2);
    assert!(!mox.engine.status().streams[0].types[SERVICE_ENTRY].too_large);
}

fn endpoint(mox_response: &registry_mox::proto::envoy::service::discovery::v3::DiscoveryResponse) -> i64 {
    let resource = resources(mox_response).pop().unwrap();
    let address: std::net::Ipv4Addr = resource.entry.endpoints[0].address.parse().unwrap();
    let [_, _, high, low] = address.octets();
    i64::from(high) * 250 + i64::from(low) - 1
}

/// Each response is one moment, and on a stream none is older than the one before.
#[tokio::test]
async fn n34_a_stream_never_goes_back() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let (mut next, mut last) = (2, 0);
    while last < 300 {
        let seen = endpoint(&client.take(&[]).await);
        assert!(seen > last, "{seen} after {last}");
        last = seen;
        for _ in 0..=next % 3 {
            set(&mox, "A", next);
            next += 1;
        }
    }
}

/// At most one response of a type is unanswered; what changes meanwhile is sent as it is at last; a client that never
/// ACKs one type gets the others, and so do other clients.
#[tokio::test]
async fn n35_one_response_is_unanswered() {
    let mox = serving(&["A"]).await;
    let (mut client, mut other) = (Sotw::connect(&mox.address()).await, Sotw::connect(&mox.address()).await);
    client.ask(SERVICE_ENTRY, &[]);
    let first = client.next().await;
    for n in 2..20 {
        set(&mox, "A", n);
        mox.engine.flush().await;
    }
    client.silent().await;
    assert!(mox.engine.status().streams[0].types[SERVICE_ENTRY].unacked_millis.is_some(), "and it is shown");
    other.ask(SERVICE_ENTRY, &[]);
    assert_eq!(endpoint(&other.take(&[]).await), 19);
    client.ack(&first, &[]);
    assert_eq!(endpoint(&client.take(&[]).await), 19);
    client.silent().await;
}

/// When nothing changes any more, what was sent last is what there is.
#[tokio::test]
async fn n36_the_last_state_arrives() {
    let mox = with(json!({ "protect": { "emptyGrace": "0s", "massDeleteShare": 100 } }), &[]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let mut held = client.take(&[]).await;
    let mut state = 7u64;
    for n in 1..400 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let name = format!("S{}", (state >> 33) % 20);
        match (state >> 60) % 3 {
            0 => mox.unpublish(&id(&name), "a", n),
            _ => set(&mox, &name, n),
        }
        // Now and then it catches up.
        while n % 50 == 0 && held.version_info != mox.engine.flush().await.version {
            held = client.take(&[]).await;
        }
    }
    let last = mox.engine.flush().await;
    while held.version_info != last.version {
        held = client.take(&[]).await;
    }
    assert_eq!(held.resources.len(), last.services);
    client.silent().await;
}

/// WorkloadEntries go before the ServiceEntry that selects them when they come, and after it when they go.
#[tokio::test]
async fn n37_what_services_rest_on_comes_first_and_goes_last() {
    let config = json!({ "endpointMode": "workload-entry", "protect": { "emptyGrace": "0s", "massDeleteShare": 100 } });
    let mox: Mox = with(config, &["A"]).await;
    let workloads = "networking.istio.io/v1/WorkloadEntry";
    let mut client = Sotw::connect(&mox.address()).await;
    for type_url in [SERVICE_ENTRY, workloads] {
        client.ask(type_url, &[]);
        client.take(&[]).await;
    }
    // The responses that were due at first are through.
    client.silent().await;
    set(&mox, "B", 1);
    let mut seen = Vec::new();
    let mut next = async |client: &mut Sotw, wanted: (usize, usize)| {
        seen.clear();
        loop {
            let response = client.take(&[]).await;
            seen.push((response.type_url == workloads, response.resources.len()));
            let last = |kind| seen.iter().rev().find(|(of, _)| *of == kind).map(|(_, count)| *count);
            if (last(false), last(true)) == (Some(wanted.0), Some(wanted.1)) {
                return seen.clone();
            }
        }
    };
    assert_eq!(next(&mut client, (2, 2)).await, [(true, 2), (false, 2)]);
    mox.unpublish(&id("B"), "a", 9);
    assert_eq!(next(&mut client, (1, 1)).await.last(), Some(&(true, 1)));
}

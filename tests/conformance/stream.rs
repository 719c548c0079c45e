//! Streams and the transport.

use bytes::Bytes;
use harness::{
    SOON,
    client::{BARRIER, Delta, SERVICE_ENTRY, Sotw, framed, istiod_node, node},
};
use prost::Message;
use registry_mox::proto::envoy::service::discovery::v3::DiscoveryRequest;
use serde_json::json;
use tonic::{Code, transport::Channel};

use crate::{names, nobody, raw::Raw, resource, serving, set, with};

/// Both aggregated streams are served; any other method is UNIMPLEMENTED, and the connection goes on.
#[tokio::test]
async fn n01_both_streams_and_no_other_method() {
    let mox = serving(&["A"]).await;
    let other = Raw::open(&mox.address(), "FetchAggregatedResources").await;
    assert_eq!(other.status().await, Code::Unimplemented);
    let mut sotw = Sotw::connect(&mox.address()).await;
    sotw.ask(SERVICE_ENTRY, &[]);
    assert_eq!(names(&sotw.next().await), [resource("A")]);
    let mut delta = Delta::connect(&mox.address()).await;
    delta.ask("", &[], &[]);
    assert_eq!(delta.take().await, (vec![resource("A")], vec![]));
}

/// A first request without a node id is INVALID_ARGUMENT; later ones need none, and another id later on changes nothing.
#[tokio::test]
async fn n02_the_node_is_that_of_the_first_request() {
    let mox = serving(&["A"]).await;
    let mut nameless = Sotw::connect(&mox.address()).await;
    nameless.send(DiscoveryRequest { type_url: SERVICE_ENTRY.into(), ..DiscoveryRequest::default() });
    assert_eq!(nameless.end().await, Code::InvalidArgument);
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(BARRIER, &[]);
    client.next().await;
    client.send(DiscoveryRequest { type_url: SERVICE_ENTRY.into(), ..DiscoveryRequest::default() });
    client.next().await;
    client.send(DiscoveryRequest {
        node: Some(istiod_node()),
        type_url: BARRIER.into(),
        ..DiscoveryRequest::default()
    });
    client.next().await;
    assert_eq!(mox.engine.status().streams[0].node, node("client").id);
}

/// A request without a type is INVALID_ARGUMENT, on its stream only.
#[tokio::test]
async fn n03_a_type_is_needed() {
    let mox = serving(&["A"]).await;
    let channel = Channel::from_shared(format!("http://{}", mox.address())).unwrap().connect().await.unwrap();
    let on = async |channel: Channel| Sotw::open(channel, None).await.unwrap();
    let (mut typeless, mut other) = (on(channel.clone()).await, on(channel).await);
    typeless.ask("", &[]);
    assert_eq!(typeless.end().await, Code::InvalidArgument);
    other.ask(SERVICE_ENTRY, &[]);
    other.take(&[]).await;
}

/// Nonce, version, names, ACK and NACK of one type never touch another.
#[tokio::test]
async fn n04_types_are_independent() {
    let mox = serving(&["A"]).await;
    let old = "networking.istio.io/v1alpha3/ServiceEntry";
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let first = client.take(&[]).await;
    client.ask(old, &[&resource("A")]);
    let named = client.next().await;
    assert_ne!(first.nonce, named.nonce);
    client.request(SERVICE_ENTRY, &named.nonce, &[], Some("a nonce of the other type"));
    set(&mox, "A", 2);
    let next = client.take(&[]).await;
    assert_eq!((&*next.type_url, next.resources.len()), (SERVICE_ENTRY, 1));
    client.silent().await;
    client.request(old, &named.nonce, &[&resource("A")], None);
    assert_eq!(client.next().await.type_url, old, "it waited for its own ACK");
    assert_eq!(mox.engine.status().nacks, 0);
}

/// Streams with one node id live beside each other; one's end does not disturb the other.
#[tokio::test]
async fn n05_streams_of_one_node_coexist() {
    let mox = serving(&["A"]).await;
    let (mut one, mut two) = (Sotw::connect(&mox.address()).await, Sotw::connect(&mox.address()).await);
    for client in [&mut one, &mut two] {
        client.ask(SERVICE_ENTRY, &[]);
        client.take(&[]).await;
    }
    drop(one);
    set(&mox, "A", 2);
    assert_eq!(two.take(&[]).await.resources.len(), 1);
}

/// A type that is not served is answered at once: empty, with its type, a version and a nonce; the stream goes on.
#[tokio::test]
async fn n06_unknown_types_are_empty() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    for type_url in ["networking.istio.io/v1/Gateway", "type.googleapis.com/envoy.config.cluster.v3.Cluster", "x"] {
        client.ask(type_url, &[]);
        let response = client.take(&[]).await;
        assert_eq!((&*response.type_url, response.resources.len()), (type_url, 0));
        assert!(!response.version_info.is_empty() && !response.nonce.is_empty());
    }
    client.ask(SERVICE_ENTRY, &[]);
    assert_eq!(client.take(&[]).await.resources.len(), 1);
}

/// The type is echoed byte for byte; `v1`, `v1beta1` and `v1alpha3` carry the same resources and version.
#[tokio::test]
async fn n07_versions_of_a_type_are_aliases() {
    let mox = serving(&["A", "B"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    let mut seen = Vec::new();
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let type_url = format!("networking.istio.io/{version}/ServiceEntry");
        client.ask(&type_url, &[]);
        let response = client.take(&[]).await;
        assert_eq!(response.type_url, type_url);
        seen.push((response.version_info, response.resources));
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
}

/// However a stream ends, half-closed, reset, cancelled or with its connection at any byte, nothing is left of it.
#[tokio::test]
async fn n08_nothing_is_left_of_a_stream() {
    let mox = serving(&["A"]).await;
    let request =
        DiscoveryRequest { node: Some(node("client")), type_url: SERVICE_ENTRY.into(), ..DiscoveryRequest::default() };
    let message = framed(&request.encode_to_vec());
    for cut in [0, 1, 4, 5, 9, message.len() - 1, message.len()] {
        let mut half = Raw::open(&mox.address(), "StreamAggregatedResources").await;
        half.out.send_data(message.slice(..cut), true).unwrap();
        // A stream that never had a request ends with the half-close.
        let _ = tokio::time::timeout(SOON, half.answer).await.unwrap();
        let mut reset = Raw::open(&mox.address(), "StreamAggregatedResources").await;
        reset.out.send_data(message.slice(..cut), false).unwrap();
        reset.out.send_reset(h2::Reason::CANCEL);
        let mut killed = Raw::open(&mox.address(), "StreamAggregatedResources").await;
        killed.out.send_data(message.slice(..cut), false).unwrap();
        let _ = killed.pings.ping(h2::Ping::opaque()).await;
        killed.connection.abort();
    }
    drop(Sotw::connect(&mox.address()).await);
    nobody(&mox).await;
}

/// A client's PINGs are answered while a response waits for it, however many there are.
#[tokio::test]
async fn n09_pings_are_answered_during_a_push() {
    let mox = serving(&[]).await;
    (0..400).for_each(|n| {
        mox.publish(&crate::id(format!("S{n}")), "a", 1, &[&format!("10.0.0.1:1?app_name={}", "x".repeat(900))])
    });
    mox.engine.flush().await;
    let mut client = Raw::open(&mox.address(), "StreamAggregatedResources").await;
    let request =
        DiscoveryRequest { node: Some(node("client")), type_url: SERVICE_ENTRY.into(), ..DiscoveryRequest::default() };
    client.out.send_data(framed(&request.encode_to_vec()), false).unwrap();
    let body = client.answer.await.unwrap().into_body();
    for _ in 0..200 {
        client.pings.ping(h2::Ping::opaque()).await.unwrap();
    }
    drop(body);
    client.connection.abort();
}

/// A request that is malformed, too large or no UTF-8 is an error of its stream only.
#[tokio::test]
async fn n10_a_bad_request_ends_its_stream_only() {
    let mox = with(json!({ "limits": { "request": 65_536 } }), &["A"]).await;
    let mut good = Sotw::connect(&mox.address()).await;
    good.ask(SERVICE_ENTRY, &[]);
    good.take(&[]).await;
    let large = DiscoveryRequest { type_url: "x".repeat(1 << 17), ..DiscoveryRequest::default() }.encode_to_vec();
    for bad in [&[0xFF; 40][..], &[0x22, 2, 0xC3, 0x28], &large] {
        for method in ["StreamAggregatedResources", "DeltaAggregatedResources"] {
            let mut client = Raw::open(&mox.address(), method).await;
            client.out.send_data(framed(bad), false).unwrap();
            assert_ne!(client.status().await, Code::Ok);
        }
    }
    let mut odd = Raw::open(&mox.address(), "StreamAggregatedResources").await;
    odd.out.send_data(Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"), true).unwrap();
    assert_ne!(odd.status().await, Code::Ok);
    set(&mox, "A", 2);
    assert_eq!(good.take(&[]).await.resources.len(), 1);
}

/// A stop ends streams with UNAVAILABLE, and never with an empty state before.
#[tokio::test]
async fn n11_a_stop_says_no_last_state() {
    let mox = serving(&["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    client.take(&[]).await;
    let mut delta = Delta::connect(&mox.address()).await;
    delta.ask("", &[], &[]);
    delta.take().await;
    let engine = mox.engine;
    tokio::task::spawn_blocking(move || engine.close()).await.unwrap();
    assert_eq!(client.try_next().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(delta.try_next().await.unwrap_err().code(), Code::Unavailable);
}

/// A flood of requests does not hold back pushes, and pushes do not hold back requests.
#[tokio::test]
async fn n12_requests_and_pushes_share_a_stream() {
    let mox = with(json!({ "limits": { "types": 64 } }), &["A"]).await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    client.take(&[]).await;
    let (mut asked, mut answered, mut pushed) = (0, 0, 0);
    for n in 2..40 {
        set(&mox, "A", n);
        let flushed = mox.engine.flush().await.version;
        loop {
            client.ask(BARRIER, &[]);
            asked += 1;
            let response = client.next().await;
            if response.type_url == SERVICE_ENTRY {
                client.ack(&response, &[]);
                pushed += 1;
                if response.version_info == flushed {
                    break;
                }
            } else {
                answered += 1;
            }
            assert!(asked < 10_000, "{answered} answers and {pushed} pushes");
        }
    }
    assert!(pushed >= 38);
    // Requests in a row may be answered once.
    client.ask(BARRIER, &[]);
    while answered == 0 {
        answered += usize::from(client.next().await.type_url == BARRIER);
    }
}

//! Parts on ports and by name, pacing, and what bounds a client.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use harness::{
    Mox, SOON,
    client::{MoxClient, Response, SERVICE_ENTRY, State, istiod_node, node as plain_node},
    nth as id, nth_name as name,
};
use prost::Message;
use registry_mox::{
    proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    testing::registry::frame::{self, Publisher},
};
use serde_json::json;
use tonic::Code;

async fn serving(config: serde_json::Value, services: usize) -> Mox {
    let mox = Mox::open(config);
    (0..services).for_each(|n| mox.publish(&id(n), "a", 1, &["10.0.0.1:1"]));
    mox.engine.loaded();
    mox.engine.flush().await;
    mox
}

async fn first(client: &mut MoxClient) -> Response {
    client.next_of(SERVICE_ENTRY).await
}

/// A client of every part of `count`.
async fn all_parts(mox: &Mox, count: usize) -> Vec<MoxClient> {
    let mut clients = Vec::new();
    for address in &mox.engine.listen().unwrap().partitions[&count] {
        let mut client = MoxClient::connect(&address.to_string(), plain_node("istiod")).await.unwrap();
        client.subscribe(SERVICE_ENTRY).unwrap();
        first(&mut client).await;
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn the_parts_of_a_number_are_everything_each_once_and_in_the_same_bytes() {
    let mox = serving(json!({ "partitions": [2, 16] }), 200).await;
    let mut whole = mox.client(plain_node("whole")).await;
    whole.subscribe(SERVICE_ENTRY).unwrap();
    let whole = first(&mut whole).await;
    for count in [2, 16] {
        let mut all: State = BTreeMap::new();
        let mut bytes = Vec::new();
        let mut versions = std::collections::BTreeSet::new();
        for address in &mox.engine.listen().unwrap().partitions[&count] {
            let mut client = MoxClient::connect(&address.to_string(), plain_node("part")).await.unwrap();
            client.subscribe(SERVICE_ENTRY).unwrap();
            let part = first(&mut client).await;
            versions.insert(part.version_info);
            bytes.extend(part.bytes);
            for resource in part.resources {
                assert!(all.insert(resource.name.clone(), resource).is_none(), "in two parts");
            }
        }
        assert_eq!((all.len(), versions.len()), (200, count));
        assert!(bytes == whole.bytes, "the parts in order are the whole, byte for byte");
    }
}

#[tokio::test]
async fn a_change_wakes_and_pushes_its_part_only() {
    let mox = serving(json!({ "partitions": [16], "push": { "duty": 1 } }), 200).await;
    let mut clients = all_parts(&mox, 16).await;
    let before = mox.engine.status();
    mox.publish(&id(7), "a", 2, &["10.0.0.2:1"]);
    let at = clients.iter().position(|client| client.state().contains_key(&name(7))).unwrap();
    clients[at].wait_until(SOON, |state| state[&name(7)].endpoints() == ["10.0.0.2:1"]).await.unwrap();
    let after = mox.engine.status();
    assert_eq!((after.pushes - before.pushes, after.rounds.encodes - before.rounds.encodes), (1, 1));
}

#[tokio::test]
async fn a_part_is_asked_for_by_name_on_the_one_port() {
    let mox = serving(json!({ "partitions": [16] }), 100).await;
    let bound = mox.engine.listen().unwrap();
    let open = async |authority: &str, address: std::net::SocketAddr| {
        let mut client = MoxClient::named(authority, &address.to_string(), plain_node("named")).await.unwrap();
        client.subscribe(SERVICE_ENTRY).unwrap();
        client
    };
    let mut seen = 0;
    for k in 0..4 {
        let mut client = open(&format!("p{k}-of-4.mox.example.com:9700"), bound.mox).await;
        seen += first(&mut client).await.resources.len();
    }
    assert_eq!(seen, 100);
    assert_eq!(first(&mut open("mox.example.com:9700", bound.mox).await).await.resources.len(), 100);
    let same = open("p3-of-16.mox.example.com", bound.partitions[&16][3]).await;
    drop(same);
    for (wrong, address) in [
        ("p4-of-4.mox.example.com", bound.mox),
        ("p1-of-3.mox.example.com", bound.mox),
        ("p-of-4.mox.example.com", bound.mox),
        ("p2-of-16.mox.example.com", bound.partitions[&16][3]),
    ] {
        let refused = MoxClient::named(wrong, &address.to_string(), plain_node("named")).await;
        let code = match refused {
            Ok(mut client) => {
                let _ = client.subscribe(SERVICE_ENTRY);
                client.end(SOON).await.unwrap()
            }
            Err(error) => error.downcast_ref::<tonic::Status>().unwrap().code(),
        };
        assert_eq!(code, Code::InvalidArgument, "{wrong}");
    }
}

/// The resources that a client is served which says what it wants in `Host` and has no `:authority`, or how it is refused.
async fn by_host(address: SocketAddr, host: http::HeaderValue) -> Result<usize, Code> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
    // h2 sends a path without a host as it is if the request came with HTTP/1.1.
    let request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    let request = request.version(http::Version::HTTP_11).header("host", host).body(()).unwrap();
    let (answer, mut out) = client.ready().await.unwrap().send_request(request, false).unwrap();
    let type_url = SERVICE_ENTRY.to_owned();
    let body = DiscoveryRequest { node: Some(plain_node("host")), type_url, ..Default::default() }.encode_to_vec();
    let message: Vec<u8> = [0].into_iter().chain((body.len() as u32).to_be_bytes()).chain(body).collect();
    let _ = out.send_data(message.into(), false);
    let answer = answer.await.unwrap();
    if let Some(status) = answer.headers().get("grpc-status") {
        return Err(Code::from_bytes(status.as_bytes()));
    }
    let (mut data, mut body) = (Vec::new(), answer.into_body());
    while data.len() < 5 || data.len() < 5 + u32::from_be_bytes(data[1..5].try_into().unwrap()) as usize {
        data.extend(tokio::time::timeout(SOON, body.data()).await.unwrap().unwrap().unwrap());
    }
    connection.abort();
    Ok(DiscoveryResponse::decode(&data[5..]).unwrap().resources.len())
}

#[tokio::test]
async fn a_client_without_an_authority_is_served_the_part_of_its_host() {
    let mox = serving(json!({}), 100).await;
    let address = mox.engine.listen().unwrap().mox;
    let host = http::HeaderValue::from_static;
    let mut seen = 0;
    for part in ["p0-of-2.mox.example.com", "p1-of-2.mox.example.com:9700"] {
        let part = by_host(address, host(part)).await.unwrap();
        assert!(part < 100, "{part}");
        seen += part;
    }
    assert_eq!(seen, 100);
    assert_eq!(by_host(address, host("mox.example.com")).await, Ok(100));
    let unreadable = http::HeaderValue::from_bytes(b"p0-of-2.\xFF").unwrap();
    for wrong in [host("p2-of-2.mox.example.com"), unreadable] {
        assert_eq!(by_host(address, wrong).await, Err(Code::InvalidArgument));
    }
}

#[tokio::test]
async fn ports_are_those_of_their_parts_and_all_bind_or_none() {
    // A range of ports that is free now.
    let free = (20_000..60_000)
        .step_by(16)
        .find(|port| (*port..port + 8).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()));
    let base: u16 = free.unwrap();
    let open = || {
        let listen = format!("127.0.0.1:{base}");
        let config = json!({ "listen": listen, "partitions": [2, 4] }).to_string();
        std::sync::Arc::new(
            registry_mox::testing::host::engine::Engine::open(
                registry_mox::testing::config::Config::from_json(config.as_bytes()).unwrap(),
            )
            .unwrap(),
        )
    };
    let taken = std::net::TcpListener::bind(("127.0.0.1", base + 7)).unwrap();
    let engine = open();
    let error = engine.listen().unwrap_err().to_string();
    assert!(error.contains(&(base + 7).to_string()), "{error}");
    assert!(std::net::TcpListener::bind(("127.0.0.1", base)).is_ok(), "nothing is left bound");
    drop(taken);
    let bound = engine.listen().unwrap();
    assert_eq!(bound.mox.port(), base);
    let ports = |count: usize| bound.partitions[&count].iter().map(|address| address.port() - base).collect::<Vec<_>>();
    assert_eq!((ports(2), ports(4)), (vec![2, 3], vec![4, 5, 6, 7]));
    tokio::task::spawn_blocking(move || engine.close()).await.unwrap();
}

#[tokio::test]
async fn a_client_with_the_wrong_partitions_is_shown() {
    let mox = serving(json!({ "partitions": [4] }), 20).await;
    let mut clients = all_parts(&mox, 4).await;
    let wrong = || mox.engine.status().clients[0].wrong;
    assert_eq!(wrong(), None);
    let gone = clients.pop();
    drop(gone);
    let deadline = tokio::time::Instant::now() + SOON;
    while wrong().is_none() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await; // the polling interval
    }
    let mut whole = mox.client(plain_node("istiod")).await;
    whole.subscribe(SERVICE_ENTRY).unwrap();
    first(&mut whole).await;
    let (_, page) = mox.page("/mox/streams", "");
    assert!(page.contains("it takes everything and partitions beside it"), "{page}");
}

#[tokio::test]
async fn the_configuration_to_paste_names_every_port() {
    let mox = serving(json!({ "partitions": [2] }), 0).await;
    let (_, page) = mox.page("/mox/istio-config", "host=10.1.2.3");
    let bound = mox.engine.listen().unwrap();
    for address in bound.partitions[&2].iter().chain([&bound.mox]) {
        assert!(page.contains(&format!("xds://10.1.2.3:{}", address.port())), "{page}");
    }
    assert_eq!(page.matches("k8s://").count(), 2);
}

/// The time that a client takes for a response counts from when the response was handed to the transport.
#[tokio::test]
async fn the_time_that_a_client_takes_is_measured() {
    let mox = serving(json!({ "push": { "duty": 1 } }), 1).await;
    let mut client = mox.client(plain_node("slow")).await;
    client.auto_ack = false;
    client.subscribe(SERVICE_ENTRY).unwrap();
    let response = first(&mut client).await;
    let taken = Duration::from_millis(10);
    tokio::time::sleep(taken).await; // what the client does with it; on a busy machine it is more
    client.ack(&response).unwrap();
    mox.publish(&id(0), "a", 2, &["10.0.0.2:1"]);
    first(&mut client).await;
    let shown = mox.engine.status().streams[0].types[SERVICE_ENTRY].ack_millis;
    assert!(shown >= Some(taken.as_millis() as u64), "{shown:?}");
}

#[tokio::test]
async fn a_client_that_is_slow_does_not_slow_another() {
    let mox = serving(json!({ "push": { "duty": 0.01, "max": "10m" } }), 1).await;
    let mut slow = mox.client(plain_node("slow")).await;
    slow.auto_ack = false;
    slow.subscribe(SERVICE_ENTRY).unwrap();
    first(&mut slow).await;
    let mut quick = mox.client(plain_node("quick")).await;
    quick.subscribe(SERVICE_ENTRY).unwrap();
    for n in 2..20 {
        mox.publish(&id(0), "a", n, &[&format!("10.0.0.{n}:1")]);
        quick
            .wait_until(SOON, |state| state.values().all(|r| r.endpoints() == [format!("10.0.0.{n}:1")]))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn ten_thousand_events_within_the_quiet_time_are_one_push() {
    let mox = serving(json!({ "push": { "quiet": "2s" } }), 1).await;
    let mut client = mox.client(plain_node("client")).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    first(&mut client).await;
    let before = mox.engine.status();
    (0..10_000)
        .for_each(|n| mox.publish(&id(n % 100), "a", n as i64 + 2, &[&format!("10.1.{}.{}:1", n / 250, n % 250 + 1)]));
    client.wait_until(SOON, |state| state.len() == 100).await.unwrap();
    let after = mox.engine.flush().await;
    let status = mox.engine.status();
    assert_eq!(status.pushes - before.pushes, 1);
    assert_eq!(status.rounds.snapshots - before.rounds.snapshots, 1);
    assert_eq!(after.services, 100);
}

/// All that a client published that is gone, or that a caller batches, comes in one frame; the first of its services begins a round.
#[tokio::test]
async fn a_frame_is_one_push() {
    let mox = serving(json!({ "push": { "quiet": "0s" } }), 1).await;
    let mut client = mox.client(plain_node("client")).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    first(&mut client).await;
    mox.engine.flush().await;
    let before = mox.engine.status().rounds.snapshots;
    let publisher = Publisher { register_id: "a".into(), payloads: vec![b"10.0.0.1:1".into()], ..Publisher::default() };
    let events: Vec<Vec<u8>> =
        (0..50).map(|n| frame::encode_publish("registry", &id(n + 1), &publisher).unwrap().split_off(4)).collect();
    let header = [1, 0, events.len() as u8, 0]; // of one event it ends with 1, 0
    mox.engine.apply(&[header.as_slice(), &events.concat()].concat()).unwrap();
    client.wait_until(SOON, |state| state.len() == 51).await.unwrap();
    assert_eq!(mox.engine.status().rounds.snapshots - before, 1);
}

#[tokio::test]
async fn who_may_connect_and_how_often() {
    let mox = serving(json!({ "allowCidrs": ["10.0.0.0/8"] }), 1).await;
    assert!(MoxClient::connect(&mox.address(), plain_node("x")).await.is_err());
    assert!(mox.engine.status().refused > 0);
    let mox = serving(json!({ "limits": { "streamsPerAddress": 2 }, "allowCidrs": ["127.0.0.0/8"] }), 1).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut client = mox.client(istiod_node()).await;
        client.subscribe(SERVICE_ENTRY).unwrap();
        first(&mut client).await;
        kept.push(client);
    }
    let third = MoxClient::asking(&mox.address(), plain_node("x"), SERVICE_ENTRY).await;
    let status = third.err().unwrap().downcast::<tonic::Status>().unwrap();
    assert!(status.code() == Code::ResourceExhausted && status.message().contains("one address"), "{status}");
    // Whether that one's connection is gone already or not, these are too many.
    let refused = mox.engine.status().refused;
    let mut more = Vec::new();
    for _ in 0..6 {
        more.push(tokio::net::TcpStream::connect(mox.address()).await.unwrap());
    }
    let deadline = tokio::time::Instant::now() + SOON;
    while mox.engine.status().refused < refused + 2 {
        assert!(tokio::time::Instant::now() < deadline, "connections too many are closed");
        tokio::time::sleep(Duration::from_millis(2)).await; // the polling interval
    }
}

#[tokio::test]
async fn a_connection_without_a_stream_is_closed() {
    use tokio::io::AsyncReadExt;
    let mox = serving(json!({}), 0).await;
    let mut idle = tokio::net::TcpStream::connect(mox.address()).await.unwrap();
    let mut said = Vec::new();
    // After 10 s; what it says meanwhile are the server's own settings.
    let end = tokio::time::timeout(SOON, idle.read_to_end(&mut said)).await.expect("an end in time");
    assert!(end.is_ok() || said.len() < 256);
}

//! Clients that mean harm, or are only slow: what they may cost is bounded, and it is they who pay.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{future::poll_fn, time::Duration};

use bytes::{Buf, Bytes};
use harness::{
    Mox, SOON,
    client::{Delta, SERVICE, SERVICE_ENTRY, framed, node},
    http2, id,
};
use prost::Message;
use registry_mox::{
    proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    testing::host::status::Status,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

const METHOD: &str = "StreamAggregatedResources";

async fn until(mox: &Mox, wanted: impl Fn(&Status) -> bool) -> Status {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let status = mox.engine.status();
        if wanted(&status) {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(2)).await; // the polling interval
    }
}

/// Every service is another from now on, so that no page stays as it is.
async fn change_all(mox: &Mox, services: usize, version: i64) {
    for n in 0..services {
        mox.publish(&id(n), "a", version, &[&format!("10.{version}.{}.{}:12200", n / 250, n % 250 + 1)]);
    }
    mox.engine.flush().await;
}

/// A stream of a connection of h2, which says when it has read something.
struct Stream {
    out: h2::SendStream<Bytes>,
    body: h2::RecvStream,
    read: Vec<u8>,
}

impl Stream {
    async fn open(client: &h2::client::SendRequest<Bytes>, address: &str, node_id: &str) -> Self {
        let request = http::Request::post(format!("http://{address}{SERVICE}{METHOD}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let mut client = client.clone().ready().await.unwrap();
        let (answer, mut out) = client.send_request(request.body(()).unwrap(), false).unwrap();
        let ask = DiscoveryRequest { node: Some(node(node_id)), type_url: SERVICE_ENTRY.into(), ..Default::default() };
        out.send_data(framed(&ask.encode_to_vec()), false).unwrap();
        Self { out, body: answer.await.unwrap().into_body(), read: Vec::new() }
    }

    /// The next response, accepted.
    async fn next(&mut self) -> DiscoveryResponse {
        let response = self.hear().await;
        self.accept(&response);
        response
    }

    fn accept(&mut self, response: &DiscoveryResponse) {
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        let ack = DiscoveryRequest { type_url, response_nonce, ..DiscoveryRequest::default() };
        self.out.send_data(framed(&ack.encode_to_vec()), false).unwrap();
    }

    /// The next response.
    async fn hear(&mut self) -> DiscoveryResponse {
        loop {
            if let Some((mut prefix, rest)) = self.read.split_at_checked(5) {
                prefix.advance(1);
                let length = prefix.get_u32() as usize;
                if rest.len() >= length {
                    let response = DiscoveryResponse::decode(&rest[..length]).unwrap();
                    self.read.drain(..5 + length);
                    return response;
                }
            }
            let data = tokio::time::timeout(SOON, self.body.data()).await.expect("data in time").unwrap().unwrap();
            self.body.flow_control().release_capacity(data.len()).unwrap();
            self.read.extend_from_slice(&data);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_holds_old_pages_goes_and_those_beside_it_on_its_connection_stay() {
    const SERVICES: usize = 3_000;
    let limits = json!({ "pinnedBytes": 1_048_576 });
    let mox = Mox::open(json!({ "limits": limits, "push": { "duty": 1.0, "prime": false } }));
    change_all(&mox, SERVICES, 1).await;
    mox.engine.loaded();
    mox.engine.flush().await;
    let address = mox.address();
    let (client, connection) = h2::client::Builder::new()
        .initial_connection_window_size(64 << 20)
        .handshake::<_, Bytes>(TcpStream::connect(&address).await.unwrap())
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut good = Stream::open(&client, &address, "good").await;
    let (heard, mut hears) = mpsc::unbounded_channel();
    tokio::spawn(async move { while heard.send(good.next().await).is_ok() {} });
    let mut hears_of = async |version: String| {
        while tokio::time::timeout(SOON, hears.recv()).await.expect("a response in time").unwrap().version_info
            != version
        {}
    };
    hears_of(mox.engine.flush().await.version).await;
    assert_eq!(client.current_max_send_streams(), 256);
    let bytes = mox.engine.status().bytes;
    assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
    // The first of all has read what it was sent and owes the answer only.
    let mut owes = Stream::open(&client, &address, "owes an answer").await;
    let owed = owes.hear().await;
    // Each of them holds what was served when it came, and reads nothing of it.
    let mut slow = Stream::open(&client, &address, "slow").await;
    let mut others = Vec::new();
    for version in 2..6 {
        change_all(&mox, SERVICES, version).await;
        others.push(Stream::open(&client, &address, "as slow").await);
    }
    hears_of(mox.engine.flush().await.version).await;
    until(&mox, |status| status.relieved > 0 && status.pinned_bytes < (1 << 20) + bytes).await;
    // The other one of the connection goes on as ever.
    change_all(&mox, 1, 6).await;
    hears_of(mox.engine.flush().await.version).await;
    assert!(!connection.is_finished());
    // When the slow one reads on, it hears that it is over, and nothing is left of it.
    let end = loop {
        match tokio::time::timeout(SOON, slow.body.data()).await.expect("an end in time") {
            Some(Ok(data)) => slow.body.flow_control().release_capacity(data.len()).unwrap(),
            end => break end,
        }
    };
    assert!(end.unwrap().unwrap_err().is_reset());
    until(&mox, |status| status.totals.streams == 6).await;
    assert!(!connection.is_finished());
    owes.accept(&owed);
    assert_eq!(owes.hear().await.version_info, mox.engine.flush().await.version);
}

#[tokio::test]
async fn a_connection_of_too_many_frames_ends_and_no_other() {
    let mox = Mox::open(json!({}));
    mox.engine.loaded();
    let mut good = mox.client(node("good")).await;
    good.subscribe(SERVICE_ENTRY).unwrap();
    good.next_of(SERVICE_ENTRY).await;
    for (n, flood) in http2::floods().into_iter().enumerate() {
        let mut socket = TcpStream::connect(mox.address()).await.unwrap();
        socket.write_all(http2::PREFACE).await.unwrap();
        socket.write_all(&http2::settings()).await.unwrap();
        let (mut reads, mut writes) = socket.into_split();
        let written = tokio::spawn(async move {
            for _ in 0..1_000 {
                if writes.write_all(&flood.repeat(100)).await.is_err() {
                    break;
                }
            }
            writes // not closed, so that the end is the server's
        });
        let mut said = Vec::new();
        let _ = tokio::time::timeout(SOON, reads.read_to_end(&mut said)).await.expect("an end in time");
        assert_eq!(mox.engine.status().floods, n as u64 + 1);
        drop(written.await.unwrap());
    }
    mox.publish(&id(1), "a", 1, &["10.0.0.1:12200"]);
    good.wait_until(SOON, |state| state.len() == 1).await.unwrap();
}

#[tokio::test]
async fn a_connection_takes_as_many_streams_as_it_may_have_at_once() {
    const STREAMS: usize = 256;
    let mox = Mox::open(json!({}));
    mox.engine.loaded();
    let address = mox.address();
    let socket = TcpStream::connect(&address).await.unwrap();
    // A client of so many streams has room for small frames on all of them; that of h2 has as much as its window.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(1 << 20);
    let (client, connection) = builder.handshake::<_, Bytes>(socket).await.unwrap();
    tokio::spawn(connection);
    Stream::open(&client, &address, "the first learns how many there may be").await.next().await;
    let opened = (1..STREAMS).map(|_| {
        let (client, address) = (client.clone(), address.clone());
        tokio::spawn(async move {
            let mut stream = Stream::open(&client, &address, "good").await;
            stream.next().await;
            stream
        })
    });
    let mut streams = Vec::new();
    for opened in opened.collect::<Vec<_>>() {
        streams.push(opened.await.unwrap());
    }
    let status = until(&mox, |status| status.totals.streams == STREAMS - 1).await;
    assert_eq!(status.floods, 0);
}

/// Names that are not there, by the thousand: they are refused, and what they took is given back.
#[tokio::test]
async fn a_stream_of_too_many_names_ends_and_gives_back_what_it_took() {
    let mox = Mox::open(json!({ "limits": { "streamBytes": 1_048_576 } }));
    mox.engine.loaded();
    let address = mox.address();
    let socket = TcpStream::connect(&address).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let mut greedy = Stream::open(&client, &address, "greedy").await;
    greedy.next().await;
    let names = (0..100_000).map(|n: u32| format!("{n:x}")).collect();
    let ask = DiscoveryRequest { type_url: SERVICE_ENTRY.into(), resource_names: names, ..DiscoveryRequest::default() };
    let mut rest = framed(&ask.encode_to_vec());
    while !rest.is_empty() {
        greedy.out.reserve_capacity(rest.len().min(16 << 10));
        // The stream ends before all of the request is said.
        let Some(Ok(room)) = poll_fn(|context| greedy.out.poll_capacity(context)).await else { break };
        if greedy.out.send_data(rest.split_to(room.min(rest.len())), false).is_err() {
            break;
        }
    }
    let status = until(&mox, |status| status.over_budget == 1 && status.totals.streams == 0).await;
    assert_eq!(status.stream_bytes, 0);
    while greedy.body.data().await.is_some_and(|data| data.is_ok()) {}
    let trailers = greedy.body.trailers().await.unwrap().unwrap();
    let message = trailers["grpc-message"].to_str().unwrap();
    assert!(trailers["grpc-status"] == "8" && message.contains("stream-bytes"), "{trailers:?}");
}

/// An honest client of many names, which comes back and says what it has: it is within the bounds, and answered whole.
#[tokio::test]
async fn a_delta_client_of_fifty_thousand_names_is_served_and_comes_back() {
    comes_back(json!({}), 60).await;
    // With names and versions its first request has 17 MB.
    comes_back(json!({ "request": 32 << 20 }), 150).await;
}

/// A delta client of so many names, of so many bytes each, asks for them, leaves and comes back.
async fn comes_back(limits: serde_json::Value, length: usize) {
    let mox = Mox::open(json!({ "limits": limits }));
    mox.publish(&id(1), "a", 1, &["10.0.0.1:12200"]);
    mox.engine.loaded();
    mox.engine.flush().await;
    let digits = length - "sofa-registry/".len();
    let names: Vec<String> = (0..50_000).map(|n| format!("sofa-registry/{n:0>digits$}")).collect();
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut everything = Delta::connect(&mox.address()).await;
    everything.ask("", &["*"], &[]);
    let served = everything.next().await.resources.remove(0);
    all.push(&served.name);
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &all, &[]);
    let (brought, removed) = client.take().await;
    assert_eq!((brought, removed.len()), (vec![served.name.clone()], 50_000));
    drop(client);
    let mut back = Delta::connect(&mox.address()).await;
    let mut first = Delta::request(SERVICE_ENTRY, "", &all, &[]);
    first.initial_resource_versions = names.iter().map(|name| (name.clone(), "0".repeat(32))).collect();
    first.initial_resource_versions.insert(served.name.clone(), served.version.clone());
    back.send(first);
    let (brought, removed) = back.take().await;
    assert_eq!((brought.len(), removed.len()), (0, 50_000), "it has what there is");
    let status = until(&mox, |status| status.totals.streams == 2).await;
    assert_eq!(status.over_budget, 0);
    assert!(status.stream_bytes < 50_000 * (2 * length + 200), "{}", status.stream_bytes);
    // A change of one of the names reaches it.
    mox.publish(&id(1), "a", 2, &["10.0.0.2:12200"]);
    assert_eq!(back.take().await, (vec![served.name], Vec::new()));
}

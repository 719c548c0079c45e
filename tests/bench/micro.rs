//! The cost of single steps: a frame into the store, a service into its entry, a change into a snapshot, a snapshot
//! into the pieces that go to the transport. `cargo bench --bench micro`.
#![allow(missing_docs)]

use std::{collections::BTreeMap, hint::black_box, pin::Pin, sync::Arc, task::Context};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use http_body::Body as _;
use registry_mox::testing::{
    istio::names::ID_ANNOTATION,
    model::RegisterVersion,
    policy::{Policy, PolicyConfig},
    registry::{
        frame::{self, Publisher, decode, encode_publish},
        store::{Limits, Store},
    },
    snapshot::{Changes, Resource, Snapshot, partition::SLICES},
    translate::{
        payload,
        service_entry::{self, EndpointMode, Member, Shape},
    },
    xds::{
        codec::{self, Outgoing, Response},
        subscription::ResponseContent,
    },
};

const SERVICE: &str = "com.example.bench.Service";
/// `startTime`, so that a resource can differ from the one before.
const BASE: i64 = 1_700_000_000_000;

fn id(service: usize) -> String {
    format!("{SERVICE}{service:05}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA")
}

fn url(service: usize, endpoint: usize, version: i64) -> String {
    let n = service * 100 + endpoint + 1;
    format!(
        "10.{}.{}.{}:12200?rpcVer=51302&serialization=hessian2&weight=100&appName=app-{service:05}&p=1&v=4.0\
         &_SERIALIZETYPE=hessian2&_WEIGHT=100&app_name=app-{service:05}&zone=RZ01A&startTime={}",
        n >> 16,
        n >> 8 & 255,
        n & 255,
        BASE + version
    )
}

fn publish(service: usize, version: i64) -> Vec<u8> {
    let publisher = Publisher {
        register_id: format!("{service:05}-00000").into(),
        version: RegisterVersion { version, timestamp: BASE },
        payloads: vec![url(service, 0, version).into_bytes().into()],
        ..Publisher::default()
    };
    encode_publish("registry", &id(service), &publisher).expect("a frame within its bounds")
}

/// A frame of one publisher into the store, as a thread of the registry does it; the service is marked as changed already.
fn ingest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ingest");
    for services in [16, 1_024] {
        let store = Store::new(Limits::NONE);
        // Versions rise, so that each frame is stored.
        let mut version: i64 = 0;
        let mut frames: Vec<Vec<u8>> = (0..services).map(|service| publish(service, 0)).collect();
        let version_at = 4 + 1 + 2 + "registry".len() + 2 + id(0).len() + 1;
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("publish", services), |bencher| {
            bencher.iter(|| {
                version += 1;
                let frame = &mut frames[version as usize % services];
                frame[version_at..version_at + 8].copy_from_slice(&version.to_le_bytes());
                for event in decode(frame).expect("a whole frame") {
                    black_box(store.apply(&event, BASE).expect("room for it"));
                }
            });
        });
    }
    group.finish();
}

fn policy() -> Policy {
    let labels = vec!["serialization".to_owned(), "startTime".to_owned()];
    Policy::new(PolicyConfig { labels, ..PolicyConfig::default() }, &[], "ns").expect("a policy without mistakes")
}

fn members(service: usize, endpoints: usize, policy: &Policy) -> Vec<Member> {
    let id = id(service);
    let rules = policy.rules(&id);
    let parsed = (0..endpoints).map(|endpoint| {
        let publisher = Publisher {
            register_id: format!("{service:05}-{endpoint:05}").into(),
            payloads: vec![url(service, endpoint, 0).into_bytes().into()],
            ..Publisher::default()
        };
        let frame = encode_publish("registry", &id, &publisher).expect("a frame within its bounds");
        let events: Vec<_> = decode(&frame).expect("a whole frame").into_iter().collect();
        let [frame::Event::Publish { body, .. }] = &events[..] else { panic!("one publish, not {events:?}") };
        Arc::new(payload::parse_publisher(body, payload::Client::Sofarpc, &rules, 64))
    });
    parsed.flat_map(|parsed| Member::all(&parsed).collect::<Vec<_>>()).collect()
}

/// The entry of a service, encoded.
fn entry(service: usize, members: &[Member], policy: &Policy) -> Resource {
    let (id, name) = (id(service), format!("com.example.bench.service{service:05}"));
    let host = format!("{name}.sofa.mesh");
    let shape = Shape { host: &host, vips: &[], id: &id, other: None, members, mode: EndpointMode::Inline };
    let built = service_entry::build(&shape, &policy.rules(&id));
    let annotations = BTreeMap::from([(ID_ANNOTATION.to_owned(), id.clone())]);
    Resource::service_entry(format!("sofa-registry/{name}"), BTreeMap::new(), annotations, &built)
}

/// A service's entry, encoded: from publishers' texts, and from what was read of them before.
fn translate(criterion: &mut Criterion) {
    let policy = policy();
    let mut group = criterion.benchmark_group("translate");
    for endpoints in [1, 10, 100] {
        group.throughput(Throughput::Elements(endpoints as u64));
        group.bench_function(BenchmarkId::new("read, build, encode", endpoints), |bencher| {
            bencher.iter(|| entry(7, &members(7, endpoints, &policy), &policy));
        });
        let read = members(7, endpoints, &policy);
        group.bench_function(BenchmarkId::new("build, encode", endpoints), |bencher| {
            bencher.iter(|| entry(7, &read, &policy));
        });
    }
    group.finish();
}

/// A snapshot of so many services with so many endpoints each, with the name and slice of each service.
fn snapshot_of(services: usize, endpoints: usize, policy: &Policy) -> Snapshot {
    let changes: Changes = (0..services).map(|service| change(service, endpoints, policy)).collect();
    Snapshot::default().with(&changes)
}

fn change(service: usize, endpoints: usize, policy: &Policy) -> ((usize, Arc<str>), Option<Resource>) {
    let name: Arc<str> = format!("sofa-registry/com.example.bench.service{service:05}").into();
    ((service * 31 % SLICES, name), Some(entry(service, &members(service, endpoints, policy), policy)))
}

const SIZES: [(&str, usize, usize); 2] = [("W2", 10_000, 10), ("W4", 10_000, 100)];

/// A change of one service.
fn snapshot(criterion: &mut Criterion) {
    let policy = policy();
    let mut group = criterion.benchmark_group("snapshot");
    for (name, services, endpoints) in SIZES {
        let base = snapshot_of(services, endpoints, &policy);
        // Back and forth between two states of a service in the middle.
        let states = [endpoints, endpoints - 1].map(|endpoints| Changes::from([change(5_000, endpoints, &policy)]));
        let mut at = base.with(&states[1]);
        let mut turn = 0;
        group.bench_function(BenchmarkId::new("one change", name), |bencher| {
            bencher.iter(|| {
                at = at.with(&states[turn]);
                turn = 1 - turn;
            });
        });
    }
    group.finish();
}

/// A whole snapshot as the pieces that one stream hands to its transport; nothing of it is copied.
fn framing(criterion: &mut Criterion) {
    let policy = policy();
    let mut group = criterion.benchmark_group("framing");
    for (name, services, endpoints) in SIZES {
        let pages: Vec<Bytes> = snapshot_of(services, endpoints, &policy).pages().cloned().collect();
        group.throughput(Throughput::Bytes(pages.iter().map(Bytes::len).sum::<usize>() as u64));
        group.bench_function(BenchmarkId::new("a response", name), |bencher| {
            bencher.iter_batched(
                || {
                    let (outbox, responses) = codec::exit();
                    let response = Response {
                        type_url: "networking.istio.io/v1/ServiceEntry".to_owned(),
                        version: "7".into(),
                        nonce: "1".to_owned(),
                        content: ResponseContent { pages: pages.clone(), removed: Vec::new() },
                        delta: false,
                        handed: Arc::default(),
                    };
                    outbox.send(Ok(Outgoing::Response(response)));
                    responses
                },
                |mut body| {
                    let mut context = Context::from_waker(std::task::Waker::noop());
                    let mut bytes = 0;
                    while let std::task::Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) {
                        bytes += frame.data_ref().map_or(0, Bytes::len);
                    }
                    bytes
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, ingest, translate, snapshot, framing);
criterion_main!(benches);

//! Requests of a client on a stream, in either variant of the protocol: whatever they are, they take no more memory than is charged,
//! and the stream keeps to its bounds and comes to rest.
#![no_main]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use libfuzzer_sys::fuzz_target;
use registry_mox::{
    proto::{
        envoy::{
            config::core::v3::Node,
            service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
        },
        google::{
            protobuf::{Any, Struct, Value, value::Kind},
            rpc,
        },
    },
    testing::{
        snapshot::{Changes, Resource, partition::Partition, view::View},
        xds::{
            budget::{Account, Budget},
            limits::MaxBytes,
            order::{BadRequest, Bounds, Due, Next, Order},
            requests::Encoded,
            subscription::{Request, Subscription, delta::Delta, sotw::Sotw},
        },
    },
};
use tokio::time::Instant;

/// Bytes that an allocation takes beyond what was asked for.
const ALLOCATION: usize = 8;

fn text(text: &String) -> usize {
    size_of::<String>() + if text.capacity() > 0 { ALLOCATION + text.capacity() } else { 0 }
}

fn texts(all: &Vec<String>) -> usize {
    ALLOCATION + (all.capacity() - all.len()) * size_of::<String>() + all.iter().map(text).sum::<usize>()
}

fn value(of: &Value) -> usize {
    let inner = match &of.kind {
        Some(Kind::StringValue(said)) => text(said),
        Some(Kind::StructValue(inner)) => fields(inner),
        Some(Kind::ListValue(list)) => {
            list.values.capacity() * size_of::<Value>() + list.values.iter().map(value).sum::<usize>()
        }
        _ => 0,
    };
    size_of::<Value>() + inner
}

fn fields(of: &Struct) -> usize {
    of.fields.iter().map(|(name, field)| text(name) + value(field)).sum()
}

/// Bytes that the parts of a request take which both variants have.
fn common(node: Option<&Node>, type_url: &String, nonce: &String, error: Option<&rpc::Status>) -> usize {
    let node = node.map_or(0, |node| text(&node.id) + text(&node.cluster) + node.metadata.as_ref().map_or(0, fields));
    node + text(type_url) + text(nonce) + error.map_or(0, |error| text(&error.message))
}

const TYPES: [&str; 5] = [
    "networking.istio.io/v1/WorkloadEntry",
    "networking.istio.io/v1/DestinationRule",
    "networking.istio.io/v1/ServiceEntry",
    "networking.istio.io/v1alpha3/ServiceEntry",
    "networking.istio.io/v1/Gateway",
];
/// Types of a stream at most.
const MOST_TYPES: usize = 8;
/// Bytes that a stream may hold.
const MOST_BYTES: usize = 1 << 20;
/// Bytes that a name, or a version with its name, may be charged for at most beyond its own; each may be in two sets.
const NAME: usize = 400;
/// The same of a type.
const TYPE: usize = 8 << 10;

/// A variant of the protocol as a client speaks it.
trait Variant: Subscription {
    fn ask(type_url: &str, nonce: &str, names: Vec<String>, leave: Vec<String>, error: bool) -> Self::Request;
    /// Bytes that a request takes.
    fn size(request: &Self::Request) -> usize;
    /// Bytes of names, and how many there are.
    fn names(request: &Self::Request) -> (usize, usize);
}

fn refusal(error: bool) -> Option<rpc::Status> {
    error.then(|| rpc::Status { message: "é".repeat(900), ..rpc::Status::default() })
}

fn size<'a>(names: impl Iterator<Item = &'a String>) -> (usize, usize) {
    names.fold((0, 0), |(bytes, count), name| (bytes + name.len(), count + 1))
}

impl Variant for Sotw {
    fn ask(type_url: &str, nonce: &str, names: Vec<String>, _: Vec<String>, error: bool) -> DiscoveryRequest {
        let (type_url, response_nonce) = (type_url.to_owned(), nonce.to_owned());
        DiscoveryRequest {
            type_url,
            response_nonce,
            resource_names: names,
            error_detail: refusal(error),
            ..Default::default()
        }
    }

    fn size(request: &DiscoveryRequest) -> usize {
        let DiscoveryRequest {
            node, resource_names, type_url, response_nonce, error_detail, resource_locators, ..
        } = request;
        let locators: usize = resource_locators.iter().map(|locator| text(&locator.name)).sum();
        texts(resource_names) + locators + common(node.as_ref(), type_url, response_nonce, error_detail.as_ref())
    }

    fn names(request: &DiscoveryRequest) -> (usize, usize) {
        size(request.resource_names.iter().chain(request.resource_locators.iter().map(|locator| &locator.name)))
    }
}

impl Variant for Delta {
    fn ask(type_url: &str, nonce: &str, names: Vec<String>, leave: Vec<String>, error: bool) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            resource_names_subscribe: names,
            resource_names_unsubscribe: leave,
            error_detail: refusal(error),
            ..Default::default()
        }
    }

    fn size(request: &DeltaDiscoveryRequest) -> usize {
        let locators = request.resource_locators_subscribe.iter().chain(&request.resource_locators_unsubscribe);
        let versions = request.initial_resource_versions.iter();
        texts(&request.resource_names_subscribe)
            + texts(&request.resource_names_unsubscribe)
            + locators.map(|locator| text(&locator.name)).sum::<usize>()
            // The nodes of a tree may be half full.
            + versions.map(|(name, version)| text(name) + text(version) + 2 * size_of::<String>()).sum::<usize>()
            + common(request.node.as_ref(), &request.type_url, &request.response_nonce, request.error_detail.as_ref())
    }

    fn names(request: &DeltaDiscoveryRequest) -> (usize, usize) {
        let locators = request.resource_locators_subscribe.iter().map(|locator| &locator.name);
        let names = request.resource_names_subscribe.iter().chain(&request.resource_names_unsubscribe);
        size(names.chain(locators).chain(request.initial_resource_versions.keys()))
    }
}

struct Run<S> {
    order: Order<View, S>,
    view: View,
    account: Arc<Account>,
    now: Instant,
    /// Nonce of the last response of each type, and whether it is unanswered.
    told: BTreeMap<Arc<str>, (u64, bool)>,
    last: u64,
    /// Bytes and number of names that were ever asked for.
    asked: (usize, usize),
}

impl<S: Variant> Run<S> {
    fn new() -> Self {
        let bounds = Bounds { types: MOST_TYPES, response: 4 << 10 };
        let budget = Arc::new(Budget::new(MaxBytes { stream: MOST_BYTES, ..MaxBytes::ANY }));
        Self {
            order: Order::new(Partition::WHOLE, bounds),
            view: View { shown: true, ..View::default() },
            account: budget.open(),
            now: Instant::now(),
            told: BTreeMap::new(),
            last: 0,
            asked: (0, 0),
        }
    }

    /// Takes a request in; `false` if it ends the stream.
    fn request(&mut self, request: S::Request) -> bool {
        let (type_url, (bytes, count)) = (request.type_url().to_owned(), S::names(&request));
        self.asked = (self.asked.0 + bytes, self.asked.1 + count);
        let nonce = request.nonce().to_owned();
        match self.order.request(request, self.now) {
            Ok(received) => {
                let answers = received.is_some_and(|received| received.answer.is_some());
                if let Some((last, unanswered)) = self.told.get_mut(&*type_url) {
                    assert!(
                        !answers || (*unanswered && nonce == last.to_string()),
                        "{type_url}: {nonce} answers nothing"
                    );
                    // In state of the world a request without a nonce begins anew.
                    *unanswered &= !answers && (S::DELTA || !nonce.is_empty());
                } else {
                    assert!(!answers, "{type_url}: nothing was told");
                }
            }
            Err(BadRequest::NoType) => assert!(type_url.is_empty()),
            Err(BadRequest::LongType(bytes)) => assert!(bytes == type_url.len() && bytes > 256),
            Err(BadRequest::TooManyTypes) => return false,
        }
        let (bytes, count) = self.asked;
        let most = 3 * (bytes + NAME * count) + MOST_TYPES * TYPE;
        assert!(self.order.kept() <= most, "{} bytes are kept of {bytes} bytes of {count} names", self.order.kept());
        !matches!(self.order.exchange(&type_url), None if type_url.len() > 256 || type_url.is_empty())
    }

    /// A request as its bytes come in; `false` if it ends the stream.
    fn message(&mut self, message: &[u8]) -> bool {
        let Ok(encoded) = Encoded::<S::Request>::new(message.to_vec().into(), &self.account) else { return false };
        let cost = encoded.cost();
        encoded.decode().is_ok_and(|(request, _held)| {
            let size = S::size(&request);
            assert!(
                size <= cost + size_of::<S::Request>(),
                "{size} bytes of a message of {} that was charged {cost}",
                message.len()
            );
            self.request(request)
        })
    }

    /// The transport takes what there is to say; whether there was anything.
    fn ready(&mut self) -> bool {
        if !matches!(self.order.due(&self.view, self.now, self.now), Due::Asked | Due::Changed(_)) {
            return false;
        }
        match self.order.next(&self.view, self.now) {
            Next::Nothing => panic!("a response was due and there is none"),
            Next::Primers => panic!("nobody asked for primers"),
            Next::TooLarge { bytes, .. } => assert!(bytes > 4 << 10),
            Next::Response(response) => {
                assert!(response.nonce > self.last, "a nonce is never used again");
                self.last = response.nonce;
                let before = self.told.insert(response.type_url, (response.nonce, true));
                assert!(before.is_none_or(|(_, unanswered)| !unanswered), "one response is unanswered at most");
                assert!(self.told.len() <= MOST_TYPES);
            }
        }
        true
    }

    fn change(&mut self, kind: u8, name: u8, content: u8) {
        let (slice, name) = (usize::from(name % 128), format!("n{}", name % 8));
        let any = Any { type_url: name.clone(), value: vec![content; usize::from(content)].into() };
        let changes: Changes = [((slice, name.into()), (content % 4 != 0).then(|| Resource::plain(&any)))].into();
        let snapshot = match kind % 3 {
            0 => &mut self.view.workload_entries,
            1 => &mut self.view.destination_rules,
            _ => &mut self.view.service_entries,
        };
        *snapshot = Arc::new(snapshot.with(&changes));
    }

    /// The client answers all that it is told, until there is no more.
    fn rest(&mut self) {
        for _ in 0..1_000 {
            self.now += Duration::from_secs(30);
            let told = self.ready();
            let unanswered = self.told.iter().find(|(_, (_, unanswered))| *unanswered);
            match unanswered.map(|(url, (nonce, _))| (Arc::clone(url), nonce.to_string())) {
                // In state of the world an answer lists the names: here none, which is less to tell and never more.
                Some((url, nonce)) => _ = self.request(S::ask(&url, &nonce, Vec::new(), Vec::new(), false)),
                None if !told => {
                    let nothing_more =
                        matches!(self.order.due(&self.view, self.now, self.now), Due::Nothing | Due::Undone);
                    assert!(nothing_more);
                    return;
                }
                None => {}
            }
        }
        panic!("it never comes to rest");
    }

    fn run(mut self, mut data: &[u8]) {
        let mut take = |count: usize| {
            let (taken, rest) = data.split_at(count.min(data.len()));
            data = rest;
            taken
        };
        while let [op] = take(1) {
            let names = |bytes: &[u8]| {
                bytes.iter().map(|byte| if *byte == b'*' { "*".into() } else { format!("n{}", byte % 16) }).collect()
            };
            let goes_on = match op % 8 {
                0 | 1 => {
                    let length = take(2).iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                    let message = take(length).to_vec();
                    self.message(&message)
                }
                2 | 3 => {
                    let (which, add, leave) = (usize::from(op / 8), take(1).first().copied(), take(1).first().copied());
                    let add = names(take(usize::from(add.unwrap_or_default() % 16)));
                    let leave = names(take(usize::from(leave.unwrap_or_default() % 16)));
                    let type_url = TYPES[which % TYPES.len()];
                    let nonce = match (op % 8, self.told.get(type_url)) {
                        (3, Some((last, _))) => last.to_string(),
                        _ => String::new(),
                    };
                    self.request(S::ask(type_url, &nonce, add, leave, which > 16))
                }
                4 => {
                    if let [kind, name, content] = take(3) {
                        self.change(*kind, *name, *content);
                    }
                    true
                }
                5 | 6 => {
                    self.ready();
                    true
                }
                _ => {
                    self.now += Duration::from_millis(u64::from(*op) * 50);
                    true
                }
            };
            if !goes_on {
                return;
            }
        }
        self.rest();
    }
}

fuzz_target!(|data: &[u8]| {
    match data {
        [variant, steps @ ..] if variant % 2 == 0 => Run::<Sotw>::new().run(steps),
        [_, steps @ ..] => Run::<Delta>::new().run(steps),
        [] => {}
    }
});

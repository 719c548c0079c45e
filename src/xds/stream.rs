//! One stream of one client.
//!
//! Responses are made when the transport can take them, from the view of that moment: a slow client gets the newest
//! state, not a queue of old ones.

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering, time::Duration};

use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use crate::{
    proto::{envoy::service::discovery::v3::DiscoveryRequest, google::protobuf::value},
    snapshot::Snapshot,
    view::View,
    xds::{
        Kind, MESH_CONFIG, PRIME_TYPE,
        codec::Response,
        server::Ends,
        snapshot,
        streams::Registered,
        subscription::{Request, Subscription},
    },
};

/// istiod keeps the first 100 responses of its life in a channel that nobody reads (`XDSUpdates` of its `adsc.go`).
/// Tiny ones in their place save it 100 times the payload.
const PRIMERS: u32 = 100;
const PRIME_NONCE: &str = "prime-";

const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// What a stream needs from its server.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) view: watch::Receiver<View>,
    pub(crate) ends: Ends,
    pub(crate) registered: Registered,
    pub(crate) streams: Arc<super::streams::Streams>,
    pub(crate) prime: bool,
    pub(crate) max_types: usize,
    pub(crate) out: mpsc::Sender<Result<Response, Status>>,
}

/// Why a stream ends.
enum End {
    /// The client is gone; there is nobody to tell.
    Gone,
    /// To be said to the client.
    Refused(Status),
}

#[derive(Default)]
struct State {
    types: BTreeMap<String, (Kind, Subscription)>,
    /// Set by the first request.
    node: Option<Node>,
    nonce: u64,
    /// Empty responses that still have to go out before anything else.
    primers: Option<u32>,
    /// What the client was sent last of the kinds that services rest on.
    beneath: BTreeMap<Kind, Arc<Snapshot>>,
    /// The view whose services are to follow what they rest on.
    follow: Option<View>,
}

struct Node {
    /// Whether the client is istiod's config client, which keeps what it is sent.
    generator_api: bool,
}

impl Stream {
    /// Serves the stream until either side ends it.
    pub(crate) async fn run(mut self, mut requests: Streaming<DiscoveryRequest>) {
        let end = self.serve(&mut requests).await;
        if let End::Refused(status) = end {
            tracing::debug!(code = ?status.code(), message = status.message(), "a stream ends");
            let _ = self.out.send(Err(status)).await;
        }
    }

    async fn serve(&mut self, requests: &mut Streaming<DiscoveryRequest>) -> End {
        let mut state = State::default();
        let first = tokio::select! {
            first = tokio::time::timeout(FIRST_REQUEST, requests.message()) => first,
            status = ended(&mut self.ends) => return End::Refused(status),
        };
        match first {
            Err(_) => return End::Refused(Status::deadline_exceeded("no request within 10 s")),
            Ok(Ok(Some(request))) => {
                if let Err(status) = self.request(&mut state, &request) {
                    return End::Refused(status);
                }
            }
            Ok(Ok(None)) => return End::Gone,
            Ok(Err(status)) => return End::Refused(status),
        }
        loop {
            let due = state.primers.is_some_and(|left| left > 0) || self.is_due(&state);
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Err(status) = self.request(&mut state, &request) {
                            return End::Refused(status);
                        }
                    }
                    Ok(None) => return End::Gone,
                    // Also a request that is no protobuf or too large; of a client that hung up nobody hears it.
                    Err(status) => return End::Refused(status),
                },
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return End::Refused(stopping());
                    }
                }
                permit = self.out.clone().reserve_owned(), if due => {
                    let Ok(permit) = permit else { return End::Gone };
                    if let Some(response) = self.next_response(&mut state) {
                        permit.send(Ok(response));
                    }
                }
                status = ended(&mut self.ends) => return End::Refused(status),
            }
        }
    }

    /// Takes a request in.
    fn request(&mut self, state: &mut State, request: &DiscoveryRequest) -> Result<(), Status> {
        self.identify(state, request)?;
        let type_url = &request.type_url;
        if type_url.is_empty() {
            return Err(Status::invalid_argument("type_url is missing"));
        }
        let primed = state.primers.is_some() && type_url == PRIME_TYPE;
        if type_url == MESH_CONFIG || (primed && request.response_nonce.starts_with(PRIME_NONCE)) {
            return Ok(());
        }
        if !state.types.contains_key(type_url) && state.types.len() >= self.max_types {
            let limit = self.max_types;
            return Err(Status::resource_exhausted(format!(
                "more than {limit} types on one stream (mox.limits.types)"
            )));
        }
        let known = state.types.contains_key(type_url);
        let (kind, subscription) =
            state.types.entry(type_url.clone()).or_insert_with(|| (Kind::of(type_url), Subscription::default()));
        let error = request.error_detail.as_ref().map(|detail| detail.message.as_str());
        subscription.request(Request { nonce: &request.response_nonce, names: &request.resource_names, error });
        if let Some(error) = error {
            self.streams.nacks.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(type_url, error, "a client did not accept a response");
        }
        let generator_api = state.node.as_ref().is_some_and(|node| node.generator_api);
        if *kind == Kind::ServiceEntry && !known && self.prime && generator_api && state.primers.is_none() {
            state.primers = Some(PRIMERS);
        }
        self.show(type_url, subscription, 0);
        Ok(())
    }

    /// "Only the first request on a stream is guaranteed to carry the node identifier."
    fn identify(&self, state: &mut State, request: &DiscoveryRequest) -> Result<(), Status> {
        if state.node.is_some() {
            return Ok(());
        }
        let node = request.node.as_ref().filter(|node| !node.id.is_empty());
        let node = node.ok_or_else(|| Status::invalid_argument("the first request has no node id"))?;
        let generator = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("GENERATOR"));
        let generator = generator.and_then(|value| value.kind.as_ref());
        let generator_api = matches!(generator, Some(value::Kind::StringValue(text)) if text == "api");
        self.registered.state.lock().node = node.id.chars().filter(|c| !c.is_control()).take(256).collect();
        state.node = Some(Node { generator_api });
        Ok(())
    }

    /// Whether a response can go out now.
    fn is_due(&self, state: &State) -> bool {
        let view = self.view.borrow();
        state.types.iter().any(|(_, (kind, wanted))| {
            snapshot(*kind, &view).is_some_and(|resources| wanted.wants(resources.version()))
        })
    }

    /// What goes out next. What services rest on goes before them if it is new and after them if it is gone, so while both are
    /// due there are three responses: the old and the new of it, the services, and the new alone.
    fn choose(&self, state: &mut State) -> Option<(String, Arc<Snapshot>)> {
        let State { types, beneath, follow, .. } = state;
        let find = |kind: Kind, resources: &Arc<Snapshot>| {
            let wants = |(of, wanted): &(Kind, Subscription)| *of == kind && wanted.wants(resources.version());
            let found = types.iter().find(|(_, subscribed)| wants(subscribed));
            found.map(|(type_url, _)| (type_url.clone(), Arc::clone(resources)))
        };
        // Empty, once and at once: istiod waits for an answer to each type.
        if let Some(other) = find(Kind::Other, &Snapshot::none()) {
            return Some(other);
        }
        let current = self.view.borrow().clone();
        // The view that was begun with is finished first, however fast new ones come.
        for view in follow.take().into_iter().chain([current.clone()]).filter(|view| view.shown) {
            let Some(services) = find(Kind::ServiceEntry, &view.service_entries) else { continue };
            for kind in Kind::BENEATH {
                let Some(new) = snapshot(kind, &view) else { continue };
                let set = match beneath.get(&kind) {
                    Some(old) if find(kind, &new).is_some() => Arc::new(new.with_all_of(old)),
                    _ => new,
                };
                if let Some(chosen) = find(kind, &set) {
                    beneath.insert(kind, set);
                    *follow = Some(view);
                    return Some(chosen);
                }
            }
            return Some(services);
        }
        for kind in Kind::BENEATH {
            if let Some(chosen) = snapshot(kind, &current).and_then(|set| find(kind, &set)) {
                beneath.insert(kind, Arc::clone(&chosen.1));
                return Some(chosen);
            }
        }
        None
    }

    fn next_response(&mut self, state: &mut State) -> Option<Response> {
        if let Some(left) = state.primers.as_mut().filter(|left| **left > 0) {
            *left -= 1;
            let nonce = format!("{PRIME_NONCE}{left}");
            let version = Snapshot::none().version().to_string();
            return Some(Response { type_url: PRIME_TYPE.to_owned(), version, nonce, pages: Vec::new() });
        }
        let (type_url, resources) = self.choose(state)?;
        let (_, subscription) = state.types.get_mut(&type_url)?;
        state.nonce += 1;
        let version = resources.version().to_string();
        let pages = resources.wanted(subscription.names());
        let response = Response { type_url: type_url.clone(), version, nonce: state.nonce.to_string(), pages };
        subscription.respond(state.nonce, &response.version);
        self.show(&type_url, subscription, 1);
        self.streams.pushes.fetch_add(1, Ordering::Relaxed);
        self.streams.bytes.fetch_add(response.size() as u64, Ordering::Relaxed);
        Some(response)
    }

    fn show(&self, type_url: &str, subscription: &Subscription, pushes: u64) {
        let mut state = self.registered.state.lock();
        let shown = state.types.entry(type_url.to_owned()).or_default();
        shown.sent = subscription.sent().map(str::to_owned);
        shown.acked = subscription.acked().map(str::to_owned);
        shown.error = subscription.error().map(str::to_owned);
        shown.pushes += pushes;
    }
}

fn stopping() -> Status {
    Status::unavailable("the server is stopping")
}

/// Ends a stream without a last state: a client that reconnects elsewhere keeps what it has.
async fn ended(ends: &mut Ends) -> Status {
    // A sender that is gone has stopped, too.
    tokio::select! {
        _ = ends.draining.wait_for(|draining| *draining) => stopping(),
        _ = ends.fenced.wait_for(|fenced| *fenced) => {
            Status::unavailable("this session server is cut off from its data, another is not")
        }
    }
}

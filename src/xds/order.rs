//! The order in which one stream is told: which type may go out now, and what waits for what.
//!
//! Kinds in [`Catalog::ABOVE`] depend on kinds in [`Catalog::BENEATH`]. The promise to a client, of what it has asked for:
//! - Before a response above goes out, the client was told everything that the same view has of the kinds beneath. If a
//!   response beneath is unanswered and lacks something of that, the response above waits for the answer, for `UNANSWERED` at
//!   most.
//! - Before the client is told that a resource beneath is gone, it has answered every response above, by an ACK or a NACK, and
//!   the last of each type does not depend on the resource.
//! - Each response is of the newest view, or of the view that was begun with: while additions and removals beneath are due
//!   there are three responses, the old and the new beneath, the kinds above, and the new alone. No response is of an older
//!   view than the newest one at the last moment when there was nothing to say and nothing to answer.
//! - At most one response of a type is unanswered. A response that the client asks for goes out at once, a change at its time,
//!   and no change for `REFUSED` after a NACK. When changes end and the client answers, it is told everything that there is.
//!
//! If a response would be too large, the client keeps the last one of its type, and no other type waits for it.
//!
//! The specification calls this "make before break":
//! <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#eventual-consistency-considerations>
//!
//! A value without IO: the caller shows the newest view, says what time it is, and sends what `Order::next` makes.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::Instant;

use crate::{
    snapshot::{Set, Snapshot, partition::Partition, view::Catalog},
    xds::{
        limits::{REFUSED, TYPE_URL, UNANSWERED},
        subscription::{Exchange, Request, ResponseContent, Subscription},
    },
};

/// Never answered: istiod does not wait for it, and old versions block on an answer.
const MESH_CONFIG: &str = "core/v1alpha1/MeshConfig";
/// The type of primers: not used by this server and small in istiod.
pub const PRIME_TYPE: &str = "extensions.istio.io/v1alpha1/WasmPlugin";
/// The beginning of the nonces of primers.
pub const PRIME_NONCE: &str = "prime-";

/// Bytes that a type takes, beyond its URL and what the client asks for.
const TYPE: usize = 1 << 10;

/// The types of one stream, what the client was told of them, and what goes out next.
pub struct Order<C: Catalog, S> {
    partition: Partition,
    bounds: Bounds,
    types: BTreeMap<Arc<str>, Subscribed<C::Kind, S>>,
    nonce: u64,
    priming: Priming,
    /// A view whose dependencies were sent; its kinds above go next, before any newer view.
    begun: Option<C>,
    /// When the oldest change was published that did not go out.
    pending: Option<Instant>,
    /// Until when changes wait, since the client did not accept a response.
    refused_until: Option<Instant>,
}

/// Bounds of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Types.
    pub types: usize,
    /// Bytes of a response's resources.
    pub response: usize,
}

/// A type URL that the client asked for.
struct Subscribed<K, S> {
    /// `None`: this server has no resources of the type.
    kind: Option<K>,
    subscription: S,
    /// When the last response went out.
    sent_at: Option<Instant>,
    /// Of a kind beneath, the set that the client was told last: what it had so far may not go before kinds above let it go.
    told: Option<Set>,
    /// Hash of the newest set, if that is too large for a response.
    too_large: Option<u128>,
}

/// Whether primers went out on a stream: tiny responses before the first response of a kind above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Priming {
    /// There are to be none.
    Off,
    /// The first request of a kind above makes them due.
    Ready,
    /// They go out next.
    Due,
    /// They went out.
    Done,
}

/// When a response can go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Not before a request, or a change of the view.
    Nothing,
    /// Not before a request, or a change of the view; a change that waited was undone before it went out.
    Undone,
    /// Now: the client asked for it.
    Asked,
    /// When it is the stream's turn, for a change that was published then.
    Changed(Instant),
    /// Not before then, and then see again.
    NotBefore(Instant),
}

/// The next message of a stream, made.
pub enum Next {
    /// Nothing.
    Nothing,
    /// The primers.
    Primers,
    /// A response.
    Response(NextResponse),
    /// No response of this type: it would be too large, so that the client keeps the last one.
    TooLarge {
        /// The type.
        type_url: Arc<str>,
        /// Bytes of the resources.
        bytes: usize,
        /// Whether this is news: the last response of the type went out.
        first: bool,
    },
}

/// A response.
pub struct NextResponse {
    /// The type that was asked for, byte for byte.
    pub type_url: Arc<str>,
    /// Hash of the content.
    pub version: u128,
    /// Unique on the stream.
    pub nonce: u64,
    /// The resources.
    pub content: ResponseContent,
    /// When the oldest change was published that it tells; `None`: it tells what the client asked for.
    pub since: Option<Instant>,
}

/// The next message of a stream, before it is made.
enum Choice<C> {
    Nothing,
    /// No response before then or before an answer: the last response beneath lacks something that a kind above depends on.
    Wait(Instant),
    /// A response.
    Say {
        type_url: Arc<str>,
        set: Set,
        /// The view that is begun with if this goes out.
        begun: Option<C>,
    },
}

/// A request that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Whether this server has resources of the type.
    pub served: bool,
    /// The client's answer to the last response of the type; `None`: the request is none, or a second one.
    pub answer: Option<Answer>,
}

/// The answer of a client to a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The client has accepted it.
    Ack,
    /// The client has not accepted it and keeps what it has.
    Nack,
}

/// Why a request ends its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRequest {
    /// The request names no type.
    NoType,
    /// The request's type URL is longer than [`TYPE_URL`].
    LongType(usize),
    /// The request names one type more than a stream may have.
    TooManyTypes,
}

impl<K: Copy + Eq, S: Subscription> Subscribed<K, S> {
    fn wants(&mut self, set: &Set) -> bool {
        self.too_large != Some(set.sum()) && self.subscription.wants(set)
    }

    /// Whether the client lacks something of this set that can be told.
    fn lacks(&mut self, set: &Set) -> bool {
        self.too_large != Some(set.sum()) && self.subscription.lacks(set)
    }

    /// The given set, with everything that the client was told before if removals are withheld.
    fn sayable(&self, set: Set, withheld: bool) -> Set {
        match &self.told {
            Some(told) if withheld => set.with_all_of(told),
            _ => set,
        }
    }

    /// If the last response is unanswered and lacks something of this set: until when kinds above wait for the answer.
    fn missed_until(&mut self, set: &Set) -> Option<Instant> {
        let missed = self.subscription.exchange().in_flight() && self.lacks(set);
        missed.then_some(self.sent_at? + UNANSWERED)
    }

    /// Whether pages are kept of what the client was told.
    fn holds(&self) -> bool {
        self.told.iter().chain(self.subscription.holds()).any(|set| set.bytes() > 0)
    }

    fn is_of(&self, kinds: &[K]) -> bool {
        self.kind.is_some_and(|kind| kinds.contains(&kind))
    }
}

impl<C: Catalog, S: Subscription> Order<C, S> {
    /// The order of a stream without a request.
    pub fn new(partition: Partition, bounds: Bounds) -> Self {
        Self {
            partition,
            bounds,
            types: BTreeMap::new(),
            nonce: 0,
            priming: Priming::Off,
            begun: None,
            pending: None,
            refused_until: None,
        }
    }

    /// Says, before the first request, whether primers are to go out.
    pub fn prime(&mut self, prime: bool) {
        self.priming = if prime { Priming::Ready } else { Priming::Off };
    }

    /// Takes a request in; `None`: the request is never answered and changes nothing.
    pub fn request(&mut self, request: S::Request, now: Instant) -> Result<Option<Received>, BadRequest> {
        let type_url = request.type_url();
        if type_url.is_empty() {
            return Err(BadRequest::NoType);
        }
        if type_url.len() > TYPE_URL {
            return Err(BadRequest::LongType(type_url.len()));
        }
        let primed = matches!(self.priming, Priming::Due | Priming::Done) && type_url == PRIME_TYPE;
        if type_url == MESH_CONFIG || (primed && request.nonce().starts_with(PRIME_NONCE)) {
            return Ok(None);
        }
        let known = self.types.contains_key(type_url);
        if !known {
            if self.types.len() >= self.bounds.types {
                return Err(BadRequest::TooManyTypes);
            }
            let (kind, subscription) = (C::kind(type_url), S::default());
            self.types
                .insert(type_url.into(), Subscribed { kind, subscription, sent_at: None, told: None, too_large: None });
        }
        let Some(subscribed) = self.types.get_mut(type_url) else { return Ok(None) };
        let refuses = request.error().is_some();
        let answer = match (subscribed.subscription.request(request), refuses) {
            (false, _) => None,
            (true, false) => Some(Answer::Ack),
            (true, true) => Some(Answer::Nack),
        };
        let (served, above) = (subscribed.kind.is_some(), subscribed.is_of(C::ABOVE));
        if answer == Some(Answer::Nack) {
            self.refused_until = Some(now + REFUSED);
        }
        if above && !known && self.priming == Priming::Ready {
            self.priming = Priming::Due;
        }
        Ok(Some(Received { served, answer }))
    }

    /// The responses and answers of a type, and whether its newest set is too large for a response.
    pub fn exchange(&self, type_url: &str) -> Option<(&Exchange, bool)> {
        let subscribed = self.types.get(type_url)?;
        Some((subscribed.subscription.exchange(), subscribed.too_large.is_some()))
    }

    /// About how many bytes are kept of what the client asked for and said.
    pub fn kept(&self) -> usize {
        let of_type =
            |(url, subscribed): (&Arc<str>, &Subscribed<_, S>)| TYPE + url.len() + subscribed.subscription.kept();
        self.types.iter().map(of_type).sum()
    }

    /// Since when pages are kept here that may be old: those of a view that was begun with, or, while the client owes an answer,
    /// those that it was told. A client that was sent all and owes no more than an answer keeps none.
    pub fn holds_since(&self) -> Option<Instant> {
        let types = || self.types.values();
        let begun = self.begun.as_ref().and_then(|_| types().filter_map(|subscribed| subscribed.sent_at).max());
        let owes = |subscribed: &&Subscribed<_, S>| {
            subscribed.kind.is_some() && subscribed.subscription.exchange().in_flight()
        };
        let since = types().filter(owes).filter_map(|subscribed| subscribed.sent_at).min();
        let since = since.filter(|_| types().any(Subscribed::holds));
        begun.into_iter().chain(since).min()
    }

    /// How many names must be looked up at most to say when a response of this view can go out, and to make it.
    pub fn lookups(&self, view: &C) -> usize {
        let begun = self.begun.is_some();
        let of_type = |subscribed: &Subscribed<C::Kind, S>| {
            let Some(set) = set_of(self.partition, subscribed.kind, view) else { return 0 };
            let in_flight = subscribed.subscription.exchange().in_flight();
            match (begun, in_flight) {
                // No response of the type is made, nor does another type wait for it.
                (_, true) if !subscribed.is_of(C::BENEATH) => 0,
                (false, _) if subscribed.too_large == Some(set.sum()) => 0,
                _ => subscribed.subscription.lookups(&set, begun || !in_flight),
            }
        };
        self.types.values().map(of_type).sum()
    }

    /// When a response can go out. `published`: when the view last changed in the stream's partition.
    pub fn due(&mut self, view: &C, published: Instant, now: Instant) -> Due {
        if self.priming == Priming::Due {
            return Due::Asked;
        }
        let unanswered = self.unanswered();
        let (mut wants, mut asked, mut waits) = (false, false, None);
        // Whether a kind above is wanted and a response of a kind beneath is unanswered, so that one may wait for the other.
        let (mut above, mut beneath) = (false, false);
        for subscribed in self.types.values_mut() {
            let Some(set) = set_of(self.partition, subscribed.kind, view) else { continue };
            let set = subscribed.sayable(set, unanswered);
            if subscribed.wants(&set) {
                wants = true;
                asked |= subscribed.subscription.asked();
                above |= subscribed.is_of(C::ABOVE);
            }
            let exchange = subscribed.subscription.exchange();
            if exchange.in_flight() && exchange.sent() != Some(set.sum()) {
                // The response may be of an older view than the newest, or of other names.
                let since = published.max(subscribed.sent_at.unwrap_or(now));
                waits = waits.into_iter().chain([since]).min();
            }
            beneath |= exchange.in_flight() && subscribed.is_of(C::BENEATH);
        }
        if let Some(since) = waits {
            // Noted here, so that the age of a change does not begin with a newer one.
            self.pending.get_or_insert(since);
        }
        if !wants {
            // The rest of the view that was begun with was undone since.
            self.begun = None;
            if waits.is_none() && !unanswered {
                // The client has all that it wants of this view, so no removal of an older one is withheld any more.
                for subscribed in self.types.values_mut().filter(|subscribed| subscribed.told.is_some()) {
                    if let Some(newest) = set_of(self.partition, subscribed.kind, view) {
                        subscribed.told = Some(newest.apart());
                    }
                }
            }
            let undone = waits.is_none() && self.pending.take().is_some();
            return if undone { Due::Undone } else { Due::Nothing };
        }
        if above
            && beneath
            && let Choice::Wait(until) = self.choose(view, now)
        {
            self.pending.get_or_insert(published);
            return Due::NotBefore(until);
        }
        if let Some(until) = self.refused_until.filter(|until| !asked && *until > now) {
            self.pending.get_or_insert(published);
            return Due::NotBefore(until);
        }
        if asked {
            self.pending = None;
            return Due::Asked;
        }
        Due::Changed(*self.pending.get_or_insert(published))
    }

    /// Makes the next response and notes that it goes out.
    pub fn next(&mut self, view: &C, now: Instant) -> Next {
        if self.priming == Priming::Due {
            self.priming = Priming::Done;
            return Next::Primers;
        }
        let Choice::Say { type_url, set, begun } = self.choose(view, now) else { return Next::Nothing };
        self.begun = begun;
        let Some(subscribed) = self.types.get_mut(&type_url) else { return Next::Nothing };
        let all = !S::DELTA || subscribed.subscription.asked();
        if all && set.bytes() > self.bounds.response {
            // A response with some of the resources would delete the others, so the client keeps what it has.
            let first = subscribed.too_large.replace(set.sum()).is_none();
            return Next::TooLarge { type_url, bytes: set.bytes(), first };
        }
        subscribed.too_large = None;
        self.nonce += 1;
        let content = subscribed.subscription.respond(&set, self.nonce);
        let version = subscribed.subscription.exchange().sent().unwrap_or_default();
        subscribed.sent_at = Some(now);
        subscribed.told = subscribed.is_of(C::BENEATH).then(|| set.apart());
        // A change that is left is newer than the view of this response.
        let since = self.pending.take();
        Next::Response(NextResponse { type_url, version, nonce: self.nonce, content, since })
    }

    /// Chooses what goes out next.
    fn choose(&mut self, view: &C, now: Instant) -> Choice<C> {
        // A type without resources is answered empty, once and at once: istiod waits for an answer to each type.
        let none = Set::new(Snapshot::none(), self.partition);
        let other = of_kind(&mut self.types, None).find_map(|(url, other)| other.wants(&none).then(|| Arc::clone(url)));
        if let Some(type_url) = other {
            return Choice::Say { type_url, set: none, begun: self.begun.clone() };
        }
        // The view that was begun with is finished first, however fast new ones come.
        let begun = self.begun.clone();
        let above = begun.and_then(|begun| self.choose_above(&begun, view, now));
        if let Some(choice) = above.or_else(|| self.choose_above(view, view, now)) {
            return choice;
        }
        let unanswered = self.unanswered();
        for kind in C::BENEATH {
            let Some(newest) = set_of(self.partition, Some(*kind), view) else { continue };
            for (type_url, beneath) in of_kind(&mut self.types, Some(*kind)) {
                let set = beneath.sayable(newest.clone(), unanswered);
                if beneath.wants(&set) {
                    return Choice::Say { type_url: Arc::clone(type_url), set, begun: None };
                }
            }
        }
        Choice::Nothing
    }

    /// Chooses a type above, or one that goes before it; `None`: nothing above is wanted of this view, or not of the newest any
    /// more.
    fn choose_above(&mut self, view: &C, newest: &C, now: Instant) -> Option<Choice<C>> {
        let Self { partition, types, .. } = self;
        let (type_url, set) = C::ABOVE.iter().find_map(|kind| {
            let (set, last) = (set_of(*partition, Some(*kind), view)?, set_of(*partition, Some(*kind), newest)?);
            let same = set.sum() == last.sum();
            let wants = |above: &mut Subscribed<_, S>| above.wants(&set) && (same || above.wants(&last));
            let found = of_kind(types, Some(*kind)).find_map(|(url, above)| wants(above).then(|| Arc::clone(url)));
            found.map(|type_url| (type_url, set))
        })?;
        let mut until: Option<Instant> = None;
        for kind in C::BENEATH {
            let Some(of_view) = set_of(*partition, Some(*kind), view) else { continue };
            for (type_url, beneath) in of_kind(types, Some(*kind)) {
                if !beneath.lacks(&of_view) {
                    continue;
                }
                let set = beneath.sayable(of_view.clone(), true);
                if beneath.wants(&set) {
                    return Some(Choice::Say { type_url: Arc::clone(type_url), set, begun: Some(view.clone()) });
                }
                until = until.max(beneath.missed_until(&set));
            }
        }
        Some(match until.filter(|until| *until > now) {
            Some(until) => Choice::Wait(until),
            None => Choice::Say { type_url, set, begun: None },
        })
    }

    /// Whether the client has yet to answer a response of a kind above.
    fn unanswered(&self) -> bool {
        self.types
            .values()
            .any(|subscribed| subscribed.is_of(C::ABOVE) && subscribed.subscription.exchange().in_flight())
    }
}

/// The types of a kind.
fn of_kind<K: Copy + Eq, S>(
    types: &mut BTreeMap<Arc<str>, Subscribed<K, S>>,
    kind: Option<K>,
) -> impl Iterator<Item = (&Arc<str>, &mut Subscribed<K, S>)> {
    types.iter_mut().filter(move |(_, subscribed)| subscribed.kind == kind)
}

/// The resources of a type that a stream of this partition may have; `None` while nothing may be said about them.
fn set_of<C: Catalog>(partition: Partition, kind: Option<C::Kind>, view: &C) -> Option<Set> {
    let snapshot = match kind {
        Some(kind) => Arc::clone(view.resources(kind)?),
        None => Snapshot::none(),
    };
    Some(Set::new(snapshot, partition))
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        proto::{
            envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse},
            google::{protobuf::Any, rpc},
        },
        snapshot::{Changes, Resource, view::View},
        xds::subscription::{delta::Delta, sotw::Sotw},
    };

    const SERVICES: &str = "networking.istio.io/v1/ServiceEntry";
    const WORKLOADS: &str = "networking.istio.io/v1/WorkloadEntry";
    const OLD_WORKLOADS: &str = "networking.istio.io/v1alpha3/WorkloadEntry";
    const GATEWAYS: &str = "networking.istio.io/v1/Gateway";
    const MANY: Bounds = Bounds { types: 16, response: usize::MAX };
    const STEP: Duration = Duration::from_millis(10);

    /// A stream and its client, which answers when the test says so.
    struct Probe {
        order: Order<View, Sotw>,
        view: View,
        now: Instant,
    }

    impl Probe {
        fn new(bounds: Bounds, prime: bool) -> Self {
            let view = View { shown: true, ..View::default() };
            let mut order = Order::new(Partition::WHOLE, bounds);
            order.prime(prime);
            Self { order, view, now: Instant::now() }
        }

        /// A client that has asked for both types, and has what there is.
        fn subscribed() -> Self {
            let mut probe = Self::new(MANY, false);
            for type_url in [WORKLOADS, SERVICES] {
                probe.ask(type_url, "").unwrap();
                probe.said_and_taken();
            }
            probe
        }

        fn ask(&mut self, type_url: &str, nonce: &str) -> Result<Option<Received>, BadRequest> {
            let (type_url, response_nonce) = (type_url.to_owned(), nonce.to_owned());
            self.order.request(DiscoveryRequest { type_url, response_nonce, ..DiscoveryRequest::default() }, self.now)
        }

        fn answer(&mut self, type_url: &str, error: Option<rpc::Status>) -> Option<Answer> {
            let (type_url, error_detail) = (type_url.to_owned(), error);
            let response_nonce = self.order.types[&*type_url].subscription.exchange().nonce().unwrap().to_string();
            let request = DiscoveryRequest { type_url, response_nonce, error_detail, ..DiscoveryRequest::default() };
            self.order.request(request, self.now).unwrap().unwrap().answer
        }

        fn ack(&mut self, type_url: &str) {
            assert_eq!(self.answer(type_url, None), Some(Answer::Ack));
        }

        fn nack(&mut self, type_url: &str) {
            assert_eq!(self.answer(type_url, Some(rpc::Status::default())), Some(Answer::Nack));
        }

        fn due(&mut self) -> Due {
            self.order.due(&self.view, self.now, self.now)
        }

        /// The next response: its type and the names in it.
        fn said(&mut self) -> (Arc<str>, Vec<String>) {
            match self.order.next(&self.view, self.now) {
                Next::Response(NextResponse { type_url, content, .. }) => {
                    let bytes: Vec<u8> = content.pages.iter().flatten().copied().collect();
                    let response = prost::Message::decode(bytes.as_slice());
                    let resources = response.map(|response: DiscoveryResponse| response.resources).unwrap();
                    (type_url, resources.into_iter().map(|any| any.type_url).collect())
                }
                _ => panic!("no response goes out"),
            }
        }

        fn said_and_taken(&mut self) -> (Arc<str>, Vec<String>) {
            let said = self.said();
            self.ack(&said.0);
            said
        }

        /// Services and workloads are these from now on.
        fn set(&mut self, services: &[&str], workloads: &[&str]) {
            let snapshot = |names: &[&str]| {
                let plain = |name: &str| Resource::plain(&Any { type_url: name.to_owned(), ..Any::default() });
                let all: Changes = names.iter().map(|name| ((0, (*name).into()), Some(plain(name)))).collect();
                Arc::new(Snapshot::default().with(&all))
            };
            self.view.service_entries = snapshot(services);
            self.view.workload_entries = snapshot(workloads);
        }
    }

    fn says(type_url: &str, names: &[&str]) -> (Arc<str>, Vec<String>) {
        (type_url.into(), names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn what_is_new_beneath_goes_before_and_what_is_gone_after_the_answer() {
        let mut probe = Probe::subscribed();
        probe.set(&["old"], &["old-1"]);
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &["old-1"]));
        assert_eq!(probe.said_and_taken(), says(SERVICES, &["old"]));
        probe.set(&["new"], &["new-1"]);
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &["new-1", "old-1"]));
        assert_eq!(probe.said(), says(SERVICES, &["new"]));
        assert_eq!(probe.due(), Due::Nothing, "the service that is gone was not answered yet");
        probe.set(&["new"], &["new-1", "new-2"]);
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &["new-1", "new-2", "old-1"]), "what is new need not wait");
        probe.ack(SERVICES);
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &["new-1", "new-2"]));
        assert_eq!(probe.due(), Due::Nothing);
    }

    #[test]
    fn what_rests_on_a_type_that_is_not_answered_waits_but_not_for_ever() {
        let mut probe = Probe::subscribed();
        probe.set(&[], &["a-1"]);
        assert_eq!(probe.said(), says(WORKLOADS, &["a-1"]));
        let told = probe.now;
        probe.now += STEP;
        probe.set(&["a"], &["a-1"]);
        assert!(matches!(probe.due(), Due::Changed(_)), "it has all that the service rests on");
        assert_eq!(probe.said_and_taken(), says(SERVICES, &["a"]));
        probe.set(&["a", "b"], &["a-1", "b-1"]);
        assert_eq!(probe.due(), Due::NotBefore(told + UNANSWERED));
        probe.ack(WORKLOADS);
        assert_eq!(probe.said(), says(WORKLOADS, &["a-1", "b-1"]));
        assert_eq!(probe.said_and_taken(), says(SERVICES, &["a", "b"]));
        probe.set(&["a", "b", "c"], &["a-1", "b-1", "c-1"]);
        let told = probe.now;
        assert_eq!(probe.due(), Due::NotBefore(told + UNANSWERED));
        probe.now = told + UNANSWERED;
        assert_eq!(probe.due(), Due::Changed(told));
        probe.now = told;
        probe.ask(GATEWAYS, "").unwrap();
        assert_eq!(probe.due(), Due::Asked, "another type does not wait");
        assert_eq!(probe.said_and_taken(), says(GATEWAYS, &[]));
        probe.now = told + UNANSWERED;
        assert_eq!(probe.said_and_taken(), says(SERVICES, &["a", "b", "c"]));
    }

    #[test]
    fn a_type_under_two_urls_is_told_and_waited_for_under_each() {
        let mut probe = Probe::subscribed();
        probe.set(&[], &["a-1"]);
        assert_eq!(probe.said(), says(WORKLOADS, &["a-1"]));
        probe.set(&[], &[]);
        probe.ask(OLD_WORKLOADS, "").unwrap();
        assert_eq!(probe.said_and_taken(), says(OLD_WORKLOADS, &[]));
        probe.set(&["b"], &[]);
        assert_eq!(probe.said(), says(SERVICES, &["b"]), "that something is gone is nothing to wait for");
        probe.ack(WORKLOADS);
        assert_eq!(probe.due(), Due::Nothing, "what this URL was told stays until the service is answered");
        probe.ack(SERVICES);
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &[]));
    }

    #[test]
    fn the_view_that_was_begun_with_is_finished_however_fast_new_ones_come() {
        let mut probe = Probe::subscribed();
        probe.set(&["a"], &["a-1"]);
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &["a-1"]));
        probe.set(&["a", "b"], &["a-1", "b-1"]);
        assert_eq!(probe.said_and_taken(), says(SERVICES, &["a"]));
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &["a-1", "b-1"]));
        assert_eq!(probe.said_and_taken(), says(SERVICES, &["a", "b"]));
    }

    #[test]
    fn a_change_that_was_undone_is_not_told() {
        let mut probe = Probe::subscribed();
        probe.set(&["a"], &["a-1"]);
        assert_eq!(probe.due(), Due::Changed(probe.now));
        probe.set(&[], &[]);
        assert_eq!((probe.due(), probe.due()), (Due::Undone, Due::Nothing));
        probe.set(&["a"], &["a-1"]);
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &["a-1"]));
        probe.set(&[], &[]);
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &[]), "the service was never told");
        assert_eq!(probe.due(), Due::Nothing);
        // Of a view that is over nothing is told later on.
        probe.set(&["a"], &["a-1"]);
        assert_eq!(probe.said(), says(WORKLOADS, &["a-1"]));
        probe.set(&[], &["a-1"]);
        assert_eq!(probe.due(), Due::Nothing);
        probe.set(&["b"], &["a-1"]);
        assert_eq!(probe.said(), says(SERVICES, &["b"]));
    }

    #[test]
    fn a_change_is_as_old_as_it_is() {
        let mut probe = Probe::subscribed();
        probe.set(&["a"], &[]);
        assert_eq!(probe.said(), says(SERVICES, &["a"]));
        probe.set(&["a", "b"], &[]);
        let since = probe.now;
        assert_eq!(probe.due(), Due::Nothing, "the response before is not answered");
        probe.now += STEP;
        probe.ack(SERVICES);
        probe.now += STEP;
        assert_eq!(probe.due(), Due::Changed(since));
        assert_eq!(probe.said_and_taken(), says(SERVICES, &["a", "b"]));
        probe.set(&["b"], &[]);
        assert_eq!(probe.due(), Due::Changed(probe.now));
    }

    #[test]
    fn a_client_that_refuses_is_left_alone_but_for_what_it_asks() {
        let mut probe = Probe::subscribed();
        probe.set(&["a"], &[]);
        assert_eq!(probe.said(), says(SERVICES, &["a"]));
        probe.nack(SERVICES);
        assert_eq!(probe.due(), Due::Nothing, "the same is not sent again");
        probe.set(&["b"], &[]);
        let refused = probe.now;
        assert_eq!(probe.due(), Due::NotBefore(refused + REFUSED));
        probe.now += REFUSED;
        assert_eq!(probe.due(), Due::Changed(refused));
        probe.now = refused;
        probe.ask(GATEWAYS, "").unwrap();
        assert_eq!(probe.due(), Due::Asked);
        assert_eq!(probe.said_and_taken(), says(GATEWAYS, &[]));
        assert_eq!(probe.due(), Due::NotBefore(refused + REFUSED));
    }

    #[test]
    fn primers_go_once_and_before_the_first_of_a_kind_above() {
        let mut probe = Probe::new(MANY, true);
        probe.ask(WORKLOADS, "").unwrap();
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &[]), "which istiod takes for no reason to keep anything");
        probe.ask(SERVICES, "").unwrap();
        assert_eq!(probe.due(), Due::Asked);
        assert!(matches!(probe.order.next(&probe.view, probe.now), Next::Primers));
        assert_eq!(probe.said_and_taken(), says(SERVICES, &[]));
        assert_eq!(probe.ask(PRIME_TYPE, "prime-7"), Ok(None), "an answer to a primer is of no consequence");
        assert_eq!(probe.due(), Due::Nothing);
        probe.ask(PRIME_TYPE, "2026-01-01").unwrap();
        assert_eq!(probe.said_and_taken(), says(PRIME_TYPE, &[]), "and its type is one as any other");
        probe.ask("networking.istio.io/v1alpha3/ServiceEntry", "").unwrap();
        assert_eq!(probe.said().1, [""; 0], "no primers a second time");
    }

    #[test]
    fn a_client_that_only_owes_an_answer_holds_no_pages() {
        let mut probe = Probe::subscribed();
        probe.set(&["a"], &[]);
        let first = probe.now;
        assert_eq!(probe.said(), says(SERVICES, &["a"]));
        assert_eq!(probe.order.holds_since(), None, "the pages are the transport's");
        probe.now += STEP;
        probe.set(&["a"], &["a-1"]);
        assert_eq!(probe.said(), says(WORKLOADS, &["a-1"]));
        assert_eq!(probe.order.holds_since(), Some(first), "what it was told beneath stays until it answers all");
        probe.ack(SERVICES);
        assert_eq!(probe.order.holds_since(), Some(probe.now));
        probe.ack(WORKLOADS);
        assert_eq!(probe.order.holds_since(), None);
        probe.now += STEP;
        probe.set(&["b"], &["a-1", "b-1"]);
        probe.said_and_taken();
        assert_eq!(probe.order.holds_since(), Some(probe.now), "a view that was begun with");
        probe.ask(GATEWAYS, "").unwrap();
        assert_eq!(probe.said(), says(GATEWAYS, &[]));
        assert_eq!(probe.said_and_taken(), says(SERVICES, &["b"]));
        assert_eq!(probe.order.holds_since(), None, "a type without resources holds nothing, answered or not");
        // In the incremental variant the next response is the difference from what the client was told.
        let mut delta = Order::<View, Delta>::new(Partition::WHOLE, MANY);
        let ask = |response_nonce: &str| DeltaDiscoveryRequest {
            type_url: SERVICES.into(),
            response_nonce: response_nonce.into(),
            ..DeltaDiscoveryRequest::default()
        };
        delta.request(ask(""), probe.now).unwrap();
        assert_eq!(delta.holds_since(), None);
        assert!(matches!(delta.next(&probe.view, probe.now), Next::Response(_)));
        assert_eq!(delta.holds_since(), Some(probe.now));
        delta.request(ask("1"), probe.now).unwrap();
        assert_eq!(delta.holds_since(), None);
    }

    #[test]
    fn what_is_not_served_is_answered_at_once_and_mesh_configuration_never() {
        let mut probe = Probe::new(Bounds { types: 2, response: 0 }, false);
        assert_eq!(probe.ask("", ""), Err(BadRequest::NoType));
        assert_eq!(probe.ask(&"x".repeat(TYPE_URL + 1), ""), Err(BadRequest::LongType(TYPE_URL + 1)));
        assert_eq!((probe.ask(MESH_CONFIG, ""), probe.due()), (Ok(None), Due::Nothing));
        probe.view.shown = false;
        assert_eq!(probe.ask(SERVICES, ""), Ok(Some(Received { served: true, answer: None })));
        assert_eq!(probe.due(), Due::Nothing, "nothing is said about services yet");
        assert_eq!(probe.ask(GATEWAYS, ""), Ok(Some(Received { served: false, answer: None })));
        assert_eq!(probe.said_and_taken(), says(GATEWAYS, &[]));
        assert_eq!(probe.ask(WORKLOADS, ""), Err(BadRequest::TooManyTypes));
        assert!(probe.ask(GATEWAYS, "").is_ok(), "a type that is known is none too many");
    }

    #[test]
    fn a_response_that_would_be_too_large_leaves_the_last_one_and_holds_nothing_up() {
        let mut probe = Probe::subscribed();
        probe.set(&["a"], &["a-1", "a-2", "a-3"]);
        probe.order.bounds.response = 15;
        let first = |next| match next {
            Next::TooLarge { type_url, bytes, first } if &*type_url == WORKLOADS && bytes > 15 => first,
            _ => panic!("it is not too large"),
        };
        assert!(first(probe.order.next(&probe.view, probe.now)));
        assert_eq!(probe.said_and_taken(), says(SERVICES, &["a"]));
        assert_eq!(probe.due(), Due::Nothing);
        probe.set(&["a"], &["a-1", "a-2", "a-4"]);
        assert!(!first(probe.order.next(&probe.view, probe.now)));
        assert!(probe.order.exchange(WORKLOADS).is_some_and(|(_, too_large)| too_large));
        probe.set(&["a"], &["a-4"]);
        assert_eq!(probe.said_and_taken(), says(WORKLOADS, &["a-4"]));
    }
}

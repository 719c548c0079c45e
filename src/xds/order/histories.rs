//! Random histories of a stream against a client that replays what it is told, in both variants of the protocol, with a catalog
//! as istiod has it and one as Envoy has it.
//!
//! A resource of a kind above names the resources beneath that it rests on. Each view is whole: what it rests on is there. So
//! the promise of [`super`] can be told from what the client was told, without a second copy of the rule.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    time::Duration,
};

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::{
    proto::{
        envoy::service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        },
        google::{protobuf::Any, rpc},
    },
    snapshot::{
        Changes, Resource,
        set::testing::looked_up,
        view::{Catalog, View},
    },
    xds::subscription::{delta::Delta, sotw::Sotw},
};

/// Steps of all histories together, about; `MOX_ORDER_STEPS` sets another number.
const STEPS: u32 = 120_000;
/// Steps of a history.
const LENGTH: std::ops::Range<usize> = 1..100;

/// Kinds below this number are beneath, the others above.
const ABOVE: usize = 2;
const NAMES: u8 = 4;

/// A catalog whose kinds are numbers.
trait Mesh: Catalog + Default {
    const KINDS: usize;
    /// The types that a client may ask for, each with its kind.
    const TYPES: &'static [(&'static str, Option<usize>)];
    fn snapshot(&mut self, kind: usize) -> &mut Arc<Snapshot>;
    fn show(&mut self);
    fn is_shown(&self) -> bool;
}

impl Mesh for View {
    const KINDS: usize = 3;
    const TYPES: &'static [(&'static str, Option<usize>)] = &[
        ("networking.istio.io/v1/WorkloadEntry", Some(0)),
        ("networking.istio.io/v1/DestinationRule", Some(1)),
        ("networking.istio.io/v1/ServiceEntry", Some(2)),
        ("networking.istio.io/v1alpha3/WorkloadEntry", Some(0)),
        ("networking.istio.io/v1alpha3/ServiceEntry", Some(2)),
        ("networking.istio.io/v1/Gateway", None),
    ];

    fn snapshot(&mut self, kind: usize) -> &mut Arc<Snapshot> {
        match kind {
            0 => &mut self.workload_entries,
            1 => &mut self.destination_rules,
            _ => &mut self.service_entries,
        }
    }

    fn show(&mut self) {
        self.shown = true;
    }

    fn is_shown(&self) -> bool {
        self.shown
    }
}

#[derive(Debug, Clone, Default)]
struct Envoy([Arc<Snapshot>; 4]);

impl Mesh for Envoy {
    const KINDS: usize = 4;
    const TYPES: &'static [(&'static str, Option<usize>)] =
        &[("cluster", Some(0)), ("endpoints", Some(1)), ("listener", Some(2)), ("routes", Some(3)), ("runtime", None)];

    fn snapshot(&mut self, kind: usize) -> &mut Arc<Snapshot> {
        &mut self.0[kind]
    }

    fn show(&mut self) {}

    fn is_shown(&self) -> bool {
        true
    }
}

impl Catalog for Envoy {
    type Kind = usize;
    const BENEATH: &'static [usize] = &[0, 1];
    const ABOVE: &'static [usize] = &[2, 3];

    fn kind(type_url: &str) -> Option<usize> {
        Self::TYPES.iter().find(|(known, _)| *known == type_url).and_then(|(_, kind)| *kind)
    }

    fn resources(&self, kind: usize) -> Option<&Arc<Snapshot>> {
        Some(&self.0[kind])
    }
}

/// A resource: a number that stands for its content, and what it rests on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Body {
    content: u8,
    rests_on: BTreeSet<(usize, u8)>,
}

/// All resources of a view, by kind and name.
type World = BTreeMap<(usize, u8), Body>;
/// Resources of one type.
type Told = BTreeMap<u8, Body>;
type Checked = Result<(), TestCaseError>;

fn name(name: u8) -> String {
    format!("n{name}")
}

fn number(name: &str) -> u8 {
    name[1..].parse().unwrap()
}

impl Body {
    fn resource(&self, name: u8) -> Resource {
        thread_local!(static MADE: RefCell<HashMap<(u8, Body), Resource>> = RefCell::default());
        MADE.with_borrow_mut(|made| {
            let make = || {
                let refs = self.rests_on.iter().flat_map(|(kind, name)| [*kind as u8, *name]);
                let value: Vec<u8> = std::iter::once(self.content).chain(refs).collect();
                Resource::plain(&Any { type_url: self::name(name), value: value.into() })
            };
            made.entry((name, self.clone())).or_insert_with(make).clone()
        })
    }

    fn read(any: &Any) -> (u8, Self) {
        let rests_on = any.value[1..].chunks(2).map(|of| (usize::from(of[0]), of[1])).collect();
        (number(&any.type_url), Self { content: any.value[0], rests_on })
    }
}

/// The names that a client wants of a type.
#[derive(Debug, Clone, Default)]
struct Wish {
    all: bool,
    names: BTreeSet<u8>,
}

impl Wish {
    fn wants(&self, name: u8) -> bool {
        self.all || self.names.contains(&name)
    }

    fn of(&self, world: &World, kind: usize) -> Told {
        let wanted = world.iter().filter(|((of, name), _)| *of == kind && self.wants(*name));
        wanted.map(|((_, name), body)| (*name, body.clone())).collect()
    }
}

/// Names in a request: bits, or `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    These(u8),
    Star,
}

const NONE: Names = Names::These(0);

impl Names {
    fn numbers(self) -> BTreeSet<u8> {
        match self {
            Self::These(bits) => (0..NAMES).filter(|name| bits & (1 << name) != 0).collect(),
            Self::Star => BTreeSet::new(),
        }
    }

    fn listed(self) -> Vec<String> {
        match self {
            Self::These(_) => self.numbers().into_iter().map(name).collect(),
            Self::Star => vec!["*".to_owned()],
        }
    }
}

/// A variant of the protocol as a client speaks it.
trait Variant: Subscription {
    /// A request; state of the world lists `add` and has no `leave`.
    fn ask(type_url: &str, nonce: &str, add: Vec<String>, leave: Vec<String>, nack: bool) -> Self::Request;
    /// Notes in `wish` what is wanted after a request, which may be the first; whether the request asks for anything.
    fn wish(wish: &mut Wish, add: Names, leave: Names, first: bool) -> bool;
    /// All that the client has been told after a response, and the resources in it.
    fn read(told: &Told, content: &ResponseContent) -> (Told, Told);
}

fn error(nack: bool) -> Option<rpc::Status> {
    nack.then(|| rpc::Status { message: "no".into(), ..rpc::Status::default() })
}

impl Variant for Sotw {
    fn ask(type_url: &str, nonce: &str, add: Vec<String>, _: Vec<String>, nack: bool) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: type_url.into(),
            response_nonce: nonce.into(),
            resource_names: add,
            error_detail: error(nack),
            ..DiscoveryRequest::default()
        }
    }

    fn wish(wish: &mut Wish, add: Names, _: Names, first: bool) -> bool {
        let all = add == Names::Star || (add == NONE && (first || wish.all));
        let names = if all { BTreeSet::new() } else { add.numbers() };
        let asks = first || all != wish.all || !names.is_subset(&wish.names);
        *wish = Wish { all, names };
        asks
    }

    fn read(_: &Told, content: &ResponseContent) -> (Told, Told) {
        let bytes: Vec<u8> = content.pages.iter().flatten().copied().collect();
        let resources = DiscoveryResponse::decode(bytes.as_slice()).unwrap().resources;
        assert!(content.removed.is_empty());
        let told: Told = resources.iter().map(Body::read).collect();
        assert_eq!(told.len(), resources.len(), "a name stands twice");
        (told.clone(), told)
    }
}

impl Variant for Delta {
    fn ask(type_url: &str, nonce: &str, add: Vec<String>, leave: Vec<String>, nack: bool) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: type_url.into(),
            response_nonce: nonce.into(),
            resource_names_subscribe: add,
            resource_names_unsubscribe: leave,
            error_detail: error(nack),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn wish(wish: &mut Wish, add: Names, leave: Names, first: bool) -> bool {
        let silent = add == NONE && leave == NONE;
        wish.all |= add == Names::Star || (first && silent);
        wish.names.extend(add.numbers());
        wish.all &= leave != Names::Star;
        leave.numbers().iter().for_each(|name| _ = wish.names.remove(name));
        first || !silent
    }

    fn read(told: &Told, content: &ResponseContent) -> (Told, Told) {
        let bytes: Vec<u8> = content.pages.iter().flatten().copied().collect();
        let mut told = told.clone();
        content.removed.iter().for_each(|name| _ = told.remove(&number(name)));
        let resources = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap().resources;
        let brought: Told = resources.iter().map(|resource| Body::read(resource.resource.as_ref().unwrap())).collect();
        assert_eq!(brought.len(), resources.len(), "a name stands twice");
        assert!(content.removed.iter().all(|name| !brought.contains_key(&number(name))), "brought and taken at once");
        told.extend(brought.clone());
        (told, brought)
    }
}

/// An edit of a view: a resource comes or is another, or it goes.
#[derive(Debug, Clone, Copy)]
struct Edit {
    kind: usize,
    name: u8,
    content: Option<u8>,
    /// The resources that it is to rest on, of those that there are: bits, kind by kind.
    rests_on: u8,
}

#[derive(Debug, Clone)]
enum Step {
    Change(Vec<Edit>),
    /// The last change is undone, above only or beneath as well.
    Undo {
        above: bool,
    },
    /// Streams may be told about services.
    Show,
    Wait(u64),
    /// The transport takes a response.
    Ready,
    /// The client takes and answers all that there is to say.
    CatchUp,
    /// The client asks for a type; where a nonce may be anything it is made up.
    Ask {
        of: usize,
        add: Names,
        leave: Names,
    },
    /// The client answers a response, or sends a second request with its nonce, maybe with other names.
    Answer {
        of: usize,
        nack: bool,
        add: Option<Names>,
        leave: Names,
    },
    /// The client answers an older response than the last.
    Stale {
        of: usize,
        add: Names,
    },
}

fn history() -> impl Strategy<Value = History> {
    let edit = (0usize..4, 0..NAMES, prop::option::weighted(0.7, 0u8..3), any::<u8>())
        .prop_map(|(kind, name, content, rests_on)| Edit { kind, name, content, rests_on });
    let names = || prop_oneof![2 => Just(NONE), 3 => (0u8..16).prop_map(Names::These), 3 => Just(Names::Star)];
    let few = || prop_oneof![8 => Just(NONE), 2 => (0u8..16).prop_map(Names::These), 1 => Just(Names::Star)];
    let step = prop_oneof![
        5 => prop::collection::vec(edit, 1..5).prop_map(Step::Change),
        3 => any::<bool>().prop_map(|above| Step::Undo { above }),
        1 => Just(Step::Show),
        1 => prop_oneof![0u64..600, 0u64..12_000].prop_map(Step::Wait),
        8 => Just(Step::Ready),
        3 => Just(Step::CatchUp),
        3 => (0usize..6, names(), few()).prop_map(|(of, add, leave)| Step::Ask { of, add, leave }),
        8 => (0usize..6, prop::bool::weighted(0.15), prop::option::weighted(0.1, names()), few())
            .prop_map(|(of, nack, add, leave)| Step::Answer { of, nack, add, leave }),
        1 => (0usize..6, names()).prop_map(|(of, add)| Step::Stale { of, add }),
    ];
    prop::collection::vec(step, LENGTH).prop_map(History)
}

/// Steps, one a line.
#[derive(Clone)]
struct History(Vec<Step>);

impl Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "\n  {step:?}"))
    }
}

/// A type as the client sees it.
#[derive(Debug)]
struct Client {
    wish: Wish,
    told: Told,
    /// Nonce of the last response; 0: none.
    last: u64,
    /// Version of the last response, and of the last that was taken.
    versions: [Option<u128>; 2],
    /// Since when the last response is unanswered.
    unanswered: Option<Instant>,
    /// Whether the client has asked for something that it was not told yet.
    asked: bool,
    /// The newest set was too large for a response.
    too_large: bool,
}

struct Run<M: Mesh, S> {
    order: Order<M, S>,
    view: M,
    /// Every view since the stream had nothing to say and nothing was unanswered; the last one is the newest.
    worlds: Vec<World>,
    /// By place in [`Mesh::TYPES`].
    clients: BTreeMap<usize, Client>,
    now: Instant,
    /// When each change came since the client last had all that there is.
    published: Vec<Instant>,
    /// When each response came since then.
    told_at: Vec<Instant>,
    refused: Option<Instant>,
    primed: Option<bool>,
    pushed: u64,
}

impl<M: Mesh, S: Variant> Run<M, S> {
    fn new(prime: bool, largest: usize) -> Self {
        let mut order = Order::new(Partition::WHOLE, Bounds { types: M::TYPES.len(), response: largest });
        order.prime(prime);
        Self {
            order,
            view: M::default(),
            worlds: vec![World::new()],
            clients: BTreeMap::new(),
            now: Instant::now(),
            published: Vec::new(),
            told_at: Vec::new(),
            refused: None,
            primed: prime.then_some(false),
            pushed: 0,
        }
    }

    fn world(&self) -> &World {
        self.worlds.last().unwrap()
    }

    fn step(&mut self, step: &Step) -> Checked {
        match *step {
            Step::Change(ref edits) => {
                let mut world = self.world().clone();
                edits.iter().filter(|edit| edit.kind < M::KINDS).for_each(|edit| apply(&mut world, *edit));
                self.change(whole(world));
            }
            Step::Undo { above } => {
                if let [.., before, now] = &self.worlds[..] {
                    let kept = now.iter().filter(|((kind, _), _)| above && *kind < ABOVE);
                    let back = before.iter().filter(|((kind, _), _)| !above || *kind >= ABOVE);
                    let world = kept.chain(back).map(|(key, body)| (*key, body.clone())).collect();
                    self.change(whole(world));
                }
            }
            Step::Show => {
                self.view.show();
                self.published.push(self.now);
            }
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
            Step::Ready => self.ready()?,
            Step::CatchUp => self.catch_up()?,
            Step::Ask { of, add, leave } => self.ask(of, "", add, leave, false)?,
            Step::Answer { of, nack, add, leave } => {
                let Some(client) = self.clients.get(&of).filter(|client| client.last > 0) else { return Ok(()) };
                let same = if client.wish.all || S::DELTA { NONE } else { these(&client.wish.names) };
                let (nonce, nack) = (client.last.to_string(), nack && client.unanswered.is_some());
                self.ask(of, &nonce, add.unwrap_or(same), leave, nack)?;
            }
            Step::Stale { of, add } => {
                if let Some(last) = self.clients.get(&of).map(|client| client.last).filter(|last| *last > 1) {
                    self.ask(of, &(last - 1).to_string(), add, NONE, false)?;
                }
            }
        }
        self.due().map(drop)
    }

    fn change(&mut self, world: World) {
        let keys: BTreeSet<_> = world.keys().chain(self.world().keys()).copied().collect();
        for kind in 0..M::KINDS {
            let changed = keys.iter().filter(|key| key.0 == kind && world.get(key) != self.world().get(key));
            let changed: Changes = changed
                .map(|(kind, n)| {
                    let made = world.get(&(*kind, *n)).map(|body| body.resource(*n));
                    ((usize::from(*n) * 40, name(*n).into()), made)
                })
                .collect();
            if !changed.is_empty() {
                let snapshot = self.view.snapshot(kind);
                *snapshot = Arc::new(snapshot.with(&changed));
                self.published.push(self.now);
            }
        }
        self.worlds.push(world);
    }

    /// The client sends a request. An empty nonce stands for a first one, or for one that answers nothing.
    fn ask(&mut self, of: usize, nonce: &str, add: Names, leave: Names, nack: bool) -> Checked {
        let Some((type_url, _)) = M::TYPES.get(of) else { return Ok(()) };
        let leave = if S::DELTA { leave } else { NONE };
        let request = S::ask(type_url, nonce, add.listed(), leave.listed(), nack);
        let received = self.order.request(request, self.now).unwrap().unwrap();
        let known = self.clients.contains_key(&of);
        let client = self.clients.entry(of).or_insert_with(|| Client {
            wish: Wish::default(),
            told: Told::new(),
            last: 0,
            versions: [None; 2],
            unanswered: None,
            asked: false,
            too_large: false,
        });
        let answers = client.last > 0 && nonce == client.last.to_string();
        let answered = answers && client.unanswered.is_some();
        let expected = answered.then_some(if nack { Answer::Nack } else { Answer::Ack });
        prop_assert_eq!(received.answer, expected, "{} {}", type_url, nonce);
        match expected {
            Some(Answer::Ack) => client.versions[1] = client.versions[0],
            Some(Answer::Nack) => self.refused = Some(self.now),
            None => {}
        }
        let acked = self.order.exchange(type_url).and_then(|(exchange, _)| exchange.acked());
        prop_assert_eq!(acked, client.versions[1], "what was taken stays with a NACK");
        // State of the world: without a nonce all begins anew, and a stale nonce is no request at all.
        let first = if S::DELTA { !known } else { client.last == 0 || nonce.is_empty() };
        if answers || (first && !S::DELTA) {
            client.unanswered = None;
        }
        if S::DELTA || first || answers {
            let again = !S::DELTA && answers && !answered;
            client.asked |= S::wish(&mut client.wish, add, leave, first) | again;
            let wish = client.wish.clone();
            client.told.retain(|name, _| wish.wants(*name));
        }
        Ok(())
    }

    /// Whether something can be said now, as the stream asks after each step.
    fn due(&mut self) -> Result<Due, TestCaseError> {
        let (names, text) = (usize::from(NAMES) * 3 * 200, "no".len());
        let most: usize = self.clients.keys().map(|of| TYPE + M::TYPES[*of].0.len() + names + text).sum();
        prop_assert!(self.order.kept() <= most, "{} bytes for {} types", self.order.kept(), self.clients.len());
        let (most, before) = (self.order.lookups(&self.view), looked_up());
        let published = self.published.last().copied().unwrap_or(self.now);
        let due = self.order.due(&self.view, published, self.now);
        prop_assert!(most > 0 || looked_up() == before, "{} names are looked up", looked_up() - before);
        match due {
            Due::Changed(since) => {
                let came = self.published.contains(&since) || self.told_at.contains(&since);
                prop_assert!(came, "what waits came since the client had all, or while it was told something");
                let left_alone = self.refused.is_none_or(|at| self.now >= at + REFUSED);
                prop_assert!(left_alone, "a client that refuses is left alone for a while");
            }
            Due::NotBefore(at) => prop_assert!(at > self.now),
            Due::Nothing | Due::Undone if self.clients.values().all(|client| client.unanswered.is_none()) => {
                self.worlds.drain(..self.worlds.len() - 1);
                self.published.clear();
                self.told_at.clear();
            }
            Due::Nothing | Due::Undone | Due::Asked => {}
        }
        Ok(due)
    }

    /// The transport takes what there is to say.
    fn ready(&mut self) -> Checked {
        let since = match self.due()? {
            Due::Asked => None,
            Due::Changed(since) => Some(since),
            Due::Nothing | Due::Undone | Due::NotBefore(_) => return Ok(()),
        };
        let (most, before) = (self.order.lookups(&self.view), looked_up());
        let next = self.order.next(&self.view, self.now);
        prop_assert!(most > 0 || looked_up() == before, "{} names are looked up", looked_up() - before);
        match next {
            Next::Nothing => prop_assert!(false, "a response was due and there is none"),
            Next::Primers => {
                prop_assert_eq!(self.primed.replace(true), Some(false), "primers go out once, and if at all")
            }
            Next::TooLarge { type_url, .. } => self.client(&type_url).1.too_large = true,
            Next::Response(message) => {
                prop_assert_eq!(message.since, since, "the age of what it tells, if nobody asked");
                self.hear(message)?;
            }
        }
        Ok(())
    }

    fn client(&mut self, type_url: &str) -> (Option<usize>, &mut Client) {
        let of = M::TYPES.iter().position(|(known, _)| *known == type_url).unwrap();
        (M::TYPES[of].1, self.clients.get_mut(&of).expect("a type that was asked for"))
    }

    /// The client hears a response.
    fn hear(&mut self, NextResponse { type_url, version, nonce, content, .. }: NextResponse) -> Checked {
        self.pushed += 1;
        self.told_at.push(self.now);
        let (now, primed) = (self.now, self.primed);
        let (kind, client) = self.client(&type_url);
        prop_assert!(client.unanswered.is_none(), "{type_url}: one response is unanswered at most");
        prop_assert!(nonce > client.last, "a nonce is never used again");
        let (told, brought) = S::read(&client.told, &content);
        prop_assert!(told.keys().all(|name| client.wish.wants(*name)), "{type_url}: only what is wanted");
        prop_assert!(
            client.asked || told != client.told,
            "{type_url}: nobody asked and nothing is new, after a NACK as well"
        );
        let before = std::mem::replace(&mut client.told, told.clone());
        let wish = client.wish.clone();
        client.versions[0] = Some(version);
        (client.last, client.unanswered, client.asked, client.too_large) = (nonce, Some(now), false, false);
        match kind {
            None => prop_assert!(told.is_empty(), "nothing is served of {type_url}"),
            Some(above) if above >= ABOVE => {
                prop_assert_ne!(primed, Some(false), "primers go first");
                let whole = |world: &World| wish.of(world, above) == told && self.rests(world);
                prop_assert!(self.worlds.iter().rev().any(whole), "{type_url}: told before what it rests on: {told:?}");
            }
            Some(kind) => {
                let known = |name: &u8, body: &Body| {
                    let was = |world: &World| world.get(&(kind, *name)) == Some(body);
                    self.worlds.iter().any(was) || before.get(name) == Some(body)
                };
                let strange = brought.iter().find(|(name, body)| !known(name, body));
                prop_assert_eq!(strange, None, "{}: what is told is, or was not long ago", type_url);
                let gone = |name: &&u8| !told.contains_key(*name);
                before.keys().filter(gone).try_for_each(|name| self.may_go(kind, *name))?;
            }
        }
        Ok(())
    }

    /// Whether the client was told all that there is beneath in a view, of what it wants.
    fn rests(&self, world: &World) -> bool {
        self.clients.iter().all(|(of, client)| {
            let Some(kind) = M::TYPES[*of].1.filter(|kind| *kind < ABOVE) else { return true };
            let mut all = client.wish.of(world, kind).into_iter();
            let never_answers = client.unanswered.is_some_and(|since| self.now >= since + UNANSWERED);
            client.too_large || never_answers || all.all(|(name, body)| client.told.get(&name) == Some(&body))
        })
    }

    /// Checks that a resource beneath may go: the client has answered all responses above, and the last rest on it no more.
    fn may_go(&self, kind: usize, name: u8) -> Checked {
        for (of, client) in &self.clients {
            if M::TYPES[*of].1.is_some_and(|kind| kind >= ABOVE) && !client.too_large {
                prop_assert!(client.unanswered.is_none(), "{kind} {name} goes before an answer of {}", M::TYPES[*of].0);
                let rests = client.told.values().any(|body| body.rests_on.contains(&(kind, name)));
                prop_assert!(!rests, "{kind} {name} goes and {} rests on it", M::TYPES[*of].0);
            }
        }
        Ok(())
    }

    /// Nothing changes for a while and the client answers everything: then it was told all that there is, in few responses.
    fn catch_up(&mut self) -> Checked {
        let begin = self.pushed;
        for _ in 0..100 {
            match self.due()? {
                Due::Asked | Due::Changed(_) => self.ready()?,
                Due::NotBefore(at) => self.now = at,
                Due::Nothing | Due::Undone => {
                    let unanswered = self.clients.iter().filter(|(_, client)| client.unanswered.is_some());
                    let unanswered: Vec<_> = unanswered.map(|(of, _)| *of).collect();
                    if unanswered.is_empty() {
                        return self.is_told(begin);
                    }
                    for of in unanswered {
                        self.step(&Step::Answer { of, nack: false, add: None, leave: NONE })?;
                    }
                }
            }
        }
        prop_assert!(false, "it never comes to rest");
        Ok(())
    }

    fn is_told(&self, begin: u64) -> Checked {
        for (of, client) in &self.clients {
            let (type_url, kind) = M::TYPES[*of];
            let all = kind
                .filter(|_| self.view.is_shown())
                .map(|kind| client.wish.of(self.world(), kind))
                .unwrap_or_default();
            prop_assert!(client.told == all || client.too_large, "{type_url}: {:?} of {all:?} was told", client.told);
        }
        if self.view.is_shown() {
            prop_assert_eq!(
                self.order.lookups(&self.view),
                0,
                "a client that was told all costs nothing until something changes"
            );
        }
        // Types are told of the view that was begun with, of the newest, and of removals.
        let most = 5 * self.clients.len() as u64;
        prop_assert!(self.pushed - begin <= most, "{} responses", self.pushed - begin);
        Ok(())
    }
}

fn these(names: &BTreeSet<u8>) -> Names {
    Names::These(names.iter().fold(0, |bits, name| bits | 1 << name))
}

/// A view in which nothing rests on what is not there.
fn whole(mut world: World) -> World {
    let there: BTreeSet<_> = world.keys().copied().collect();
    world.values_mut().for_each(|body| body.rests_on.retain(|key| there.contains(key)));
    world
}

fn apply(world: &mut World, edit: Edit) {
    let key = (edit.kind, edit.name);
    match edit.content {
        None => _ = world.remove(&key),
        Some(content) => {
            let there = world.keys().filter(|(kind, _)| *kind < ABOVE && edit.kind >= ABOVE);
            let chosen = there.filter(|(kind, name)| edit.rests_on & (1 << (*kind as u8 * NAMES + name)) != 0);
            let rests_on = chosen.copied().collect();
            world.insert(key, Body { content, rests_on });
        }
    }
}

fn run<M: Mesh, S: Variant>(History(steps): &History, prime: bool, largest: usize) -> Checked {
    let mut run = Run::<M, S>::new(prime, largest);
    steps.iter().try_for_each(|step| run.step(step))?;
    run.step(&Step::Show)?;
    run.step(&Step::CatchUp)
}

fn config() -> ProptestConfig {
    let steps = std::env::var("MOX_ORDER_STEPS").map_or(STEPS, |steps| steps.parse().unwrap());
    let mean = (LENGTH.start + LENGTH.end) / 2;
    // Each of the four properties has its share.
    ProptestConfig { cases: steps / 4 / mean as u32 + 1, ..ProptestConfig::default() }
}

fn largest() -> impl Strategy<Value = usize> {
    prop_oneof![9 => Just(usize::MAX), 1 => Just(60usize)]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn istiod_in_state_of_the_world(history in history(), prime: bool, largest in largest()) {
        run::<View, Sotw>(&history, prime, largest)?;
    }

    #[test]
    fn istiod_in_delta(history in history(), prime: bool, largest in largest()) {
        run::<View, Delta>(&history, prime, largest)?;
    }

    #[test]
    fn envoy_in_state_of_the_world(history in history(), largest in largest()) {
        run::<Envoy, Sotw>(&history, false, largest)?;
    }

    #[test]
    fn envoy_in_delta(history in history(), largest in largest()) {
        run::<Envoy, Delta>(&history, false, largest)?;
    }
}

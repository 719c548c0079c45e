//! Random histories of events, policies, orders, bugs in one service and restarts: whatever comes, everything is served as the
//! registry and the policy have it, but for the exceptions that the report names; and nothing goes that nobody took away.
//!
//! `MOX_ROUND_STEPS` (100,000) steps in all, from the seed `MOX_SEED`. A history that fails is shown without the steps that
//! it fails without.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Once},
    time::Duration,
};

use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};
use prost::Message;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    catalog::{
        assignment::{Pins, vip_candidates},
        breaker::Totals,
        driver::{Driver, START, key},
        dry_run::{
            self, DryRun,
            difference::{Listed, ServiceShown},
        },
        key::ServiceKey,
        last_good::file::over_a_restart,
        narrowing::{exported, is_same},
        reference::{Exceptions, Expected, Places, Reference},
        vips::{Vips, family},
    },
    config::Config,
    model::{Millis, RegisterVersion},
    policy::{Policy, visibility::covers},
    proto::istio::networking::v1alpha3::{DestinationRule, ServiceEntry, WorkloadEntry},
    registry::frame::{self, Publisher},
    snapshot::{
        Snapshot,
        view::{Held, View},
    },
    translate::{app_entry, names, payload::Client},
    visibility::seen::Seen,
};

const LENGTH: usize = 60;
const PUBLISHERS: usize = 3;
/// How many services a round takes of many, in one world or another.
const PARTS: [usize; 2] = [2, 1];
const GRACE: Millis = 600_000;
/// When services of a last good state came.
const LONG_AGO: Millis = Millis::MIN / 2;

/// Ids of three tenants, some of whose services have one host but for what tells them apart.
const IDS: [&str; 10] = [
    "COM.a.S:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA",
    "com.a.S:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA",
    "com.a.s:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA",
    "com.b.T:1.0@tri#@#DEFAULT_INSTANCE_ID#@#SOFA",
    "com.c.U@dubbo#@#tenant-a#@#SOFA",
    "com.c.u@dubbo#@#tenant-a#@#SOFA",
    "com.d.V:2.0:blue@DEFAULT#@#tenant-a#@#SOFA",
    "com.e.W:1.0@DEFAULT#@#tenant-a#@#SOFA",
    "shop#@#tenant-a#@#dubbo",
    "odd one",
];

/// Protocols that Dubbo's ids have services of their own by, the last where a policy knows it.
const OTHERS: [&str; 3] = ["tri", "rest", "hessian"];

/// The texts of the keys of all services that there may be.
fn services() -> Vec<String> {
    let others = IDS.into_iter().filter(|id| Client::of(id).names_protocols());
    let others = others.flat_map(|id| OTHERS.map(|protocol| ServiceKey::beside(id, protocol).text().to_string()));
    IDS.map(str::to_owned).into_iter().chain(others).collect()
}

/// The dataInfoId of a service.
fn id_of(service: &str) -> String {
    ServiceKey::of_text(service.into()).id().to_owned()
}

/// Documents as an operator may set them, and such as the door would refuse: Istio's validation refuses what is made of those.
fn policies() -> Vec<Value> {
    let refused = json!(["sofa-registry", "."]);
    let direct = json!({ "applications": ["*"] });
    vec![
        json!({}),
        json!({ "exclude": ["com.a.S:*"] }),
        json!({ "exclude": ["*"] }),
        json!({ "include": ["com.?.*", "COM*"] }),
        json!({ "exportTo": ["~"] }),
        json!({ "ports": { "bolt": 81, "tri": 82 } }),
        json!({ "endpoints": { "deny": ["10.0.0.0/15"] } }),
        json!({ "overrides": { "com.b*": { "host": "x.example.com" }, "com.c*": { "host": "x.example.com" } } }),
        json!({ "ports": { "Hessian": 83, "rest": 84 }, "overrides": { "com.c.U*": { "port": 85, "protocol": "HTTP2" } } }),
        json!({ "overrides": { "com.e*": { "host": "tri.dubbo.com.c.u.tenant-a.sofa.mesh" } } }),
        json!({ "overrides": { "com.e*": { "host": "com.a.s.sofa.mesh" }, "odd*": { "host": "tri.com.b.t.sofa.mesh" } } }),
        json!({ "overrides": { "com.d*": { "dns": true, "labels": ["rpcVer"], "port": 99, "protocol": "HTTP" } } }),
        json!({ "overrides": { "com.*": { "warmup": "60s" }, "com.b*": { "warmup": "1s", "exportTo": ["."] }, "com.e*": { "host": "x.example.com" } } }),
        json!({ "overrides": { "*": { "warmup": "90s" } }, "direct": direct, "mtls": [{ "applications": ["x"] }] }),
        json!({ "direct": direct }),
        json!({ "direct": { "applications": ["*"], "linger": "0s", "overrides": { "x*": { "exportTo": ["."] } } } }),
        json!({ "direct": { "applications": ["x"], "balance": "mesh", "linger": "400s", "overrides": { "*": { "warmup": "9s" } } } }),
        json!({ "direct": { "applications": ["x"], "balance": "mesh", "addresses": ["10.4.0.0/14", "10.9.9.9/32"] } }),
        json!({ "direct": direct, "mtls": [{ "applications": ["x"], "identities": ["spiffe://a/ns/b/sa/c"] }] }),
        json!({ "visibility": { "mode": "on" } }),
        json!({ "visibility": { "mode": "on", "unused": "hide", "always": ["."] }, "direct": direct }),
        json!({ "exportTo": ["n1", ".", "n7"], "visibility": { "mode": "on", "always": ["n9"] }, "direct": direct,
                "overrides": { "com.b*": { "exportTo": ["n8"] }, "com.c*": { "visibility": "off" } } }),
        json!({ "visibility": { "mode": "shadow" }, "overrides": { "com.*": { "visibility": "on" } } }),
        // Refused.
        json!({ "exportTo": refused }),
        json!({ "exportTo": refused, "direct": direct }),
        json!({ "exportTo": refused, "exclude": ["com.e*"] }),
        json!({ "exportTo": refused, "overrides": { "com.b*": { "host": "x.example.com" }, "com.e*": { "exportTo": ["*"] } } }),
        json!({ "overrides": { "com.*": { "exportTo": refused } } }),
        json!({ "overrides": { "COM*": { "exportTo": refused }, "com.b*": { "exportTo": refused, "host": "com.e.w.sofa.mesh" } } }),
        json!({ "overrides": { "com.a*": { "host": "nodot" }, "com.c*": { "protocol": "bolt" } } }),
    ]
}

/// Payloads of publishers, from [`BUGS`] on such as bring out bugs; `{s}` and `{p}` stand for the service and the publisher.
const PAYLOADS: [&[&str]; 18] = [
    &["10.{s}.{p}.1:80"],
    &["10.{s}.{p}.1:80"],
    &["10.{s}.{p}.1:80", "10.{s}.{p}.2:80"],
    &["10.{s}.{p}.1:80?weight=5&app=x", "10.{s}.{p}.3:80?weight=7"],
    &["10.{s}.0.1:80?app=x&zone={p}"],
    &["10.9.9.9:80?app=x", "10.{s}.{p}.1:80?app=x"],
    &["10.9.9.9:80?app=y y"],
    &["10.{s}.0.1:80?weight=0"],
    &["nonsense", "127.0.0.1:80"],
    &["what.example.com:80", "10.{s}.{p}.4:80"],
    &["tri://10.{s}.{p}.1:80/x?app=x"],
    &["tri://10.{s}.{p}.1:80", "dubbo://10.{s}.{p}.1:80", "REST://10.{s}.{p}.2:80", "tri://what.example.com:80"],
    &["rest://10.{s}.0.1:80?weight=0", "hessian://10.{s}.{p}.5:80", "tri://10.{s}.0.1:80?zone={p}"],
    &["rest://10.9.9.9:80?app=y y", "hessian://10.{s}.{p}.5:80?app=panic-when-made"],
    &[
        r#"{"host":"10.{s}.{p}.1","port":80,"name":"x","metadata":{"dubbo.endpoints":"[{\"port\":81,\"protocol\":\"tri\"},{\"port\":80,\"protocol\":\"dubbo\"}]"}}"#,
    ],
    &[
        r#"{"host":"10.{s}.0.1","port":80,"metadata":{"dubbo.endpoints":"[{\"port\":80,\"protocol\":\"TRI\"},{\"port\":82,\"protocol\":\"hessian\"}]"}}"#,
    ],
    &["panic://10.0.0.1:80"],
    &["10.{s}.{p}.1:80?app=panic-when-made"],
];

/// The first of the payloads that bring out bugs.
const BUGS: usize = PAYLOADS.len() - 2;

/// The address that the client of a publisher has: that of the first of its usual endpoints.
fn source_address(service: usize, publisher: usize) -> String {
    format!("10.{service}.{publisher}.1:50000")
}

/// Numbers that a seed makes again.
struct Random(TestRng);

impl Random {
    fn new(seed: usize) -> Self {
        Self(TestRng::from_seed(RngAlgorithm::XorShift, &(seed as u128 + 1).to_le_bytes()))
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }
}

#[derive(Debug, Clone)]
enum Step {
    Publish(usize, usize, usize),
    Unpublish(usize, usize),
    /// The client of a publisher has left.
    Lost(usize, usize),
    /// A read that finds these publishers with this payload.
    Replace(usize, Vec<usize>, usize),
    /// Every service but some loses all its publishers.
    Massacre(usize),
    Policy(usize),
    Frozen(bool),
    /// A freeze that outlives restarts.
    Ordered(bool),
    Stopped(bool),
    /// Another word of who consumes what.
    Seen(usize),
    /// The first places of these services are pinned to them, of several that want one to the last; all other pins go.
    Pins(Vec<usize>),
    Release,
    Wait(Millis),
    /// Rounds until everything is looked at.
    Round,
    /// A round, which may leave something to the next.
    Part,
    /// A round breaks off.
    Break,
    /// The served snapshots are kept for a restart.
    Keep,
    /// With what was kept, or without; before everything is read again a round comes where the last good state is shown. Some
    /// services cannot be read until a `Replace` of theirs.
    Restart {
        last_good: bool,
        read: Vec<usize>,
        shown: bool,
        unknown: Vec<usize>,
        /// How many services another session server says that it serves, of three endpoints each.
        baseline: Option<usize>,
        /// Other settings say these ranges from then on.
        ranges: Option<usize>,
    },
}

/// Words of who consumes what; the last ones hide much from many.
fn seen(n: usize) -> Option<Arc<Seen>> {
    let pairs: Vec<(&str, &[&str])> = match n {
        0 => return None,
        1 => IDS.iter().map(|id| (*id, &["n1", "n2"][..])).collect(),
        2 => IDS.iter().map(|id| (*id, &["?"][..])).collect(),
        3 => IDS.iter().enumerate().map(|(n, id)| (*id, [&["n1"][..], &["n2", "n3"], &["n1", "?"]][n % 3])).collect(),
        4 => IDS.iter().step_by(2).map(|id| (*id, &["n1"][..])).collect(),
        _ => IDS.iter().map(|id| (*id, &["n3"][..])).collect(),
    };
    Some(Arc::new(Seen::with(&pairs)))
}

/// Some ranges are so small that hosts contest their addresses.
const RANGES: [&str; 3] = ["248.0.0.0/29", "248.0.0.0/6", "fd00::/124,248.0.0.0/28"];

fn steps(random: &mut Random) -> Vec<Step> {
    let mut steps = Vec::new();
    while steps.len() < LENGTH {
        let (s, p, d) = (random.below(IDS.len()), random.below(PUBLISHERS), random.below(PAYLOADS.len()));
        // Nothing is published that is a bug most of the time.
        let d = if d >= BUGS && random.below(3) > 0 { 0 } else { d };
        steps.push(match random.below(40) {
            0..=13 => Step::Publish(s, p, d),
            14..=17 => Step::Unpublish(s, p),
            18 => Step::Lost(s, p),
            19..=20 => Step::Replace(s, (0..PUBLISHERS).filter(|_| random.below(2) == 0).collect(), d),
            21 => Step::Massacre(random.below(3)),
            22..=24 => Step::Policy(random.below(policies().len())),
            25 => Step::Policy(0),
            26 => match random.below(2) {
                0 => Step::Frozen(random.below(3) == 0),
                _ => Step::Ordered(random.below(3) == 0),
            },
            27 => Step::Stopped(random.below(3) == 0),
            28 => match random.below(4) {
                0 => Step::Release,
                1..=2 => Step::Seen(random.below(6)),
                _ => Step::Pins((0..IDS.len()).filter(|_| random.below(2) == 0).collect()),
            },
            29..=31 => Step::Wait([1, 1_000, 59_999, 60_000, 400_000, GRACE, 2 * GRACE][random.below(7)]),
            32..=34 => Step::Round,
            35 => Step::Break,
            36..=37 => Step::Keep,
            _ => {
                let read = (0..IDS.len()).filter(|_| random.below(2) == 0).collect();
                let some = random.below(3) == 0;
                let unknown = (0..IDS.len()).filter(|_| some && random.below(4) == 0).collect();
                let baseline = Some(random.below(2 * IDS.len())).filter(|_| random.below(2) == 0);
                let ranges = Some(random.below(RANGES.len())).filter(|_| random.below(4) == 0);
                let (last_good, shown) = (random.below(4) > 0, random.below(2) == 0);
                Step::Restart { last_good, read, shown, unknown, baseline, ranges }
            }
        });
        match random.below(6) {
            0 => steps.push(Step::Round),
            1 => steps.push(Step::Part),
            _ => {}
        }
    }
    steps
}

/// A registry, a session server that follows it and what that one keeps on disk.
struct World {
    driver: Driver,
    policies: Vec<Value>,
    /// Live publishers of a service, with what they publish.
    publishers: BTreeMap<(usize, usize), usize>,
    version: i64,
    kept: Option<Kept>,
    /// Since when what is wanted of a service is nothing; for the graces.
    empty: BTreeMap<String, Millis>,
    /// Since when services are in their grace, or were before a restart, for as long as nothing is served or wanted of them.
    graces: BTreeMap<String, Millis>,
    /// Services that could not be read since the last restart.
    unknown: BTreeSet<&'static str>,
    /// Since when a service has endpoints, and whether it got them while removals were withheld.
    came: BTreeMap<String, (Millis, bool)>,
    /// The state before the last round.
    before: Before,
    /// Where services are served, as far as streams were told.
    told: Places,
    rounds: usize,
    /// The entries of applications after the last round, with the policy of then; `None` where nobody knows what lingered.
    dialed: Option<(Dialed, Arc<Policy>)>,
    /// Since when there is no endpoint at an address where there was one.
    deserted: BTreeMap<SocketAddr, Millis>,
    /// From when on the settings have new services judged.
    settled_at: Option<Millis>,
    /// The most services that had endpoints since the view was complete.
    most: usize,
    /// The next round begins again, and judges no new services.
    begins_again: bool,
    /// The view was not complete after the last round.
    was_gathering: bool,
    /// The next complete view is the first, and there is no last good state to judge what goes.
    is_first: bool,
    /// After every round everything is compared, not after some.
    thorough: bool,
    /// Of [`PARTS`].
    part: usize,
}

struct Kept {
    view: View,
    publishers: usize,
    empty: BTreeMap<Arc<str>, Millis>,
    at: Millis,
}

/// Entries of applications by name, with their versions.
type Dialed = BTreeMap<String, (String, ServiceEntry)>;

/// Endpoints of services, as they are served.
type Served = BTreeMap<String, BTreeSet<String>>;

#[derive(Default)]
struct Before {
    served: Served,
    places: Places,
    versions: [String; 3],
    held: Option<Held>,
    withheld: BTreeSet<Arc<str>>,
    waiting: BTreeSet<Arc<str>>,
    /// New services waited.
    adding: bool,
    /// Streams were told.
    shown: bool,
}

impl World {
    fn new(seed: usize, thorough: bool) -> Self {
        let mode = ["inline", "workload-entry"][seed % 2];
        let range = RANGES[seed / 2 % RANGES.len()];
        // Bounds that are met, or not.
        let part = PARTS[seed / 16 % 2];
        let (of_publisher, of_service) = ([64, 1][seed / 4 % 2], [50_000, 2][seed / 8 % 2]);
        let config = json!({
            "limits": { "endpointsPerPublisher": of_publisher, "endpointsPerService": of_service },
            "endpointMode": mode,
            "vipCidr": range,
            "protect": { "massDeleteServices": 2, "massDeleteEndpoints": 4, "massAddServices": 1,
                         "massAddShare": 0.25, "massAddSettle": "1m", "massAddHold": "5m", "startupHold": "1s", "lastGoodMaxAge": "1h" },
        });
        let mut driver = Driver::new(config);
        driver.orders.loaded = true;
        driver.round.take_in_parts_of(part);
        let before = Before { versions: versions(&driver.view), ..Before::default() };
        Self {
            driver,
            policies: policies(),
            publishers: BTreeMap::new(),
            version: 0,
            kept: None,
            empty: BTreeMap::new(),
            graces: BTreeMap::new(),
            unknown: BTreeSet::new(),
            came: BTreeMap::new(),
            before,
            told: Places::new(),
            rounds: 0,
            dialed: None,
            deserted: BTreeMap::new(),
            settled_at: None,
            most: 0,
            begins_again: false,
            was_gathering: true,
            is_first: true,
            thorough,
            part,
        }
    }

    fn publisher(&self, service: usize, publisher: usize, data: usize, version: i64) -> (String, i64, Vec<String>) {
        let filled = |text: &&str| text.replace("{s}", &service.to_string()).replace("{p}", &publisher.to_string());
        (format!("r{publisher}"), version, PAYLOADS[data].iter().map(filled).collect())
    }

    fn replace(&mut self, service: usize) {
        self.version += 1;
        self.unknown.remove(IDS[service]);
        let live = self.publishers.range((service, 0)..(service + 1, 0));
        let all: Vec<_> =
            live.map(|((s, p), data)| (source_address(*s, *p), self.publisher(*s, *p, *data, self.version))).collect();
        let bodies = all.iter().map(|(source_address, (register_id, version, data))| Publisher {
            register_id: (&**register_id).into(),
            source_address: source_address.into(),
            version: RegisterVersion { version: *version, timestamp: 0 },
            payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
            ..Publisher::default()
        });
        let bodies: Vec<Publisher<'_>> = bodies.collect();
        // Begun when nothing of what came before can still be on its way.
        let age = -20_000;
        self.driver.apply(frame::encode_replace("registry", IDS[service], self.version, age, &bodies).unwrap());
    }

    fn unpublish(&mut self, service: usize, publisher: usize) {
        self.version += 1;
        self.publishers.remove(&(service, publisher));
        self.driver.unpublish(IDS[service], &format!("r{publisher}"), self.version);
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Publish(service, publisher, data) => {
                self.version += 1;
                self.publishers.insert((*service, *publisher), *data);
                let (register_id, version, data) = self.publisher(*service, *publisher, *data, self.version);
                let data: Vec<&str> = data.iter().map(String::as_str).collect();
                let from = source_address(*service, *publisher);
                self.driver.publish_from(&from, IDS[*service], &register_id, version, &data);
            }
            Step::Unpublish(service, publisher) => self.unpublish(*service, *publisher),
            Step::Lost(service, publisher) => {
                let version = RegisterVersion { version: self.version, timestamp: 0 };
                let register_id = format!("r{publisher}");
                self.driver.apply(frame::encode_lost("registry", IDS[*service], &register_id, version).unwrap());
                // The data server says that it is gone, and the next read does.
                self.publishers.remove(&(*service, *publisher));
                self.replace(*service);
            }
            Step::Replace(service, publishers, data) => {
                self.publishers.retain(|(s, _), _| s != service);
                self.publishers.extend(publishers.iter().map(|publisher| ((*service, *publisher), *data)));
                self.replace(*service);
            }
            Step::Massacre(rest) => {
                let gone: Vec<_> =
                    self.publishers.keys().filter(|(service, _)| service % 3 != *rest).copied().collect();
                gone.into_iter().for_each(|(service, publisher)| self.unpublish(service, publisher));
                return self.round();
            }
            Step::Policy(n) => {
                let policy = self.policies[*n].clone();
                // A dry run tells of the policy alone, so nothing else may be new; not always, since all comes together else.
                if self.rounds.is_multiple_of(2) {
                    self.round()?;
                    return self.try_and_set(&policy);
                }
                self.driver.policy(&policy);
                return self.round();
            }
            Step::Frozen(frozen) => self.driver.orders.frozen = *frozen,
            Step::Pins(services) => {
                let mut pins = Pins::new();
                for id in services.iter().map(|service| IDS[*service]) {
                    let host = self.reference().candidates(id).remove(0);
                    for range in &self.driver.config.vip_cidr {
                        let vips = vip_candidates(&Sha256::digest(&host).into(), *range);
                        pins.extend(vips.first().map(|vip| (vip.to_string().into(), id.into())));
                    }
                    pins.insert(host.into(), id.into());
                }
                self.driver.pins = Arc::new(pins);
            }
            Step::Ordered(ordered) => self.driver.orders.ordered = *ordered,
            Step::Stopped(stopped) => self.driver.orders.stopped = *stopped,
            Step::Seen(n) => self.driver.seen = seen(*n),
            Step::Release => self.driver.orders.release = true,
            Step::Wait(millis) => self.driver.now += millis,
            Step::Round => return self.round(),
            Step::Part => return self.one_round(),
            Step::Break => {
                self.driver.start_over();
                self.dialed = None;
                self.told = places(&self.driver.view);
                self.begins_again = true;
                return self.round();
            }
            Step::Keep if self.driver.view.complete => {
                let view = self.driver.view.clone();
                let (publishers, empty) = (self.driver.store.counts().publishers, self.driver.round.empty());
                self.kept = Some(Kept { view, publishers, empty, at: self.driver.now });
            }
            Step::Keep => {}
            Step::Restart { last_good, read, shown, unknown, baseline, ranges } => {
                if let Some(ranges) = ranges {
                    let mut config = (*self.driver.config).clone();
                    config.vip_cidr = RANGES[*ranges].split(',').map(|range| range.parse().unwrap()).collect();
                    let document = serde_json::to_value(self.driver.policy.document()).unwrap();
                    self.driver.config = Arc::new(config);
                    self.driver.policy(&document);
                }
                return self.restart(*last_good, read, *shown, unknown, *baseline);
            }
        }
        Ok(())
    }

    fn restart(
        &mut self,
        last_good: bool,
        read: &[usize],
        shown: bool,
        unknown: &[usize],
        baseline: Option<usize>,
    ) -> Result<(), String> {
        let now = self.driver.now + 1_000;
        let kept = self.kept.as_ref().filter(|_| last_good);
        let last_good = kept.map(|Kept { view, publishers, empty, at }| {
            let age = Duration::from_millis((now - at) as u64);
            over_a_restart(view.clone(), *publishers, empty.clone(), age)
        });
        let had_last_good = last_good.is_some();
        self.dialed = None;
        self.deserted.clear();
        let orders = self.driver.orders;
        let (policy, pins) = (Arc::clone(&self.driver.policy), Arc::clone(&self.driver.pins));
        let seen = self.driver.seen.clone();
        self.driver = Driver::started(Arc::clone(&self.driver.config), now, last_good);
        (self.driver.policy, self.driver.pins, self.driver.seen) = (policy, pins, seen);
        self.driver.round.take_in_parts_of(self.part);
        (self.driver.orders.frozen, self.driver.orders.ordered) = (orders.frozen, orders.ordered);
        self.driver.orders.listening_since = Some(now);
        let before = self.kept.as_ref().filter(|_| had_last_good).map(|kept| kept.view.clone()).unwrap_or_default();
        self.told = places(&before);
        let (served, places) = (served(&before), self.told.clone());
        let versions = versions(&before);
        self.before = Before { served, places, versions, shown: had_last_good, ..Before::default() };
        let had = self.before.served.iter().filter(|(_, endpoints)| !endpoints.is_empty());
        self.came = had.map(|(id, _)| (id.clone(), (LONG_AGO, false))).collect();
        // Services that came and went since are not known any more.
        let empty = self.kept.as_ref().filter(|_| had_last_good).map(|kept| &kept.empty).into_iter().flatten();
        self.empty = empty.map(|(id, since)| (id.to_string(), *since)).collect();
        self.graces = self.empty.clone();
        self.unknown = unknown.iter().map(|service| IDS[*service]).collect();
        (self.settled_at, self.most, self.begins_again, self.was_gathering) = (None, 0, false, true);
        self.is_first = self.before.served.is_empty();
        read.iter().filter(|service| !unknown.contains(service)).for_each(|service| self.replace(*service));
        self.round()?;
        if shown {
            self.driver.now += 1_000;
            self.round()?;
        }
        let unknown: Vec<&str> = self.unknown.iter().copied().collect();
        self.driver.store.set_unknown(&unknown);
        let known: Vec<usize> = (0..IDS.len()).filter(|service| !self.unknown.contains(IDS[*service])).collect();
        known.into_iter().for_each(|service| self.replace(service));
        let totals = baseline.map(|services| Totals { services, endpoints: 3 * services });
        self.driver.orders.baseline = totals;
        self.driver.orders.loaded = true;
        self.round()?;
        let Driver { view, orders, report, .. } = &self.driver;
        let had = had_last_good && !before.service_entries.decode().is_empty();
        check(
            self.driver.round.is_frozen(orders)
                || view.complete
                || (totals.is_some() && !had && report.withheld.is_some()),
            || format!("{totals:?} holds the first view back, {had}, {:?}", report.withheld),
        )
    }

    fn reference(&self) -> Reference<'_> {
        let Driver { config, store, policy, pins, .. } = &self.driver;
        let seen = self.driver.round.narrowing().seen().map(|seen| &**seen);
        Reference { config, store, policy, pins, seen }
    }

    /// Sets a policy after a dry run of it, which has to tell what comes of that, to the byte; and what comes of a release, where
    /// the breakers hold something.
    fn try_and_set(&mut self, document: &Value) -> Result<(), String> {
        let before = Arc::clone(&self.driver.policy);
        self.driver.policy(document);
        // A service that is withheld and cannot be made counts as missing until it is looked at again, as a dry run does.
        let report = &self.driver.report;
        let may_recover = report.withheld_services.iter().any(|id| report.quarantined.contains_key(&**id));
        let outline = self.driver.round.outline().filter(|_| !self.driver.orders.is_frozen() && !may_recover);
        let policy = std::mem::replace(&mut self.driver.policy, before);
        let Some(outline) = outline else {
            self.driver.policy = policy;
            return self.round();
        };
        let tried = Policy::compile(policy.document().clone(), &self.driver.config.vip_cidr).unwrap();
        let trial = dry_run::run(outline, &self.driver.view, &self.driver.store, tried, self.driver.now)?;
        let (old, now) = (versions(&trial.before), versions(&self.driver.view));
        check(old == now, || {
            let apart = dry_run::difference::difference(&trial.before, &self.driver.view);
            format!("a dry run takes {old:?} for what is served, which is {now:?}: {apart:?}")
        })?;
        let was = (served(&self.driver.view), places(&self.driver.view));
        self.driver.policy = policy;
        self.round()?;
        let (told, now) = (versions(&trial.after), versions(&self.driver.view));
        check(told == now, || format!("a dry run tells of {told:?}, served is {now:?}"))?;
        let released = trial.released.as_ref().map(versions).filter(|_| self.rounds.is_multiple_of(3));
        self.check_difference(&trial.told()?, was)?;
        if let Some(told) = released {
            self.driver.orders.release = true;
            self.round()?;
            let now = versions(&self.driver.view);
            check(told == now, || format!("a dry run tells of {told:?} after a release, served is {now:?}"))?;
        }
        Ok(())
    }

    /// A dry run told what came of a policy, by the services and endpoints before and after.
    fn check_difference(&self, told: &DryRun, (had, was): (Served, Places)) -> Result<(), String> {
        let (has, is) = (served(&self.driver.view), places(&self.driver.view));
        let only = |one: &Served, other: &Served| -> Vec<String> {
            one.keys().filter(|id| !other.contains_key(*id)).cloned().collect()
        };
        let services = &told.changes.services;
        let listed = |listed: &Listed<ServiceShown>| -> Vec<String> {
            listed.first.iter().map(|service| service.data_info_id.to_string()).collect()
        };
        let (come, go) = (listed(&services.come), listed(&services.go));
        check(come == only(&has, &had) && go == only(&had, &has), || format!("{come:?} come and {go:?} go"))?;
        let renamed: Vec<(String, String, String)> = was
            .iter()
            .filter_map(|(id, (from, _))| Some((id.clone(), from.clone(), is.get(id)?.0.clone())))
            .filter(|(_, from, to)| from != to)
            .collect();
        let listed =
            services.renamed.first.iter().map(|it| (it.data_info_id.to_string(), it.from.clone(), it.to.clone()));
        let listed: Vec<_> = listed.collect();
        check(listed == renamed, || format!("{listed:?} are said to be renamed, and are {renamed:?}"))?;
        let of = |all: &Served| -> BTreeSet<(String, String)> {
            all.iter().flat_map(|(id, some)| some.iter().map(|endpoint| (id.clone(), endpoint.clone()))).collect()
        };
        let (had, has) = (of(&had), of(&has));
        let counts = (has.difference(&had).count(), had.difference(&has).count());
        let told = (told.changes.endpoints.come, told.changes.endpoints.go);
        check(told == counts, || format!("endpoints that come and go: {told:?}, not {counts:?}"))
    }

    /// As many rounds as it takes until everything is looked at.
    fn round(&mut self) -> Result<(), String> {
        self.one_round()?;
        while !self.driver.round.is_frozen(&self.driver.orders) && !self.driver.round.is_settled() {
            self.one_round()?;
        }
        Ok(())
    }

    /// A round, and what holds after each.
    fn one_round(&mut self) -> Result<(), String> {
        self.rounds += 1;
        // The first view of a start without a last good state comes before a freeze.
        let frozen = self.driver.round.is_frozen(&self.driver.orders);
        self.driver.round();
        let Driver { view, report, now, .. } = &self.driver;
        let versions = versions(view);
        let is_new = versions != self.before.versions;
        let served = if is_new { served(view) } else { self.before.served.clone() };
        let places = if is_new { places(view) } else { self.before.places.clone() };
        let (withheld, waiting) = (report.withheld_services.clone(), report.waiting_services.clone());
        let adding = report.waiting.is_some();
        let (held, shown) = (report.held, view.shown);
        let after = Before { served, places, versions, held, withheld, waiting, adding, shown };
        if frozen {
            check(!is_new, || "something changes while frozen".into())?;
            self.before = after;
            return Ok(());
        }
        // Nothing goes before the view is complete, and no endpoint of a service whose removals are withheld.
        let gathering = !view.complete;
        let held = report.held == Some(Held::MassDelete) && !gathering;
        let services = services();
        let wanted: BTreeMap<&str, Option<BTreeSet<String>>> = services
            .iter()
            .map(|id| (&**id, self.reference().wanted(id).map(|all| all.iter().map(address).collect())))
            .collect();
        for id in services.iter().map(String::as_str) {
            if wanted[id].as_ref().is_some_and(|wanted| !wanted.is_empty()) {
                self.empty.remove(id);
            }
        }
        for (id, had) in &self.before.served {
            let has = after.served.get(id);
            let gone: Vec<&String> =
                had.iter().filter(|endpoint| has.is_none_or(|has| !has.contains(*endpoint))).collect();
            if gathering || after.withheld.contains(&**id) {
                check(gone.is_empty(), || format!("{id} loses {gone:?}, which is to be withheld"))?;
            }
            if self.unknown.contains(&*id_of(id)) && self.driver.policy.serves(&id_of(id)) {
                check(has.is_some() && gone.is_empty(), || format!("{id} loses {gone:?}, and it could not be read"))?;
            }
            match &wanted[&**id] {
                None => check(gone.is_empty(), || format!("{id} loses {gone:?}, and it cannot be read"))?,
                Some(wanted) => {
                    let named: Vec<_> = gone.iter().filter(|endpoint| wanted.contains(**endpoint)).collect();
                    check(named.is_empty(), || format!("{id} loses {named:?}, which the registry names"))?;
                }
            }
            if has.is_none() {
                check(!gathering, || format!("{id} goes before the view is complete"))?;
                let may_go = wanted[&**id].as_ref().is_some_and(BTreeSet::is_empty);
                let since = report_since(&self.empty, id, had, *now);
                let excluded = !self.driver.policy.serves(&id_of(id));
                check(may_go && (excluded || *now - since >= GRACE), || {
                    format!("{id} goes, though neither registry nor policy nor grace says so")
                })?;
            }
        }
        // When a hold begins no more is said to be missing than would be, if nothing were withheld.
        let would_be_empty = |id: &&String| match &wanted[&***id] {
            Some(wanted) if wanted.is_empty() => {
                let over = self.empty.get(*id).is_some_and(|since| *now - since >= GRACE);
                let kept = report.quarantined.contains_key(&***id) && self.driver.policy.serves(&id_of(id)) && !over;
                !kept || after.served.get(*id).is_none_or(BTreeSet::is_empty)
            }
            Some(_) => report.quarantined.contains_key(&***id) && after.served.get(*id).is_none_or(BTreeSet::is_empty),
            None => after.served.get(*id).is_none_or(BTreeSet::is_empty),
        };
        if held && self.before.held != report.held {
            let (missing, most) = (report.withheld.unwrap_or_default(), services.iter().filter(would_be_empty).count());
            check(missing.services <= most, || {
                format!("{missing:?} is held, and at most {most} services would be empty")
            })?;
        }
        // A newcomer takes nothing from anybody who is served and has endpoints, but for the pins.
        let pinned = |place: &str, id: &str| self.driver.pins.get(place).is_some_and(|pinned| **pinned != *id);
        for (id, (host, vips)) in self.told.iter().filter(|_| self.before.shown) {
            let has_some = after.served.get(id).is_some_and(|endpoints| !endpoints.is_empty());
            let Some((now, addresses)) = after.places.get(id).filter(|_| has_some) else { continue };
            let wanted = self.reference().candidates(id);
            let at = |host: &String| wanted.iter().position(|wanted| wanted == host);
            check(at(host).is_none() || at(now) <= at(host) || pinned(host, id), || {
                format!("{id} was {host} and is {now}")
            })?;
            for range in self.driver.config.vip_cidr.iter().filter(|_| host == now) {
                let of = |vips: &Vips| vips.0[family(range.addr())];
                let (Some(vip), address) = (of(vips), of(addresses)) else { continue };
                let thief = after.places.iter().find(|(other, (_, theirs))| *other != id && of(theirs) == Some(vip));
                let candidates = vip_candidates(&Sha256::digest(host).into(), *range);
                // Where the ranges are others since, it may be none that the host could have now.
                let Some(thief) = thief.filter(|_| candidates.contains(&vip)) else { continue };
                let at = |vip: Option<IpAddr>| candidates.iter().position(|wanted| Some(*wanted) == vip);
                let is_pinned = pinned(&vip.to_string(), id);
                check(is_pinned || at(address).is_some() && at(address) < at(Some(vip)), || {
                    format!("{thief:?} has what {id} had")
                })?;
            }
        }
        self.empty.retain(|id, _| after.served.contains_key(id));
        for (id, has) in &after.served {
            let is_empty = wanted[&**id].as_ref().is_some_and(BTreeSet::is_empty);
            let is_known = wanted[&**id].is_some() && !self.unknown.contains(&*id_of(id));
            if !is_known && has.is_empty() {
                continue; // A grace that began before goes on.
            }
            // The grace of endpoints that are withheld, or not known to be gone, has not begun.
            match is_empty && is_known && (has.is_empty() || !report.withheld_services.contains(&**id)) {
                true => drop(self.empty.entry(id.clone()).or_insert(*now)),
                false => drop(self.empty.remove(id)),
            }
        }
        // A grace begins once, also where nobody knew of the service for a while.
        self.graces.retain(|id, _| {
            let nothing = wanted[&**id].as_ref().is_none_or(BTreeSet::is_empty);
            nothing && after.served.get(id).is_some_and(BTreeSet::is_empty)
        });
        for (id, since) in &report.graces {
            let began = *self.graces.entry(id.to_string()).or_insert(*since);
            check(began == *since, || format!("the grace of {id} began at {began}, and again at {since}"))?;
        }
        if !gathering {
            if !std::mem::take(&mut self.is_first) {
                self.check_lost(&after)?;
            }
            let had = self.before.served.values().filter(|endpoints| !endpoints.is_empty()).count();
            self.most = self.most.max(had);
            let returning = self.most - had;
            if !std::mem::take(&mut self.begins_again) {
                self.check_new(&after, returning)?;
            }
            self.settled_at = self.settled_at.or(Some(*now + 60_000));
        }
        self.check_lingering(&after, gathering)?;
        let (now, shown) = (self.driver.now, self.driver.view.shown);
        // Everything that the first view has came with it, whenever it was read.
        let is_first_view = gathering || std::mem::replace(&mut self.was_gathering, gathering);
        let came = after.served.iter().filter(|(_, has)| !has.is_empty()).map(|(id, _)| {
            let known = self.came.get(id).copied().filter(|(at, _)| !is_first_view || *at == LONG_AGO);
            // A hold goes on under a freeze, which the report names before it.
            let is_held = self.before.held == Some(Held::MassDelete) || !self.before.withheld.is_empty();
            let during = is_held && !is_first_view;
            (id.clone(), known.unwrap_or((now, during)))
        });
        self.came = came.collect();
        self.before = after;
        if self.driver.round.is_settled() && !gathering && (self.thorough || self.rounds.is_multiple_of(4)) {
            self.compare()?;
        }
        if shown {
            self.told = self.before.places.clone();
        }
        Ok(())
    }

    /// An address stays in its entry after its provider went, for as long as the policy says, unless somebody else is there;
    /// what stays so is named, has no endpoint and goes when that is over.
    fn check_lingering(&mut self, after: &Before, gathering: bool) -> Result<(), String> {
        let Driver { view, report, now, policy, config, .. } = &self.driver;
        let places = |served: &Served| -> BTreeSet<SocketAddr> {
            served.values().flatten().filter_map(|endpoint| endpoint.parse().ok()).collect()
        };
        let (had, has) = (places(&self.before.served), places(&after.served));
        self.deserted.retain(|place, _| !has.contains(place));
        self.deserted.extend(had.difference(&has).map(|place| (*place, *now)));
        let dialed = dialed(view);
        let entry_of = |host: &str| format!("{}/{}", config.namespace, names::resource_name(host, &config.host_suffix));
        let hosts = || report.quarantined.keys().filter_map(|name| name.strip_prefix("application://"));
        let is_old = |name: &str| hosts().any(|host| name == entry_of(host));
        let linger = policy.linger().as_millis() as Millis;
        for (place, lingers) in &report.lingering {
            let name = entry_name(config, &lingers.application, place.port());
            let (address, entry) = (place.ip().to_string(), dialed.get(&name).map(|(_, entry)| entry));
            let stands = entry.is_some_and(|entry| entry.addresses.contains(&address));
            check(stands || is_old(&name), || format!("{address} lingers, and is not in {name}"))?;
            let is_called =
                entry.is_some_and(|entry| entry.endpoints.iter().any(|endpoint| endpoint.address == address));
            check(!is_called || is_old(&name), || format!("{address} lingers, and is an endpoint of {name}"))?;
            check(!has.contains(place), || format!("{place} lingers, and somebody is there"))?;
            check(*now - lingers.since < linger, || format!("{place} lingers since {}, it is {now}", lingers.since))?;
        }
        let counts = report.direct.as_ref().map_or(0, |direct| direct.lingering);
        check(counts == report.lingering.len(), || format!("{counts} linger, named are {:?}", report.lingering))?;
        let before = self.dialed.take().filter(|(_, before)| Arc::ptr_eq(before, policy));
        for (name, (_, had)) in before.iter().flat_map(|(entries, _)| entries).filter(|(name, _)| !is_old(name)) {
            let has = dialed.get(name).map(|(_, entry)| &entry.addresses[..]).unwrap_or_default();
            for address in had.addresses.iter().filter(|address| !has.contains(*address)) {
                let place = SocketAddr::new(address.parse().unwrap(), had.ports[0].number as u16);
                let over = self.deserted.get(&place).is_none_or(|since| *now - since >= linger);
                check(over, || format!("{place} goes from {name}, and had to linger"))?;
            }
        }
        // Before the view is complete no entry goes, whatever the policy says.
        self.dialed = (!gathering).then(|| (dialed, Arc::clone(policy)));
        Ok(())
    }

    /// No more services go in a round than a registry in its right mind takes away, but for those that came while removals
    /// were withheld, and those that were withheld until now.
    fn check_lost(&self, after: &Before) -> Result<(), String> {
        let some = |served: &Served, id: &str| served.get(id).is_some_and(|endpoints| !endpoints.is_empty());
        let had: Vec<String> = services().into_iter().filter(|id| some(&self.before.served, id)).collect();
        let is_lost = |id: &&String| !some(&after.served, id) && !self.before.withheld.contains(&***id);
        // A service that came within the window is in another account than those that were there when it began.
        let (mut old, mut all) = (0, 0);
        for (at, during) in had.iter().filter(is_lost).filter_map(|id| self.came.get(id)) {
            let is_old = self.driver.now - at >= 60_000;
            old += usize::from(is_old);
            all += usize::from(is_old || !during);
        }
        // Of the services in a hold that ends in this round nothing is judged, withheld before or not.
        if !self.before.withheld.is_subset(&after.withheld) {
            return Ok(());
        }
        let is_few = |count: usize| count <= 2 || count * 100 <= had.len() * 30;
        check(is_few(old) && is_few(all.div_ceil(2)), || {
            format!("{old} and in all {all} of {} services go, and are not withheld", had.len())
        })?;
        let nothing = all >= 2 && after.served.values().all(BTreeSet::is_empty);
        check(!nothing, || "nothing is left, and nothing is withheld".into())
    }

    /// No more new services come in a round than may come at once, but for those that waited, and as many as went before.
    fn check_new(&self, after: &Before, returning: usize) -> Result<(), String> {
        let had = |id: &str| self.before.served.contains_key(id);
        let new = after.served.keys().filter(|id| !had(id) && !self.before.waiting.contains(&***id)).count();
        // The round that ends a hold judges nobody.
        let ends = self.before.adding && !after.adding;
        let settled = self.settled_at.is_some_and(|at| self.driver.now >= at);
        check(!settled || ends || new <= 2 + returning, || format!("{new} new services come, and none waits"))?;
        let there = after.waiting.iter().find(|id| had(id) || after.served.contains_key(&***id));
        check(there.is_none(), || format!("{there:?} was there, and waits"))
    }

    /// What counts of who consumes what is the last word on that, or more while a hold is named.
    fn check_seen(&self) -> Result<(), String> {
        let Driver { policy, config, seen, round, report, .. } = &self.driver;
        let counts = round.narrowing().seen();
        let held = report.narrowing.is_some();
        check(held || is_same(counts, seen.as_ref()), || "less counts than is seen, and no hold is named".into())?;
        for id in IDS {
            let of = |seen: Option<&Arc<Seen>>| {
                exported(&policy.rules(id), id, seen.map(|seen| &**seen), &config.namespace).into_owned()
            };
            let (has, wanted) = (of(counts), of(seen.as_ref()));
            check(covers(&has, &wanted, &config.namespace), || format!("{id} is exported to {has:?}, not {wanted:?}"))?;
        }
        Ok(())
    }

    /// Everything is served as it is to be, but for exceptions.
    fn compare(&self) -> Result<(), String> {
        let Driver { view, report, now, .. } = &self.driver;
        let ours = resources(&view.service_entries, |body| ServiceEntry::decode(body).unwrap());
        let workloads = resources(&view.workload_entries, |body| WorkloadEntry::decode(body).unwrap());
        self.check_seen()?;
        let waiting = report.waiting_services.iter().map(|id| id.to_string()).collect();
        let mut exceptions = Exceptions { waiting, ..Exceptions::default() };
        for (id, _, _, entry) in &ours {
            let Some(id) = id else { continue };
            let unknown = report.unknown.sample.iter().any(|known| **known == *id_of(id));
            let quarantined = report.quarantined.contains_key(&**id);
            let withheld = report.withheld_services.contains(&**id);
            // An endpoint that may not go and has no place in a new form keeps its service in the old one, place and all.
            let dns = self.before.served[&**id].iter().any(|endpoint| endpoint.starts_with("what."));
            let stays = (withheld || unknown) && dns && !self.driver.policy.rules(&id_of(id)).dns;
            if quarantined || stays || (unknown && self.before.served[&**id].is_empty()) {
                exceptions.kept.insert(id.clone(), place(entry));
                exceptions.quarantined.extend(quarantined.then(|| id.clone()));
            } else if unknown || withheld {
                exceptions.withheld.insert(id.clone());
            } else if let Some(since) = report.graces.get(&**id) {
                check(now - since < GRACE, || format!("{id} has been in its grace since {since}, it is {now}"))?;
                exceptions.graces.insert(id.clone());
            }
        }
        let named: BTreeSet<&str> = report.unknown.sample.iter().map(|id| &**id).collect();
        check(named == self.unknown, || format!("unknown are {named:?}, not {:?}", self.unknown))?;
        // The first view of a start under a freeze is judged, and stays as it was judged.
        let stays = report.held == Some(Held::Frozen);
        check(report.withheld_services.is_empty() || report.held == Some(Held::MassDelete) || stays, || {
            format!("{:?} are withheld, and held is {:?}", report.withheld_services, report.held)
        })?;
        check(report.waiting.map_or(0, |count| count) == report.waiting_services.len(), || {
            format!("{:?} wait, and named are {:?}", report.waiting, report.waiting_services)
        })?;
        let has_held = matches!(report.held, Some(Held::MassAdd | Held::MassDelete)) || stays;
        check(report.waiting.is_none() || has_held, || format!("some wait, and held is {:?}", report.held))?;
        let places = &self.before.places;
        let services = services();
        let services: Vec<&str> = services.iter().map(String::as_str).collect();
        let Expected { ids, refused, resources: expected } = self.reference().expected(&services, &exceptions, places);
        let is_empty = |id: &str| self.before.served[id].is_empty();
        let wrong = self.reference().wrong(places, &self.told, &exceptions.kept, is_empty);
        check(wrong.is_none(), || wrong.unwrap_or_default())?;
        let served: BTreeSet<String> = ours.iter().filter_map(|(id, ..)| id.clone()).collect();
        check(served == ids, || format!("served are {served:?}, to be served are {ids:?}"))?;
        // A service beside the main one may be known from before the id could not be read.
        let is_unread =
            |id: &str| id != id_of(id) && !exceptions.kept.contains_key(id) && self.reference().wanted(id).is_none();
        let quarantined = report.quarantined.keys().filter(|id| services.contains(&&***id) && !is_unread(id));
        let quarantined: BTreeSet<String> = quarantined.map(|id| id.to_string()).collect();
        check(quarantined == refused, || format!("quarantined are {quarantined:?}, refused are {refused:?}"))?;
        // Byte by byte, by the versions, which are hashes of the bytes.
        let expected = expected.map(|changes| {
            let snapshot = Snapshot::default().with(&changes);
            let metadata = snapshot.decode().into_iter().map(|resource| resource.metadata.unwrap());
            metadata.map(|metadata| (metadata.name, metadata.version)).collect::<BTreeMap<_, _>>()
        });
        let is_other = |id: &Option<String>| {
            id.as_ref().is_none_or(|id| exceptions.kept.contains_key(id) || exceptions.withheld.contains(id))
        };
        let ours = ours.into_iter().filter(|(id, ..)| !is_other(id));
        let ours: BTreeMap<_, _> = ours.map(|(_, name, version, _)| (name, version)).collect();
        check(ours == expected[0], || format!("ServiceEntries are {ours:?}, to be served are {:?}", expected[0]))?;
        let workloads = workloads.into_iter().filter(|(id, ..)| !is_other(id));
        let workloads: BTreeMap<_, _> = workloads.map(|(_, name, version, _)| (name, version)).collect();
        check(workloads == expected[1], || format!("WorkloadEntries are {workloads:?}, not {:?}", expected[1]))?;
        let rules = resources(&view.destination_rules, |body| DestinationRule::decode(body).unwrap());
        let rules = rules.into_iter().filter(|(id, ..)| id.is_some() && !is_other(id));
        let rules: BTreeMap<_, _> = rules.map(|(_, name, version, _)| (name, version)).collect();
        check(rules == expected[2], || format!("DestinationRules are {rules:?}, not {:?}", expected[2]))?;
        // Where there is no exception, everything is as it would be after a restart with the last good state; and where nobody
        // contends for a place, after a start from nothing. Entries of applications included.
        if self.unknown.is_empty()
            && exceptions.kept.is_empty()
            && exceptions.withheld.is_empty()
            && exceptions.waiting.is_empty()
            && report.quarantined.is_empty()
            && (self.thorough || self.rounds.is_multiple_of(16))
        {
            let graces = !exceptions.graces.is_empty();
            self.compare_with_a_start(graces, true)?;
            if report.contested.is_empty() {
                self.compare_with_a_start(graces, false)?;
            }
        }
        Ok(())
    }

    fn compare_with_a_start(&self, graces: bool, last_good: bool) -> Result<(), String> {
        let Driver { config, now, view, round, .. } = &self.driver;
        let last_good = last_good.then(|| over_a_restart(view.clone(), 0, round.empty(), Duration::ZERO));
        let graces = graces && last_good.is_none();
        let mut fresh = Driver::started(Arc::clone(config), *now, last_good);
        fresh.policy = Arc::clone(&self.driver.policy);
        fresh.pins = Arc::clone(&self.driver.pins);
        fresh.seen = self.driver.round.narrowing().seen().cloned();
        fresh.orders.loaded = true;
        for id in IDS {
            let bodies: Vec<(String, Vec<u8>)> = self
                .publishers
                .iter()
                .filter(|((service, _), _)| IDS[*service] == id)
                .map(|((service, publisher), data)| {
                    let (register_id, _, data) = self.publisher(*service, *publisher, *data, 0);
                    (register_id, data.join("\n").into_bytes())
                })
                .collect();
            // With the versions that they have, by which an application's address is the newest's.
            for entry in self.driver.store.read(id) {
                let register_id = entry.body().register_id.as_str().to_owned();
                let Some((_, data)) = bodies.iter().find(|(known, _)| *known == register_id) else {
                    return Err(format!("{id} has a publisher {register_id} that the registry does not name"));
                };
                let data: Vec<&str> = std::str::from_utf8(data).unwrap().split('\n').collect();
                let body = entry.body();
                let from = body.details().unwrap().source_address;
                fresh.publish_from(from, id, &register_id, entry.version.version, &data);
            }
        }
        fresh.round();
        // Whoever starts knows nothing of what lingers.
        let lingering = &self.driver.report.lingering;
        let (mut ours, mut theirs) = (dialed(view), dialed(&fresh.view));
        for (place, lingers) in lingering {
            let name = entry_name(config, &lingers.application, place.port());
            for (version, entry) in [ours.get_mut(&name), theirs.get_mut(&name)].into_iter().flatten() {
                version.clear();
                entry.addresses.retain(|address| *address != place.ip().to_string());
            }
        }
        ours.retain(|_, (_, entry)| !entry.addresses.is_empty());
        check(ours == theirs, || format!("entries of applications are {ours:?}, after a start they are {theirs:?}"))?;
        let (ours, theirs) = (versions(&self.driver.view), versions(&fresh.view));
        check(graces || !lingering.is_empty() || ours == theirs, || {
            format!("versions are {ours:?}, after a start they are {theirs:?}")
        })
    }
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Since when a service that goes has been without endpoints; one that had some until now has not been at all.
fn report_since(empty: &BTreeMap<String, Millis>, id: &str, had: &BTreeSet<String>, now: Millis) -> Millis {
    match empty.get(id) {
        Some(since) => *since,
        // The service came empty out of a restart.
        None if had.is_empty() => START,
        None => now,
    }
}

fn address(member: &crate::translate::service_entry::Member) -> String {
    format!("{}:{}", member.endpoint().address, member.endpoint().port)
}

/// Hosts and virtual addresses of services.
fn places(view: &View) -> Places {
    let entries = resources(&view.service_entries, |body| ServiceEntry::decode(body).unwrap());
    entries.into_iter().filter_map(|(id, _, _, entry)| Some((id?, place(&entry)))).collect()
}

fn place(entry: &ServiceEntry) -> (String, Vips) {
    (entry.hosts[0].clone(), entry.addresses.iter().map(|vip| vip.parse().unwrap()).collect())
}

/// The name of the entry of an application's port.
fn entry_name(config: &Config, application: &str, port: u16) -> String {
    let host = app_entry::host(application, port, &config.host_suffix);
    format!("{}/{}", config.namespace, names::resource_name(&host, &config.host_suffix))
}

fn dialed(view: &View) -> Dialed {
    let entries = resources(&view.service_entries, |body| ServiceEntry::decode(body).unwrap());
    let of_applications = entries.into_iter().filter(|(id, ..)| id.is_none());
    of_applications.map(|(_, name, version, entry)| (name, (version, entry))).collect()
}

fn versions(view: &View) -> [String; 3] {
    view.versions().map(str::to_owned)
}

/// The text of the service's key, name, version and content of each resource.
fn resources<T>(snapshot: &Snapshot, decode: impl Fn(bytes::Bytes) -> T) -> Vec<(Option<String>, String, String, T)> {
    let resources = snapshot.decode().into_iter().map(|resource| {
        let metadata = resource.metadata.unwrap();
        (key(&metadata), metadata.name, metadata.version, decode(resource.body.unwrap().value))
    });
    resources.collect()
}

/// Endpoints of every service, wherever they stand.
fn served(view: &View) -> Served {
    let endpoint = |entry: &WorkloadEntry| format!("{}:{}", entry.address, entry.ports.values().next().unwrap());
    let mut served = Served::new();
    for (id, _, _, entry) in resources(&view.service_entries, |body| ServiceEntry::decode(body).unwrap()) {
        let Some(id) = id else { continue };
        let endpoints = entry.endpoints.iter().map(endpoint).collect();
        assert!(served.insert(id.clone(), endpoints).is_none(), "{id} is served twice");
    }
    for (id, _, _, entry) in resources(&view.workload_entries, |body| WorkloadEntry::decode(body).unwrap()) {
        served.get_mut(&id.unwrap()).expect("endpoints of a service that is served").insert(endpoint(&entry));
    }
    served
}

/// The first step of a history after which something does not hold, and what. A last round comes behind it.
fn run(seed: usize, steps: &[Step], thorough: bool) -> Result<(), (usize, String)> {
    let mut world = World::new(seed, thorough);
    for (n, step) in steps.iter().chain([&Step::Round]).enumerate() {
        world.thorough |= n == steps.len();
        let done = catch_unwind(AssertUnwindSafe(|| world.step(step)));
        let done = done.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("a panic: {}", text.unwrap_or_default()))
        });
        done.map_err(|what| (n, what))?;
    }
    Ok(())
}

/// The history without steps that it fails without as well.
fn shrunk(seed: usize, steps: Vec<Step>) -> Vec<Step> {
    let mut steps = steps;
    let mut size = steps.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < steps.len() {
            let rest: Vec<Step> =
                steps[..at].iter().chain(steps[(at + size).min(steps.len())..].iter()).cloned().collect();
            match run(seed, &rest, true) {
                Err((n, _)) => steps = rest[..(n + 1).min(rest.len())].to_vec(),
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    steps
}

thread_local! {
    /// Panics of this thread are looked for, so they are not to fill the output.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn be_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
}

/// Runs histories from `seed` on, of which every `stride`th is this one's, until there were so many steps.
fn run_all(seed: usize, stride: usize, steps_to_go: usize) -> Result<usize, String> {
    be_quiet();
    let mut done = 0;
    for seed in (seed..).step_by(stride) {
        if done >= steps_to_go {
            break;
        }
        let steps = steps(&mut Random::new(seed));
        if let Err((n, _)) = run(seed, &steps, false) {
            let steps = shrunk(seed, steps[..(n + 1).min(steps.len())].to_vec());
            let (_, what) = run(seed, &steps, true).unwrap_err();
            let steps: Vec<String> = steps.iter().map(|step| format!("    {step:?}\n")).collect();
            return Err(format!("MOX_SEED={seed}: {what}\n{}", steps.concat()));
        }
        done += steps.len();
    }
    Ok(done)
}

#[test]
fn whatever_the_history_what_is_served_is_what_a_start_from_nothing_would_serve() {
    let number = |name: &str, usual: usize| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let (steps, seed) = (number("MOX_ROUND_STEPS", 100_000), number("MOX_SEED", 0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let done = std::thread::scope(|scope| {
        let run = |n| scope.spawn(move || run_all(seed + n, threads, steps.div_ceil(threads)));
        let running: Vec<_> = (0..threads).map(run).collect();
        running.into_iter().map(|run| run.join().unwrap()).collect::<Result<Vec<usize>, String>>()
    });
    match done {
        Ok(done) => println!("{} steps, from seed {seed} on", done.into_iter().sum::<usize>()),
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn policies_are_what_they_are_said_to_be() {
    let refused =
        policies().into_iter().position(|policy| policy["exportTo"].as_array().is_some_and(|all| all.len() == 2));
    for (n, policy) in policies().into_iter().enumerate() {
        let made = Policy::new(serde_json::from_value(policy.clone()).unwrap(), &[], "sofa-registry");
        assert_eq!(made.is_ok(), Some(n) < refused, "{policy}");
    }
}

//! Services that the registry holds, and to whom they are exported.
//!
//! Fifty namespaces consume twenty services each, which are of twenty applications; an application provides ten services by ten
//! instances. Services beyond these thousand are consumed in one more namespace, which has no proxy here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
};

use harness::{
    process::{log_path, mortal, root},
    serve::{Serve, program},
};
use serde_json::{Value, json};

pub(crate) const ENDPOINTS: usize = 10;
const NAMESPACES: usize = 50;
/// Services that a namespace with a proxy consumes.
const USED: usize = 20;
/// Services of an application.
const OFFERS: usize = 10;
/// In so many parts istiod takes the services.
const PARTS: usize = 64;
const ELSEWHERE: &str = "elsewhere";

/// A way of exporting.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// To consumers only.
    visibility: bool,
    pub(crate) direct: bool,
}

pub(crate) const WAYS: [Way; 4] = [
    Way { name: "everybody", title: "exported to everybody", visibility: false, direct: false },
    Way { name: "consumers", title: "visibility on", visibility: true, direct: false },
    Way { name: "directEverybody", title: "direct mode, exported to everybody", visibility: false, direct: true },
    Way { name: "directConsumers", title: "direct mode, visibility on", visibility: true, direct: true },
];

pub(crate) fn namespace(n: usize) -> String {
    format!("ns-{n:02}")
}

/// The namespace that consumes the nth service.
fn consumer(n: usize) -> Option<usize> {
    (n < NAMESPACES * USED).then_some(n % NAMESPACES)
}

/// How many services namespace 0 consumes, and of how many applications.
pub(crate) fn seen(services: usize) -> (usize, usize) {
    let seen = (0..services).filter(|n| consumer(*n) == Some(0));
    let applications: BTreeSet<usize> = seen.clone().map(application).collect();
    (seen.count(), applications.len())
}

pub(crate) fn applications(services: usize) -> usize {
    services.div_ceil(OFFERS)
}

fn application(n: usize) -> usize {
    n / OFFERS
}

fn application_name(a: usize) -> String {
    format!("app-{a:04}")
}

fn interface(n: usize) -> String {
    match consumer(n) {
        Some(namespace) => format!("com.example.ns{namespace:02}.Service{n:05}"),
        None => format!("com.example.{ELSEWHERE}.Service{n:05}"),
    }
}

/// The interface of the nth new service, which namespace 0 consumes.
fn new_interface(n: usize) -> String {
    format!("com.example.ns00.New{n:05}")
}

fn id(interface: &str) -> String {
    format!("{interface}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA")
}

fn host(interface: &str) -> String {
    format!("{}.sofa.mesh", interface.to_lowercase())
}

/// A policy by which each service is exported to the namespaces of its consumers, byte for byte as with `visibility.mode` `on`: `serve` has
/// no registry to ask who they are.
fn to_consumers(services: usize) -> Value {
    let glob = |k: usize| (format!("com.example.ns{k:02}.*"), json!({ "exportTo": [namespace(k)] }));
    let overrides: BTreeMap<String, Value> = (0..NAMESPACES).map(glob).collect();
    let mut applications: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for n in 0..services {
        if let Some(k) = consumer(n) {
            applications.entry(application(n)).or_default().insert(namespace(k));
        }
    }
    let direct = applications.iter().map(|(a, to)| (application_name(*a), json!({ "exportTo": to })));
    let new = ("new-*".to_owned(), json!({ "exportTo": [namespace(0)] }));
    let direct: BTreeMap<String, Value> = direct.chain([new]).collect();
    json!({ "exportTo": [ELSEWHERE], "overrides": overrides, "direct": { "overrides": direct } })
}

fn policy(services: usize, way: Way) -> Value {
    let mut policy = if way.visibility { to_consumers(services) } else { json!({}) };
    if way.direct {
        policy["direct"]["applications"] = json!(["*"]);
        // An address that went does not linger, so that a change is over at once.
        policy["direct"]["linger"] = "0s".into();
    } else if let Some(policy) = policy.as_object_mut() {
        policy.remove("direct");
    }
    policy
}

/// The address of an application's instance, by how often it was started.
fn address(a: usize, instance: usize, start: usize) -> String {
    match start {
        0 => format!("10.{}.{}.{}", a / 250, a % 250, instance + 1),
        start => format!("11.{}.{}.{}", start / 250, start % 250, instance + 1),
    }
}

fn publisher(interface: &str, application: &str, instance: usize, address: &str, version: usize) -> Value {
    let url = format!(
        "{address}:12200?rpcVer=51302&serialization=hessian2&weight=100&timeout=3000&appName={application}&p=1&v=4.0\
         &language=java&pid=4711&interface={interface}&startTime=1700000000000"
    );
    json!({
        "registerId": format!("r{instance}"), "version": version, "registerTimestamp": version, "data": [url],
        "appName": application, "sourceAddress": address,
    })
}

/// The server; killed when dropped.
pub(crate) struct World {
    serve: Serve,
    services: usize,
    pub(crate) policy_bytes: usize,
    starts: usize,
    new: usize,
}

impl World {
    pub(crate) fn start(services: usize, way: Way) -> Self {
        let policy = policy(services, way);
        let policy_bytes = policy.to_string().len();
        let settings = json!({ "partitions": [PARTS], "threads": 2, "push": { "duty": 1 }, "policy": policy });
        let (config, log) = (root().join("target/real/run/scale.json"), log_path("scale-serve"));
        for path in [&config, &log] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(&config, settings.to_string()).unwrap();
        let log = File::create(log).unwrap();
        let serve = Serve::start(mortal(program()).arg("--config").arg(config).stderr(log));
        let mut world = Self { serve, services, policy_bytes, starts: 0, new: 0 };
        for n in 0..services {
            let (interface, a) = (interface(n), application(n));
            world.replace(&interface, &application_name(a), |instance| address(a, instance, 0));
        }
        world.serve.order(json!({ "op": "loaded" }));
        let served = world.serve.flush();
        // In direct mode its entries count as well.
        let entries = served["services"].as_u64().unwrap_or_default();
        assert!(entries >= services as u64 && served["held"].is_null(), "{served}");
        world
    }

    /// Where istiod takes the services from.
    pub(crate) fn sources(&self) -> Vec<String> {
        let parts = self.serve.first["slices"][PARTS.to_string()].as_array().expect("partitions");
        parts.iter().map(|part| part.as_str().unwrap().to_owned()).collect()
    }

    fn replace(&mut self, interface: &str, application: &str, address: impl Fn(usize) -> String) {
        let publishers: Vec<_> = (0..ENDPOINTS).map(|i| publisher(interface, application, i, &address(i), 1)).collect();
        let line = json!({ "op": "replace", "dataInfoId": id(interface), "version": 1, "publishers": publishers });
        self.serve.say(&line);
    }

    /// The service of namespace 0 whose instance is started anew next.
    fn next(&self) -> usize {
        (self.starts + 1) % seen(self.services).0 * NAMESPACES
    }

    /// Its host.
    pub(crate) fn next_restarted(&self) -> String {
        host(&interface(self.next()))
    }

    /// An instance of an application that namespace 0 consumes a service of starts anew, under another address.
    pub(crate) fn restart(&mut self) {
        let a = application(self.next());
        self.starts += 1;
        let start = self.starts;
        let address = address(a, 0, start);
        for n in (a * OFFERS..(a + 1) * OFFERS).filter(|n| *n < self.services) {
            let interface = interface(n);
            let mut line = publisher(&interface, &application_name(a), 0, &address, start + 1);
            line["op"] = "publish".into();
            line["dataInfoId"] = id(&interface).into();
            self.serve.say(&line);
        }
        self.serve.flush();
    }

    /// A new service of a new application's ten instances, which namespace 0 consumes.
    pub(crate) fn add(&mut self) {
        self.new += 1;
        let n = self.new;
        self.replace(&new_interface(n), &format!("new-{n}"), |instance| format!("12.0.{n}.{}", instance + 1));
        let served = self.serve.flush();
        assert!(served["held"].is_null(), "{served}");
    }
}

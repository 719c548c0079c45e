//! Whom real consumers would call, beside whom the mesh is told to call: each is asked for its own list.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use harness::{
    SOON,
    parts::{Follower, Provider, Registry},
    process::{Driven, START, eventually_is, free_port, log_path, script},
};

use crate::mesh::wait_for_line;

/// Addresses and weights; of equal ones no weight says anything.
type List = BTreeMap<String, u32>;

/// A Dubbo id's service, and the one beside it of its providers that speak REST.
const SERVICE: &str = "dubbo.v9-0-0.com.example.demoservice";
const SERVICE_OF_REST: &str = "rest.dubbo.v9-0-0.com.example.demoservice";

pub(crate) fn of_sofarpc(registry: &mut Registry) {
    let ports = [(); 9].map(|()| free_port());
    let at = |n: usize| format!("127.0.0.1:{}", ports[n]);
    // A provider's own parameters come after its usual ones.
    let services = ["own:100:weight=7:zone=GZ00A", "own:50", "drained:0", "drained:100", "alone:0", "both:0", "both:0"];
    let services: Vec<_> = services.iter().zip(ports).map(|(service, port)| format!("bolt:{port}:{service}")).collect();
    let arguments: Vec<_> = ["shop"].into_iter().chain(services.iter().map(String::as_str)).collect();
    let mut providers = vec![Provider::spawn("provider.sh", &arguments)];
    providers[0].wait_until_exported();
    for (app, port) in [("支付", ports[7]), ("", ports[8])] {
        providers.push(Provider::spawn("provider.sh", &[app, &format!("bolt:{port}:names:100")]));
        providers.last_mut().unwrap().wait_until_exported();
    }
    let mut mesh = Follower::connect(registry);
    for (service, wanted) in [
        ("own", vec![(at(0), 7), (at(1), 50)]),
        ("drained", vec![(at(3), 0)]),
        ("alone", vec![(at(4), 0)]),
        ("both", vec![(at(5), 0), (at(6), 0)]),
        ("names", vec![(at(7), 0), (at(8), 0)]),
    ] {
        let wanted = List::from_iter(wanted);
        let mut consumer = Consumer::start(&["Consumer", "sofa://127.0.0.1:9603", "1", service]);
        eventually_is(&wanted, &format!("{service} in SOFARPC's list"), || consumer.list());
        let name = format!("{service}.v1-0.com.example.demoservice");
        mesh.wait_until(|state| served(state, &name) == wanted);
    }
    providers.into_iter().for_each(Provider::stop);
}

pub(crate) fn of_dubbo(registry: &mut Registry) {
    let (port, rest, disabled) = (free_port(), free_port(), free_port());
    let mut provider = DubboProvider::start("shop", &format!("{port},{rest}"), ":9.0.0");
    let _disabled = DubboProvider::start("shop-disabled", &disabled.to_string(), ":9.0.0:disabled=true");
    let url = |scheme: &str, address: &str, more: &str| {
        let interface = "com.example.DemoService";
        format!("{scheme}://{address}/{interface}?interface={interface}&version=9.0.0{more}")
    };
    for (scheme, address, more) in [
        ("dubbo", "127.9.0.1:20880", "&application=shop&enabled=false"),
        ("dubbo", "127.9.0.2:20880", "&application=shop&disabled=false&enabled=false"),
        ("dubbo", "127.9.0.3:20880", "&application=shop&weight=0"),
        ("dubbo", "127.9.0.4:20880", "&application=shop&weight=7"),
        ("dubbo", "2001:db8:1:0:0:0:0:10%3:20880", "&application=shop"),
        // An admin client's; an application in them would be the consumer's.
        ("override", "127.9.0.2:20880", "&category=configurators&dynamic=false&timeout=6000"),
        ("condition", "0.0.0.0", "&category=routers&dynamic=false&force=false&rule=host%20%3D%20127.9.9.9%20%3D%3E%20"),
    ] {
        provider.0.tell(&format!("register {}", url(scheme, address, more)));
    }
    let address = |text: &str| text.to_owned();
    let of_dubbo = List::from([
        (format!("127.0.0.1:{port}"), 100),
        (address("127.9.0.2:20880"), 100),
        (address("127.9.0.4:20880"), 7),
        (address("2001:db8:1::10:20880"), 100),
    ]);
    let of_rest = List::from([(format!("127.0.0.1:{rest}"), 100)]);
    let both = |of_dubbo: &List| of_dubbo.clone().into_iter().chain(of_rest.clone()).collect::<List>();
    let mut consumer = Consumer::start(&["DubboConsumer", "127.0.0.1:9603", "9.0.0"]);
    eventually_is(&both(&of_dubbo), "Dubbo's list", || consumer.list());
    let mut mesh = Follower::connect(registry);
    let mut is_served = |of_dubbo: &List| {
        mesh.wait_until(|state| {
            // Alone in its service a provider's weight says nothing.
            served(state, SERVICE) == *of_dubbo && served(state, SERVICE_OF_REST).keys().eq(of_rest.keys())
        });
    };
    is_served(&of_dubbo);

    // What the mesh does not follow, as docs/providers.md says: a configurator that takes a provider out.
    let out = url("override", "127.9.0.2:20880", "&category=configurators&dynamic=false&disabled=true");
    provider.0.tell(&format!("register {out}"));
    let mut without = both(&of_dubbo);
    without.remove("127.9.0.2:20880");
    eventually_is(&without, "Dubbo's list without what is disabled", || consumer.list());
    provider.0.tell(&format!("register {}", url("dubbo", "127.9.0.6:20880", "&application=shop"))); // seen after it
    let more = of_dubbo.into_iter().chain([(address("127.9.0.6:20880"), 100)]).collect();
    is_served(&more);
}

/// Addresses and weights of a service.
fn served(state: &harness::client::State, name: &str) -> List {
    let Some(resource) = state.get(&format!("sofa-registry/{name}")) else { return List::new() };
    let weights = resource.entry.endpoints.iter().map(|endpoint| endpoint.weight);
    resource.endpoints().into_iter().zip(weights).collect()
}

/// A real Dubbo provider, told on its standard input what else to register.
struct DubboProvider(Driven);

impl DubboProvider {
    fn start(application: &str, ports: &str, service: &str) -> Self {
        let mut command = script("dubbo.sh", &log_path(&format!("dubbo-of-tests-{application}")));
        let mut driven = Driven::start(command.args([application, ports, service]));
        wait_for_line(&mut driven, "exported ");
        Self(driven)
    }
}

/// A real consumer of `com.example.DemoService`.
struct Consumer(Driven);

impl Consumer {
    fn start(arguments: &[&str]) -> Self {
        let mut driven = Driven::start(script("consumer.sh", &log_path("consumer-of-tests")).args(arguments));
        wait_for_line(&mut driven, "ready");
        Self(driven)
    }

    /// Whom it would call now, by its own list and its own load balancer.
    fn list(&mut self) -> List {
        self.0.tell("list");
        let line = loop {
            let line = self.0.line(START.min(2 * SOON));
            if let Some(rest) = line.strip_prefix("list") {
                break rest.to_owned();
            }
        };
        let mut list: List = line
            .split_whitespace()
            .map(|word| {
                let (address, weight) = word.rsplit_once('=').unwrap();
                let (host, port) = address.rsplit_once(':').unwrap();
                let ip: IpAddr = host.split('%').next().unwrap().parse().unwrap();
                (format!("{ip}:{port}"), weight.parse().unwrap())
            })
            .collect();
        if list.values().collect::<BTreeSet<_>>().len() == 1 {
            list.values_mut().for_each(|weight| *weight = 0);
        }
        list
    }
}

//! A way of exporting: costs of a sidecar and of istiod to start, for a change of an endpoint and for a new service.

use std::{
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use harness::{
    figures::{Cpu, median},
    http,
    parts::Istiod,
    process::{Process, START, eventually, log_path, root, script},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cost::{cpu, millis, resident, settle},
    followers::Followers,
    world::{Way, World, namespace},
};

/// Not that of `tests/real`, whose istiod's configuration has the port in its name.
const ISTIOD_PORT: u16 = 15_110;
const SIDECAR: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 1);
/// Proxies, each in a namespace of its own.
const PROXIES: [usize; 2] = [1, 10];
/// Longer than istiod waits for more to come before it pushes.
const DEBOUNCE: Duration = Duration::from_millis(500);

/// How long it is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Changes of each kind, with one proxy and with ten.
    changes: [usize; 2],
    /// Over which it is measured what a sidecar takes by itself.
    idle: Duration,
}

impl Plan {
    /// At rest twice as long as what Envoy makes its statistics in.
    pub(crate) const FULL: Self = Self { changes: [7, 5], idle: Duration::from_secs(10) };
    pub(crate) const SMALL: Self = Self { changes: [1, 1], idle: Duration::from_millis(100) };
}

/// Costs of a way of exporting.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figures {
    pub(crate) sidecar: Sidecar,
    pub(crate) istiod: IstiodFigures,
    /// Of the policy that was in force.
    pub(crate) policy_bytes: usize,
}

/// Of one sidecar, in namespace 0.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sidecar {
    pub(crate) resident_bytes: u64,
    pub(crate) clusters: u64,
    pub(crate) listeners: u64,
    /// Until it was ready.
    pub(crate) start_cpu_ms: f64,
    pub(crate) ready_ms: f64,
    /// In a second in which nothing happens.
    pub(crate) idle_cpu_ms: f64,
    /// For a change of an endpoint.
    pub(crate) endpoint_cpu_ms: f64,
    pub(crate) service_cpu_ms: f64,
    /// Connections to istiod: more than one where it was too busy to keep it.
    pub(crate) connections: u64,
    /// Of each change, and for each new service.
    pub(crate) all: [Vec<f64>; 2],
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IstiodFigures {
    pub(crate) resident_bytes: u64,
    /// With one proxy, and with ten.
    pub(crate) endpoint_cpu_ms: [f64; 2],
    pub(crate) service_cpu_ms: [f64; 2],
    /// Bytes that istiod sent to all proxies together.
    pub(crate) endpoint_bytes: [f64; 2],
    pub(crate) service_bytes: [f64; 2],
}

/// Costs of a change.
#[derive(Debug, Clone, Copy)]
struct Took {
    sidecar: f64,
    istiod: f64,
    bytes: f64,
}

/// The parts, which end with it, the last one first.
struct Scene {
    followers: Option<Followers>,
    envoy: Process,
    istiod: Istiod,
    world: World,
}

pub(crate) fn run(services: usize, way: Way, plan: Plan) -> Figures {
    let mut figures = Figures::default();
    let world = World::start(services, way);
    figures.policy_bytes = world.policy_bytes;
    say("the server has all services");
    let also = without_mtls();
    let more = [("GRPC_ADDRESS", "0.0.0.0"), ("ALSO", &also), ("MTLS", "false")];
    let istiod = Istiod::with_sources(&world.sources(), ISTIOD_PORT, &more);
    settle(&[istiod.process.pid()]);
    say("istiod has them");

    let begin = Instant::now();
    let mut command = script("sidecar.sh", &log_path("scale-sidecar"));
    command.env("ISTIOD_PORT", ISTIOD_PORT.to_string());
    // Where no certificates are needed, nobody has to be there who gives them.
    let mut envoy = Process::start(command.args([&namespace(0), &SIDECAR.to_string(), "127.0.0.1:1"]));
    eventually(2 * START, "the sidecar is ready", || {
        assert!(envoy.alive(), "Envoy ended: see target/real/log/scale-sidecar.log");
        http::get((SIDECAR, 19_000), "/ready")
    });
    let pid = envoy.pid();
    figures.sidecar.ready_ms = begin.elapsed().as_secs_f64() * 1e3;
    figures.sidecar.start_cpu_ms = millis(&Cpu::default(), &cpu(pid));
    let mut scene = Scene { followers: None, envoy, istiod, world };
    scene.rest();
    let held = scene.stats(&[ACTIVE_CLUSTERS, ACTIVE_LISTENERS]);
    (figures.sidecar.clusters, figures.sidecar.listeners) = (held[0], held[1]);
    scene.rest();
    figures.sidecar.resident_bytes = resident(pid);
    say(&format!(
        "the sidecar is ready after {:.1} s with {:.2} s of CPU: {} clusters, {} listeners, {} MB",
        figures.sidecar.ready_ms / 1e3,
        figures.sidecar.start_cpu_ms / 1e3,
        figures.sidecar.clusters,
        figures.sidecar.listeners,
        figures.sidecar.resident_bytes / 1_000_000
    ));
    figures.sidecar.idle_cpu_ms = scene.idle(plan.idle);

    for (n, (proxies, changes)) in PROXIES.into_iter().zip(plan.changes).enumerate() {
        if proxies > 1 {
            let others: Vec<String> = (1..proxies).map(namespace).collect();
            scene.followers = Some(Followers::connect(&format!("{SIDECAR}:{ISTIOD_PORT}"), &others));
            scene.rest();
        }
        let endpoints: Vec<Took> = (0..changes).map(|_| scene.endpoint(way)).collect();
        let new: Vec<Took> = (0..changes).map(|_| scene.service(way)).collect();
        let istiod = &mut figures.istiod;
        for (took, cpu, bytes) in [
            (&endpoints, &mut istiod.endpoint_cpu_ms, &mut istiod.endpoint_bytes),
            (&new, &mut istiod.service_cpu_ms, &mut istiod.service_bytes),
        ] {
            cpu[n] = median(took.iter().map(|it| it.istiod));
            bytes[n] = median(took.iter().map(|it| it.bytes));
        }
        say(&format!(
            "{proxies} {}: istiod takes {:.0} ms of CPU for an endpoint and sends {:.0} bytes, {:.0} ms and {:.0} for a new service",
            if proxies == 1 { "proxy" } else { "proxies" },
            istiod.endpoint_cpu_ms[n],
            istiod.endpoint_bytes[n],
            istiod.service_cpu_ms[n],
            istiod.service_bytes[n],
        ));
        if proxies == 1 {
            let of = |took: &[Took]| took.iter().map(|it| it.sidecar).collect::<Vec<f64>>();
            let sidecar = &mut figures.sidecar;
            sidecar.all = [of(&endpoints), of(&new)];
            sidecar.endpoint_cpu_ms = median(sidecar.all[0].iter().copied());
            sidecar.service_cpu_ms = median(sidecar.all[1].iter().copied());
            say(&format!(
                "the sidecar takes {:.2} ms of CPU for an endpoint, {:.2} ms for a new service, {:.1} ms a second by itself",
                sidecar.endpoint_cpu_ms, sidecar.service_cpu_ms, sidecar.idle_cpu_ms
            ));
        }
    }
    figures.sidecar.connections = scene.stats(&[CONNECTIONS])[0];
    figures.istiod.resident_bytes = resident(scene.istiod.process.pid());
    figures
}

/// A folder with what istiod is to know as well: no proxy takes mTLS, so that none needs a certificate.
fn without_mtls() -> String {
    let folder = root().join("target/real/run/scale");
    fs::create_dir_all(&folder).unwrap();
    let disabled = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": "default", "namespace": "istio-system" }, "spec": { "mtls": { "mode": "DISABLE" } },
    });
    fs::write(folder.join("disabled.yaml"), disabled.to_string()).unwrap();
    folder.display().to_string()
}

const ACTIVE_CLUSTERS: &str = "cluster_manager.active_clusters";
const ACTIVE_LISTENERS: &str = "listener_manager.total_listeners_active";
const LISTENER_UPDATES: &str = "listener_manager.lds.update_success";
const CONNECTIONS: &str = "cluster.istiod.upstream_cx_total";
const RECEIVED: &str = "cluster.istiod.upstream_cx_rx_bytes_total";

impl Scene {
    fn pids(&self) -> [u32; 2] {
        [self.envoy.pid(), self.istiod.process.pid()]
    }

    fn rest(&self) {
        settle(&self.pids());
    }

    /// CPU of the sidecar in a second in which nothing happens.
    fn idle(&self, over: Duration) -> f64 {
        let before = cpu(self.envoy.pid());
        thread::sleep(over); // over which it is measured
        millis(&before, &cpu(self.envoy.pid())) / over.as_secs_f64()
    }

    /// Statistics of the sidecar. To ask for them takes it up to a second of CPU, so it is done between measurements only.
    fn stats(&self, names: &[&str]) -> Vec<u64> {
        let escaped = |name: &&str| name.replace('.', "\\.").replace('|', "\\|");
        let filter = names.iter().map(escaped).collect::<Vec<_>>().join("|");
        let filter = filter.replace('|', "%7C").replace('\\', "%5C");
        let path = format!("/stats?format=json&filter=^({filter})$");
        let page = http::ask((SIDECAR, 19_000), START, "GET", &path, &[], "").unwrap();
        let all: Value = serde_json::from_str(&page.body).unwrap_or_else(|error| panic!("{path}: {error}: {page:?}"));
        let all = all["stats"].as_array().unwrap();
        let value = |name: &&str| {
            let found =
                all.iter().find(|stat| stat["name"].as_str().is_some_and(|it| it.trim_end_matches(';') == *name));
            found.and_then(|stat| stat["value"].as_u64()).unwrap_or_else(|| panic!("Envoy has no {name}: {all:?}"))
        };
        names.iter().map(value).collect()
    }

    /// Costs of a change at both; `has_arrived` is asked of the statistics before and after.
    fn change(
        &mut self,
        change: impl FnOnce(&mut World),
        stats: &[&str],
        has_arrived: impl Fn(&[u64], &[u64]) -> bool,
    ) -> Took {
        let asked: Vec<&str> = stats.iter().copied().chain([RECEIVED]).collect();
        let sent =
            |scene: &Self, stats: &[u64]| stats.last().unwrap() + scene.followers.as_ref().map_or(0, Followers::bytes);
        let before = self.stats(&asked);
        self.rest();
        let bytes = sent(self, &before);
        let cpus = self.pids().map(cpu);
        change(&mut self.world);
        let deadline = Instant::now() + START;
        loop {
            thread::sleep(DEBOUNCE); // before which nothing is to be seen
            self.rest();
            let now = self.pids().map(cpu);
            let after = self.stats(&asked);
            if has_arrived(&before, &after) {
                let bytes = (sent(self, &after) - bytes) as f64;
                let [sidecar, istiod] = [0, 1].map(|of| millis(&cpus[of], &now[of]));
                return Took { sidecar, istiod, bytes };
            }
            assert!(
                Instant::now() < deadline,
                "not within {START:?}: a change arrives at the sidecar, whose {asked:?} were {before:?} and are {after:?}"
            );
        }
    }

    fn endpoint(&mut self, way: Way) -> Took {
        let host = self.world.next_restarted();
        let cluster = format!("cluster.outbound|12200||{host};.membership_change");
        self.change(World::restart, &[&cluster, LISTENER_UPDATES], |before, after| {
            after[0] > before[0] && (!way.direct || after[1] > before[1])
        })
    }

    fn service(&mut self, way: Way) -> Took {
        // Its own, and in direct mode that of its application.
        let more = if way.direct { 2 } else { 1 };
        self.change(World::add, &[ACTIVE_CLUSTERS], |before, after| after[0] == before[0] + more)
    }
}

fn say(text: &str) {
    println!("    {text}");
}

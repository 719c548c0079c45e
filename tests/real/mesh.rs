//! Unchanged consumers in a mesh, inside the network that `mesh.sh` makes: the real registry, istiod, SOFARPC and Dubbo; Envoys
//! with istiod's own listeners, to which iptables redirects. Every way of calling is tried with 1,000 calls of three
//! providers, while a fourth comes and the first goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use prost::Message;
use registry_mox::proto::{
    envoy::config::core::v3::Node,
    google::protobuf::{Struct, Value as PbValue, value},
};
use serde_json::{Value, json};

use crate::{
    mox_client::MoxClient,
    parts::{
        Driven, Istiod, Mox, Process, Registry, SOON, START, connect, eventually, eventually_is, get, get_from,
        log_path, root, script,
    },
    sds::Sds,
};

/// The first argument of the test program for these scenarios: as tests, or as a story.
pub(crate) const MODES: [&str; 2] = ["--mesh", "--mesh-story"];
/// Set by `mesh.sh`.
pub(crate) const INSIDE: &str = "MESH_POD";

const REGISTRY: &str = "10.60.0.1:9603";
const CONSUMERS: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 50, 1, 1);
const ISTIOD_PORT: u16 = 15010;
const HOST: &str = "com.example.demoservice";
const TRI_HOST: &str = "tri.com.example.demoservice";
const DUBBO_HOST: &str = "dubbo.com.example.demoservice";
const STRICT_HOST: &str = "strict.v1-0.com.example.demoservice";
const STRICT_IDENTITY: &str = "spiffe://cluster.local/ns/strict/sa/orders";
/// Added to the number of failed scenarios, the exit status: so it is no shell's.
const ENDED: i32 = 64;
/// Calls of each way.
const CALLS: usize = 1_000;

type Scenario = (&'static str, &'static str, fn(&mut Mesh));

const SCENARIOS: [Scenario; 10] = [
    (
        "mesh_services_are_let_in_step_by_step",
        "services are let in: for nobody, then some for one namespace, then all for all",
        services_are_let_in,
    ),
    (
        "mesh_subscribers_dial_past_the_mesh",
        "unchanged consumers subscribe and dial addresses: past the mesh",
        subscribers_without_direct,
    ),
    ("mesh_bolt_by_host_is_balanced_by_connection", "SOFARPC over bolt with a direct URL to the host", bolt_by_host),
    ("mesh_triple_by_host_is_balanced_by_request", "SOFARPC over triple with a direct URL to the host", triple_by_host),
    (
        "mesh_direct_mode_takes_subscribers_through_the_mesh",
        "direct mode, the consumer chooses: the policy changes, nothing is restarted",
        direct_client,
    ),
    (
        "mesh_direct_mode_with_balance_mesh_lets_envoy_choose",
        "direct mode, the proxy chooses (balance: mesh)",
        direct_mesh,
    ),
    ("mesh_strict_provider_by_host_needs_the_rule", "a provider behind STRICT mTLS, called by host", strict_by_host),
    ("mesh_strict_provider_in_direct_mode_needs_the_rule", "the same in direct mode", strict_direct),
    (
        "mesh_strict_provider_with_balance_mesh_needs_the_rule",
        "the same in direct mode with balance: mesh",
        strict_direct_mesh,
    ),
    ("mesh_policies_leave_no_trace", "the first policy again: everything is as it was", no_trace),
];

/// Runs this program inside `mesh.sh`. Answers how many scenarios passed, failed and were not wanted.
pub(crate) fn outside(mode: &str, filter: &str) -> (usize, usize, usize) {
    let wanted = SCENARIOS.iter().filter(|(name, ..)| name.contains(filter)).count();
    if wanted == 0 {
        return (0, 0, SCENARIOS.len());
    }
    let mut command = Command::new(root().join("tests/real/mesh.sh"));
    let status =
        command.arg(std::env::current_exe().unwrap()).args([mode, filter]).stdin(Stdio::null()).status().unwrap();
    // Any other status than one of `inside` means that it broke as a whole.
    let failed = status.code().and_then(|code| usize::try_from(code - ENDED).ok()).unwrap_or(wanted).min(wanted);
    (wanted - failed, failed, SCENARIOS.len() - wanted)
}

/// The scenarios; the exit status says how many failed.
pub(crate) fn inside(mode: &str, filter: &str) -> ExitCode {
    let story = mode == MODES[1];
    let mut failed = 0;
    let mut mesh = catch_unwind(|| Mesh::start(story)).ok();
    for (name, title, scenario) in SCENARIOS.iter().filter(|(name, ..)| name.contains(filter)) {
        let begin = Instant::now();
        let run = || {
            let mesh = mesh.as_mut().expect("a mesh that started");
            mesh.step(title);
            scenario(mesh);
        };
        let ok = catch_unwind(AssertUnwindSafe(run)).is_ok();
        failed += u8::from(!ok);
        if !story {
            println!("test {name} ... {} ({:.1?})", if ok { "ok" } else { "FAILED" }, begin.elapsed());
        } else if !ok {
            println!("    NOT AS IT SHOULD BE");
        }
    }
    if let Some(mesh) = mesh {
        mesh.table();
    }
    ExitCode::from(ENDED as u8 + failed)
}

/// How calls went.
struct Row {
    way: String,
    calls: usize,
    failed: usize,
    /// Answers by provider.
    by: BTreeMap<String, usize>,
    /// Connections by cluster of the consumers' Envoy.
    connections: BTreeMap<String, u64>,
}

impl Row {
    fn through(&self) -> u64 {
        self.connections.iter().filter(|(name, _)| name.starts_with("outbound|")).map(|(_, count)| count).sum()
    }

    fn past(&self) -> u64 {
        self.connections.get("PassthroughCluster").copied().unwrap_or_default()
    }

    /// Answers of the four providers.
    fn distribution(&self) -> [usize; 4] {
        [1, 2, 3, 4].map(|i| self.by.get(&provider_address(i)).copied().unwrap_or_default())
    }

    /// What is the same for every way.
    fn check(&self, in_flight: usize) {
        assert!(self.calls >= CALLS, "{} calls", self.calls);
        assert!(
            self.failed <= in_flight,
            "{}: {} calls failed, see target/real/log/mesh-consumer.log",
            self.way,
            self.failed
        );
    }
}

fn provider_address(i: usize) -> String {
    format!("10.50.0.{i}")
}

#[derive(Clone, Copy, PartialEq)]
enum Framework {
    Sofarpc,
    Dubbo,
}

/// Which providers answer, or which Envoy has: what shows that a change has arrived.
enum Follows {
    /// The answers.
    Answers,
    /// Connections stay where they are; new ones go to the hosts of this cluster of Envoy.
    Cluster(String),
}

struct Mesh {
    story: bool,
    rows: Vec<Row>,
    policy: Value,
    /// What was served under the first policy.
    first: (String, crate::mox_client::State),
    sofarpc: Vec<Driven>,
    dubbo: Vec<Driven>,
    _strict: Driven,
    _pod: Process,
    _sidecar: Process,
    _sds: [Sds; 2],
    istiod: Istiod,
    registry: Registry,
}

impl Mesh {
    fn start(story: bool) -> Self {
        let step = |text: &str| {
            if story {
                println!("\n==> {text}");
            }
        };
        step("SOFARegistry at 10.60.0.1 with our jar, in a network of its own");
        let options = [
            "-Dmox.enabled=true",
            "-Dmox.protect.startup-hold=1s",
            "-Dmox.protect.empty-grace=5m",
            "-Down.address=10.60.0.1",
        ];
        let registry = Registry::start("mesh-registry", Some(9700), &options);
        eventually(SOON, "MoX listens", || connect(registry.mox).ok());

        step(
            "three providers of com.example.DemoService over bolt and triple, three over Dubbo, and one behind STRICT mTLS",
        );
        let mut sofarpc: Vec<_> = (1..=4).map(|i| provider(Framework::Sofarpc, i)).collect();
        let mut dubbo: Vec<_> = (1..=4).map(|i| provider(Framework::Dubbo, i)).collect();
        let mut strict = script("provider.sh", &log_path("mesh-strict"));
        strict.env("PROVIDER_HOST", POD.to_string()).env("REGISTRY_ADDRESS", REGISTRY);
        let mut strict = Driven::start(&mut in_pod(strict.args(["strict-orders", "bolt:12200:strict:100"])));
        for provider in sofarpc.iter_mut().chain(&mut dubbo).chain([&mut strict]) {
            wait_for_line(provider, "exported ");
        }
        sofarpc[3].tell("unpublish");
        dubbo[3].tell("unpublish");

        step(
            "istiod, with MoX and a PeerAuthentication in a file; Envoys with its listeners and a test authority's certificates",
        );
        let run = root().join("target/real/run");
        let (also, certificates) = (run.join("mesh"), run.join("certificates"));
        fs::create_dir_all(&also).unwrap();
        let strict_mode = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": { "name": "default", "namespace": "strict" }, "spec": { "mtls": { "mode": "STRICT" } },
        });
        fs::write(also.join("strict.yaml"), strict_mode.to_string()).unwrap();
        let mut command = script("certificates.sh", &log_path("mesh-certificates"));
        command.arg("consumer=spiffe://cluster.local/ns/sofa/sa/caller").arg(format!("strict={STRICT_IDENTITY}"));
        assert!(command.status().unwrap().success(), "see target/real/log/mesh-certificates.log");
        let more = [("ALSO", also.to_str().unwrap()), ("GRPC_ADDRESS", "0.0.0.0")];
        let istiod = Istiod::start_with(&registry, ISTIOD_PORT, &more);
        let sds = ["consumer", "strict"].map(|name| Sds::start(CONSUMERS, certificates.clone(), name));
        let sidecar = |namespace: &str, address: Ipv4Addr, sds: &Sds| {
            let mut command = script("sidecar.sh", &log_path(&format!("mesh-sidecar-{namespace}")));
            command.args([namespace, &address.to_string(), &sds.address.to_string()]);
            command
        };
        let mut pod = Process::start(&mut in_pod(&sidecar("strict", POD, &sds[1])));
        let mut consumers = Process::start(&mut sidecar("sofa", CONSUMERS, &sds[0]));
        for (process, address) in [(&mut consumers, CONSUMERS), (&mut pod, POD)] {
            eventually(START, "Envoy is ready", || {
                assert!(process.alive(), "Envoy ended: see target/real/log/mesh-sidecar-*.log");
                admin(address, "/ready")
            });
        }
        let mut mesh = Self {
            story,
            rows: Vec::new(),
            policy: json!({}),
            first: Default::default(),
            sofarpc,
            dubbo,
            _strict: strict,
            _pod: pod,
            _sidecar: consumers,
            _sds: sds,
            istiod,
            registry,
        };
        for host in [HOST, TRI_HOST, DUBBO_HOST, STRICT_HOST] {
            mesh.wait_for_endpoints(host, if host == STRICT_HOST { vec![POD.to_string()] } else { three() });
        }
        mesh.first = mesh.served();
        mesh
    }

    fn step(&self, text: &str) {
        if self.story {
            println!("\n==> {text}");
        }
    }

    fn say(&self, text: &str) {
        if self.story {
            println!("    {text}");
        }
    }

    /// Replaces the policy in the running registry.
    fn policy(&mut self, policy: Value) {
        assert!(self.istiod.process.alive(), "istiod ended: see target/real/log/istiod.log");
        self.say(&format!("policy: {policy}"));
        self.registry.policy(&policy);
        self.policy = policy;
    }

    /// The entries as the admin page shows them and as a client of MoX gets them.
    fn served(&self) -> (String, crate::mox_client::State) {
        let dump = get(9603, "/mox/dump").unwrap();
        let entries = serde_json::from_str::<Value>(&dump).unwrap()["items"].as_array().map_or(0, Vec::len);
        (dump, Mox::connect(&self.registry).wait_until(|state| state.len() == entries).clone())
    }

    /// Waits for istiod to have these addresses of a service.
    fn wait_for_endpoints(&self, name: &str, wanted: Vec<String>) {
        eventually_is(&Some(wanted), &format!("{name} in istiod"), || Some(addresses(&self.istiod.endpoints(name)?)));
    }

    /// Calls of a consumer, while a fourth provider comes and the first one goes.
    fn calls(&mut self, way: &str, framework: Framework, arguments: &[&str], follows: &Follows) -> &Row {
        let before = connections();
        let mut caller = Caller::start(framework, arguments);
        caller.call(300, 0);
        self.say(&format!("{way}: 300 calls made; a fourth provider comes"));
        self.fleet(framework)[3].tell("publish");
        caller.until("the fourth provider is called", |latest| match follows {
            Follows::Answers => latest.contains_key(&provider_address(4)),
            Follows::Cluster(name) => hosts(name).contains(&provider_address(4)),
        });
        caller.up_to(600);
        self.say(&format!("{way}: {} calls made; the first provider goes", caller.calls));
        self.fleet(framework)[0].tell("unpublish");
        caller.until("the first provider is not called", |latest| match follows {
            Follows::Answers => !latest.contains_key(&provider_address(1)),
            Follows::Cluster(name) => !hosts(name).contains(&provider_address(1)),
        });
        self.fleet(framework)[0].process.ask_to_end();
        caller.until("the first provider ends", |_| !self.fleet(framework)[0].process.alive());
        caller.up_to(CALLS);

        let after = connections();
        let connections = after.into_iter().map(|(name, count)| {
            let new = count - before.get(&name).copied().unwrap_or_default();
            (name, new)
        });
        let connections = connections.filter(|(_, count)| *count > 0).collect();
        let Caller { calls, failed, by, .. } = caller;
        let row = Row { way: way.to_owned(), calls, failed, by, connections };
        self.say(&format!(
            "{way}: {calls} calls, {failed} failed, answers {:?}, connections {:?}",
            row.by, row.connections
        ));

        self.fleet(framework)[0] = provider(framework, 1);
        wait_for_line(&mut self.fleet(framework)[0], "exported ");
        self.fleet(framework)[3].tell("unpublish");
        for host in if framework == Framework::Dubbo { &[DUBBO_HOST][..] } else { &[HOST, TRI_HOST] } {
            self.wait_for_endpoints(host, three());
        }
        self.rows.push(row);
        self.rows.last().unwrap()
    }

    fn fleet(&mut self, framework: Framework) -> &mut Vec<Driven> {
        match framework {
            Framework::Sofarpc => &mut self.sofarpc,
            Framework::Dubbo => &mut self.dubbo,
        }
    }

    fn table(&self) {
        println!(
            "\n{:<44} {:>5}  {:>6} {:>6}  {:<22} {:>6}",
            "way of calling", "calls", "mesh", "past", "answers of 1 2 3 4", "failed"
        );
        for row in &self.rows {
            let answers = match row.distribution() {
                [0, 0, 0, 0] => row.by.values().map(usize::to_string).collect::<Vec<_>>().join(" "),
                all => all.map(|count| count.to_string()).join(" "),
            };
            let (through, past) = (row.through(), row.past());
            println!("{:<44} {:>5}  {through:>6} {past:>6}  {answers:<22} {:>6}", row.way, row.calls, row.failed);
        }
    }
}

/// A command with its environment, on the other machine.
fn in_pod(command: &Command) -> Command {
    let pod = std::env::var(INSIDE).expect("mesh.sh sets it");
    let log = log_path("mesh-pod");
    let mut inner = Command::new("nsenter");
    inner.args(["--net", "--target", &pod]).arg(command.get_program()).args(command.get_args());
    inner.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let log = fs::File::options().create(true).append(true).open(log).unwrap();
    inner.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    inner
}

/// A provider on an address of its own; it is one of the application's.
fn provider(framework: Framework, i: usize) -> Driven {
    // Triple listens on all interfaces, whatever it publishes.
    let triple = format!("tri:{}", 50050 + i);
    let (name, arguments) = match framework {
        Framework::Sofarpc => ("provider.sh", vec!["orders", "bolt:12200", &triple]),
        Framework::Dubbo => ("dubbo.sh", vec!["dubbo-orders", "20880"]),
    };
    let mut command = script(name, &log_path(&format!("mesh-{name}-{i}").replace(".sh", "")));
    command.env("PROVIDER_HOST", provider_address(i)).env("REGISTRY_ADDRESS", REGISTRY);
    Driven::start(command.args(arguments))
}

fn wait_for_line(driven: &mut Driven, start: &str) {
    while !driven.line(START).starts_with(start) {}
}

/// The addresses of the providers that are there at the start of each scenario.
fn three() -> Vec<String> {
    (1..=3).map(provider_address).collect()
}

fn addresses(endpoints: &[String]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.rsplit_once(':').unwrap().0.to_owned()).collect()
}

/// A page of a proxy.
fn admin(proxy: Ipv4Addr, path: &str) -> Option<String> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((proxy, 19000)), SOON).ok()?;
    get_from(stream, path)
}

fn admin_json(proxy: Ipv4Addr, path: &str) -> Value {
    serde_json::from_str(&admin(proxy, path).unwrap()).unwrap()
}

/// Connections that the consumers' Envoy made so far, by cluster.
fn connections() -> BTreeMap<String, u64> {
    let all = admin_json(CONSUMERS, "/stats?format=json&filter=upstream_cx_total");
    let count = |stat: &Value| {
        let name = stat["name"].as_str()?.strip_prefix("cluster.")?.strip_suffix(".upstream_cx_total")?;
        Some((name.trim_end_matches(';').to_owned(), stat["value"].as_u64()?))
    };
    all["stats"].as_array().unwrap().iter().filter_map(count).collect()
}

/// The sum of a statistic of a proxy whose name contains and ends with these.
fn stat(proxy: Ipv4Addr, contains: &str, ends: &str) -> u64 {
    let all = admin_json(proxy, &format!("/stats?format=json&filter={ends}$"));
    let wanted = |stat: &&Value| stat["name"].as_str().is_some_and(|name| name.contains(contains));
    all["stats"].as_array().unwrap().iter().filter(wanted).filter_map(|stat| stat["value"].as_u64()).sum()
}

/// The addresses that a cluster of the consumers' Envoy has.
fn hosts(cluster: &str) -> BTreeSet<String> {
    let all = admin_json(CONSUMERS, "/clusters?format=json");
    let clusters = all["cluster_statuses"].as_array().into_iter().flatten();
    let hosts = clusters.filter(|c| c["name"] == *cluster).flat_map(|c| c["host_statuses"].as_array()).flatten();
    hosts.map(|host| host["address"]["socket_address"]["address"].as_str().unwrap().to_owned()).collect()
}

/// Clusters and listeners of a proxy that are made from our entries, by host and by name.
fn made(proxy: Ipv4Addr) -> (BTreeSet<String>, BTreeSet<String>) {
    let clusters = admin_json(proxy, "/clusters?format=json");
    let clusters = clusters["cluster_statuses"].as_array().into_iter().flatten();
    let hosts = clusters.filter_map(|c| c["name"].as_str()?.strip_prefix("outbound|")?.split('|').next_back());
    let listeners = admin_json(proxy, "/listeners?format=json");
    let listeners = listeners["listener_statuses"].as_array().into_iter().flatten();
    let listeners = listeners.filter_map(|l| l["name"].as_str().filter(|name| !name.starts_with("virtual")));
    (hosts.map(str::to_owned).collect(), listeners.map(str::to_owned).collect())
}

/// Waits for the consumers' Envoy to listen on the addresses of the three providers, or not to.
fn wait_for_listeners(port: u16, there: bool) {
    let wanted: BTreeSet<_> =
        if there { three() } else { vec![] }.into_iter().map(|ip| format!("{ip}_{port}")).collect();
    eventually_is(&wanted, "listeners on providers' addresses", || {
        let all = made(CONSUMERS).1;
        all.into_iter().filter(|name| name.starts_with("10.50.0.") && name.ends_with(&format!("_{port}"))).collect()
    });
}

/// A consumer in a process of its own.
struct Caller {
    driven: Driven,
    calls: usize,
    failed: usize,
    by: BTreeMap<String, usize>,
}

impl Caller {
    fn start(framework: Framework, arguments: &[&str]) -> Self {
        let mut command = script("consumer.sh", &log_path("mesh-consumer"));
        command.env("HOSTS_FILE", hosts_file());
        command.arg(if framework == Framework::Dubbo { "DubboConsumer" } else { "Consumer" }).args(arguments);
        let mut driven = Driven::start(&mut command);
        wait_for_line(&mut driven, "ready");
        Self { driven, calls: 0, failed: 0, by: BTreeMap::new() }
    }

    /// Answers by provider.
    fn call(&mut self, calls: usize, gap_ms: u64) -> BTreeMap<String, usize> {
        self.driven.tell(&format!("call {calls} {gap_ms}"));
        let line = loop {
            let line = self.driven.line(START);
            if let Some(counts) = line.strip_prefix("called ") {
                break counts.to_owned();
            }
        };
        let mut words = line.split(' ');
        self.failed += words.next().unwrap().parse::<usize>().unwrap();
        self.calls += calls;
        let pair = |word: &str| word.split_once('=').map(|(name, count)| (name.to_owned(), count.parse().unwrap()));
        let latest: BTreeMap<String, usize> = words.filter_map(pair).collect();
        latest.iter().for_each(|(name, count)| *self.by.entry(name.clone()).or_default() += count);
        latest
    }

    fn up_to(&mut self, calls: usize) {
        if let more @ 1.. = calls.saturating_sub(self.calls) {
            self.call(more, 0);
        }
    }

    /// Goes on calling until something is seen.
    fn until(&mut self, what: &str, mut seen: impl FnMut(&BTreeMap<String, usize>) -> bool) {
        let deadline = Instant::now() + 2 * SOON;
        loop {
            let latest = self.call(30, 5);
            if seen(&latest) {
                return;
            }
            assert!(Instant::now() < deadline, "not within {:?}: {what}", 2 * SOON);
        }
    }
}

/// istiod's names and addresses for a proxy in namespace `sofa`: what its agent answers DNS queries from.
fn name_table() -> BTreeMap<String, NameInfo> {
    let text = |text: &str| Some(value::Kind::StringValue(text.to_owned()));
    let fields =
        [("NAMESPACE", "sofa"), ("DNS_CAPTURE", "true"), ("CLUSTER_ID", "Kubernetes"), ("ISTIO_VERSION", "1.29.1")];
    let fields = fields.map(|(key, value)| (key.to_owned(), PbValue { kind: text(value) }));
    let node = Node {
        id: format!("sidecar~{CONSUMERS}~names.sofa~sofa.svc.cluster.local"),
        metadata: Some(Struct { fields: fields.into() }),
        ..Node::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let istiod = format!("{CONSUMERS}:{ISTIOD_PORT}");
    let table = async {
        let mut client =
            MoxClient::open(&istiod, node, Some("type.googleapis.com/istio.networking.nds.v1.NameTable")).await?;
        client.next_raw().await
    };
    let response = runtime.block_on(async { tokio::time::timeout(SOON, table).await });
    let resources = response.expect("a name table in time").unwrap().resources;
    resources.iter().flat_map(|any| NameTable::decode(any.value.clone()).unwrap().table).collect()
}

/// The same as a file of host names, in place of a DNS server.
fn hosts_file() -> String {
    let mut text = format!("127.0.0.1 localhost {}\n", fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    for (host, info) in name_table() {
        info.ips.iter().for_each(|ip| text += &format!("{ip} {host}\n"));
    }
    let path = root().join("target/real/run/hosts");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// `istio.networking.nds.v1.NameTable`, as far as it is needed here.
#[derive(Clone, PartialEq, Message)]
struct NameTable {
    #[prost(btree_map = "string, message", tag = "1")]
    table: BTreeMap<String, NameInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct NameInfo {
    #[prost(string, repeated, tag = "1")]
    ips: Vec<String>,
}

fn services_are_let_in(mesh: &mut Mesh) {
    let hosts = |names: &[&str]| names.iter().map(|name| format!("{name}.sofa.mesh")).collect::<BTreeSet<_>>();
    let all = [HOST, TRI_HOST, DUBBO_HOST, STRICT_HOST];
    let wait = |mesh: &Mesh, consumers: &[&str], pod: &[&str]| {
        for (proxy, wanted) in [(CONSUMERS, consumers), (POD, pod)] {
            eventually_is(&hosts(wanted), "hosts with clusters in Envoy", || made(proxy).0);
        }
        let names = || name_table().into_keys().collect();
        eventually_is(&hosts(consumers), "istiod's name table for namespace sofa", names);
        for name in all {
            assert!(mesh.istiod.entry(name).is_some(), "{name} is in istiod");
        }
        for (proxy, address) in [("sofa", CONSUMERS), ("strict", POD)] {
            let (clusters, listeners) = made(address);
            mesh.say(&format!("proxy in namespace {proxy}: clusters {clusters:?}, listeners {listeners:?}"));
        }
    };
    mesh.policy(json!({ "exportTo": ["~"] }));
    wait(mesh, &[], &[]);
    let some = json!({ "com.example.DemoService:1.0@DEFAULT#*": { "exportTo": ["sofa"] } });
    mesh.policy(json!({ "exportTo": ["~"], "overrides": some }));
    wait(mesh, &[HOST], &[]);
    mesh.policy(json!({}));
    wait(mesh, &all, &all);
}

fn subscribers_without_direct(mesh: &mut Mesh) {
    mesh.policy(json!({}));
    wait_for_listeners(12200, false);
    wait_for_listeners(20880, false);
    for (way, framework, consumer) in SUBSCRIBERS {
        let row = mesh.calls(way, framework, consumer, &Follows::Answers);
        row.check(1);
        assert_eq!(row.through(), 0, "connections through the mesh");
        assert!(row.past() >= 4 && row.distribution().iter().all(|count| *count > 20));
    }
}

const SUBSCRIBERS: [(&str, Framework, &[&str]); 2] = [
    ("SOFARPC subscribes", Framework::Sofarpc, &["sofa://10.60.0.1:9603", "1"]),
    ("Dubbo subscribes", Framework::Dubbo, &[REGISTRY]),
];

fn bolt_by_host(mesh: &mut Mesh) {
    mesh.policy(json!({}));
    let cluster = format!("outbound|12200||{HOST}.sofa.mesh");
    let url = format!("bolt://{HOST}.sofa.mesh:12200");
    let row = mesh.calls(
        "SOFARPC, bolt, by host, 9 connections",
        Framework::Sofarpc,
        &[&url, "9"],
        &Follows::Cluster(cluster),
    );
    row.check(9);
    assert_eq!(row.past(), 0);
}

fn triple_by_host(mesh: &mut Mesh) {
    mesh.policy(json!({}));
    let url = format!("tri://{TRI_HOST}.sofa.mesh:50051");
    let row = mesh.calls("SOFARPC, triple, by host", Framework::Sofarpc, &[&url, "1"], &Follows::Answers);
    row.check(1);
    assert_eq!(row.past(), 0);
}

fn direct(balance: &str) -> Value {
    json!({ "applications": ["orders", "dubbo-orders"], "balance": balance })
}

fn direct_client(mesh: &mut Mesh) {
    mesh.policy(json!({ "direct": direct("client") }));
    wait_for_listeners(12200, true);
    wait_for_listeners(20880, true);
    for (way, framework, consumer) in SUBSCRIBERS {
        let row = mesh.calls(&format!("{way}, direct mode"), framework, consumer, &Follows::Answers);
        row.check(1);
        assert_eq!(row.past(), 0, "connections past the mesh");
        assert!(row.through() >= 4 && row.distribution().iter().all(|count| *count > 20));
    }
}

fn direct_mesh(mesh: &mut Mesh) {
    mesh.policy(json!({ "direct": direct("mesh") }));
    let hosts = ["p12200.orders", "p20880.dubbo-orders"];
    for host in hosts {
        mesh.wait_for_endpoints(&format!("{host}.app"), three());
    }
    for ((way, framework, consumer), (host, port)) in SUBSCRIBERS.into_iter().zip(hosts.into_iter().zip([12200, 20880]))
    {
        wait_for_listeners(port, true);
        let cluster = format!("outbound|{port}||{host}.app.sofa.mesh");
        eventually_is(&three().into_iter().collect(), "endpoints in Envoy", || self::hosts(&cluster));
        let row = mesh.calls(&format!("{way}, balance: mesh"), framework, consumer, &Follows::Cluster(cluster));
        row.check(1);
        assert_eq!(row.past(), 0, "connections past the mesh");
    }
}

fn strict_by_host(mesh: &mut Mesh) {
    let url = format!("bolt://{STRICT_HOST}.sofa.mesh:12200");
    strict(mesh, "by host", &[&url, "1", "strict"], json!(null));
}

fn strict_direct(mesh: &mut Mesh) {
    let direct = json!({ "applications": ["strict-orders"] });
    strict(mesh, "direct mode", &["sofa://10.60.0.1:9603", "1", "strict"], direct);
}

fn strict_direct_mesh(mesh: &mut Mesh) {
    let direct = json!({ "applications": ["strict-orders"], "balance": "mesh" });
    strict(mesh, "balance: mesh", &["sofa://10.60.0.1:9603", "1", "strict"], direct);
}

/// Calls of the provider behind STRICT, without and with a rule.
fn strict(mesh: &mut Mesh, way: &str, consumer: &[&str], direct: Value) {
    let rule = json!([{ "applications": ["strict-*"], "identities": [STRICT_IDENTITY] }]);
    let listens = format!("{POD}_12200");
    for (with, rules, calls) in [("without", json!([]), 20), ("with", rule, CALLS)] {
        let mut policy = json!({ "mtls": rules });
        if !direct.is_null() {
            policy["direct"] = direct.clone();
        }
        mesh.policy(policy);
        eventually_is(&!direct.is_null(), "a listener on the address", || made(CONSUMERS).1.contains(&listens));
        eventually_is(&(with == "with"), "mTLS in Envoy's cluster", || mtls_in_envoy(direct.is_null()));
        let (before, handshakes) = (connections(), stat(CONSUMERS, "outbound|12200", "ssl.handshake"));
        let mut caller = Caller::start(Framework::Sofarpc, consumer);
        caller.call(calls, 0);
        let new =
            connections().into_iter().map(|(name, count)| (name.clone(), count - before.get(&name).unwrap_or(&0)));
        let connections = new.filter(|(_, count)| *count > 0).collect();
        let Caller { calls, failed, by, .. } = caller;
        let way = format!("STRICT provider, {way}, {with} the rule");
        mesh.say(&format!("{way}: {calls} calls, {failed} failed, connections {connections:?}"));
        let row = Row { way, calls, failed, by, connections };
        let handshakes = stat(CONSUMERS, "outbound|12200", "ssl.handshake") - handshakes;
        let (through, past) = (row.through(), row.past());
        mesh.rows.push(row);
        assert_eq!(failed, if with == "with" { 0 } else { calls });
        assert_eq!((past, through > 0, handshakes > 0), (0, true, with == "with"));
    }
}

/// Whether the strict provider is called with mTLS, by the configuration of the consumers' Envoy.
fn mtls_in_envoy(by_host: bool) -> bool {
    let all = admin_json(CONSUMERS, "/config_dump?resource=dynamic_active_clusters&name_regex=.*strict.*");
    let text = all.to_string();
    match by_host {
        true => admin(CONSUMERS, "/clusters?format=json").unwrap().contains("tlsMode"),
        false => text.contains("ROOTCA"),
    }
}

fn no_trace(mesh: &mut Mesh) {
    mesh.policy(json!({}));
    let first = mesh.first.clone();
    eventually_is(&first, "what is served", || mesh.served());
    wait_for_listeners(12200, false);
}

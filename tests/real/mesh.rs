//! Unchanged consumers in a mesh, inside the network that `mesh.sh` makes: the real registry, istiod, SOFARPC and Dubbo; Envoys
//! with istiod's own listeners, to which iptables redirects. Every way of calling is tried with 1,000 calls of three
//! providers, while a fourth comes and the first goes.

mod caller;
mod proxy;
mod scenarios;
mod visibility;

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use caller::Caller;
use harness::{
    SOON,
    api_server::ApiServer,
    client::State,
    parts::{Follower, Istiod, Registry, post},
    process::{Driven, Process, START, connect, eventually, eventually_is, get, log_path, root, script},
    trials::{Failed, Shared, Trial, trial_unless},
};
use proxy::{admin, connections, connections_since, hosts};
use scenarios::SCENARIOS;
use serde_json::{Value, json};

use crate::{
    cell::{self, TOKEN},
    network::{self, Network},
    sds::Sds,
};

/// With which versions of istiod, separated by commas, of those that `tests/real/install.sh istio master` builds; by default the
/// usual one.
const VERSIONS: &str = "REGISTRY_MESH_TESTS";
/// The version of the istiod of `install.sh istio`.
const USUAL: &str = "1.29.1";
const DATABASE: &str = "-Djdbc.url=jdbc:h2:tcp://127.0.0.1:9092/mem:metadatadb;DB_CLOSE_DELAY=-1;MODE=MySQL";
const REGISTRY: &str = "10.60.0.1:9603";
const CONSUMERS: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 50, 1, 1);
const ISTIOD_PORT: u16 = 15010;
const HOST: &str = "com.example.demoservice";
const TRI_HOST: &str = "tri.com.example.demoservice";
const DUBBO_HOST: &str = "dubbo.com.example.demoservice";
const STRICT_HOST: &str = "strict.v1-0.com.example.demoservice";
const STRICT_IDENTITY: &str = "spiffe://cluster.local/ns/strict/sa/orders";
/// Calls of each way.
const CALLS: usize = 1_000;

/// Batches of calls in a row without an answer of a provider before its consumer is taken to have heard that it went: of four that
/// are chosen at random, each 30 calls miss the provider by chance once in 5,600 times.
const BATCHES_WITHOUT: usize = 3;

type Scenario = (&'static str, &'static str, fn(&mut Mesh));

/// The argument inside that has the scenarios told as a story.
const STORY: &str = "story";

/// The scenarios with each version of istiod, and all of them as a story.
pub(crate) fn trials() -> Vec<Trial> {
    let given = std::env::var(VERSIONS).ok();
    let versions = given.as_deref().unwrap_or(USUAL);
    let mut trials = Vec::new();
    for version in versions.split(',').filter(|version| !version.is_empty()).map(str::to_owned) {
        let kind = given.as_ref().map_or(String::new(), |_| format!("istiod {version}"));
        let mesh = Shared::new(move || Network::start("mesh.sh", &["mesh", &version]));
        trials.extend(SCENARIOS.iter().map(|(name, ..)| network::trial(&mesh, name).with_kind(kind.clone())));
    }
    trials.push(trial_unless("mesh_story", network::needs_root, story).with_ignored_flag(true));
    trials
}

fn story() -> Result<(), Failed> {
    let mut mesh = Network::start("mesh.sh", &["mesh", USUAL, STORY]);
    let mut failed = 0;
    for (name, ..) in SCENARIOS {
        if !mesh.passes(name) {
            println!("    NOT AS IT SHOULD BE");
            failed += 1;
        }
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} ways are not as they should be").into()) }
}

/// Inside of `mesh.sh`, with a version of istiod.
pub(crate) fn inside(arguments: &[String]) -> ExitCode {
    let start = || Mesh::start(arguments.iter().any(|argument| argument == STORY), &arguments[0]);
    let scenario = |mesh: &mut Mesh, wanted: &str| {
        let (_, title, scenario) = SCENARIOS.iter().find(|(name, ..)| *name == wanted).expect("a scenario");
        mesh.step(title);
        mesh.restore();
        scenario(mesh);
    };
    network::inside(start, scenario, |mesh| mesh.table())
}

/// How calls went.
struct Row {
    way: String,
    calls: usize,
    failed: usize,
    /// Answers by provider.
    by: BTreeMap<String, usize>,
    /// Connections that the consumer's proxy made meanwhile, by cluster.
    connections: BTreeMap<String, u64>,
    /// The log of the consumer, which says what failed, and why.
    log: PathBuf,
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

    /// The demands that are the same for every way: enough calls, and no failures but of calls in flight.
    fn check(&self, in_flight: usize) {
        assert!(self.calls >= CALLS, "{} calls", self.calls);
        assert!(self.failed <= in_flight, "{}: {} calls failed, see {}", self.way, self.failed, self.log.display());
    }
}

fn provider_address(i: usize) -> String {
    format!("10.50.0.{i}")
}

/// The addresses of the providers that are there at the start of each scenario.
fn three() -> Vec<String> {
    (1..=3).map(provider_address).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Framework {
    Sofarpc,
    Dubbo,
}

impl Framework {
    /// The hosts of its providers' services.
    fn hosts(self) -> &'static [&'static str] {
        match self {
            Self::Sofarpc => &[HOST, TRI_HOST],
            Self::Dubbo => &[DUBBO_HOST],
        }
    }
}

/// Which providers answer, or which Envoy has: what shows that a change has arrived.
enum Follows {
    /// The answers.
    Answers,
    /// Connections stay where they are; new ones go to the hosts of this cluster of Envoy.
    Cluster(String),
}

/// Four providers, on addresses of their own.
struct Fleet {
    framework: Framework,
    providers: [Driven; 4],
    /// Whether the registry has them.
    published: [bool; 4],
}

impl Fleet {
    fn start(framework: Framework) -> Self {
        Self { framework, providers: [1, 2, 3, 4].map(|i| provider(framework, i)), published: [true; 4] }
    }

    /// Puts the i-th into the registry, or takes it out.
    fn publish(&mut self, i: usize, wanted: bool) {
        if self.published[i - 1] != wanted {
            self.providers[i - 1].tell(if wanted { "publish" } else { "unpublish" });
            self.published[i - 1] = wanted;
        }
    }

    /// All four serve, and the registry has the first three.
    fn restore(&mut self) {
        for i in 1..=4 {
            if !self.providers[i - 1].process.alive() {
                self.providers[i - 1] = provider(self.framework, i);
                wait_for_line(&mut self.providers[i - 1], "exported ");
                self.published[i - 1] = true;
            }
            self.publish(i, i < 4);
        }
    }
}

struct Mesh {
    story: bool,
    rows: Vec<Row>,
    callers: usize,
    /// The version and the state that were served under the first policy.
    first: (String, State),
    fleets: [Fleet; 2],
    _strict: Driven,
    _pod: Process,
    _sidecar: Process,
    _sds: [Sds; 2],
    istiod: Istiod,
    /// istiod 1.30 and newer end without one; there is nothing in it.
    _kubernetes: Option<ApiServer>,
    registry: Registry,
    _database: Process,
}

impl Mesh {
    fn start(story: bool, version: &str) -> Self {
        let step = |text: &str| {
            if story {
                println!("\n==> {text}");
            }
        };
        step("SOFARegistry at 10.60.0.1 with our jar, in a network of its own");
        // A database in the registry's own process would be no place for documents.
        let database = cell::database("mesh-database", Ipv4Addr::LOCALHOST);
        let token = format!("-Dmox.admin.token={TOKEN}");
        let options = [
            "-Dmox.enabled=true",
            "-Dmox.protect.startup-hold=1s",
            "-Dmox.protect.empty-grace=5m",
            "-Down.address=10.60.0.1",
            DATABASE,
            &token,
        ];
        let registry = Registry::start("mesh-registry", Some(9700), &options);
        eventually(SOON, "MoX listens", || connect(registry.mox).ok());

        step(
            "providers of com.example.DemoService: four over bolt and triple, four over Dubbo, and one behind STRICT mTLS",
        );
        let mut fleets = [Framework::Sofarpc, Framework::Dubbo].map(Fleet::start);
        let mut strict = script("provider.sh", &log_path("mesh-strict"));
        strict.env("PROVIDER_HOST", POD.to_string()).env("REGISTRY_ADDRESS", REGISTRY);
        let mut strict = Driven::start(&mut in_pod(strict.args(["strict-orders", "bolt:12200:strict:100"])));
        for provider in fleets.iter_mut().flat_map(|fleet| &mut fleet.providers).chain([&mut strict]) {
            wait_for_line(provider, "exported ");
        }

        step(&format!(
            "istiod {version}, with MoX and a PeerAuthentication in a file; Envoys with its listeners and a test authority's \
             certificates"
        ));
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
        let kubernetes = (version != USUAL).then(|| ApiServer::start("mesh-kubernetes"));
        let kubeconfig = kubernetes.as_ref().map(|it| it.kubeconfig("admin").display().to_string()).unwrap_or_default();
        let program =
            if version == USUAL { "pilot-discovery".to_owned() } else { format!("pilot-discovery-{version}") };
        let access = log_path("mesh-access");
        let _ = fs::remove_file(&access); // the proxies append
        let more = [
            ("ALSO", also.to_str().unwrap()),
            ("ACCESS_LOG", access.to_str().unwrap()),
            ("GRPC_ADDRESS", "0.0.0.0"),
            ("ISTIOD", &program),
            ("KUBECONFIG_FILE", &kubeconfig),
        ];
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
            callers: 0,
            first: Default::default(),
            fleets,
            _strict: strict,
            _pod: pod,
            _sidecar: consumers,
            _sds: sds,
            istiod,
            _kubernetes: kubernetes,
            registry,
            _database: database,
        };
        mesh.restore();
        mesh.wait_for_endpoints(STRICT_HOST, vec![POD.to_string()]);
        mesh.first = mesh.served();
        mesh
    }

    /// As it is at the start of each scenario, whatever became of the one before.
    fn restore(&mut self) {
        self.fleets.iter_mut().for_each(Fleet::restore);
        for host in self.fleets.iter().flat_map(|fleet| fleet.framework.hosts()) {
            self.wait_for_endpoints(host, three());
        }
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
    fn policy(&mut self, policy: &Value) {
        assert!(self.istiod.process.alive(), "istiod ended: see target/real/log/istiod.log");
        self.say(&format!("policy: {policy}"));
        let answer = post(9603, "/mox/policy", TOKEN, &policy.to_string());
        let answer: Value =
            serde_json::from_str(&answer.good().unwrap_or_else(|| panic!("{policy} is refused"))).unwrap();
        let status: Value = serde_json::from_str(&get(9603, "/mox/status").unwrap()).unwrap();
        assert_eq!(status["policy"], answer["this"]["hash"], "{answer}");
    }

    /// The entries as the admin page shows them and as a client of MoX gets them.
    fn served(&self) -> (String, State) {
        let dump = get(9603, "/mox/dump").unwrap();
        // The first response is the whole state; how many entries that has may have changed since the page was made.
        (dump, Follower::connect(&self.registry).wait_until(|state| !state.is_empty()).clone())
    }

    /// Waits for istiod to have these addresses of a service.
    fn wait_for_endpoints(&self, name: &str, wanted: Vec<String>) {
        eventually_is(&Some(wanted), &format!("{name} in istiod"), || Some(addresses(&self.istiod.endpoints(name)?)));
    }

    fn caller(&mut self, framework: Framework, arguments: &[&str]) -> Caller {
        self.callers += 1;
        Caller::start(framework, arguments, log_path(&format!("mesh-consumer-{}", self.callers)))
    }

    /// Calls of a consumer, while a fourth provider comes and the first one goes.
    fn calls(&mut self, way: &str, framework: Framework, arguments: &[&str], follows: &Follows) -> &Row {
        self.restore();
        let before = connections(CONSUMERS);
        let mut caller = self.caller(framework, arguments);
        caller.call(300, 0);
        self.say(&format!("{way}: 300 calls made; a fourth provider comes"));
        self.fleet(framework).publish(4, true);
        caller.until("the fourth provider is called", |latest| match follows {
            Follows::Answers => latest.contains_key(&provider_address(4)),
            Follows::Cluster(name) => hosts(name).contains(&provider_address(4)),
        });
        caller.up_to(600);
        self.say(&format!("{way}: {} calls made; the first provider goes", caller.calls));
        self.fleet(framework).publish(1, false);
        let mut without = 0;
        caller.until("the first provider is not called", |latest| match follows {
            Follows::Answers => {
                without = if latest.contains_key(&provider_address(1)) { 0 } else { without + 1 };
                without == BATCHES_WITHOUT
            }
            Follows::Cluster(name) => !hosts(name).contains(&provider_address(1)),
        });
        let first = &mut self.fleet(framework).providers[0].process;
        first.ask_to_end();
        caller.until("the first provider ends", |_| !first.alive());
        caller.up_to(CALLS);
        self.row(way, caller, connections_since(CONSUMERS, &before))
    }

    /// Notes what a consumer saw, and the connections that its proxy made meanwhile.
    fn row(&mut self, way: &str, caller: Caller, connections: BTreeMap<String, u64>) -> &Row {
        let Caller { calls, failed, by, log, .. } = caller;
        self.say(&format!("{way}: {calls} calls, {failed} failed, answers {by:?}, connections {connections:?}"));
        self.rows.push(Row { way: way.to_owned(), calls, failed, by, connections, log });
        self.rows.last().expect("the one just pushed")
    }

    fn fleet(&mut self, framework: Framework) -> &mut Fleet {
        &mut self.fleets[framework as usize]
    }

    /// The figures, as docs/consumers.md has them.
    fn table(&self) {
        if self.rows.is_empty() {
            return;
        }
        println!(
            "\n| {:<46} | calls | connections through the mesh | past it | answers of providers 1, 2, 3, 4 | failed |",
            "way of calling"
        );
        println!(
            "| {:-<46} | ----: | ---------------------------: | ------: | ------------------------------- | -----: |",
            ""
        );
        for row in &self.rows {
            let answers = match row.distribution() {
                [0, 0, 0, 0] => row.by.values().map(usize::to_string).collect::<Vec<_>>().join(", "),
                all => all.map(|count| count.to_string()).join(", "),
            };
            let (through, past) = (row.through(), row.past());
            println!(
                "| {:<46} | {:>5} | {through:>28} | {past:>7} | {answers:<31} | {:>6} |",
                row.way, row.calls, row.failed
            );
        }
    }
}

/// A command with its environment, on the other machine.
fn in_pod(command: &Command) -> Command {
    let pod = std::env::var("MESH_POD").expect("mesh.sh sets it");
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

pub(crate) fn wait_for_line(driven: &mut Driven, start: &str) {
    while !driven.line(START).starts_with(start) {}
}

fn addresses(endpoints: &[String]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.rsplit_once(':').unwrap().0.to_owned()).collect()
}

//! The parts of a mesh with a real registry, as `tests/real/install.sh` installs them. Each logs to `target/real/log/NAME.log`.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Command, ExitStatus},
    thread,
    time::Duration,
};

use serde_json::Value;
use tokio::runtime::{self, Runtime};

use crate::{
    SOON,
    client::{MoxClient, SERVICE_ENTRY, State, istiod_node},
    http,
    process::{Driven, Process, START, connect, eventually, free_port, fresh_home, get, local, log_path, root, script},
};

/// The jar that `make jar` builds, or that `REGISTRY_MOX_JAR` names.
pub fn our_jar() -> PathBuf {
    let built = || root().join(concat!("build/libs/registry-mox-", env!("CARGO_PKG_VERSION"), ".jar"));
    let jar = std::env::var("REGISTRY_MOX_JAR").map_or_else(|_| built(), PathBuf::from);
    assert!(jar.is_file(), "{} is missing: build it, or set REGISTRY_MOX_JAR", jar.display());
    jar
}

/// Asks a registry on 127.0.0.1 for a change.
pub fn post(port: u16, path: &str, token: &str, body: &str) -> http::Answer {
    let token = format!("X-Mox-Token: {token}");
    http::ask(local(port), SOON, "POST", path, &[&token, "Content-Type: application/json"], body).unwrap()
}

/// The all-in-one SOFARegistry with our jar on its class path.
pub struct Registry {
    process: Process,
    home: PathBuf,
    log: PathBuf,
    /// Where MoX listens, if it does.
    pub mox: u16,
}

impl Registry {
    /// The name is for its log and home folder; `mox` the port for `mox.listen`, when it is to be set.
    pub fn start(name: &str, mox: Option<u16>, options: &[&str]) -> Self {
        assert!(connect(9603).is_err(), "port 9603 is taken: another registry runs, and its ports are fixed");
        let (jar, home, log) = (our_jar(), fresh_home(name), log_path(name));
        let mut command = script("registry.sh", &log);
        command.env("REGISTRY_MOX_JAR", jar).env("REGISTRY_HOME", &home).arg("-Xcheck:jni").args(options);
        if let Some(port) = mox {
            command.arg(format!("-Dmox.listen=127.0.0.1:{port}"));
        }
        let mut process = Process::start(&mut command);
        eventually(START, "the registry is healthy", || {
            assert!(process.alive(), "the registry ended: see {}", log.display());
            get(9603, "/health/check").filter(|body| body.contains("\"success\":true"))
        });
        Self { process, home, log, mox: mox.unwrap_or_default() }
    }

    /// The lines that we logged as errors: the registry keeps all errors of all parts in this file.
    pub fn our_errors(&self) -> Vec<String> {
        let all = fs::read_to_string(self.home.join("logs/registry/integration/common-error.log")).unwrap();
        all.lines().filter(|line| line.contains("[MOX]")).map(str::to_owned).collect()
    }

    /// The warnings of `-Xcheck:jni` in the log so far.
    pub fn jni_warnings(&self) -> Vec<String> {
        let output = String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned();
        output.lines().filter(|line| line.contains(" in native method")).map(str::to_owned).collect()
    }

    pub fn terminate(&mut self, within: Duration) -> ExitStatus {
        self.process.terminate(within)
    }
}

/// A real registry client; see `java/client/Client.java`.
pub struct Client {
    driven: Driven,
    data: HashMap<String, String>,
}

impl Client {
    pub fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    /// With arguments of `client.sh`.
    pub fn start_with(name: &str, arguments: &[&str]) -> Self {
        let driven = Driven::start(script("client.sh", &log_path(name)).args(arguments));
        Self { driven, data: HashMap::new() }
    }

    /// On the machine in whose network this process is.
    pub fn start_on(machine: &str, name: &str, arguments: &[&str]) -> Self {
        let mut command = script("client.sh", &log_path(name));
        let driven = Driven::start(command.args(arguments).env("CLIENT_HOST", machine));
        Self { driven, data: HashMap::new() }
    }

    /// Tells it one line, and waits for its `ok`.
    pub fn tell(&mut self, line: &str) {
        self.driven.tell(line);
        loop {
            let answer = self.line();
            match answer.split_once(' ') {
                None if answer == "ok" => return,
                Some(("error", what)) => panic!("{line}: {what}"),
                _ => {}
            }
        }
    }

    /// Waits for the subscribed data to be these, in alphabetical order.
    pub fn wait_for_data(&mut self, data_id: &str, data: &[&str]) {
        let wanted = format!("[{}]", data.join(", "));
        while self.data.get(data_id) != Some(&wanted) {
            self.line();
        }
    }

    /// As when its machine is lost: no goodbye to the registry.
    pub fn kill(mut self) {
        self.driven.process.kill();
    }

    fn line(&mut self) -> String {
        let line = self.driven.line(SOON);
        if let Some((id, data)) = line.strip_prefix("data ").and_then(|rest| rest.split_once(' ')) {
            self.data.insert(id.to_owned(), data.to_owned());
        }
        line
    }
}

/// A process with real providers of `com.example.DemoService`.
pub struct Provider {
    process: Process,
    log: PathBuf,
}

impl Provider {
    /// Starts `provider.sh` (SOFARPC) or `dubbo.sh`, with these arguments.
    pub fn spawn(name: &str, arguments: &[&str]) -> Self {
        let log = log_path(&name.replace(".sh", "-of-tests"));
        let mut command = script(name, &log);
        Self { process: Process::start(command.args(arguments)), log }
    }

    pub fn wait_until_exported(&mut self) {
        eventually(START, "the provider is exported", || {
            assert!(self.process.alive(), "the provider ended: see {}", self.log.display());
            fs::read_to_string(&self.log).unwrap().contains("exported ").then_some(())
        });
    }

    pub fn stop(mut self) {
        self.process.terminate(START);
    }
}

/// A MoX client of ours that asks for ServiceEntries as istiod does.
pub struct Follower {
    runtime: Runtime,
    client: MoxClient,
}

impl Follower {
    pub fn connect(registry: &Registry) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let addr = format!("127.0.0.1:{}", registry.mox);
        let mut client = runtime.block_on(MoxClient::connect(&addr, istiod_node())).unwrap();
        client.subscribe(SERVICE_ENTRY).unwrap();
        Self { runtime, client }
    }

    pub fn wait_until(&mut self, wanted: impl Fn(&State) -> bool) -> &State {
        self.runtime.block_on(self.client.wait_until(SOON, wanted)).unwrap();
        self.client.state()
    }
}

/// The real istiod with the registry as its only source.
pub struct Istiod {
    pub process: Process,
    grpc: u16,
    pub http: u16,
    /// Where its metrics are.
    pub monitoring: u16,
}

impl Istiod {
    pub fn start(registry: &Registry) -> Self {
        Self::start_with(registry, free_port(), &[])
    }

    /// With more of what `istiod.sh` reads from its environment.
    pub fn start_with(registry: &Registry, grpc: u16, more: &[(&str, &str)]) -> Self {
        Self::start_on(&format!("127.0.0.1:{}", registry.mox), grpc, more)
    }

    /// With any MoX server.
    pub fn start_on(source: &str, grpc: u16, more: &[(&str, &str)]) -> Self {
        Self::with_sources(&[source.to_owned()], grpc, more)
    }

    /// With these MoX servers, `host:port`, as its sources.
    pub fn with_sources(sources: &[String], grpc: u16, more: &[(&str, &str)]) -> Self {
        let (http, monitoring, log) = (free_port(), free_port(), log_path("istiod"));
        let mut command = script("istiod.sh", &log);
        command.envs(more.iter().copied());
        command.env("GRPC_PORT", grpc.to_string()).env("HTTP_PORT", http.to_string());
        command.env("MONITORING_PORT", monitoring.to_string());
        // Its default of 100 ms only makes Envoy later.
        command.env("PILOT_DEBOUNCE_AFTER", "10ms").args(sources);
        let mut process = Process::start(&mut command);
        eventually(START, "istiod has its first configuration", || {
            assert!(process.alive(), "istiod ended: see {}", log.display());
            connect(grpc).ok()
        });
        Self { process, grpc, http, monitoring }
    }

    /// The ServiceEntry `sofa-registry/NAME` as `/debug/configz` shows it.
    pub fn entry(&self, name: &str) -> Option<Value> {
        let all: Vec<Value> = serde_json::from_str(&get(self.http, "/debug/configz")?).unwrap();
        let wanted = |v: &Value| v["kind"] == "ServiceEntry" && v["metadata"]["name"] == name;
        all.into_iter().find(|v| wanted(v) && v["metadata"]["namespace"] == "sofa-registry")
    }

    /// `address:port` of its endpoints.
    pub fn endpoints(&self, name: &str) -> Option<Vec<String>> {
        let entry = self.entry(name)?;
        let endpoint = |e: &Value| {
            let port = e["ports"].as_object().and_then(|ports| ports.values().next());
            format!("{}:{}", e["address"].as_str().unwrap(), port.unwrap_or(&entry["spec"]["ports"][0]["number"]))
        };
        Some(entry["spec"]["endpoints"].as_array().map_or(vec![], |all| all.iter().map(endpoint).collect()))
    }
}

/// The real Envoy with one listener that passes bytes to one cluster.
pub struct Envoy {
    _process: Process,
    pub admin: u16,
    cluster: String,
    pub port: u16,
}

impl Envoy {
    pub fn start(istiod: &Istiod, cluster: &str) -> Self {
        Self::of(istiod.grpc, cluster)
    }

    /// The same with an istiod by its port, which may be another one later.
    pub fn of(istiod: u16, cluster: &str) -> Self {
        let (admin, port, log) = (free_port(), free_port(), log_path("envoy"));
        let mut command = script("envoy.sh", &log);
        command.env("LISTEN_PORT", port.to_string()).env("ADMIN_PORT", admin.to_string());
        command.env("ISTIOD_PORT", istiod.to_string()).arg(cluster);
        let mut process = Process::start(&mut command);
        eventually(START, "Envoy is ready", || {
            assert!(process.alive(), "Envoy ended: see {}", log.display());
            get(admin, "/ready")
        });
        Self { _process: process, admin, cluster: cluster.to_owned(), port }
    }

    /// `address:port` of the endpoints of the listener's cluster.
    pub fn endpoints(&self) -> Option<Vec<String>> {
        Some(self.hosts(&self.cluster)?.iter().map(|(address, _)| address.clone()).collect())
    }

    /// `address:port` and health of a cluster's endpoints.
    pub fn hosts(&self, cluster: &str) -> Option<Vec<(String, String)>> {
        let all: Value = serde_json::from_str(&get(self.admin, "/clusters?format=json")?).unwrap();
        let cluster = all["cluster_statuses"].as_array()?.iter().find(|c| c["name"] == *cluster)?;
        let host = |host: &Value| {
            let socket = &host["address"]["socket_address"];
            let address = format!("{}:{}", socket["address"].as_str().unwrap(), socket["port_value"]);
            (address, host["health_status"]["eds_health_status"].as_str().unwrap_or_default().to_owned())
        };
        Some(cluster["host_statuses"].as_array().map_or(vec![], |hosts| hosts.iter().map(host).collect()))
    }
}

/// A TCP server that sends every byte back; answers its port.
pub fn echo_server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    port
}

/// A demo script must tell its story to the end, and end by itself.
pub fn demo(name: &str) {
    let log = log_path(name);
    let mut command = script(name, &log);
    let ours = ["DEMO_MOX_PORT", "DEMO_BOLT_PORT", "DEMO_TRI_PORT", "DEMO_GUEST_PORT"];
    let istio = ["GRPC_PORT", "HTTP_PORT", "MONITORING_PORT", "LISTEN_PORT", "ADMIN_PORT"];
    command.envs(ours.into_iter().chain(istio).map(|name| (name, free_port().to_string())));
    let status = Process::start(command.env("DEMO_ONCE", "1")).wait(2 * START);
    let said = fs::read_to_string(&log).unwrap();
    assert!(status.success() && !said.contains("did not come"), "see {}", log.display());
}

/// `make demo` goes on where the guest cannot start, since its port is taken, and where the guest ends while it starts.
pub fn demo_goes_on_without_its_guest() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = taken.local_addr().unwrap().port();
    for (port, start, why) in [
        (taken, "", format!("demo: port {taken} is taken")),
        (
            free_port(),
            "start() { : >target/real/log/demo-$1.log; false & pids[$1]=$!; }",
            "demo: guest ended".to_owned(),
        ),
    ] {
        let story = format!("source tests/real/demo-lib.sh; {start}\ncome_and_go; pids=(); step told");
        let mut command = Command::new("bash");
        command.current_dir(root()).args(["-c", &story]).env("DEMO_ONCE", "1").env("DEMO_GUEST_PORT", port.to_string());
        let done = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success() && said.contains("it did not come") && said.contains("==> told"), "{said}");
        assert!(said.contains(&why), "{said}");
    }
}

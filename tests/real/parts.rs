//! The real parts as processes: each is a child in its own process group, logs to `target/real/log/NAME.log`, is killed
//! by its pid when dropped, and dies with the test process. Every wait is for a condition and has a deadline.

use std::{
    collections::HashMap,
    fmt::Debug,
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::runtime::{self, Runtime};

use crate::mox_client::{MoxClient, SERVICE_ENTRY, State, istiod_node};

/// Enough for a change to pass every part on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Enough for any part to start on a busy machine.
pub(crate) const START: Duration = Duration::from_secs(180);

/// What lets a request change something, where a scenario sets it as `mox.admin.token`.
pub(crate) const TOKEN: &str = "sesame";

/// Polls until there is a value.
pub(crate) fn eventually<T>(within: Duration, what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = value() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(1)); // the polling interval
    }
}

/// Polls until a value is the wanted one; where it never is, the last one seen is shown.
pub(crate) fn eventually_is<T: PartialEq + Debug>(wanted: &T, what: &str, mut value: impl FnMut() -> T) {
    let deadline = Instant::now() + SOON;
    let mut seen = value();
    while seen != *wanted && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1)); // the polling interval
        seen = value();
    }
    assert!(seen == *wanted, "not within {SOON:?}: {what}\n  wanted: {wanted:#?}\n    seen: {seen:#?}");
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

pub(crate) fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// The body of an HTTP GET on 127.0.0.1, or nothing while that fails.
pub(crate) fn get(port: u16, path: &str) -> Option<String> {
    get_from(connect(port).ok()?, path)
}

/// The same from another server.
pub(crate) fn get_from(mut stream: TcpStream, path: &str) -> Option<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    answer_of(stream)
}

/// The body of an answer, where it is a good one.
fn answer_of(mut stream: TcpStream) -> Option<String> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if !head.split(' ').nth(1)?.starts_with('2') {
        return None;
    }
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Some(body.to_owned());
    }
    let (mut whole, mut rest) = (String::new(), body);
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(after.get(..size)?);
        rest = after.get(size + 2..)?;
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A script of this folder, which becomes its part by `exec`.
pub(crate) fn script(script: &str, log: &Path) -> Command {
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    let log = File::create(log).unwrap();
    let mut command = Command::new("setpriv");
    // The kernel kills it when this process dies, however that happens.
    command.args(["--pdeathsig", "KILL"]).arg(root().join("tests/real").join(script));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    command
}

pub(crate) fn log_path(name: &str) -> PathBuf {
    root().join(format!("target/real/log/{name}.log"))
}

pub(crate) fn our_jar() -> PathBuf {
    let built = || root().join(concat!("build/libs/registry-mox-", env!("CARGO_PKG_VERSION"), ".jar"));
    let jar = std::env::var("REGISTRY_MOX_JAR").map_or_else(|_| built(), PathBuf::from);
    assert!(jar.is_file(), "{} is missing: build it, or set REGISTRY_MOX_JAR", jar.display());
    jar
}

/// A home folder for a part, without what an earlier run left there.
pub(crate) fn fresh_home(name: &str) -> PathBuf {
    let home = root().join("target/real/home").join(name);
    match fs::remove_dir_all(&home) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", home.display()),
        _ => home,
    }
}

pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub(crate) fn ask_to_end(&self) {
        self.signal("TERM");
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        eventually(within, "the process ends", || self.0.try_wait().unwrap())
    }

    fn terminate(&mut self, within: Duration) -> ExitStatus {
        self.ask_to_end();
        eventually(within, "the process ends on SIGTERM", || self.0.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The all-in-one SOFARegistry with our jar on its class path.
pub(crate) struct Registry {
    process: Process,
    home: PathBuf,
    log: PathBuf,
    /// Where MoX listens, if it does.
    pub(crate) mox: u16,
}

impl Registry {
    /// The name is for its log and home folder; `mox` the port for `mox.listen`, when it is to be set.
    pub(crate) fn start(name: &str, mox: Option<u16>, options: &[&str]) -> Self {
        assert!(connect(9603).is_err(), "port 9603 is taken: another registry runs, and its ports are fixed");
        let (jar, home, log) = (our_jar(), fresh_home(name), log_path(name));
        let mut command = script("registry.sh", &log);
        command.env("REGISTRY_MOX_JAR", jar).env("REGISTRY_HOME", &home).arg("-Xcheck:jni").args(options);
        if let Some(port) = mox {
            command.arg(format!("-Dmox.listen=127.0.0.1:{port}"));
        }
        let mut process = Process(command.spawn().unwrap());
        eventually(START, "the registry is healthy", || {
            assert!(process.alive(), "the registry ended: see {}", log.display());
            get(9603, "/health/check").filter(|body| body.contains("\"success\":true"))
        });
        Self { process, home, log, mox: mox.unwrap_or_default() }
    }

    /// Replaces the policy while it runs, as an operator does; takes effect in a moment. Answers its hash.
    pub(crate) fn policy(&self, policy: &Value) -> String {
        let mut stream = connect(9603).unwrap();
        let body = policy.to_string();
        let head = format!("X-Mox-Token: {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
        write!(
            stream,
            "POST /mox/policy?local=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n\r\n{body}"
        )
        .unwrap();
        let answer = answer_of(stream).unwrap_or_else(|| panic!("{policy} is refused"));
        serde_json::from_str::<Value>(&answer).unwrap()["hash"].as_str().unwrap().to_owned()
    }

    /// The lines that we logged as errors: the registry keeps all errors of all parts in this file.
    pub(crate) fn our_errors(&self) -> Vec<String> {
        let all = fs::read_to_string(self.home.join("logs/registry/integration/common-error.log")).unwrap();
        all.lines().filter(|line| line.contains("[MOX]")).map(str::to_owned).collect()
    }

    /// What `-Xcheck:jni` had to say.
    pub(crate) fn jni_warnings(&self) -> Vec<String> {
        let output = String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned();
        output.lines().filter(|line| line.contains(" in native method")).map(str::to_owned).collect()
    }

    pub(crate) fn terminate(&mut self, within: Duration) -> ExitStatus {
        self.process.terminate(within)
    }
}

/// A process that is driven by lines on its standard input, and answers with lines.
pub(crate) struct Driven {
    pub(crate) process: Process,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

/// Has a thread take the lines of a process as they come, until it ends.
pub(crate) fn each_line(command: &mut Command, mut take: impl FnMut(String) + Send + 'static) -> Process {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(&mut take));
    Process(child)
}

impl Driven {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let stdin = child.stdin.take().unwrap();
        Self { process: Process(child), stdin, lines }
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    pub(crate) fn line(&mut self, within: Duration) -> String {
        self.lines.recv_timeout(within).expect("a line of its output")
    }
}

/// A real registry client; see `java/client/Client.java`.
pub(crate) struct Client {
    driven: Driven,
    data: HashMap<String, String>,
}

impl Client {
    pub(crate) fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    /// With arguments of `client.sh`.
    pub(crate) fn start_with(name: &str, arguments: &[&str]) -> Self {
        let driven = Driven::start(script("client.sh", &log_path(name)).args(arguments));
        Self { driven, data: HashMap::new() }
    }

    /// Tells it one line, and waits for its `ok`.
    pub(crate) fn tell(&mut self, line: &str) {
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
    pub(crate) fn wait_for_data(&mut self, data_id: &str, data: &[&str]) {
        let wanted = format!("[{}]", data.join(", "));
        while self.data.get(data_id) != Some(&wanted) {
            self.line();
        }
    }

    /// As when its machine is lost: no goodbye to the registry.
    pub(crate) fn kill(mut self) {
        self.driven.process.0.kill().unwrap();
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
pub(crate) struct Provider {
    process: Process,
    log: PathBuf,
}

impl Provider {
    /// Starts `provider.sh` (SOFARPC) or `dubbo.sh`, with these arguments.
    pub(crate) fn spawn(name: &str, arguments: &[&str]) -> Self {
        let log = log_path(&name.replace(".sh", "-of-tests"));
        let mut command = script(name, &log);
        Self { process: Process(command.args(arguments).spawn().unwrap()), log }
    }

    pub(crate) fn wait_until_exported(&mut self) {
        eventually(START, "the provider is exported", || {
            assert!(self.process.alive(), "the provider ended: see {}", self.log.display());
            fs::read_to_string(&self.log).unwrap().contains("exported ").then_some(())
        });
    }

    pub(crate) fn stop(mut self) {
        self.process.terminate(START);
    }
}

/// A MoX client of ours that asks for ServiceEntries as istiod does.
pub(crate) struct Mox {
    runtime: Runtime,
    client: MoxClient,
}

impl Mox {
    pub(crate) fn connect(registry: &Registry) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let addr = format!("127.0.0.1:{}", registry.mox);
        let mut client = runtime.block_on(MoxClient::connect(&addr, istiod_node())).unwrap();
        client.subscribe(SERVICE_ENTRY).unwrap();
        Self { runtime, client }
    }

    pub(crate) fn wait_until(&mut self, wanted: impl Fn(&State) -> bool) -> &State {
        self.runtime.block_on(self.client.wait_until(SOON, wanted)).unwrap();
        self.client.state()
    }
}

/// The real istiod with the registry as its only source.
pub(crate) struct Istiod {
    pub(crate) process: Process,
    grpc: u16,
    pub(crate) http: u16,
    /// Where its metrics are.
    pub(crate) monitoring: u16,
}

impl Istiod {
    pub(crate) fn start(registry: &Registry) -> Self {
        Self::start_with(registry, free_port(), &[])
    }

    /// With more of what `istiod.sh` reads from its environment.
    pub(crate) fn start_with(registry: &Registry, grpc: u16, more: &[(&str, &str)]) -> Self {
        Self::start_on(&format!("127.0.0.1:{}", registry.mox), grpc, more)
    }

    /// With any MoX server.
    pub(crate) fn start_on(source: &str, grpc: u16, more: &[(&str, &str)]) -> Self {
        Self::with_sources(&[source.to_owned()], grpc, more)
    }

    /// With these MoX servers, `host:port`, as its sources.
    pub(crate) fn with_sources(sources: &[String], grpc: u16, more: &[(&str, &str)]) -> Self {
        let (http, monitoring, log) = (free_port(), free_port(), log_path("istiod"));
        let mut command = script("istiod.sh", &log);
        command.envs(more.iter().copied());
        command.env("GRPC_PORT", grpc.to_string()).env("HTTP_PORT", http.to_string());
        command.env("MONITORING_PORT", monitoring.to_string());
        // Its default of 100 ms only makes Envoy later.
        command.env("PILOT_DEBOUNCE_AFTER", "10ms").args(sources);
        let mut process = Process(command.spawn().unwrap());
        eventually(START, "istiod has its first configuration", || {
            assert!(process.alive(), "istiod ended: see {}", log.display());
            connect(grpc).ok()
        });
        Self { process, grpc, http, monitoring }
    }

    /// The ServiceEntry `sofa-registry/NAME` as `/debug/configz` shows it.
    pub(crate) fn entry(&self, name: &str) -> Option<Value> {
        let all: Vec<Value> = serde_json::from_str(&get(self.http, "/debug/configz")?).unwrap();
        let wanted = |v: &Value| v["kind"] == "ServiceEntry" && v["metadata"]["name"] == name;
        all.into_iter().find(|v| wanted(v) && v["metadata"]["namespace"] == "sofa-registry")
    }

    /// `address:port` of its endpoints.
    pub(crate) fn endpoints(&self, name: &str) -> Option<Vec<String>> {
        let entry = self.entry(name)?;
        let endpoint = |e: &Value| {
            let port = e["ports"].as_object().and_then(|ports| ports.values().next());
            format!("{}:{}", e["address"].as_str().unwrap(), port.unwrap_or(&entry["spec"]["ports"][0]["number"]))
        };
        Some(entry["spec"]["endpoints"].as_array().map_or(vec![], |all| all.iter().map(endpoint).collect()))
    }
}

/// The real Envoy with one listener that passes bytes to one cluster.
pub(crate) struct Envoy {
    _process: Process,
    pub(crate) admin: u16,
    cluster: String,
    pub(crate) port: u16,
}

impl Envoy {
    pub(crate) fn start(istiod: &Istiod, cluster: &str) -> Self {
        Self::of(istiod.grpc, cluster)
    }

    /// The same with an istiod by its port, which may be another one later.
    pub(crate) fn of(istiod: u16, cluster: &str) -> Self {
        let (admin, port, log) = (free_port(), free_port(), log_path("envoy"));
        let mut command = script("envoy.sh", &log);
        command.env("LISTEN_PORT", port.to_string()).env("ADMIN_PORT", admin.to_string());
        command.env("ISTIOD_PORT", istiod.to_string()).arg(cluster);
        let mut process = Process(command.spawn().unwrap());
        eventually(START, "Envoy is ready", || {
            assert!(process.alive(), "Envoy ended: see {}", log.display());
            get(admin, "/ready")
        });
        Self { _process: process, admin, cluster: cluster.to_owned(), port }
    }

    /// `address:port` of the endpoints of the listener's cluster.
    pub(crate) fn endpoints(&self) -> Option<Vec<String>> {
        Some(self.hosts(&self.cluster)?.iter().map(|(address, _)| address.clone()).collect())
    }

    /// `address:port` and health of a cluster's endpoints.
    pub(crate) fn hosts(&self, cluster: &str) -> Option<Vec<(String, String)>> {
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
pub(crate) fn echo_server() -> u16 {
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
pub(crate) fn demo(name: &str) {
    let log = log_path(name);
    let mut command = script(name, &log);
    let ours = ["DEMO_MOX_PORT", "DEMO_BOLT_PORT", "DEMO_TRI_PORT"];
    let istio = ["GRPC_PORT", "HTTP_PORT", "MONITORING_PORT", "LISTEN_PORT", "ADMIN_PORT"];
    command.envs(ours.into_iter().chain(istio).map(|name| (name, free_port().to_string())));
    let mut process = Process(command.env("DEMO_ONCE", "1").spawn().unwrap());
    let status = eventually(2 * START, "the demo ends", || process.0.try_wait().unwrap());
    assert!(status.success(), "see {}", log.display());
}

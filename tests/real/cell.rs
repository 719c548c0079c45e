//! A SOFARegistry of one meta server, one data server and session servers with MoX, each with a machine of its own in the network
//! that `hosts.sh` makes; registry clients that come, change and go; recording clients of MoX, and the reader of the data server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, UNIX_EPOCH},
};

use harness::{
    SOON, http,
    judge::{Endpoints, Millis, Wrong, judge},
    parts::{Client, our_jar},
    process::{Process, START, eventually, fresh_home, log_path, script},
    random::Random,
};
use serde_json::Value;

use crate::recorder::{DataReader, Recorder, converge, now};

pub(crate) const META: u8 = 2;
pub(crate) const DATA: u8 = 3;
pub(crate) const SESSIONS: [u8; 2] = [11, 12];
/// Long enough for documents.
pub(crate) const TOKEN: &str = "open-sesame-1234";
/// Where `server.sh` has the database listen.
pub(crate) const DATABASE_PORT: u16 = 9092;
pub(crate) const SERVICES: usize = 20;
const ENDPOINTS: usize = 6;
/// For a page of a server that may have been cut off.
const PATIENCE: Duration = Duration::from_secs(10);
/// Registry clients of the fleet.
const CLIENTS: &str = "12";
/// The patience with a registry that has lost a server, whose leases are 30 s, and with what follows from that.
pub(crate) const SETTLED: Duration = Duration::from_secs(120);

pub(crate) fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, n)
}

/// The body of a page; nothing while there is none, which is not waited for as long as usual.
pub(crate) fn get(n: u8, port: u16, path: &str) -> Option<String> {
    http::ask((address(n), port), PATIENCE, "GET", path, &[], "").ok()?.good()
}

/// An operator's request to a session server; `if_match` empty: whatever revision there is.
pub(crate) fn post(n: u8, path: &str, if_match: &str, body: &str) -> http::Answer {
    let (token, if_match) = (format!("X-Mox-Token: {TOKEN}"), format!("If-Match: {if_match}"));
    let headers = [&*token, "Content-Type: application/json", &*if_match];
    let headers = if if_match == "If-Match: " { &headers[..2] } else { &headers[..] };
    http::ask((address(n), 9603), SOON, "POST", path, headers, body).unwrap()
}

/// Starts the database of a registry, with a log of this name, and waits until it listens at an address.
pub(crate) fn database(log: &str, at: Ipv4Addr) -> Process {
    let log = log_path(log);
    let mut database = Process::start(script("server.sh", &log).args(["database", "1"]));
    eventually(START, "the database listens", || {
        assert!(database.alive(), "the database ended: see {}", log.display());
        TcpStream::connect_timeout(&SocketAddr::from((at, DATABASE_PORT)), PATIENCE).ok()
    });
    database
}

/// MoX's own account of a session server.
pub(crate) fn status(n: u8) -> Value {
    get(n, 9603, "/mox/status").and_then(|body| serde_json::from_str(&body).ok()).unwrap_or_default()
}

/// Waits until a session server holds back for this reason, or for none.
pub(crate) fn wait_until_held(n: u8, held: Option<&str>) {
    let deadline = Instant::now() + SETTLED;
    loop {
        let status = status(n);
        if status["served"]["held"].as_str() == held && status["served"].is_object() {
            return;
        }
        let [served, feed, publisher] = ["served", "feed", "publisher"].map(|part| &status[part]);
        assert!(
            Instant::now() < deadline,
            "session server {n} is not held {held:?}: {served:#} {feed:#} {publisher:#}"
        );
        thread::sleep(Duration::from_millis(5)); // the polling interval
    }
}

/// How long a session server and istiod's client take at most to follow the data server.
const FOLLOWS: Millis = 2_000;

/// Whether the data server dropped an endpoint of this service when the client lost it; each of what it dropped is the cause of
/// one at most.
fn take_cause(dropped: &mut Vec<(Millis, String)>, lost: &Wrong) -> bool {
    let cause = dropped.iter().position(|(at, id)| *id == lost.id && (*at..*at + FOLLOWS).contains(&lost.lost));
    cause.map(|at| dropped.swap_remove(at)).is_some()
}

/// Runs a command on a machine; answers what it prints.
pub(crate) fn on(n: u8, command: &[&str]) -> String {
    let holder = std::env::var(format!("HOST_{n}")).unwrap();
    let output = Command::new("nsenter").args(["--net", "--target", &holder]).args(command).output().unwrap();
    assert!(output.status.success(), "{command:?} on {}", address(n));
    String::from_utf8(output.stdout).unwrap()
}

/// A server of the registry.
pub(crate) struct Server {
    pub(crate) n: u8,
    role: &'static str,
    health: u16,
    pub(crate) options: Vec<String>,
    /// Variables of its environment.
    pub(crate) environment: Vec<(&'static str, PathBuf)>,
    home: PathBuf,
    process: Option<Process>,
    starts: usize,
}

impl Server {
    pub(crate) fn new(role: &'static str, n: u8, health: u16, options: &[String]) -> Self {
        let home = fresh_home(&format!("cell/{role}-{n}"));
        fs::create_dir_all(&home).unwrap();
        Self { n, role, health, options: options.to_vec(), environment: Vec::new(), home, process: None, starts: 0 }
    }

    /// Must be called by the main thread: with the thread that started it a process is killed.
    pub(crate) fn start(&mut self) {
        self.starts += 1;
        let log = log_path(&format!("cell-{}-{}.{}", self.role, self.n, self.starts));
        let mut command = script("server.sh", &log);
        command
            .args([self.role, &self.n.to_string()])
            .args(&self.options)
            .env("REGISTRY_HOME", &self.home)
            .envs(self.environment.clone());
        if self.role == "session" && self.options.iter().any(|option| option.starts_with("-Dmox.")) {
            command.env("REGISTRY_MOX_JAR", our_jar());
        }
        self.process = Some(Process::start(&mut command));
    }

    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("a running server").signal(name);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("a running server").pid()
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::alive)
    }

    pub(crate) fn is_healthy(&mut self) -> bool {
        let alive = self.is_alive();
        assert!(alive, "{} {} ended: see its logs in {}", self.role, self.n, self.home.display());
        get(self.n, self.health, "/health/check").is_some_and(|body| body.contains("\"success\":true"))
    }

    pub(crate) fn wait_until_healthy(&mut self) {
        eventually(START, &format!("{} {} is healthy", self.role, self.n), || self.is_healthy().then_some(()));
    }

    /// Of a session server.
    pub(crate) fn wait_until_serving(&mut self) {
        eventually(START, &format!("session server {} serves a complete view", self.n), || {
            let off = get(self.n, 9603, "/mox/status").is_none()
                && self.our_errors().iter().any(|line| line.contains("MoX is off"));
            assert!(!off, "MoX is off on session server {}: {:?}", self.n, self.our_errors());
            let status = status(self.n);
            (status["listening"].is_object() && status["served"]["held"].is_null()).then_some(())
        });
    }

    /// When this data server dropped publishers since their client was gone, by its own log, and of which dataInfoId. A session
    /// server that wakes after its clients have moved has them dropped, until they are published once more.
    fn dropped_by_client(&self) -> Vec<(Millis, String)> {
        let log = fs::read_to_string(self.home.join("logs/registry/data/registry-put.log")).unwrap_or_default();
        let dropped = |line: &str| {
            let (at, said) = line.strip_prefix('[')?.split_once(']')?;
            let (what, version) = said.split_once("[PUT] - off,")?.1.rsplit_once(',')?;
            let id = what.split(',').nth(1).filter(|_| version != "null")?; // null: it was not there any more
            let at = humantime::parse_rfc3339(&format!("{}Z", at.replace(',', "."))).ok()?;
            Some((at.duration_since(UNIX_EPOCH).ok()?.as_millis() as Millis, id.to_owned()))
        };
        log.lines().filter_map(dropped).collect()
    }

    /// The errors that MoX logged.
    fn our_errors(&self) -> Vec<String> {
        // The registry keeps errors of all parts in this file, whatever runs.
        let log = self.home.join("logs/registry/integration/common-error.log");
        let all = fs::read_to_string(log).unwrap_or_default();
        all.lines().filter(|line| line.contains("[MOX]")).map(str::to_owned).collect()
    }
}

/// Registry clients that change what they publish, so many times a second.
pub(crate) struct Fleet {
    rate: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Client>>,
    pub(crate) changes: Arc<AtomicU32>,
    /// Endpoints that were unpublished, and since when.
    taken_back: Arc<Mutex<BTreeMap<String, Millis>>>,
}

pub(crate) fn data_id(service: usize) -> String {
    format!("com.example.Fleet{service}:1.0@DEFAULT")
}

pub(crate) fn ids() -> Vec<String> {
    (0..SERVICES).map(|service| format!("{}#@#DEFAULT_INSTANCE_ID#@#SOFA", data_id(service))).collect()
}

impl Fleet {
    /// Starts the clients and publishes all endpoints. `round` makes the addresses others than before.
    fn start(round: usize) -> Self {
        let server = address(SESSIONS[0]).to_string();
        let mut client = Client::start_with(&format!("cell-fleet.{round}"), &[&server, "9603", "fleet", CLIENTS]);
        for service in 0..SERVICES {
            for endpoint in 0..ENDPOINTS {
                client.tell(&format!(
                    "publish {service}.{endpoint} {} {}",
                    data_id(service),
                    payload(service, endpoint, 1)
                ));
            }
        }
        let (rate, stop, changes) = <(Arc<AtomicU32>, Arc<AtomicBool>, Arc<AtomicU32>)>::default();
        let taken_back = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let its_taken_back = Arc::clone(&taken_back);
        let (its_rate, its_stop, its_changes) = (Arc::clone(&rate), Arc::clone(&stop), Arc::clone(&changes));
        let thread = thread::spawn(move || {
            let mut random = Random::new(round as u64);
            let mut comings = [0; SERVICES];
            let mut gone = [false; SERVICES];
            let mut next = Instant::now();
            while !its_stop.load(Ordering::Relaxed) {
                let rate = its_rate.load(Ordering::Relaxed);
                if rate == 0 || next > Instant::now() {
                    thread::sleep(Duration::from_millis(2)); // the pace
                    next = if rate == 0 { Instant::now() } else { next };
                    continue;
                }
                next += Duration::from_secs(1) / rate;
                let (service, weight) = (random.below(SERVICES), 1 + random.below(200));
                if random.below(10) < 6 {
                    let endpoint = random.below(ENDPOINTS - 1);
                    client.tell(&format!("republish {service}.{endpoint} {}", payload(service, endpoint, weight)));
                } else {
                    // The last of a service goes, and another comes in its place: the same one could be back before the
                    // data server is read again, which would look as if it had never gone.
                    let last = ENDPOINTS - 1;
                    if gone[service] {
                        comings[service] += 1;
                        let payload = payload(service, last + comings[service] % 200, weight);
                        client.tell(&format!("publish {service}.{last} {} {payload}", data_id(service)));
                    } else {
                        let endpoint = endpoint(service, last + comings[service] % 200);
                        its_taken_back.lock().unwrap().insert(endpoint, now());
                        client.tell(&format!("unpublish {service}.{last}"));
                    }
                    gone[service] = !gone[service];
                }
                its_changes.fetch_add(1, Ordering::Relaxed);
            }
            client
        });
        Self { rate, stop, thread: Some(thread), changes, taken_back }
    }

    /// Changes in a second from now on.
    pub(crate) fn churn(&self, rate: u32) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    fn end(&mut self) -> Client {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("not ended before").join().expect("the registry clients answer")
    }
}

fn endpoint(service: usize, endpoint: usize) -> String {
    format!("10.9.{service}.{}:12200", endpoint + 1)
}

fn payload(service: usize, n: usize, weight: usize) -> String {
    format!("{}?weight={weight}&app_name=fleet", endpoint(service, n))
}

/// Everything together.
pub(crate) struct Cell {
    _meta: Server,
    pub(crate) data: Server,
    pub(crate) sessions: Vec<Server>,
    pub(crate) reader: DataReader,
    /// A recorder for each session server, which stays with that server, and a recorder that takes any.
    pub(crate) recorders: Vec<Recorder>,
    pub(crate) fleet: Option<Fleet>,
    fleets: usize,
    /// When what followed from the last release of the breaker was over.
    pub(crate) last_release: Option<Instant>,
    /// By the present fleet, or the last one.
    taken_back: Arc<Mutex<BTreeMap<String, Millis>>>,
    pub(crate) rows: Vec<Row>,
    _database: Process,
}

/// How a fault went, over all its rounds.
pub(crate) struct Row {
    pub(crate) fault: &'static str,
    pub(crate) rounds: usize,
    pub(crate) wrong: usize,
    pub(crate) duplicates: usize,
    /// From the registry's last change to the clients' last, in ms.
    pub(crate) converged: Vec<Millis>,
    /// From a change in the registry to the same at the clients, in ms.
    pub(crate) lags: Vec<Millis>,
}

impl Cell {
    /// Starts the database, meta and data; session servers are yet to be started.
    pub(crate) fn servers(data_options: &[&str], session_options: &[&str]) -> (Process, Server, Server, Vec<Server>) {
        let owned = |options: &[&str]| options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
        let database = database("cell-database", address(1));
        let mut tables = Process::start(script("server.sh", &log_path("cell-tables")).args(["tables", "1"]));
        assert!(tables.wait(START).success(), "the tables could not be made");
        let mut meta = Server::new("meta", META, 9615, &owned(data_options));
        meta.start();
        meta.wait_until_healthy();
        get(META, 9615, "/stopPushDataSwitch/close").expect("pushes are switched on");
        let mut data = Server::new("data", DATA, 9622, &owned(data_options));
        data.start();
        let sessions = SESSIONS.map(|n| {
            let mut options = owned(session_options);
            options.push(format!("-Dmox.state-dir={}", fresh_home(&format!("cell/state-{n}")).display()));
            Server::new("session", n, 9603, &options)
        });
        (database, meta, data, sessions.into())
    }

    pub(crate) fn start() -> Self {
        let begin = Instant::now();
        let (database, meta, mut data, mut sessions) = Self::servers(
            &[],
            &[
                "-Dmox.enabled=true",
                &format!("-Dmox.admin.token={TOKEN}"),
                // Six times shorter than the default, as the tests' patience is; with it everything is compared every 5 s.
                "-Dmox.protect.max-staleness=20s",
            ],
        );
        sessions.iter_mut().for_each(Server::start);
        data.wait_until_healthy();
        for session in &mut sessions {
            session.wait_until_healthy();
            session.wait_until_serving();
        }
        println!("a registry of four servers, two of them with MoX, is up after {:.0?}", begin.elapsed());
        let home = fresh_home("cell/reader");
        let reader = DataReader::start(
            &address(DATA).to_string(),
            Duration::from_millis(250),
            &ids(),
            &home,
            &log_path("cell-reader"),
        );
        let mox = |n: &u8| format!("{}:9700", address(*n));
        let mut recorders: Vec<Recorder> =
            SESSIONS.iter().map(|n| Recorder::start(&format!("of session {n}"), vec![mox(n)])).collect();
        recorders.push(Recorder::start("of any session", SESSIONS.iter().map(mox).collect()));
        let mut cell = Self {
            _meta: meta,
            data,
            sessions,
            reader,
            recorders,
            fleet: None,
            fleets: 0,
            last_release: None,
            taken_back: Arc::default(),
            rows: Vec::new(),
            _database: database,
        };
        cell.start_fleet();
        let since = now();
        converge(&cell.reader, &cell.clients(), since, SETTLED);
        assert_eq!(cell.recorders[0].endpoints().values().map(|all| all.len()).sum::<usize>(), SERVICES * ENDPOINTS);
        cell
    }

    pub(crate) fn clients(&self) -> Vec<&Recorder> {
        self.recorders.iter().collect()
    }

    /// Starts the clients; what they publish has arrived at the end.
    pub(crate) fn start_fleet(&mut self) {
        self.fleets += 1;
        let fleet = Fleet::start(self.fleets);
        self.taken_back = Arc::clone(&fleet.taken_back);
        self.fleet = Some(fleet);
        let all = |named: &Arc<Endpoints>| named.values().map(BTreeSet::len).sum::<usize>() == SERVICES * ENDPOINTS;
        eventually(SOON, "what the clients publish arrives", || self.reader.named(0).filter(all));
    }

    pub(crate) fn kill_fleet(&mut self) {
        self.fleet.take().expect("a fleet").end().kill();
    }

    pub(crate) fn churn(&self, rate: u32) {
        self.fleet.as_ref().expect("a fleet").churn(rate);
    }

    /// Waits until there is no churn and every client has what the data server has; judges what they were told since `since`.
    /// `healed` is when there was no fault any more.
    pub(crate) fn settle(&mut self, fault: &'static str, since: Millis, healed: Millis) {
        self.churn(0);
        let took = converge(&self.reader, &self.clients(), healed, SETTLED);
        self.judge(fault, since, took);
    }

    /// Judges what the clients were told since `since`.
    pub(crate) fn judge(&mut self, fault: &'static str, since: Millis, converged: Vec<Millis>) {
        let reads = self.reader.since(since);
        let (mut wrong, mut duplicates, mut lags) = (0, 0, Vec::new());
        for recorder in &self.recorders {
            let mut verdict = judge(&reads, &recorder.held_since(since));
            // A session server hears before the data server of what its own clients take back.
            let taken_back = self.taken_back.lock().unwrap();
            verdict.wrong.retain(|one| taken_back.get(&one.endpoint).is_none_or(|at| one.lost < *at));
            if !verdict.wrong.is_empty() {
                let mut dropped = self.data.dropped_by_client();
                let found = verdict.wrong.len();
                verdict.wrong.retain(|one| !take_cause(&mut dropped, one));
                let excused = found - verdict.wrong.len();
                println!(
                    "    {excused} of {found} were gone from the data server, too, between two reads of it: {fault}"
                );
            }
            for one in verdict.wrong.iter().take(5) {
                println!("WRONG DELETION at the client {}: {one:?}", recorder.name);
                let held = recorder.held_since(one.lost - 10_000);
                let has = |held: &harness::judge::Held| {
                    held.endpoints.get(&one.id).is_some_and(|all| all.contains(&one.endpoint))
                };
                let changes: Vec<_> = held
                    .windows(2)
                    .filter(|two| has(&two[0]) != has(&two[1]))
                    .map(|two| (two[1].at, has(&two[1])))
                    .collect();
                println!("    at the client: {changes:?}");
            }
            wrong += verdict.wrong.len();
            lags.extend(verdict.lags);
            duplicates += recorder.told().duplicates.len();
        }
        let row = match self.rows.iter_mut().position(|row| row.fault == fault) {
            Some(at) => &mut self.rows[at],
            None => {
                let (converged, lags) = (Vec::new(), Vec::new());
                self.rows.push(Row { fault, rounds: 0, wrong: 0, duplicates: 0, converged, lags });
                self.rows.last_mut().expect("just pushed")
            }
        };
        row.rounds += 1;
        row.wrong += wrong;
        row.duplicates += duplicates;
        row.converged.extend(converged);
        row.lags.extend(lags);
        assert_eq!((wrong, duplicates), (0, 0), "wrong deletions and duplicates");
    }

    /// Both session servers serve the same bytes.
    pub(crate) fn assert_same_bytes(&self) {
        eventually(Duration::from_secs(30), "both session servers serve the same bytes", || {
            let [one, other] = [0, 1].map(|i| self.recorders[i].told().last);
            (one.is_some() && one == other).then_some(())
        });
    }

    /// Cuts a session server off from the data server, or ends that.
    pub(crate) fn cut(&self, session: usize, cut: bool) {
        let (n, change, data) = (self.sessions[session].n, if cut { "-A" } else { "-D" }, address(DATA).to_string());
        on(n, &["iptables", change, "INPUT", "-s", &data, "-j", "DROP"]);
        on(n, &["iptables", change, "OUTPUT", "-d", &data, "-j", "DROP"]);
    }

    pub(crate) fn table(&mut self) {
        println!("{}", crate::faults::table(&mut self.rows));
    }
}

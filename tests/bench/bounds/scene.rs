//! A server with a good publisher and a good client, and what they wait while something else goes on.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use harness::{
    Mox, SOON,
    client::{SERVICE_ENTRY, Sotw},
    http, id, nth,
    serve::{Serve, program},
};
use registry_mox::{
    proto::google::protobuf::Any,
    testing::{
        host::engine::Engine,
        model::RegisterVersion,
        registry::frame::{self, Publisher},
    },
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::{Result, Size};

/// Between two changes of the good publisher.
const PACE: Duration = Duration::from_millis(20);
/// How long memory is given to come back.
const REST: Duration = Duration::from_secs(2);
/// Endpoints of a good service.
const ENDPOINTS: usize = 10;
/// Windows of HTTP/2 of istiod's client, in bytes.
const WINDOW: u32 = 1 << 20;

pub(crate) const HEAD: &str = "\
| tried | bounds | RSS MB: before → peak → after | p50 ms: calm → during | p99 ms: calm → during (ratio) | longest call ms | s |
| --- | --- | --- | --- | --- | ---: | ---: |";

/// The program that is attacked.
enum Server {
    /// `examples/serve`, whose memory is its own.
    Apart(Serve),
    /// In this process, where publishers call it from threads as in a session server.
    Here(Mox),
}

/// What others may reach.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) mox: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) pid: u32,
    /// For publishers, where they call from this process.
    pub(crate) engine: Option<Arc<Engine>>,
}

/// The newest response that the good client has, and when it was there.
type Seen = Arc<(Mutex<(Vec<Any>, Instant)>, Condvar)>;

/// A server, its good publisher and its good client.
pub(crate) struct Scene {
    size: Size,
    server: Server,
    pub(crate) target: Target,
    seen: Seen,
    services: usize,
    /// Changes of the good publisher so far.
    changes: usize,
    /// So many other services change with each of its changes.
    pub(crate) churn: usize,
    outcome: Outcome,
    begun: Instant,
    runtime: tokio::runtime::Runtime,
}

/// Resident memory in bytes.
#[derive(Debug, Default, Clone, Copy)]
struct Memory {
    before: u64,
    peak: u64,
    after: u64,
}

/// What an attack cost, and which bounds held.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    memory: Memory,
    calm: Vec<Duration>,
    during: Vec<Duration>,
    /// The longest call of a registry's thread, without the time that the machine had no processor for it.
    longest: Option<Duration>,
    took: Duration,
    /// Whether each holds, and whether a busy machine may break it.
    bounds: Vec<(String, bool, bool)>,
}

impl Outcome {
    /// The bounds that do not hold; without those of time unless they are `timed`.
    pub(crate) fn broken(&self, timed: bool) -> Vec<&str> {
        let counts = |(_, holds, of_time): &&(String, bool, bool)| !holds && (timed || !of_time);
        self.bounds.iter().filter(counts).map(|(what, ..)| what.as_str()).collect()
    }
}

fn quantile(waits: &[Duration], share: f64) -> f64 {
    let mut all: Vec<f64> = waits.iter().map(|wait| wait.as_secs_f64() * 1e3).collect();
    all.sort_by(f64::total_cmp);
    all.get(((all.len() as f64 * share).ceil() as usize).clamp(1, all.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// A row of the table under [`HEAD`].
pub(crate) fn row(tries: &str, outcome: &Outcome) -> String {
    let Outcome { memory, calm, during, longest, took, bounds } = outcome;
    let mb = |bytes: u64| bytes / 1_000_000;
    let bounds: Vec<String> = bounds
        .iter()
        .map(|(what, holds, _)| if *holds { what.clone() } else { format!("**NOT HELD** {what}") })
        .collect();
    let p99 = (quantile(calm, 0.99), quantile(during, 0.99));
    let longest = longest.map(|longest| format!("{:.2}", longest.as_secs_f64() * 1e3)).unwrap_or_default();
    format!(
        "| {tries} | {} | {} → {} → {} | {:.1} → {:.1} | {:.1} → {:.1} ({:.2}) | {longest} | {:.0} |",
        bounds.join("; "),
        mb(memory.before),
        mb(memory.peak),
        mb(memory.after),
        quantile(calm, 0.5),
        quantile(during, 0.5),
        p99.0,
        p99.1,
        p99.1 / p99.0,
        took.as_secs_f64()
    )
}

/// The good publisher's service, which is like the others but for its name.
fn good() -> String {
    id("Good")
}

fn address(service: usize, n: usize) -> String {
    format!("10.{}.{}.{n}:12200?app_name=app{}", 1 + service / 250, service % 250, service % 50)
}

/// A publisher that says nothing but this.
pub(crate) fn publisher<'a>(register_id: &'a str, version: i64, data: &'a [String]) -> Publisher<'a> {
    Publisher {
        register_id: register_id.into(),
        version: RegisterVersion { version, timestamp: 0 },
        payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
        ..Publisher::default()
    }
}

/// Publishes as the registry's own threads do; what is refused is refused.
pub(crate) fn publish(engine: &Engine, service: &str, register_id: &str, version: i64, data: &[String]) -> bool {
    frame::encode_publish("registry", service, &publisher(register_id, version, data))
        .is_ok_and(|frame| engine.apply(&frame).is_ok())
}

/// The end of a publisher.
pub(crate) fn unpublish(engine: &Engine, service: &str, register_id: &str, version: i64) -> bool {
    frame::encode_unpublish("registry", service, register_id, RegisterVersion { version, timestamp: 0 })
        .is_ok_and(|frame| engine.apply(&frame).is_ok())
}

fn config(more: &Value) -> Value {
    let mut config = json!({ "adminListen": "127.0.0.1:0", "push": { "duty": 1.0, "prime": false } });
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

impl Scene {
    /// `serve` with so many services, and these settings more.
    pub(crate) fn apart(size: Size, services: usize, more: &Value) -> Result<Self> {
        let file = std::env::temp_dir().join(format!("mox-bounds-{}.json", std::process::id()));
        fs::write(&file, config(more).to_string())?;
        let serve = Serve::start(Command::new(program()).arg("--config").arg(&file).stderr(Stdio::null()));
        fs::remove_file(file)?;
        let address = |name: &str| serve.first[name].as_str().ok_or("no address")?.parse().map_err(crate::Error::from);
        let (mox, admin, pid) = (address("mox")?, address("admin")?, serve.driven.process.pid());
        Self::begin(size, Server::Apart(serve), Target { mox, admin, pid, engine: None }, services)
    }

    /// The same in this process.
    pub(crate) fn here(size: Size, services: usize, more: &Value) -> Result<Self> {
        let mox = Mox::open(config(more));
        let bound = mox.engine.listen()?;
        let admin = bound.admin.ok_or("no admin pages")?;
        let target = Target { mox: bound.mox, admin, pid: std::process::id(), engine: Some(Arc::clone(&mox.engine)) };
        Self::begin(size, Server::Here(mox), target, services)
    }

    fn begin(size: Size, server: Server, target: Target, services: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let seen: Seen = Arc::new((Mutex::new((Vec::new(), Instant::now())), Condvar::new()));
        let begun = Instant::now();
        let (changes, churn, outcome) = (0, 0, Outcome::default());
        let mut scene = Self { size, server, target, seen, services, changes, churn, outcome, begun, runtime };
        for service in 0..services {
            (0..ENDPOINTS).for_each(|n| scene.say(&nth(service), &format!("r{n}"), 1, address(service, n)));
        }
        scene.change();
        match &mut scene.server {
            Server::Apart(serve) => {
                serve.say(&json!({ "op": "loaded" }));
                serve.flush();
            }
            Server::Here(mox) => {
                mox.engine.loaded();
                scene.runtime.block_on(mox.engine.flush());
            }
        }
        let (seen, mox) = (Arc::clone(&scene.seen), scene.target.mox.to_string());
        scene.runtime.spawn(async move {
            let channel = Channel::from_shared(format!("http://{mox}")).expect("an address");
            let channel = channel.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
            let channel = channel.connect().await.expect("a connection");
            let mut client = Sotw::open(channel, None).await.expect("a stream");
            client.ask(SERVICE_ENTRY, &[]);
            // When the stream ends, the next change arrives nowhere.
            while let Ok(response) = client.message().await {
                client.ack(&response, &[]);
                *seen.0.lock().unwrap_or_else(PoisonError::into_inner) = (response.resources, Instant::now());
                seen.1.notify_all();
            }
        });
        scene.arrived(scene.changes)?;
        Ok(scene)
    }

    fn say(&mut self, service: &str, register_id: &str, version: i64, data: String) {
        match &mut self.server {
            Server::Apart(serve) => serve.say(&json!({
                "op": "publish", "dataInfoId": service, "registerId": register_id, "version": version,
                "registerTimestamp": 0, "data": [data],
            })),
            Server::Here(mox) => mox.publish(service, register_id, version, &[&data]),
        }
    }

    /// The good publisher says something new.
    fn change(&mut self) {
        self.changes += 1;
        let version = self.changes as i64;
        self.say(&good(), "good", version, format!("10.0.0.1:12200?zone=change-{version}"));
        for n in 0..self.churn {
            let service = (self.changes * self.churn + n) % self.services;
            self.say(&nth(service), "r0", version + 1, format!("{}&zone=change-{version}", address(service, 0)));
        }
    }

    /// Waits until the good client has a response of which this is so; when it came.
    pub(crate) fn until(&self, is_so: impl Fn(&[Any]) -> bool) -> Result<Instant> {
        let (lock, told) = &*self.seen;
        let mut seen = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + SOON;
        while !is_so(&seen.0) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("the good client did not hear of a good publisher's change within a minute".into());
            }
            seen = told.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(seen.1)
    }

    fn arrived(&self, change: usize) -> Result<Instant> {
        let text = format!("change-{change}");
        self.until(|resources| resource(resources, "/com.example.good").is_some_and(|found| has(found, &text)))
    }

    /// Changes, one after the other, until it is enough; how long the good client waited for each.
    fn changes(&mut self, is_enough: impl Fn() -> bool) -> Result<Vec<Duration>> {
        let mut waits = Vec::new();
        while !is_enough() {
            let said = Instant::now();
            self.change();
            waits.push(self.arrived(self.changes)?.saturating_duration_since(said));
            std::thread::sleep(PACE);
        }
        Ok(waits)
    }

    /// Calm windows and windows of attack in turn. The attack goes on until it is told to stop, and is told how often it ran
    /// before; it returns when it has ended all that it began.
    pub(crate) fn attack(&mut self, attack: impl Fn(&Target, usize, &AtomicBool) -> Result<()> + Sync) -> Result<()> {
        let (target, attack, lasts) = (self.target.clone(), &attack, self.size.window);
        for round in 0..self.size.rounds {
            let window = Instant::now();
            let calm = self.changes(|| window.elapsed() >= lasts)?;
            self.outcome.calm.extend(calm);
            if round == 0 {
                self.outcome.memory.before = self.resident()?;
                fs::write(format!("/proc/{}/clear_refs", self.target.pid), "5")?; // the peak is what it is now
                self.begun = Instant::now();
            }
            let stop = AtomicBool::new(false);
            let window = Instant::now();
            let during = std::thread::scope(|scope| {
                let running = scope.spawn(|| attack(&target, round, &stop));
                let enough = || {
                    stop.fetch_or(window.elapsed() >= lasts, Ordering::AcqRel);
                    running.is_finished()
                };
                let during = self.changes(enough);
                stop.store(true, Ordering::Release);
                running.join().map_err(|_| "the attack panicked")??;
                during
            })?;
            self.outcome.during.extend(during);
        }
        self.outcome.took = self.begun.elapsed();
        self.outcome.memory.peak = self.peak()?;
        Ok(())
    }

    fn kilobytes(&self, name: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.target.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no memory in status")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn resident(&self) -> Result<u64> {
        Ok(self.kilobytes("VmRSS:")? << 10)
    }

    fn peak(&self) -> Result<u64> {
        Ok(self.kilobytes("VmHWM:")? << 10)
    }

    /// `/mox/status`.
    pub(crate) fn status(&self) -> Result<Value> {
        let body = http::ask(self.target.admin, SOON, "GET", "/mox/status", &[], "")?;
        Ok(serde_json::from_str(&body.body)?)
    }

    /// The waits of good publishers that were measured in another way.
    pub(crate) fn waited(&mut self, calm: Vec<Duration>, during: Vec<Duration>) {
        (self.outcome.calm, self.outcome.during) = (calm, during);
    }

    pub(crate) fn longest(&mut self, longest: Duration) {
        self.outcome.longest = self.outcome.longest.max(Some(longest));
    }

    /// A bound, with the figure that is to be within it.
    pub(crate) fn bound(&mut self, what: impl Into<String>, holds: bool) {
        self.outcome.bounds.push((what.into(), holds, false));
    }

    /// A bound that a busy machine may break.
    pub(crate) fn bound_of_time(&mut self, what: impl Into<String>, holds: bool) {
        self.outcome.bounds.push((what.into(), holds, true));
    }

    /// That the peak is so many bytes at most above what was there.
    pub(crate) fn bound_of_memory(&mut self, most: u64) {
        let Memory { before, peak, .. } = self.outcome.memory;
        self.bound(format!("RSS + {} MB at most", most / 1_000_000), peak.saturating_sub(before) <= most);
    }

    /// That others' pushes are so many times as late at most, 99 of 100.
    pub(crate) fn bound_of_pushes(&mut self, most: f64) {
        let ratio = quantile(&self.outcome.during, 0.99) / quantile(&self.outcome.calm, 0.99);
        self.bound_of_time(format!("p99 × {most}"), ratio <= most);
    }

    pub(crate) fn end(mut self) -> Result<Outcome> {
        std::thread::sleep(REST.min(self.size.window));
        self.outcome.memory.after = self.resident()?;
        if let Server::Here(mox) = &self.server {
            mox.engine.close();
        }
        Ok(self.outcome)
    }
}

/// Whether a text stands in these bytes, and goes on with no digit.
fn stands_in(bytes: &[u8], text: &str) -> bool {
    let ends = |at: usize| bytes.get(at + text.len()).is_none_or(|next| !next.is_ascii_digit());
    bytes.windows(text.len()).enumerate().any(|(at, window)| window == text.as_bytes() && ends(at))
}

/// The resource that has this in its name, and no digit behind it.
pub(crate) fn resource<'a>(resources: &'a [Any], name: &str) -> Option<&'a Any> {
    // The name is the first field of the first field.
    resources.iter().find(|any| stands_in(&any.value[..any.value.len().min(100)], name))
}

/// Whether a text stands in a resource, and goes on with no digit.
pub(crate) fn has(resource: &Any, text: &str) -> bool {
    stands_in(&resource.value, text)
}

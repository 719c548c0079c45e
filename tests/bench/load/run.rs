//! A run: a server of its own, clients, changes on a schedule, and what they cost. A run in which a client ends up with
//! anything but what was published fails.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::ChildStdin,
    rc::Rc,
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use harness::figures::Cpu;

use crate::{
    Result,
    client::{Client, Shared},
    server::{Kind, Server},
    workload::Workload,
};

/// The event in a run whose cost is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Happening {
    /// So many changes, so many a second.
    Changes { count: usize, rate: f64 },
    /// All clients connect at once.
    Reconnect,
    /// Nothing, for so long.
    Idle(Duration),
}

/// The plan of a run: the data, how many clients there are, and what happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) workload: Workload,
    pub(crate) clients: usize,
    pub(crate) happening: Happening,
}

/// Changes before the measured ones, at the same rate.
const WARM_UP: usize = 5;
/// Changes after the measured ones, after which everything is compared: enough for each of 64 partitions to have one.
const LAST: usize = 1;
const LAST_OF_SLICES: usize = 1_000;
/// A run that does not get on for so long has failed.
const PATIENCE: Duration = Duration::from_secs(150);

/// Figures by name; times in milliseconds, sizes in bytes.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// The resources of a workload as servers are fed with them, made once.
#[derive(Debug)]
pub(crate) struct Feed {
    workload: Workload,
    pub(crate) base: PathBuf,
    records: Vec<Vec<u8>>,
}

impl Feed {
    /// Made by our own engine; `changes` for servers that take resources.
    pub(crate) fn new(folder: &Path, workload: Workload, changes: usize) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let base = folder.join(format!("{}.bin", workload.name));
        let records = workload.records(&base, changes + WARM_UP + LAST)?;
        Ok(Self { workload, base, records })
    }

    /// Whether it has what these runs need.
    pub(crate) fn is_for(&self, workload: &Workload, changes: usize) -> bool {
        self.workload == *workload && self.records.len() >= changes + WARM_UP + LAST
    }

    /// The nth change, from 1.
    fn change(&self, kind: Kind, change: usize) -> Result<Vec<u8>> {
        if kind.takes_lines() {
            return Ok(self.workload.change_line(change));
        }
        let record = self.records.get(change - 1).ok_or("more changes than were made")?;
        Ok(record.clone())
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

struct Run<'a> {
    kind: Kind,
    plan: Plan,
    feed: &'a Feed,
    shared: Rc<Shared>,
    server: Server,
    /// To the feeder: changes for the server, each with the time at which it is due.
    feeder: mpsc::Sender<Vec<(Instant, Vec<u8>)>>,
    changes: usize,
}

/// Runs a plan on one server; `program` in place of the built `examples/serve`.
pub(crate) fn run(kind: Kind, plan: Plan, feed: &Feed, program: Option<&Path>) -> Result<Figures> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let shared = Shared::new(plan.workload, kind.dialect());
    let (server, input) = Server::start(kind, &plan.workload, &feed.base, program)?;
    let (feeder, batches) = mpsc::channel();
    let issued = Arc::clone(&shared.issued);
    std::thread::spawn(move || hand_over(input, &batches, &issued));
    let mut run = Run { kind, plan, feed, shared, server, feeder, changes: 0 };
    local.block_on(&runtime, run.all())
}

/// Hands changes to the server when they are due, whatever clients are busy with; ends with the run or with the server.
fn hand_over(
    mut input: ChildStdin,
    batches: &mpsc::Receiver<Vec<(Instant, Vec<u8>)>>,
    issued: &std::sync::atomic::AtomicUsize,
) {
    for (due, change) in batches.iter().flatten() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        issued.fetch_add(1, Ordering::Release);
        if input.write_all(&change).and_then(|()| input.flush()).is_err() {
            return;
        }
    }
}

impl Run<'_> {
    async fn all(&mut self) -> Result<Figures> {
        let mut figures = Figures::new();
        let reconnect = self.plan.happening == Happening::Reconnect;
        let count = if reconnect { 1 } else { self.plan.clients };
        let started = Instant::now();
        let mut clients = self.connect(count);
        self.wait("the first responses", &clients, Client::is_ready).await?;
        figures.insert("first_ms", millis(started.elapsed()));
        self.verify(&clients)?;
        self.shared.capture.set(false);
        let rate = match self.plan.happening {
            Happening::Changes { rate, .. } => rate,
            _ => 20.0,
        };
        self.change(WARM_UP, rate, &clients).await?;
        match self.plan.happening {
            Happening::Changes { count, rate } => {
                let before = (self.server.cpu()?, pushes(&clients), bytes(&clients));
                self.change(count, rate, &clients).await?;
                let cpu = self.cpu_since(&before.0)?;
                let pushed = pushes(&clients) - before.1;
                let received = bytes(&clients) - before.2;
                let changes = count as f64;
                figures.insert("cpu_ms_per_change", millis(cpu) / changes);
                figures.insert("cpu_ms_per_push", millis(cpu) / pushed as f64);
                figures.insert("pushes_per_client", pushed as f64 / clients.len() as f64);
                figures.insert("bytes_per_change", received as f64 / changes / clients.len() as f64);
                figures.insert("bytes_per_push", received as f64 / pushed as f64);
                latencies(&clients, self.changes - count, &mut figures);
            }
            Happening::Reconnect => {
                clients.clear();
                // The server's work for the clients that have left is not a cost of the reconnect.
                tokio::time::sleep(Duration::from_millis(500)).await;
                let (before, own, started) = (self.server.cpu()?, Cpu::of(std::process::id())?, Instant::now());
                clients = self.connect(self.plan.clients);
                self.wait("all to be served", &clients, Client::is_ready).await?;
                figures.insert("cpu_ms_all", millis(self.cpu_since(&before)?));
                figures.insert("client_cpu_ms", millis(Cpu::of(std::process::id())?.since(&own)));
                let ready = clients.iter().filter_map(|client| client.holding.borrow().ready_at);
                let mut ready: Vec<f64> = ready.map(|at| millis(at.duration_since(started))).collect();
                ready.sort_by(f64::total_cmp);
                figures.insert("served_p50_ms", ready[ready.len() / 2]);
                figures.insert("served_all_ms", ready[ready.len() - 1]);
                let received: usize = clients.iter().map(|client| client.holding.borrow().bytes).sum();
                figures.insert("bytes_per_client", received as f64 / clients.len() as f64);
                // They know nothing of the changes before.
                let changes = self.changes;
                clients.iter().for_each(|client| client.holding.borrow_mut().all_seen = changes);
            }
            Happening::Idle(span) => {
                tokio::time::sleep(Duration::from_secs(3)).await;
                let before = self.server.cpu()?;
                tokio::time::sleep(span).await;
                let used = self.cpu_since(&before)?;
                figures.insert("idle_cpu_ms_per_s", millis(used) / span.as_secs_f64());
            }
        }
        let (live, peak) = self.server.memory()?;
        figures.insert("rss_live", live as f64);
        figures.insert("rss_peak", peak as f64);
        // Everything is looked at once more, in a last push of every stream.
        self.shared.capture.set(true);
        self.change(if self.kind.is_partitioned() { LAST_OF_SLICES } else { LAST }, f64::INFINITY, &clients).await?;
        self.verify(&clients)?;
        Ok(figures)
    }

    fn connect(&self, count: usize) -> Vec<Client> {
        (0..count).map(|number| Client::start(&self.shared, number, &self.server.addresses)).collect()
    }

    fn cpu_since(&self, before: &Cpu) -> Result<Duration> {
        Ok(self.server.cpu()?.since(before))
    }

    fn verify(&self, clients: &[Client]) -> Result<()> {
        let expected = self.plan.workload.state(self.changes);
        clients.iter().try_for_each(|client| client.verify(&expected))
    }

    /// Makes changes and waits until every client has seen each.
    async fn change(&mut self, count: usize, rate: f64, clients: &[Client]) -> Result<()> {
        let start = Instant::now() + Duration::from_millis(20);
        let mut batch = Vec::with_capacity(count);
        for n in 0..count {
            let due = start + Duration::from_secs_f64(n as f64 / rate);
            batch.push((due, self.feed.change(self.kind, self.changes + n + 1)?));
        }
        self.shared.due.borrow_mut().extend(batch.iter().map(|(due, _)| *due));
        self.changes += count;
        self.feeder.send(batch)?;
        let changes = self.changes;
        self.wait("every client to see every change", clients, |client| client.holding.borrow().all_seen >= changes)
            .await
    }

    async fn wait(&self, what: &str, clients: &[Client], done: impl Fn(&Client) -> bool) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let progress = self.shared.progress.notified();
            if let Some(failure) = self.shared.failure.borrow().as_ref() {
                return Err(failure.clone().into());
            }
            let open = clients.iter().filter(|client| !done(client)).count();
            if open == 0 {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, progress).await.is_err() {
                return Err(format!("waited {PATIENCE:?} for {what}; {open} clients are not there").into());
            }
        }
    }
}

fn pushes(clients: &[Client]) -> usize {
    clients.iter().map(|client| client.holding.borrow().pushes).sum()
}

fn bytes(clients: &[Client]) -> usize {
    clients.iter().map(|client| client.holding.borrow().push_bytes).sum()
}

/// From the moment that a change was due until a client had decoded it, of all clients and all changes after `from`.
fn latencies(clients: &[Client], from: usize, figures: &mut Figures) {
    let mut all: Vec<f64> = Vec::new();
    for client in clients {
        all.extend(client.holding.borrow().seen[from..].iter().flatten().map(|late| millis(*late)));
    }
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all[((all.len() as f64 * share).ceil() as usize).clamp(1, all.len()) - 1];
    figures.insert("p50_ms", at(0.5));
    figures.insert("p99_ms", at(0.99));
    figures.insert("max_ms", at(1.0));
}

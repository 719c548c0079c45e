//! Clients that keep what a MoX server ever said to them, and the reader that keeps what a data server said meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use harness::{
    client::{MoxClient, Response, SERVICE_ENTRY, istiod_node},
    judge::{Endpoints, Held, Millis, Read},
    process::{Process, each_line, script},
};

const ID: &str = "sofa.registry/data-info-id";
/// How long a client waits before it connects again; istiod's own first wait is longer.
const AGAIN: Duration = Duration::from_millis(200);

pub(crate) fn now() -> Millis {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as Millis
}

/// The record of what a client was told on all its streams.
#[derive(Clone, Default)]
pub(crate) struct Told {
    pub(crate) held: Vec<Held>,
    /// Endpoints that a response had twice.
    pub(crate) duplicates: Vec<String>,
    /// Streams that were opened.
    pub(crate) streams: usize,
    pub(crate) responses: usize,
    /// Responses that had another content than the one before.
    pub(crate) updates: usize,
    /// `version_info` and the resources of the last response, as they came.
    pub(crate) last: Option<(String, Vec<bytes::Bytes>)>,
}

/// A client that behaves as istiod: it keeps what it has while it has no stream, and takes the next server of its list.
pub(crate) struct Recorder {
    pub(crate) name: String,
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    pub(crate) fn start(name: &str, servers: Vec<String>) -> Self {
        let (told, stop) = (Arc::<Mutex<Told>>::default(), Arc::<AtomicBool>::default());
        let (its_told, its_stop) = (Arc::clone(&told), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(record(&servers, &its_told, &its_stop));
        });
        Self { name: name.to_owned(), told, stop, thread: Some(thread) }
    }

    pub(crate) fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    /// The endpoints that the client holds now, without services that have none.
    pub(crate) fn endpoints(&self) -> Arc<Endpoints> {
        self.told.lock().unwrap().held.last().map(|held| Arc::clone(&held.endpoints)).unwrap_or_default()
    }

    /// From a moment on, and what it held then.
    pub(crate) fn held_since(&self, since: Millis) -> Vec<Held> {
        let told = self.told.lock().unwrap();
        let first = told.held.iter().rposition(|held| held.at <= since).unwrap_or(0);
        told.held[first..].to_vec()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread has panicked, or ends within a second.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn record(servers: &[String], told: &Mutex<Told>, stop: &AtomicBool) {
    for server in servers.iter().cycle() {
        let connect = MoxClient::asking(server, istiod_node(), SERVICE_ENTRY);
        let mut connected = None;
        tokio::pin!(connect);
        while connected.is_none() && !stop.load(Ordering::Relaxed) {
            connected = tokio::time::timeout(Duration::from_secs(1), &mut connect).await.ok();
        }
        if let Some(Ok(mut client)) = connected {
            told.lock().unwrap().streams += 1;
            loop {
                match tokio::time::timeout(Duration::from_secs(1), client.next()).await {
                    Ok(Ok(response)) => take(response, &mut told.lock().unwrap()),
                    Ok(Err(_)) => break,
                    Err(_) if stop.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn take(response: Response, told: &mut Told) {
    if response.type_url != SERVICE_ENTRY {
        return;
    }
    let mut endpoints = Endpoints::new();
    for resource in &response.resources {
        let id = resource.annotations.get(ID).unwrap_or(&resource.name);
        for endpoint in resource.endpoints() {
            if !endpoints.entry(id.clone()).or_default().insert(endpoint.clone()) {
                told.duplicates.push(format!("{id} {endpoint}"));
            }
        }
    }
    told.responses += 1;
    if told.last.as_ref().is_none_or(|(version, _)| *version != response.version_info) {
        told.updates += 1;
    }
    told.last = Some((response.version_info, response.bytes));
    if told.held.last().is_none_or(|held| *held.endpoints != endpoints) {
        told.held.push(Held { at: now(), endpoints: Arc::new(endpoints) });
    }
}

/// `java/server/Reader.java`, of which everything is kept.
pub(crate) struct DataReader {
    reads: Arc<Mutex<Vec<Read>>>,
    _process: Process,
}

impl DataReader {
    pub(crate) fn start(server: &str, every: Duration, ids: &[String], home: &Path, log: &Path) -> Self {
        let mut command = script("server.sh", log);
        command.env("REGISTRY_HOME", home).args(["reader", "1", server]);
        command.arg(every.as_millis().to_string()).args(ids);
        let reads = Arc::<Mutex<Vec<Read>>>::default();
        let its = Arc::clone(&reads);
        let mut last = None;
        let process = each_line(&mut command, move |line| {
            if let Some(read) = parse(&line, last.as_ref()) {
                last.clone_from(&read.named);
                its.lock().unwrap().push(read);
            }
        });
        Self { reads, _process: process }
    }

    /// The reads that ended at a moment or later, and the last good one before.
    pub(crate) fn since(&self, since: Millis) -> Vec<Read> {
        let reads = self.reads.lock().unwrap();
        let first = reads.iter().rposition(|read| read.end < since && read.named.is_some()).unwrap_or(0);
        reads[first..].to_vec()
    }

    /// The endpoints that the data server names now: by a read that began after a moment.
    pub(crate) fn named(&self, after: Millis) -> Option<Arc<Endpoints>> {
        let reads = self.reads.lock().unwrap();
        reads.last().filter(|read| read.begin >= after).and_then(|read| read.named.clone())
    }
}

fn parse(line: &str, last: Option<&Arc<Endpoints>>) -> Option<Read> {
    let mut words = line.splitn(4, ' ');
    let (kind, begin, end) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let named = match kind {
        "read" => {
            let services = words.next()?.split(';').filter_map(|service| service.rsplit_once('='));
            let all = services.map(|(id, all)| {
                (id.to_owned(), all.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect())
            });
            Some(Arc::new(all.filter(|(_, all): &(_, BTreeSet<_>)| !all.is_empty()).collect::<BTreeMap<_, _>>()))
        }
        "same" => last.map(Arc::clone),
        "fail" => None,
        _ => return None, // a message of some library
    };
    Some(Read { begin, end, named })
}

/// Waits until clients hold what the data server names; answers how long each took, in ms from `since`, where that is known.
pub(crate) fn converge(reader: &DataReader, clients: &[&Recorder], since: Millis, within: Duration) -> Vec<Millis> {
    let deadline = now() + within.as_millis() as Millis;
    loop {
        if let Some(named) = reader.named(since)
            && clients.iter().all(|client| *client.endpoints() == *named)
        {
            let reads = reader.since(since);
            // When the registry came to be as it is now.
            let settled = reads.iter().rposition(|read| read.named.as_ref().is_some_and(|all| **all != *named));
            let settled = settled.map_or(since, |last| reads[last].end.max(since));
            let took = |client: &&Recorder| {
                let told = client.told.lock().unwrap();
                told.held.last().map_or(0, |held| held.at.saturating_sub(settled))
            };
            return clients.iter().map(took).collect();
        }
        if now() > deadline {
            let named = reader.named(since);
            let all: Vec<_> =
                clients.iter().map(|client| (&client.name, difference(&named, &client.endpoints()))).collect();
            panic!("no convergence within {within:?}: what differs from the data server's: {all:?}");
        }
        thread::sleep(Duration::from_millis(5)); // the polling interval
    }
}

fn difference(named: &Option<Arc<Endpoints>>, held: &Endpoints) -> Vec<String> {
    let Some(named) = named else { return vec!["the data server cannot be read".to_owned()] };
    let all = |of: &Endpoints| -> BTreeSet<String> {
        of.iter().flat_map(|(id, all)| all.iter().map(move |one| format!("{id} {one}"))).collect()
    };
    let (named, held) = (all(named), all(held));
    let missing = named.difference(&held).map(|one| format!("-{one}"));
    missing.chain(held.difference(&named).map(|one| format!("+{one}"))).take(5).collect()
}

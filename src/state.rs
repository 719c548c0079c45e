//! The last good state, kept over restarts: what was served, as it was encoded.
//!
//! `last-good` in `mox.state-dir` is one line of JSON, then the pages of the ServiceEntries, then those of the WorkloadEntries.
//! It is replaced as a whole, readable by its owner only, and checked by length and SHA-256 when it is read: what is torn,
//! of another format or not ours is refused with a warning and is as good as none.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use tokio::{task::JoinHandle, time::Instant};

use crate::{
    digest::hex,
    istio::names::{ID_ANNOTATION, REGISTER_ID_ANNOTATION, SERVICE_LABEL},
    model::Millis,
    proto::istio::{
        mcp::v1alpha1::Resource,
        networking::v1alpha3::{ServiceEntry, WorkloadEntry},
    },
    snapshot::{resource, view::View},
    translate::{
        Parsed,
        payload::{Address, DEFAULT_WEIGHT, Endpoint},
        service_entry::Member,
    },
};

const FILE: &str = "last-good";
const FORMAT: u32 = 2;
/// Above this nothing is kept: W4, a million endpoints, is about 150 MB.
const MAX_BYTES: u64 = 1 << 30;
/// The header names services without endpoints.
const MAX_HEADER: u64 = 64 << 20;

/// The line before the pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    format: u32,
    translation: u32,
    publishers: usize,
    /// Services without endpoints, and since when.
    empty: BTreeMap<Arc<str>, Millis>,
    service_bytes: u64,
    workload_bytes: u64,
    sha256: String,
}

/// What is to be kept.
#[derive(Debug)]
pub struct Keep {
    /// What is served.
    pub view: View,
    /// How many publishers the registry had.
    pub publishers: usize,
    /// Services without endpoints, and since when.
    pub empty: BTreeMap<Arc<str>, Millis>,
}

/// A service of the last good state.
#[derive(Debug, Default, Clone)]
pub struct LastService {
    /// Its endpoints, by address and port.
    pub members: Vec<Member>,
    /// Since when it has none.
    pub empty_since: Option<Millis>,
}

/// The last good state.
#[derive(Debug)]
pub struct LastGood {
    /// How long ago it was good.
    pub age: Duration,
    /// How many publishers there were.
    pub publishers: usize,
    /// Every service by its dataInfoId.
    pub services: BTreeMap<Arc<str>, LastService>,
}

/// Where the state of a directory is kept.
pub fn file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Replaces the file. Takes as long as the disk does.
pub fn save(file: &Path, keep: &Keep) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let View { service_entries, workload_entries, .. } = &keep.view;
    let bytes = (service_entries.bytes() + workload_entries.bytes()) as u64;
    if bytes > MAX_BYTES {
        return Err(std::io::Error::other(format!("{bytes} bytes are more than {MAX_BYTES}")));
    }
    let pages = || service_entries.pages().chain(workload_entries.pages());
    let digest = pages().fold(Sha256::new(), |digest, page| digest.chain_update(page));
    let header = Header {
        format: FORMAT,
        translation: crate::translate::TRANSLATION,
        publishers: keep.publishers,
        empty: keep.empty.clone(),
        service_bytes: service_entries.bytes() as u64,
        workload_bytes: workload_entries.bytes() as u64,
        sha256: hex(&digest.finalize()),
    };
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let part = file.with_extension("part");
    let mut options = std::fs::OpenOptions::new();
    let mut out = std::io::BufWriter::new(options.write(true).create(true).truncate(true).mode(0o600).open(&part)?);
    serde_json::to_writer(&mut out, &header)?;
    out.write_all(b"\n")?;
    pages().try_for_each(|page| out.write_all(page))?;
    // A name that a crash leaves must not stand for bytes that it took.
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_data()?;
    std::fs::rename(part, file)
}

/// Says that what the file holds is still good; the time of its last change is what counts.
pub fn touch(file: &Path) -> std::io::Result<()> {
    std::fs::File::options().append(true).open(file)?.set_modified(SystemTime::now())
}

/// Reads the file; `None` if there is none or it cannot be used, which is logged.
pub fn load(file: &Path) -> Option<LastGood> {
    match read(file) {
        Ok(last_good) => last_good,
        Err(why) => {
            tracing::warn!(file = %file.display(), why, "the last good state cannot be used; this start has none");
            None
        }
    }
}

fn read(file: &Path) -> Result<Option<LastGood>, String> {
    let metadata = match std::fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if metadata.len() > MAX_BYTES + MAX_HEADER {
        return Err(format!("it has {} bytes, more than {}", metadata.len(), MAX_BYTES + MAX_HEADER));
    }
    let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
    // A time in the future says nothing.
    let age = metadata.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or(Duration::MAX);
    parse(&bytes).map(|last_good| Some(LastGood { age, ..last_good }))
}

fn parse(bytes: &[u8]) -> Result<LastGood, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no header, so it is torn or not ours")?;
    let (header, pages) = (&bytes[..end], &bytes[end + 1..]);
    let format = serde_json::from_slice::<serde_json::Value>(header).ok().and_then(|header| header["format"].as_u64());
    match format {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => return Err(format!("its format is {format}, this release reads {FORMAT}")),
        None => return Err("its header is not ours".to_owned()),
    }
    let header: Header = serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
    if header.service_bytes.checked_add(header.workload_bytes) != Some(pages.len() as u64) {
        return Err(format!("it is torn: {} bytes of resources are left", pages.len()));
    }
    if hex(&Sha256::digest(pages)) != header.sha256 {
        return Err("its checksum is wrong".to_owned());
    }
    let (services, workloads) = pages.split_at(header.service_bytes as usize);
    let mut by_id: BTreeMap<Arc<str>, Vec<(Box<str>, Endpoint)>> = BTreeMap::new();
    let mut selected: BTreeMap<String, Arc<str>> = BTreeMap::new();
    for resource in resource::decode(services).map_err(|error| error.to_string())? {
        // One without is made of others.
        let Some((id, _)) = ids(&resource) else { continue };
        let entry = ServiceEntry::decode(resource.body.unwrap_or_default().value).map_err(|error| error.to_string())?;
        let labels = entry.workload_selector.map(|selector| selector.labels).unwrap_or_default();
        selected.extend(labels.into_values().map(|value| (value, Arc::clone(&id))));
        let endpoints = entry.endpoints.into_iter().filter_map(endpoint).map(|endpoint| ("".into(), endpoint));
        by_id.insert(id, endpoints.collect());
    }
    for resource in resource::decode(workloads).map_err(|error| error.to_string())? {
        let (_, register_id) = ids(&resource).ok_or("a WorkloadEntry has no dataInfoId")?;
        let entry =
            WorkloadEntry::decode(resource.body.unwrap_or_default().value).map_err(|error| error.to_string())?;
        // One whose service is gone was on its way out.
        let service =
            entry.labels.get(SERVICE_LABEL).and_then(|label| selected.get(label)).and_then(|id| by_id.get_mut(id));
        if let (Some(service), Some(endpoint)) = (service, endpoint(entry)) {
            service.push((register_id, endpoint));
        }
    }
    let services = by_id.into_iter().map(|(id, endpoints)| {
        let empty_since = header.empty.get(&id).copied();
        (id, LastService { members: members(endpoints), empty_since })
    });
    Ok(LastGood { age: Duration::MAX, publishers: header.publishers, services: services.collect() })
}

/// dataInfoId and registerId of a resource.
fn ids(resource: &Resource) -> Option<(Arc<str>, Box<str>)> {
    let annotations = &resource.metadata.as_ref()?.annotations;
    let register_id = annotations.get(REGISTER_ID_ANNOTATION).map(|id| id.as_str().into());
    Some((annotations.get(ID_ANNOTATION)?.as_str().into(), register_id.unwrap_or_default()))
}

fn endpoint(entry: WorkloadEntry) -> Option<Endpoint> {
    let port = entry.ports.values().next().and_then(|port| u16::try_from(*port).ok())?;
    let own = |(key, _): &(String, String)| key != SERVICE_LABEL;
    Some(Endpoint {
        address: entry.address.parse().map_or_else(|_| Address::Name(entry.address.into()), Address::Ip),
        port,
        // Left out where all are equal, so one stands for any.
        weight: if entry.weight == 0 { DEFAULT_WEIGHT } else { entry.weight },
        labels: entry.labels.into_iter().filter(own).collect(),
        // The label says so, and to whom is said by the policy when the publisher is back.
        mtls: None,
        locality: (!entry.locality.is_empty()).then(|| entry.locality.into()),
    })
}

fn members(endpoints: Vec<(Box<str>, Endpoint)>) -> Vec<Member> {
    let mut members = Vec::with_capacity(endpoints.len());
    let mut by_publisher: BTreeMap<Box<str>, Vec<Endpoint>> = BTreeMap::new();
    for (register_id, endpoint) in endpoints {
        by_publisher.entry(register_id).or_default().push(endpoint);
    }
    for (register_id, endpoints) in by_publisher {
        members.extend(Member::all(&Arc::new(Parsed { register_id, endpoints, ..Parsed::default() })));
    }
    members.sort_by(|a, b| a.key().cmp(&b.key()));
    members
}

/// Saves at most every this, and no more than a twentieth of the time.
const EVERY: Duration = Duration::from_secs(10);
/// How often an unchanged state is said to be good still.
const TOUCH: Duration = Duration::from_secs(60);

/// Keeps a state as it changes, on a thread that may wait for the disk.
#[derive(Debug)]
pub struct Keeper {
    /// Where.
    pub file: PathBuf,
    /// Versions of what was saved last.
    kept: Option<[String; 3]>,
    /// There is something else to save now.
    changed: bool,
    publishers: usize,
    began: Option<Instant>,
    running: Option<JoinHandle<()>>,
    /// What the last save took, in microseconds.
    cost: Arc<AtomicU64>,
    /// The file is not what was to be saved last.
    failed: Arc<AtomicBool>,
}

impl Keeper {
    /// Nothing is kept yet.
    pub fn new(dir: &Path) -> Self {
        let cost = Arc::new(AtomicU64::new(0));
        let failed = Arc::new(AtomicBool::new(false));
        Self { file: file(dir), kept: None, changed: false, publishers: 0, began: None, running: None, cost, failed }
    }

    /// When to call [`Keeper::keep`] again although nothing changed.
    pub fn due_at(&self) -> Option<Instant> {
        let soon = if self.is_running() { Instant::now() + EVERY } else { Instant::now() };
        self.next().map(|next| next.max(soon))
    }

    fn next(&self) -> Option<Instant> {
        let cost = Duration::from_micros(self.cost.load(Ordering::Relaxed));
        self.began.map(|began| began + if self.changed { EVERY.max(cost * 20) } else { TOUCH })
    }

    fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.is_finished())
    }

    /// Saves what is served if it is another than last time, else touches the file now and then. While a mass deletion is
    /// held the number of publishers that was good stays.
    pub fn keep(
        &mut self,
        view: View,
        publishers: usize,
        holding: bool,
        empty: impl FnOnce() -> BTreeMap<Arc<str>, Millis>,
    ) {
        let versions = view.versions().map(str::to_owned);
        if !self.is_running() && self.failed.load(Ordering::Relaxed) {
            // An old file is not to be called good still.
            self.kept = None;
        }
        self.changed = self.kept.as_ref() != Some(&versions);
        if self.is_running() || self.next().is_some_and(|next| Instant::now() < next) {
            return;
        }
        if !holding {
            self.publishers = publishers;
        }
        let (file, changed) = (self.file.clone(), self.changed);
        let (cost, failed) = (Arc::clone(&self.cost), Arc::clone(&self.failed));
        let keep = Keep { view, publishers: self.publishers, empty: if changed { empty() } else { BTreeMap::new() } };
        self.began = Some(Instant::now());
        self.changed = false;
        self.kept = Some(versions);
        self.running = Some(tokio::task::spawn_blocking(move || {
            let begin = Instant::now();
            let done = if changed { save(&file, &keep) } else { touch(&file) };
            failed.store(done.is_err(), Ordering::Relaxed);
            if let Err(error) = done {
                tracing::warn!(file = %file.display(), %error, "the last good state is not kept");
            }
            cost.store(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        host::engine::Engine,
        model::RegisterVersion,
        registry::frame::{self, Publisher},
        translate::service_entry::EndpointMode,
    };

    /// The view of an engine with two services, one of them without endpoints.
    async fn view(mode: EndpointMode) -> View {
        let engine = Arc::new(Engine::open(Config { endpoint_mode: mode, ..Config::default() }).unwrap());
        for (id, data) in
            [("a.Full", &["10.0.0.2:80?weight=5&zone=z", "10.0.0.1:80?app_name=x"][..]), ("b.Empty", &["10.0.0.3:1"])]
        {
            let publisher = Publisher {
                register_id: "r".into(),
                version: RegisterVersion { version: 1, timestamp: 0 },
                payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
                ..Publisher::default()
            };
            engine.apply(&frame::encode_publish("registry", id, &publisher).unwrap()).unwrap();
        }
        engine.loaded();
        engine.flush().await;
        let gone = RegisterVersion { version: 2, timestamp: 0 };
        engine.apply(&frame::encode_unpublish("registry", "b.Empty", "r", gone).unwrap()).unwrap();
        engine.flush().await;
        let view = engine.view();
        tokio::task::spawn_blocking(move || engine.close()).await.unwrap();
        view
    }

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("mox-state-{name}-{}", std::process::id()))
    }

    #[tokio::test]
    async fn what_is_saved_is_loaded() {
        for mode in [EndpointMode::Inline, EndpointMode::WorkloadEntry] {
            let dir = directory("round-trip");
            let empty = BTreeMap::from([(Arc::from("b.Empty"), 77)]);
            let keep = Keep { view: view(mode).await, publishers: 9, empty };
            save(&file(&dir), &keep).unwrap();
            let last_good = load(&file(&dir)).unwrap();
            assert_eq!((last_good.publishers, last_good.services.len()), (9, 2));
            assert_eq!(last_good.services["b.Empty"].empty_since, Some(77));
            let members = &last_good.services["a.Full"].members;
            let shown: Vec<_> =
                members.iter().map(|m| (m.endpoint().address.to_string(), m.endpoint().weight)).collect();
            assert_eq!(shown, [("10.0.0.1".into(), 100), ("10.0.0.2".into(), 5)]);
            assert_eq!(members[0].endpoint().labels.iter().collect::<Vec<_>>(), [("app", "x")]);
            assert!(last_good.age < Duration::from_secs(60));
            let metadata = std::fs::metadata(file(&dir)).unwrap();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777, 0o600);
            std::fs::remove_dir_all(dir).unwrap();
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_whole_or_not_ours_is_refused() {
        let dir = directory("refused");
        let keep = Keep { view: view(EndpointMode::Inline).await, publishers: 9, empty: BTreeMap::new() };
        save(&file(&dir), &keep).unwrap();
        let good = std::fs::read(file(&dir)).unwrap();
        assert!(parse(&good).is_ok());
        for end in 0..good.len() {
            assert!(parse(&good[..end]).is_err(), "cut at {end}");
        }
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(parse(&flipped).unwrap_err(), "its checksum is wrong");
        let newer = [br#"{"format":3,"what":"ever"}"#.as_slice(), b"\n"].concat();
        assert_eq!(parse(&newer).unwrap_err(), "its format is 3, this release reads 2");
        assert!(parse(b"#!/bin/sh\necho").unwrap_err().contains("not ours"));
        std::fs::write(file(&dir), flipped).unwrap();
        assert!(load(&file(&dir)).is_none());
        assert!(load(&dir).is_none(), "a directory");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_state_that_could_not_be_saved_is_not_called_good_later() {
        let dir = directory("failed");
        std::fs::write(&dir, "no directory").unwrap();
        let mut keeper = Keeper::new(&dir);
        let view = view(EndpointMode::Inline).await;
        keeper.keep(view.clone(), 1, false, BTreeMap::new);
        let wait = async |keeper: &mut Keeper| keeper.running.take().unwrap().await.unwrap();
        wait(&mut keeper).await;
        std::fs::remove_file(&dir).unwrap();
        keeper.began = None; // the next attempt is due
        keeper.keep(view, 1, false, BTreeMap::new);
        wait(&mut keeper).await;
        assert_eq!(load(&keeper.file).unwrap().services.len(), 2, "saved, though nothing changed");
        std::fs::remove_dir_all(dir).unwrap();
    }
}

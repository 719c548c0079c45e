//! The file that keeps the last good state over restarts.
//!
//! `last-good` in `mox.state-dir` is one line of JSON, then the pages of the ServiceEntries, of the WorkloadEntries and of the
//! DestinationRules. The file is replaced as a whole, readable by its owner only, and checked by length and SHA-256 when it
//! is read: a file that is torn, of another format or not ours is refused with a warning and is as good as none.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use tokio::{task::JoinHandle, time::Instant};

use crate::{
    catalog::last_good::LastGood,
    digest::hex,
    disk::{self, open},
    model::Millis,
    snapshot::view::View,
    translate::TRANSLATION,
};

const FILE: &str = "last-good";
const FORMAT: u32 = 3;
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
    /// Bytes of the pages of ServiceEntries, WorkloadEntries and DestinationRules.
    bytes: [u64; 3],
    sha256: String,
}

/// The content of the file, before it is encoded.
#[derive(Debug)]
struct Content {
    view: View,
    /// How many publishers the registry had.
    publishers: usize,
    /// Services without endpoints, and since when.
    empty: BTreeMap<Arc<str>, Millis>,
}

impl Content {
    /// Writes what the file is to hold.
    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let snapshots = self.view.snapshots();
        let bytes = snapshots.map(|snapshot| snapshot.bytes() as u64);
        let total: u64 = bytes.iter().sum();
        if total > MAX_BYTES {
            return Err(std::io::Error::other(format!("{total} bytes are more than {MAX_BYTES}")));
        }
        let pages = || snapshots.into_iter().flat_map(|snapshot| snapshot.pages());
        let digest = pages().fold(Sha256::new(), |digest, page| digest.chain_update(page));
        let header = Header {
            format: FORMAT,
            translation: TRANSLATION,
            publishers: self.publishers,
            empty: self.empty.clone(),
            bytes,
            sha256: hex(&digest.finalize()),
        };
        serde_json::to_writer(&mut *out, &header)?;
        out.write_all(b"\n")?;
        pages().try_for_each(|page| out.write_all(page))
    }

    /// Replaces the file. Takes as long as the disk does.
    fn save(&self, file: &Path) -> std::io::Result<()> {
        disk::replace(file, |out| self.write(out))
    }
}

/// Marks the content of the file as still good: the time of the last change is how old it is.
fn touch(file: &Path) -> std::io::Result<()> {
    open(File::options().append(true), file)?.set_modified(SystemTime::now())
}

fn read(file: &Path) -> Result<Option<LastGood>, String> {
    let mut open = match open(File::options().read(true), file) {
        Ok(open) => open,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let metadata = open.metadata().map_err(|error| error.to_string())?;
    if metadata.len() > MAX_BYTES + MAX_HEADER {
        return Err(format!("it has {} bytes, more than {}", metadata.len(), MAX_BYTES + MAX_HEADER));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // The file may grow meanwhile.
    Read::by_ref(&mut open).take(metadata.len()).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    // A time in the future says nothing.
    let age = metadata.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or(Duration::MAX);
    parse(bytes.into()).map(|last_good| Some(LastGood { age, ..last_good }))
}

fn parse(bytes: Bytes) -> Result<LastGood, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no header, so it is torn or not ours")?;
    let (header, mut pages) = (bytes.slice(..end), bytes.slice(end + 1..));
    let format = serde_json::from_slice::<serde_json::Value>(&header).ok().and_then(|header| header["format"].as_u64());
    match format {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => return Err(format!("its format is {format}, this release reads {FORMAT}")),
        None => return Err("its header is not ours".to_owned()),
    }
    let header: Header = serde_json::from_slice(&header).map_err(|error| format!("its header: {error}"))?;
    let total = header.bytes.iter().try_fold(0u64, |total, bytes| total.checked_add(*bytes));
    if total != Some(pages.len() as u64) {
        return Err(format!("it is torn: {} bytes of resources are left", pages.len()));
    }
    if hex(&Sha256::digest(&pages)) != header.sha256 {
        return Err("its checksum is wrong".to_owned());
    }
    let pages = header.bytes.map(|bytes| pages.split_to(bytes as usize));
    LastGood::of_pages(pages, &header.empty, header.publishers)
}

/// The least time between two saves, which take a twentieth of the time at most.
const EVERY: Duration = Duration::from_secs(10);
/// How often the file of an unchanged state is marked as still good.
const TOUCH: Duration = Duration::from_secs(60);

/// Keeps the served state as it changes, on a thread that may wait for the disk.
#[derive(Debug)]
pub struct LastGoodFile {
    file: PathBuf,
    /// Versions of the snapshots that were saved last.
    saved: Option<[String; 3]>,
    /// The served snapshots are others than were saved last.
    changed: bool,
    publishers: usize,
    began: Option<Instant>,
    running: Option<JoinHandle<()>>,
    /// How long the last save took, in microseconds.
    cost: Arc<AtomicU64>,
    /// The last attempt to save or touch the file came to nothing.
    failed: Arc<AtomicBool>,
}

impl LastGoodFile {
    /// The file in a directory; it need not exist.
    pub fn new(dir: &Path) -> Self {
        Self {
            file: dir.join(FILE),
            saved: None,
            changed: false,
            publishers: 0,
            began: None,
            running: None,
            cost: Arc::default(),
            failed: Arc::default(),
        }
    }

    /// Reads the file; `None` if there is none or it cannot be used, which is logged.
    pub fn load(&self) -> Option<LastGood> {
        disk::clean(&self.file);
        match read(&self.file) {
            Ok(last_good) => last_good,
            Err(why) => {
                tracing::warn!(
                    event = "last_good_unusable",
                    file = %self.file.display(),
                    why,
                    "the last good state cannot be used; this start has none"
                );
                None
            }
        }
    }

    /// When to call [`LastGoodFile::keep`] again although nothing changed.
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
    /// held the number of publishers stays that of before.
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
            self.saved = None;
        }
        self.changed = self.saved.as_ref() != Some(&versions);
        if self.is_running() || self.next().is_some_and(|next| Instant::now() < next) {
            return;
        }
        if !holding {
            self.publishers = publishers;
        }
        let (file, changed) = (self.file.clone(), self.changed);
        let (cost, failed) = (Arc::clone(&self.cost), Arc::clone(&self.failed));
        let content =
            Content { view, publishers: self.publishers, empty: if changed { empty() } else { BTreeMap::new() } };
        self.began = Some(Instant::now());
        self.changed = false;
        self.saved = Some(versions);
        self.running = Some(tokio::task::spawn_blocking(move || {
            let begin = Instant::now();
            let done = if changed { content.save(&file) } else { touch(&file) };
            failed.store(done.is_err(), Ordering::Relaxed);
            if let Err(error) = done {
                tracing::warn!(
                    event = "last_good_not_kept",
                    file = %file.display(),
                    %error,
                    "the last good state is not kept; the next attempt is in 10 s or later"
                );
            }
            cost.store(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
        }));
    }
}

/// A last good state that was written and read again, as over a restart that takes `age`.
#[cfg(test)]
pub(crate) fn over_a_restart(
    view: View,
    publishers: usize,
    empty: BTreeMap<Arc<str>, Millis>,
    age: Duration,
) -> LastGood {
    let mut bytes = Vec::new();
    Content { view, publishers, empty }.write(&mut bytes).unwrap();
    LastGood { age, ..parse(bytes.into()).unwrap() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::driver::Driver;

    /// Two services are served, one of them without endpoints, and an application that is called with mTLS.
    fn driven(mode: &str) -> Driver {
        let mtls = json!([{ "applications": ["x"], "identities": ["spiffe://cluster.local/ns/a/sa/b"] }]);
        let policy = json!({ "direct": { "applications": ["x"] }, "mtls": mtls });
        let mut driver = Driver::new(json!({ "endpointMode": mode }));
        driver.policy(&policy);
        driver.publish("a.Full", "r", 1, &["10.0.0.2:80?weight=5&zone=z&app=x", "10.0.0.1:80?app_name=x"]);
        driver.publish("b.Empty", "r", 1, &["10.0.0.3:1"]);
        driver.orders.loaded = true;
        driver.round();
        driver.unpublish("b.Empty", "r", 2);
        driver.round();
        driver
    }

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("mox-state-{name}-{}", std::process::id()))
    }

    fn content(driver: &Driver) -> Content {
        Content { view: driver.view.clone(), publishers: 9, empty: driver.round.empty() }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        for mode in ["inline", "workload-entry"] {
            let driver = driven(mode);
            let file = LastGoodFile::new(&directory("round-trip"));
            content(&driver).save(&file.file).unwrap();
            let last_good = file.load().unwrap();
            assert_eq!((last_good.publishers, last_good.services.len()), (9, 2));
            assert_eq!(last_good.services["b.Empty"].empty_since, Some(driver.now));
            let service = &last_good.services["a.Full"];
            assert_eq!(
                (&*service.host, &*service.name),
                ("a-7da7447a0e1d.full.sofa.mesh", "sofa-registry/a-7da7447a0e1d.full")
            );
            assert!(service.vip.is_some());
            let shown: Vec<_> =
                service.members.iter().map(|m| (m.endpoint().address.to_string(), m.endpoint().weight)).collect();
            assert_eq!(shown, [("10.0.0.1".into(), 100), ("10.0.0.2".into(), 5)]);
            let first = service.members[0].endpoint();
            assert_eq!(first.labels.iter().collect::<Vec<_>>(), [("app", "x")]);
            assert_eq!(
                first.mtls().map(|identities| &**identities),
                Some(&["spiffe://cluster.local/ns/a/sa/b".to_owned()][..])
            );
            let workloads = if mode == "inline" { 0 } else { 2 };
            assert_eq!((service.workloads.len(), last_good.entries.len()), (workloads, 1));
            assert_eq!(last_good.view.versions(), driver.view.versions(), "all of it, to the last byte");
            assert_eq!(last_good.view.service_entries.endpoints(), driver.view.service_entries.endpoints());
            assert_eq!(last_good.view.destination_rules.resources(), 1);
            assert!(last_good.age < Duration::from_secs(60));
            let metadata = std::fs::metadata(&file.file).unwrap();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777, 0o600);
            std::fs::remove_dir_all(file.file.parent().unwrap()).unwrap();
        }
    }

    #[test]
    fn a_file_that_is_not_whole_or_not_ours_is_refused() {
        let file = LastGoodFile::new(&directory("refused"));
        content(&driven("inline")).save(&file.file).unwrap();
        let good: Bytes = std::fs::read(&file.file).unwrap().into();
        assert!(parse(good.clone()).is_ok());
        for end in 0..good.len() {
            assert!(parse(good.slice(..end)).is_err(), "cut at {end}");
        }
        let mut flipped = good.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(parse(flipped.clone().into()).unwrap_err(), "its checksum is wrong");
        let newer = [br#"{"format":4,"what":"ever"}"#.as_slice(), b"\n"].concat();
        assert_eq!(parse(newer.into()).unwrap_err(), "its format is 4, this release reads 3");
        assert!(parse(Bytes::from_static(b"#!/bin/sh\necho")).unwrap_err().contains("not ours"));
        std::fs::write(&file.file, flipped).unwrap();
        assert!(file.load().is_none());
        let directory = file.file.parent().unwrap();
        assert!(LastGoodFile { file: directory.to_owned(), ..LastGoodFile::new(directory) }.load().is_none());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn no_link_is_followed_and_no_pipe_is_waited_for() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let content = content(&driven("inline"));
        let file = LastGoodFile::new(&directory("links"));
        let dir = file.file.parent().unwrap();
        std::fs::create_dir_all(dir).unwrap();
        let theirs = dir.join("theirs");
        std::fs::write(&theirs, "theirs").unwrap();
        let is_theirs = || std::fs::read(&theirs).unwrap() == b"theirs";
        // Where an older release wrote, and the file itself.
        for name in ["last-good.part", "last-good"] {
            symlink(&theirs, dir.join(name)).unwrap();
        }
        std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&file.file).unwrap_err().contains("ymbolic link"), "{:?}", read(&file.file));
        assert!(touch(&file.file).is_err() && is_theirs());
        content.save(&file.file).unwrap();
        assert!(is_theirs() && !file.file.is_symlink());
        assert_eq!(std::fs::metadata(&file.file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(file.load().is_some());
        // Files that writers left behind go at the start, and nothing else does.
        std::fs::write(dir.join("last-good.0123456789abcdef.part"), "torn").unwrap();
        assert!(file.load().is_some());
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["last-good", "theirs"]);
        // A pipe that nobody writes to or reads from, and one that somebody does.
        std::fs::remove_file(&file.file).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&file.file).status().unwrap();
        assert!(made.success());
        assert_eq!(read(&file.file).unwrap_err(), "it is no regular file");
        assert!(touch(&file.file).is_err());
        let _other = File::options().read(true).write(true).open(&file.file).unwrap();
        assert_eq!(read(&file.file).unwrap_err(), "it is no regular file");
        assert!(touch(&file.file).unwrap_err().to_string().contains("no regular file"));
        content.save(&file.file).unwrap();
        assert!(file.load().is_some());
        // A file that cannot take its place is not left behind.
        std::fs::remove_file(&file.file).unwrap();
        std::fs::create_dir(&file.file).unwrap();
        assert!(content.save(&file.file).is_err() && std::fs::read_dir(dir).unwrap().count() == 2);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_state_that_could_not_be_saved_is_not_called_good_later() {
        let dir = directory("failed");
        std::fs::write(&dir, "no directory").unwrap();
        let mut file = LastGoodFile::new(&dir);
        let view = driven("inline").view;
        file.keep(view.clone(), 1, false, BTreeMap::new);
        let wait = async |file: &mut LastGoodFile| file.running.take().unwrap().await.unwrap();
        wait(&mut file).await;
        std::fs::remove_file(&dir).unwrap();
        file.began = None; // the next attempt is due
        file.keep(view, 1, false, BTreeMap::new);
        wait(&mut file).await;
        assert_eq!(file.load().unwrap().services.len(), 2, "saved, though nothing changed");
        std::fs::remove_dir_all(dir).unwrap();
    }
}

//! Follows objects: a list, then a watch from there on.
//!
//! By hand, and not `kube::runtime::watcher`: that resumes a watch which ended before its time, does not see an API server
//! that went back in time, and does not say when a list began, which tells what a list may not have yet.

use std::time::Duration;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    api::{Place, WATCH_SECONDS},
    failure::Failure,
    objects::is_older,
    pace::{Backoff, Jitter},
};

/// Objects that are followed.
pub(super) trait Followed: Send + Sync {
    /// Tells those of several followers apart.
    type Kind: Copy + Send;
    /// An object as the API server sends it.
    type Object: DeserializeOwned + Send;
    /// As much of it as is kept.
    type Seen: Send;

    fn kind(&self) -> Self::Kind;

    fn place(&self) -> Place;

    fn version(object: &Self::Object) -> &str;

    fn seen(&self, object: Self::Object) -> Self::Seen;
}

/// News of the objects of a kind.
pub(super) enum WatchEvent<T> {
    /// All objects, as of a version; the request began then.
    Listed { began: Instant, version: String, objects: Vec<T> },
    /// An object is new or changed.
    Shown(T),
    /// An object is gone; this was its last state.
    Gone(T),
    /// The watch was behind: what happened since is not known before the objects are listed again.
    Behind,
    /// The objects cannot be followed now.
    Failed(Failure),
}

#[derive(Deserialize)]
struct WatchLine<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(default)]
struct WatchError {
    code: u16,
    message: String,
}

impl Default for WatchError {
    fn default() -> Self {
        Self { code: 500, message: "the watch failed".to_owned() }
    }
}

/// Why a watch ended.
enum WatchEnd {
    /// The watch's time was over; the next one goes on from this version.
    Over(String),
    /// Nothing is known of what happened since.
    Lost(Failure),
}

/// Reports what happens to objects until nobody listens.
pub(super) async fn follow<F: Followed>(followed: F, out: mpsc::Sender<(F::Kind, WatchEvent<F::Seen>)>) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut jitter = Jitter::random();
    let (kind, place) = (followed.kind(), followed.place());
    loop {
        let mut objects = Vec::new();
        let began = Instant::now();
        let listed = place.list(|object| objects.push(followed.seen(object)));
        let failure = match listed.await {
            Ok(version) => {
                let listed = WatchEvent::Listed { began, version: version.clone(), objects };
                if out.send((kind, listed)).await.is_err() {
                    return;
                }
                backoff.reset();
                let mut from = version;
                loop {
                    match watch(&followed, &place, from, &out).await {
                        None => return,
                        Some(WatchEnd::Over(version)) => from = version,
                        Some(WatchEnd::Lost(failure)) => break failure,
                    }
                }
            }
            Err(failure) => failure,
        };
        // Too old a version is how a watch ends that was behind; a list is the remedy.
        let event = if failure.code() == Some(410) { WatchEvent::Behind } else { WatchEvent::Failed(failure) };
        if out.send((kind, event)).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next(&mut jitter)).await;
    }
}

/// `None`: nobody listens.
async fn watch<F: Followed>(
    followed: &F,
    place: &Place,
    mut from: String,
    out: &mpsc::Sender<(F::Kind, WatchEvent<F::Seen>)>,
) -> Option<WatchEnd> {
    let lost = |text: &str| Some(WatchEnd::Lost(Failure::unreachable(text)));
    let began = Instant::now();
    let mut lines = match place.watch(&from).await {
        Ok(lines) => lines,
        Err(failure) => return Some(WatchEnd::Lost(failure)),
    };
    let lasts = Duration::from_secs(WATCH_SECONDS + 30);
    loop {
        let line = match timeout(lasts, lines.next()).await {
            Ok(Ok(Some(line))) => line,
            // An API server that ends it before its time may come back with other data.
            Ok(Ok(None)) if began.elapsed().as_secs() + 5 >= WATCH_SECONDS => return Some(WatchEnd::Over(from)),
            Ok(Ok(None)) => return lost("the API server ended the watch before its time"),
            Ok(Err(failure)) => return Some(WatchEnd::Lost(failure)),
            Err(_) => return lost("the watch was silent for longer than it lasts"),
        };
        let Ok(WatchLine { r#type, object }) = serde_json::from_slice::<WatchLine<'_>>(&line) else {
            return lost("an event of the watch cannot be read");
        };
        if r#type == "ERROR" {
            let WatchError { code, message } = serde_json::from_str(object.get()).unwrap_or_default();
            return Some(WatchEnd::Lost(Failure::refused(code, &message, None)));
        }
        let Ok(object) = serde_json::from_str::<F::Object>(object.get()) else {
            return lost("an object of the watch cannot be read");
        };
        let version = F::version(&object);
        if is_older(version, &from) {
            return lost("the API server went back in time");
        }
        version.clone_into(&mut from);
        let event = match r#type {
            "ADDED" | "MODIFIED" => WatchEvent::Shown(followed.seen(object)),
            "DELETED" => WatchEvent::Gone(followed.seen(object)),
            _ => continue,
        };
        if out.send((followed.kind(), event)).await.is_err() {
            return None;
        }
    }
}

//! Follows the objects of a kind: a list, then a watch from there on.
//!
//! By hand, and not `kube::runtime::watcher`: that resumes a watch which ended before its time, does not see an API server
//! that went back in time, and does not say when a list began, which tells what a list may not have yet.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    api::{Api, WATCH_SECONDS},
    failure::Failure,
    objects::{ApiObject, ObjectKind, Observed, is_older},
    pace::{Backoff, Jitter},
};

/// News of the objects of a kind.
pub(super) enum WatchEvent {
    /// All objects, as of a version; the request began then.
    Listed { began: Instant, version: String, objects: Vec<(Arc<str>, Observed)> },
    /// An object is new or changed.
    Shown(Arc<str>, Observed),
    /// An object is gone; this was its last state.
    Gone(Arc<str>, Observed),
    /// The objects cannot be followed now.
    Failed(Failure),
}

#[derive(Deserialize)]
struct WatchLine {
    r#type: String,
    object: serde_json::Value,
}

/// Why a watch ended.
enum WatchEnd {
    /// The watch's time was over; the next one goes on from this version.
    Over(String),
    /// Nothing is known of what happened since.
    Lost(Failure),
}

/// Reports what happens to the objects of a kind until nobody listens.
pub(super) async fn follow(
    api: Arc<Api>,
    kind: ObjectKind,
    owner: Arc<str>,
    out: mpsc::Sender<(ObjectKind, WatchEvent)>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut jitter = Jitter::random();
    loop {
        let mut objects = Vec::new();
        let began = Instant::now();
        let listed = api.list(kind, |object| {
            objects.push((object.metadata.name.as_str().into(), object.observed(kind, &owner)));
        });
        let failure = match listed.await {
            Ok(version) => {
                let listed = WatchEvent::Listed { began, version: version.clone(), objects };
                if out.send((kind, listed)).await.is_err() {
                    return;
                }
                backoff.reset();
                let mut from = version;
                loop {
                    match watch(&api, kind, &owner, from, &out).await {
                        None => return,
                        Some(WatchEnd::Over(version)) => from = version,
                        Some(WatchEnd::Lost(failure)) => break failure,
                    }
                }
            }
            Err(failure) => failure,
        };
        // Too old a version is how a watch ends that was behind; a list is the remedy.
        if failure.code() != Some(410) && out.send((kind, WatchEvent::Failed(failure))).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next(&mut jitter)).await;
    }
}

/// `None`: nobody listens.
async fn watch(
    api: &Api,
    kind: ObjectKind,
    owner: &str,
    mut from: String,
    out: &mpsc::Sender<(ObjectKind, WatchEvent)>,
) -> Option<WatchEnd> {
    let lost = |text: &str| Some(WatchEnd::Lost(Failure::unreachable(text)));
    let began = Instant::now();
    let mut lines = match api.watch(kind, &from).await {
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
        let Ok(WatchLine { r#type, object }) = serde_json::from_slice::<WatchLine>(&line) else {
            return lost("an event of the watch cannot be read");
        };
        if r#type == "ERROR" {
            let code = object["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
            let message = object["message"].as_str().unwrap_or("the watch failed");
            return Some(WatchEnd::Lost(Failure::refused(code, message, None)));
        }
        let Ok(object) = serde_json::from_value::<ApiObject>(object) else {
            return lost("an object of the watch cannot be read");
        };
        if is_older(&object.metadata.resource_version, &from) {
            return lost("the API server went back in time");
        }
        from.clone_from(&object.metadata.resource_version);
        let name: Arc<str> = object.metadata.name.as_str().into();
        let event = match &*r#type {
            "ADDED" | "MODIFIED" => WatchEvent::Shown(name, object.observed(kind, owner)),
            "DELETED" => WatchEvent::Gone(name, object.observed(kind, owner)),
            _ => continue,
        };
        if out.send((kind, event)).await.is_err() {
            return None;
        }
    }
}

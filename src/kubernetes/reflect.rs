//! Follows the objects of a kind: a list, then a watch from there on.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    api::{Api, Failure, WATCH_SECONDS},
    objects::{Kind, Object, Seen},
    pace::Backoff,
};

/// What is known of the objects of a kind.
pub(super) enum Event {
    /// All of them, as they were at that time or later.
    Listed(Instant, Vec<(Arc<str>, Seen)>),
    /// One is new or another.
    Put(Arc<str>, Seen),
    /// One is gone, as of a version.
    Gone(Arc<str>, Seen),
    /// They cannot be followed now.
    Failed(Failure),
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    object: serde_json::Value,
}

/// Why a watch ended.
enum End {
    /// Its time was over; another goes on from there.
    Over(String),
    /// Nothing is known of what happened since.
    Lost(Failure),
}

/// Reports what happens to the objects of a kind until nobody listens.
pub(super) async fn follow(api: Arc<Api>, kind: Kind, owner: Arc<str>, out: mpsc::Sender<(Kind, Event)>) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    loop {
        let mut items = Vec::new();
        let began = Instant::now();
        let listed = api.list(kind, |object| {
            items.push((object.metadata.name.as_str().into(), object.seen(kind, &owner)));
        });
        let failure = match listed.await {
            Ok(version) => {
                if out.send((kind, Event::Listed(began, items))).await.is_err() {
                    return;
                }
                backoff.reset();
                let mut from = version;
                loop {
                    match watch(&api, kind, &owner, from, &out).await {
                        None => return,
                        Some(End::Over(version)) => from = version,
                        Some(End::Lost(failure)) => break failure,
                    }
                }
            }
            Err(failure) => failure,
        };
        // Too old a version is how a watch ends that was behind; a list is the remedy.
        if failure.code() != Some(410) && out.send((kind, Event::Failed(failure))).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// `None`: nobody listens.
async fn watch(api: &Api, kind: Kind, owner: &str, mut from: String, out: &mpsc::Sender<(Kind, Event)>) -> Option<End> {
    let lost = |text: String| Some(End::Lost(Failure::Unreachable(text.into())));
    let began = Instant::now();
    let mut lines = match api.watch(kind, &from).await {
        Ok(lines) => lines,
        Err(failure) => return Some(End::Lost(failure)),
    };
    let lasts = Duration::from_secs(WATCH_SECONDS + 30);
    loop {
        let line = match timeout(lasts, lines.next()).await {
            Ok(Ok(Some(line))) => line,
            // An API server that ends it before its time may come back with other data.
            Ok(Ok(None)) if began.elapsed().as_secs() + 5 >= WATCH_SECONDS => return Some(End::Over(from)),
            Ok(Ok(None)) => return lost("the watch ended".to_owned()),
            Ok(Err(failure)) => return Some(End::Lost(failure)),
            Err(_) => return lost("the watch is silent".to_owned()),
        };
        let Ok(Line { r#type, object }) = serde_json::from_slice::<Line>(&line) else {
            return lost("an event of the watch cannot be read".to_owned());
        };
        if r#type == "ERROR" {
            let code = object["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
            let message = object["message"].as_str().unwrap_or("the watch failed").into();
            return Some(End::Lost(Failure::Refused { code, message, retry_after: None }));
        }
        let Ok(object) = serde_json::from_value::<Object>(object) else {
            return lost("an object of the watch cannot be read".to_owned());
        };
        if is_older(&object.metadata.resource_version, &from) {
            return lost("the API server went back in time".to_owned());
        }
        from.clone_from(&object.metadata.resource_version);
        let name: Arc<str> = object.metadata.name.as_str().into();
        let event = match &*r#type {
            "ADDED" | "MODIFIED" => Event::Put(name, object.seen(kind, owner)),
            "DELETED" => Event::Gone(name, object.seen(kind, owner)),
            _ => continue,
        };
        if out.send((kind, event)).await.is_err() {
            return None;
        }
    }
}

/// Whether one version is older than another; false where they are no numbers, which Kubernetes has had them be always.
pub(super) fn is_older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(version), Ok(than)) if version < than)
}

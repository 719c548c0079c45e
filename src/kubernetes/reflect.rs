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

/// A watch that lasted so long is one.
const LASTS: Duration = Duration::from_secs(30);
/// The API server says itself when it wants to be asked again, but not later than this.
const MOST_WAIT: Duration = Duration::from_secs(600);

/// Objects that are followed.
pub(super) trait Followed: Send + Sync {
    /// Tells those of several followers apart.
    type Kind: Copy + Send;
    /// An object as the API server sends it.
    type Object: DeserializeOwned + Send;
    /// As much of it as is kept.
    type Seen: Send;

    fn kind(&self) -> Self::Kind;

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

/// Reports what happens to the objects of a place until nobody listens.
pub(super) async fn follow<F: Followed>(place: Place, followed: F, out: mpsc::Sender<(F::Kind, WatchEvent<F::Seen>)>) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut jitter = Jitter::random();
    let kind = followed.kind();
    let mut was_behind = false;
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
                let mut from = version;
                loop {
                    let (began, mut is_heard) = (Instant::now(), false);
                    let end = watch(&followed, &place, from, &out, &mut is_heard).await;
                    // Where lists go well and watches do not all objects would be listed again and again.
                    if is_heard || began.elapsed() >= LASTS {
                        backoff.reset();
                        was_behind = false;
                    }
                    match end {
                        None => return,
                        Some(WatchEnd::Over(version)) => from = version,
                        Some(WatchEnd::Lost(failure)) => break failure,
                    }
                }
            }
            Err(failure) => failure,
        };
        let asked = failure.retry_after().unwrap_or_default().min(MOST_WAIT);
        // Too old a version is how a watch ends that was behind; a list is the remedy, unless it was none.
        let is_behind = failure.code() == Some(410) && !std::mem::replace(&mut was_behind, true);
        let event = if is_behind { WatchEvent::Behind } else { WatchEvent::Failed(failure) };
        if out.send((kind, event)).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next(&mut jitter).max(asked)).await;
    }
}

/// Says whether anything was heard. `None`: nobody listens.
async fn watch<F: Followed>(
    followed: &F,
    place: &Place,
    mut from: String,
    out: &mpsc::Sender<(F::Kind, WatchEvent<F::Seen>)>,
    is_heard: &mut bool,
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
        *is_heard = true;
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

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::{Ready, ready},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task,
    };

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use kube::{Client, client::Body};
    use serde_json::{Value, json};

    use super::*;

    /// Has no objects, and answers every watch with the same.
    #[derive(Clone)]
    struct Fake {
        lists: Arc<AtomicUsize>,
        watch: (u16, Option<&'static str>, String),
    }

    impl tower_service::Service<Request<Body>> for Fake {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
            task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let list = || {
                self.lists.fetch_add(1, Ordering::Relaxed);
                (200, None, json!({ "metadata": { "resourceVersion": "7" }, "items": [] }).to_string())
            };
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let (status, wait, body) = if is_watch { self.watch.clone() } else { list() };
            let response = Response::builder().status(status);
            let response = wait.into_iter().fold(response, |response, wait| response.header("Retry-After", wait));
            ready(Ok(response.body(Full::new(body.into())).unwrap()))
        }
    }

    struct Things;

    impl Followed for Things {
        type Kind = ();
        type Object = Value;
        type Seen = ();

        fn kind(&self) {}

        fn version(object: &Value) -> &str {
            object["metadata"]["resourceVersion"].as_str().unwrap()
        }

        fn seen(&self, _: Value) {}
    }

    /// Lists, failures, and times behind of ten minutes.
    async fn counts(status: u16, wait: Option<&'static str>, body: String) -> (usize, usize, usize) {
        let lists = Arc::new(AtomicUsize::new(0));
        let client = Client::new(Fake { lists: Arc::clone(&lists), watch: (status, wait, body) }, "default");
        let place = Place { client, path: "/api/v1/things".to_owned(), selector: "" };
        let (sender, mut events) = mpsc::channel(16);
        let following = tokio::spawn(follow(place, Things, sender));
        let (mut failures, mut behind) = (0, 0);
        let count = async {
            while let Some(((), event)) = events.recv().await {
                failures += usize::from(matches!(event, WatchEvent::Failed(_)));
                behind += usize::from(matches!(event, WatchEvent::Behind));
            }
        };
        _ = timeout(Duration::from_secs(600), count).await;
        following.abort();
        (lists.load(Ordering::Relaxed), failures, behind)
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_watched_is_not_listed_all_the_time() {
        let line = |of: &str, object: Value| format!("{}\n", json!({ "type": of, "object": object }));
        let too_old = line("ERROR", json!({ "code": 410, "message": "too old" }));
        for (status, wait, body, times) in [
            (403, None, String::new(), 10..60),
            (410, None, String::new(), 10..60),
            (200, None, too_old, 10..60),
            (200, None, String::new(), 10..60),
            (429, Some("120"), String::new(), 2..7),
        ] {
            let is_too_old = status == 410 || body.contains("410");
            let (lists, failures, behind) = counts(status, wait, body.clone()).await;
            assert!(times.contains(&lists), "{lists} lists: {status} {body}");
            assert_eq!(behind, usize::from(is_too_old));
            assert!(lists - (failures + behind) <= 1, "each is told: {status} {body}");
        }
        let event = line("ADDED", json!({ "metadata": { "resourceVersion": "8" } }));
        let (lists, ..) = counts(200, None, event).await;
        assert!(lists > 600, "{lists} lists: a watch that goes is followed at once");
    }
}

//! Requests to the API server.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    failure::Failure,
    objects::{GROUP, ObjectKey, ObjectKind, ObjectState},
};

/// Versions of the group that are known here, the best first.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];
/// How long it may take to ask for the versions.
const DISCOVER: Duration = Duration::from_secs(5);
/// A list of many objects takes a while.
const LIST: Duration = Duration::from_secs(60);
const PAGE: usize = 500;
/// How long a watch lasts, in seconds, before it is opened again.
pub(super) const WATCH_SECONDS: u64 = 290;
/// Largest event of a watch: an object and the server's own part of it.
const MAX_LINE: usize = 16 << 20;

const APPLY: &str = "application/apply-patch+yaml"; // JSON is YAML
const JSON: &str = "application/json";

/// A request but for its path.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) body: Vec<u8>,
    content_type: &'static str,
}

impl Call {
    pub(super) fn get() -> Self {
        Self { method: Method::GET, body: Vec::new(), content_type: JSON }
    }

    pub(super) fn json(method: Method, body: &serde_json::Value) -> Self {
        Self { method, body: serde_json::to_vec(body).unwrap_or_default(), content_type: JSON }
    }
}

/// Sends a request and reads the whole answer.
pub(super) async fn send(
    client: &Client,
    path: &str,
    call: Call,
    within: Duration,
) -> Result<(StatusCode, Bytes), Failure> {
    let answer = async {
        let response = open(client, path, call).await?;
        let status = response.status();
        let body = response.into_body().collect_bytes().await.map_err(|error| Failure::of_error(&error))?;
        Ok((status, body))
    };
    let late = |_| Failure::unreachable(format!("no answer within {} s", within.as_secs_f32()));
    tokio::time::timeout(within, answer).await.map_err(late)?
}

/// Sends a request; the answer of one that succeeded can be read as it comes.
async fn open(client: &Client, path: &str, call: Call) -> Result<http::Response<Body>, Failure> {
    let request = Request::builder().method(call.method).uri(path).header(header::CONTENT_TYPE, call.content_type);
    let request = request.body(Body::from(call.body)).map_err(|error| Failure::of_error(&error))?;
    let response = client.send(request).await.map_err(|error| Failure::of_error(&error))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    #[derive(Deserialize)]
    struct ApiStatus {
        message: String,
    }
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = response.into_body().collect_bytes().await.unwrap_or_default();
    let message = serde_json::from_slice::<ApiStatus>(&body).map(|status| status.message);
    let message = message.unwrap_or_else(|_| String::from_utf8_lossy(&body[..body.len().min(512)]).trim().to_owned());
    let message = if message.is_empty() { status.to_string() } else { message };
    Err(Failure::refused(status.as_u16(), &message, retry_after.map(Duration::from_secs)))
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::unreachable(format!("the API server's answer cannot be read: {error}")))
}

/// The API as one owner's objects in one namespace need it.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) manager: String,
    /// How long a write may take.
    pub(super) within: Duration,
    /// `networking.istio.io/<version>`.
    pub(super) version: String,
}

impl Api {
    /// The newest version of Istio's kinds that the server has.
    pub(super) async fn discover(client: &Client) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct ApiGroup {
            versions: Vec<ApiVersion>,
        }
        #[derive(Deserialize)]
        struct ApiVersion {
            version: String,
        }
        let (_, body) = match send(client, &format!("/apis/{GROUP}"), Call::get(), DISCOVER).await {
            Err(Failure::Refused { code: 404, retry_after, .. }) => {
                let message = format!("the API server does not know {GROUP}: install Istio's CRDs");
                return Err(Failure::refused(404, &message, retry_after));
            }
            answer => answer?,
        };
        let served: ApiGroup = parsed(&body)?;
        let known = VERSIONS.iter().find(|known| served.versions.iter().any(|version| version.version == **known));
        let none = || {
            let served: Vec<&str> = served.versions.iter().map(|version| &*version.version).collect();
            let (served, known) = (served.join(", "), VERSIONS.join(", "));
            let message = format!(
                "the API server has {GROUP} in {served}, of which none is known here ({known}): install \
                                   Istio's CRDs of a version that has one"
            );
            Failure::refused(404, &message, None)
        };
        Ok(format!("{GROUP}/{}", known.ok_or_else(none)?))
    }

    fn path(&self, kind: ObjectKind) -> String {
        format!("/apis/{}/namespaces/{}/{}", self.version, self.namespace, kind.plural())
    }

    /// Applies an object. True: there was none of this name before.
    pub(super) async fn apply(&self, key: &ObjectKey, body: Vec<u8>, force: bool) -> Result<(bool, Bytes), Failure> {
        let path = format!("{}/{}?fieldManager={}&force={force}", self.path(key.kind), key.name, self.manager);
        let call = Call { method: Method::PATCH, body, content_type: APPLY };
        let (status, body) = send(&self.client, &path, call, self.within).await?;
        Ok((status == StatusCode::CREATED, body))
    }

    /// Deletes an object that is in this state.
    pub(super) async fn delete(&self, key: &ObjectKey, state: &ObjectState) -> Result<(), Failure> {
        let ObjectState { uid, version } = state;
        let options = serde_json::json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": uid, "resourceVersion": version },
        });
        let path = format!("{}/{}", self.path(key.kind), key.name);
        let deleted = send(&self.client, &path, Call::json(Method::DELETE, &options), self.within).await;
        match deleted {
            // Another writer, or an attempt of ours without an answer, was faster.
            Err(Failure::Refused { code: 404, .. }) => Ok(()),
            deleted => deleted.map(|_| ()),
        }
    }

    /// The spec of an object; `None` if there is none. A list, since no right to get single ones is needed otherwise.
    pub(super) async fn spec(&self, key: &ObjectKey) -> Result<Option<serde_json::Value>, Failure> {
        #[derive(Deserialize)]
        struct SpecList {
            items: Vec<SpecItem>,
        }
        #[derive(Deserialize)]
        struct SpecItem {
            spec: serde_json::Value,
        }
        let path = format!("{}?fieldSelector=metadata.name%3D{}", self.path(key.kind), key.name);
        let (_, body) = send(&self.client, &path, Call::get(), self.within).await?;
        Ok(parsed::<SpecList>(&body)?.items.pop().map(|item| item.spec))
    }

    /// Where the objects of a kind are.
    pub(super) fn place(&self, kind: ObjectKind) -> Place {
        Place { client: self.client.clone(), path: self.path(kind), selector: "" }
    }
}

/// Where objects are that are listed and watched.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) client: Client,
    pub(super) path: String,
    /// `&fieldSelector=…`, or empty.
    pub(super) selector: &'static str,
}

impl Place {
    /// Every object, each handed to `take`; returns the version of the list.
    pub(super) async fn list<T: DeserializeOwned>(&self, mut take: impl FnMut(T)) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct ObjectList<T> {
            metadata: ListMeta,
            items: Vec<T>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct ListMeta {
            resource_version: String,
            #[serde(default)]
            r#continue: String,
        }
        let mut token = String::new();
        loop {
            let path = format!("{}?limit={PAGE}{}{token}", self.path, self.selector);
            let (_, body) = send(&self.client, &path, Call::get(), LIST).await?;
            let list: ObjectList<T> = parsed(&body)?;
            list.items.into_iter().for_each(&mut take);
            if list.metadata.r#continue.is_empty() {
                return Ok(list.metadata.resource_version);
            }
            token = format!("&continue={}", list.metadata.r#continue);
        }
    }

    /// Opens a watch of the objects, from a version on.
    pub(super) async fn watch(&self, from: &str) -> Result<WatchLines, Failure> {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}{}&resourceVersion={from}",
            self.path, self.selector
        );
        let opened = tokio::time::timeout(LIST, open(&self.client, &path, Call::get())).await;
        let opened = opened.map_err(|_| Failure::unreachable("the API server does not answer a watch"))?;
        Ok(WatchLines { body: opened?.into_body(), buffer: BytesMut::new() })
    }
}

/// The answer to a watch, line by line.
pub(super) struct WatchLines {
    body: Body,
    buffer: BytesMut,
}

impl WatchLines {
    /// The next line; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.split_to(searched + at + 1).freeze()));
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                return Err(Failure::unreachable(format!("an event of the watch is larger than {MAX_LINE} bytes")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(error)) => return Err(Failure::of_error(&error)),
                None => return Ok(None),
            }
        }
    }
}

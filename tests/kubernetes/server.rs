//! A real API server, and engines that write to it.

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use harness::{Mox, api_server::ApiServer, id};
use http::{Method, Request};
use kube::{Client, Config, client::Body, config::Kubeconfig};
use registry_mox::testing::{host::log::Log, kubernetes::report::KubernetesReport};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::proxy::Proxy;

/// Enough for whatever the sink does on a busy machine, a lease that runs out included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct Server {
    pub(crate) api: ApiServer,
    pub(crate) runtime: Runtime,
    admin: Client,
    namespaces: usize,
}

/// The log lines of all engines of this process.
pub(crate) fn log() -> Vec<String> {
    static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static LOG: LazyLock<Arc<Log>> = LazyLock::new(|| {
        let log = Arc::<Log>::default();
        tracing::dispatcher::set_global_default(log.dispatch()).unwrap();
        log
    });
    let mut lines = LINES.lock().unwrap();
    let new = LOG.take(Duration::ZERO);
    lines.extend(new.into_iter().map(|line| format!("{} {}: {}", line.level, line.target, line.message)));
    lines.clone()
}

impl Server {
    pub(crate) fn start() -> Self {
        log(); // engines log to the subscriber that is there when they are opened
        let api = ApiServer::start("kubernetes");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let admin = client(&runtime, &api.kubeconfig("admin"));
        Self { api, runtime, admin, namespaces: 0 }
    }

    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.api.kubeconfig(user)
    }

    /// A new namespace in which the sink has the rights of the manifest.
    pub(crate) fn namespace(&mut self) -> String {
        self.namespaces += 1;
        let namespace = format!("test-{}", self.namespaces);
        self.make_namespace(&namespace);
        namespace
    }

    pub(crate) fn make_namespace(&self, namespace: &str) {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
        self.apply(&format!("/api/v1/namespaces/{namespace}"), &object.to_string());
        self.grant(namespace, "default");
    }

    /// Applies the manifest of the engine's own pages.
    pub(crate) fn grant(&self, namespace: &str, owner: &str) {
        let config = json!({ "kubernetes": { "namespace": namespace, "owner": owner } });
        let config = registry_mox::testing::config::Config::from_json(config.to_string().as_bytes()).unwrap();
        let manifest = registry_mox::testing::kubernetes::rbac(&config, false);
        let documents: Vec<&str> = manifest.split("\n---\n").collect();
        assert_eq!(documents.len(), 4);
        for document in documents {
            let field = |key: &str| document.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
            let kind = format!("{}s", field("kind:").to_lowercase());
            let (name, of) = (field("  name:"), field("  namespace:").split(' ').next().unwrap());
            self.apply(&format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{of}/{kind}/{name}"), document);
        }
    }

    /// Server-side apply as somebody else.
    pub(crate) fn apply(&self, path: &str, object: &str) {
        let path = format!("{path}?fieldManager=somebody&force=true");
        let (status, body) = self.ask(Method::PATCH, "application/apply-patch+yaml", &path, object);
        assert!(status < 300, "{path}: {status} {body}");
    }

    pub(crate) fn ask(&self, method: Method, content_type: &str, path: &str, body: &str) -> (u16, Value) {
        self.runtime.block_on(ask(&self.admin, method, content_type, path, body))
    }

    /// Asks as the service account of the session servers.
    pub(crate) fn ask_as_session(&self, method: Method, path: &str, body: &str) -> (u16, Value) {
        let session = client(&self.runtime, &self.kubeconfig("session"));
        self.runtime.block_on(ask(&session, method, "application/json", path, body))
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let (status, body) = self.ask(Method::GET, "application/json", path, "");
        (status == 200).then_some(body)
    }

    /// The objects of a kind, by name.
    pub(crate) fn objects(&self, namespace: &str, kind: &str) -> Vec<Value> {
        let list = self.get(&path(namespace, kind, "")).expect("a list");
        list["items"].as_array().unwrap().clone()
    }

    pub(crate) fn names(&self, namespace: &str, kind: &str) -> Vec<String> {
        let name = |object: Value| object["metadata"]["name"].as_str().unwrap().to_owned();
        self.objects(namespace, kind).into_iter().map(name).collect()
    }

    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<Value> {
        self.get(&path(namespace, "serviceentries", name))
    }

    /// A proxy in front of the server, with the rights of the sink.
    pub(crate) fn proxy(&self) -> Proxy {
        Proxy::start(&self.runtime, client(&self.runtime, &self.kubeconfig("session")))
    }

    pub(crate) fn admin(&self) -> Client {
        self.admin.clone()
    }
}

pub(crate) fn path(namespace: &str, kind: &str, name: &str) -> String {
    format!("/apis/networking.istio.io/v1/namespaces/{namespace}/{kind}/{name}").trim_end_matches('/').to_owned()
}

pub(crate) async fn ask(client: &Client, method: Method, content_type: &str, path: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", content_type);
    let request = request.body(Body::from(body.as_bytes().to_vec())).unwrap();
    let response = client.send(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect_bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn client(runtime: &Runtime, kubeconfig: &PathBuf) -> Client {
    runtime.block_on(async {
        let config = Kubeconfig::read_from(kubeconfig).unwrap();
        let mut config = Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
        (config.read_timeout, config.default_retry) = (None, false);
        Client::try_from(config).unwrap()
    })
}

/// An engine that writes to a namespace, through `kubeconfig`.
pub(crate) struct Writer {
    pub(crate) mox: Mox,
}

impl Writer {
    pub(crate) fn open(kubeconfig: &std::path::Path, namespace: &str) -> Self {
        Self::with(kubeconfig, namespace, json!({}), json!({}))
    }

    /// With more settings, and more of those below `kubernetes`.
    pub(crate) fn with(kubeconfig: &std::path::Path, namespace: &str, more: Value, kubernetes: Value) -> Self {
        let mut config = json!({
            "scope": "cluster",
            "protect": { "emptyGrace": "0s" },
            "kubernetes": { "enabled": true, "kubeconfig": kubeconfig, "namespace": namespace, "lease": "15s" },
        });
        let merge = |into: &mut Value, from: Value| {
            for (key, value) in from.as_object().unwrap() {
                into[key] = value.clone();
            }
        };
        merge(&mut config, more);
        merge(&mut config["kubernetes"], kubernetes);
        Self { mox: Mox::open(config) }
    }

    pub(crate) fn publish(&self, name: &str, version: i64, data: &[&str]) {
        self.mox.publish(&id(name), "a", version, data);
    }

    pub(crate) fn unpublish(&self, name: &str, version: i64) {
        self.mox.unpublish(&id(name), "a", version);
    }

    pub(crate) fn loaded(&self) {
        self.mox.engine.loaded();
    }

    pub(crate) fn flush(&self) {
        self.mox.engine.flush_within(PATIENCE).expect("a flush");
    }

    pub(crate) fn report(&self) -> KubernetesReport {
        self.mox.engine.kubernetes().unwrap().report()
    }

    /// Waits until a report is as it should be.
    pub(crate) fn wait(&self, what: &str, is: impl Fn(&KubernetesReport) -> bool) -> KubernetesReport {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let report = self.report();
            if is(&report) {
                return report;
            }
            let late = std::time::Instant::now() >= deadline;
            assert!(!late, "not within {PATIENCE:?}: {what}\n{report:#?}\n{}", log().join("\n"));
            std::thread::sleep(Duration::from_millis(5)); // the polling interval
        }
    }

    /// Waits until what was published before is written, and nothing is to be done.
    pub(crate) fn sync(&self) -> KubernetesReport {
        self.flush();
        let versions = self.mox.engine.watch().borrow().versions().map(str::to_owned);
        let seen = |report: &KubernetesReport| report.in_sync && report.versions.as_ref() == Some(&versions);
        self.wait("everything is written", seen)
    }

    pub(crate) fn close(self) {
        self.mox.engine.close();
    }
}

/// The name of a service's object.
pub(crate) fn object(name: &str) -> String {
    format!("com.example.{name}")
}

pub(crate) fn endpoints(object: &Value) -> Vec<String> {
    let endpoints = object["spec"]["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().map(|endpoint| endpoint["address"].as_str().unwrap().to_owned()).collect()
}

/// Many services of one endpoint each.
pub(crate) fn publish_many(writer: &Writer, services: std::ops::Range<usize>, endpoints: usize) {
    for n in services {
        let data: Vec<String> =
            (0..endpoints).map(|e| format!("10.{}.{}.{}:80?weight={}", n >> 8, n & 255, e + 1, 100 + e % 2)).collect();
        writer.publish(&format!("many{n:05}"), 1, &data.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// Keeps what another thread appends.
pub(crate) type Shared<T> = Arc<Mutex<T>>;

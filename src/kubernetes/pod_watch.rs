//! Follows the pods of the cluster while somebody wants to know in which namespace an address is.
//!
//! `mox.kubernetes` says where the API server is and who we are to it, whether or not anything is written there. A watch that
//! breaks leaves what is known, until the pods are listed again.

use std::{net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch, time::Instant};

use super::{
    pods::{Changed, Pods},
    report::PodsReport,
};
use crate::config;

/// The pods of the cluster.
#[derive(Debug)]
pub struct PodWatch {
    state: Arc<Mutex<State>>,
    wanted: watch::Sender<bool>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pods: Pods,
    /// All pods are known, as they are now.
    is_current: bool,
    /// How often they were listed.
    lists: u64,
    failure: Option<Arc<str>>,
    #[cfg(feature = "kubernetes")]
    logged: Option<Instant>,
    #[cfg(feature = "kubernetes")]
    listed: Option<Instant>,
}

impl PodWatch {
    /// Nothing is asked before somebody wants to know.
    pub fn start(settings: &config::Kubernetes, handle: &Handle) -> Self {
        let (state, wanted) = (Arc::new(Mutex::new(State::default())), watch::Sender::new(false));
        #[cfg(feature = "kubernetes")]
        handle.spawn(following::supervised(settings.clone(), Arc::clone(&state), wanted.subscribe()));
        #[cfg(not(feature = "kubernetes"))]
        {
            let _ = (settings, handle);
            let why = "this library was built without the cargo feature `kubernetes`; use one with it";
            state.lock().failure = Some(why.into());
        }
        Self { state, wanted }
    }

    /// Says whether somebody wants to know; who does not for a while forgets all.
    pub fn want(&self, wanted: bool) {
        self.wanted.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
    }

    /// The namespace of the pod at an address, and whether the pod is gone, so that another one that is not shown yet may have it.
    pub fn namespace(&self, address: IpAddr) -> Option<(Arc<str>, bool)> {
        let state = self.state.lock();
        state.pods.namespace(address).map(|(namespace, is_gone)| (Arc::clone(namespace), is_gone))
    }

    /// Whether all pods are known as they are now.
    pub fn is_current(&self) -> bool {
        self.state.lock().is_current
    }

    /// A number that grows with every change.
    pub fn version(&self) -> u64 {
        let mut state = self.state.lock();
        state.pods.expire(Instant::now());
        state.pods.version()
    }

    /// What changed since that number was this one.
    pub fn changed(&self, since: u64) -> Changed {
        self.state.lock().pods.changed(since)
    }

    /// How it goes.
    pub fn report(&self) -> PodsReport {
        let state = self.state.lock();
        let (pods, left_out) = state.pods.count();
        PodsReport { current: state.is_current, pods, left_out, lists: state.lists, failure: state.failure.clone() }
    }
}

#[cfg(feature = "kubernetes")]
mod following {
    use serde::Deserialize;
    use tokio::{
        sync::mpsc,
        time::{Duration, sleep},
    };

    use super::*;
    use crate::{
        digest::prefix_of,
        kubernetes::{
            api::Place,
            connect::connect,
            failure::Failure,
            pace::{self, Backoff, Jitter},
            pods::PodSeen,
            reflect::{self, Followed, WatchEvent},
        },
    };

    /// All pods that have not ended. A selector of the phase is as old as pods are; by another an older API server may refuse to answer.
    const PATH: &str = "/api/v1/pods";
    const SELECTOR: &str = "&fieldSelector=status.phase%21%3DSucceeded,status.phase%21%3DFailed";
    /// How often it is logged why they are not known, and how often that they are.
    const LOGGED_EVERY: Duration = Duration::from_secs(60);
    const REMEDY: &str = "give the session servers the rights of /mox/kubernetes/rbac";

    /// A panic, which is a bug, ends a run and not the watch.
    pub(super) async fn supervised(
        settings: config::Kubernetes,
        state: Arc<Mutex<State>>,
        wanted: watch::Receiver<bool>,
    ) {
        pace::supervised(|| run(settings.clone(), Arc::clone(&state), wanted.clone()), |why| fail(&state, why)).await;
    }

    async fn run(settings: config::Kubernetes, state: Arc<Mutex<State>>, mut wanted: watch::Receiver<bool>) {
        let mut no_more = wanted.clone();
        while wanted.wait_for(|wanted| *wanted).await.is_ok() {
            tokio::select! {
                _ = no_more.wait_for(|wanted| !*wanted) => {}
                () = follow(&settings, &state) => {}
            }
            let mut state = state.lock();
            state.pods.forget();
            (state.is_current, state.failure) = (false, None);
        }
    }

    async fn follow(settings: &config::Kubernetes, state: &Mutex<State>) {
        let mut jitter = Jitter::random();
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let client = loop {
            match connect(settings).await {
                Ok(client) => break client,
                Err(error) => {
                    fail(state, &error);
                    sleep(backoff.next(&mut jitter)).await;
                }
            }
        };
        let (sender, mut events) = mpsc::channel(1_024);
        let place = Place { client, path: PATH.to_owned(), selector: SELECTOR };
        let mut following = std::pin::pin!(reflect::follow(place, Cluster, sender));
        loop {
            tokio::select! {
                () = &mut following => return,
                event = events.recv() => match event {
                    Some(((), event)) => hear(state, event),
                    None => return,
                },
            }
        }
    }

    fn hear(state: &Mutex<State>, event: WatchEvent<PodSeen>) {
        let now = Instant::now();
        match event {
            WatchEvent::Listed { objects, .. } => {
                let mut state = state.lock();
                state.pods.listed(now, objects);
                state.lists += 1;
                (state.is_current, state.failure) = (true, None);
                let pods = state.pods.count().0;
                if state.listed.is_none_or(|at| now - at >= LOGGED_EVERY) {
                    state.listed = Some(now);
                    drop(state);
                    tracing::info!(event = "pods_listed", pods, "the namespaces of pods are known");
                }
            }
            WatchEvent::Shown(pod) => state.lock().pods.shown(now, pod),
            WatchEvent::Gone(pod) => state.lock().pods.gone(now, pod.id),
            WatchEvent::Behind => state.lock().is_current = false,
            WatchEvent::Failed(failure) => fail(state, &told(&failure)),
        }
    }

    fn told(failure: &Failure) -> String {
        match failure.code() {
            Some(401 | 403) => format!("pods may not be listed and watched: {failure}; {REMEDY}"),
            _ => format!("pods cannot be followed: {failure}"),
        }
    }

    fn fail(state: &Mutex<State>, why: &str) {
        let mut state = state.lock();
        (state.is_current, state.failure) = (false, Some(why.into()));
        let now = Instant::now();
        if state.logged.is_none_or(|at| now - at >= LOGGED_EVERY) {
            state.logged = Some(now);
            drop(state);
            tracing::warn!(
                event = "pods_unknown",
                why,
                "it is not known in which namespaces pods are; nothing is removed, addresses count as they were known, and consumers at \
                 others as of unknown namespace"
            );
        }
    }

    struct Cluster;

    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    pub(super) struct PodObject {
        metadata: PodMeta,
        spec: PodSpec,
        status: PodStatus,
    }

    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct PodMeta {
        namespace: String,
        uid: String,
        resource_version: String,
        creation_timestamp: Option<String>,
    }

    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct PodSpec {
        host_network: bool,
    }

    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct PodStatus {
        phase: String,
        #[serde(rename = "podIP")]
        ip: String,
        #[serde(rename = "podIPs")]
        ips: Vec<PodIp>,
    }

    #[derive(Deserialize)]
    struct PodIp {
        #[serde(default)]
        ip: String,
    }

    impl Followed for Cluster {
        type Kind = ();
        type Object = PodObject;
        type Seen = PodSeen;

        fn kind(&self) {}

        fn version(pod: &PodObject) -> &str {
            &pod.metadata.resource_version
        }

        fn seen(&self, pod: PodObject) -> PodSeen {
            seen(pod)
        }
    }

    pub(super) fn seen(PodObject { metadata, spec, status }: PodObject) -> PodSeen {
        // An address of the host is the host's, and that of a pod that has ended may be another's by now.
        let speaks = !spec.host_network && !matches!(&*status.phase, "Succeeded" | "Failed");
        let ips = status.ips.iter().map(|it| &*it.ip).chain([&*status.ip]);
        let mut all: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).filter(|_| speaks).collect();
        all.dedup();
        let of = |is_v4: bool| all.iter().find(|ip| ip.is_ipv4() == is_v4).map(|ip| (*ip).into());
        // 2026-11-30T10:00:00Z
        let made = metadata.creation_timestamp.iter().flat_map(|text| text.bytes()).filter(u8::is_ascii_digit).take(14);
        PodSeen {
            id: u64::from_be_bytes(prefix_of::<8>(&metadata.uid)),
            namespace: metadata.namespace.into(),
            made: made.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')),
            addresses: [of(true), of(false)],
        }
    }
}

#[cfg(all(test, feature = "kubernetes"))]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_pod_its_namespace_and_addresses_are_read() {
        let pod = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut pod = json!({
                "metadata": { "name": "a", "namespace": "shop", "uid": "u1", "resourceVersion": "7",
                              "creationTimestamp": "2026-11-30T10:00:00Z", "labels": { "a": "b" } },
                "spec": { "containers": [{ "name": "c" }] },
                "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] },
            });
            change(&mut pod);
            following::seen(serde_json::from_value(pod).unwrap())
        };
        let addresses =
            |texts: [Option<&str>; 2]| texts.map(|text| text.map(|it| it.parse::<IpAddr>().unwrap().into()));
        let seen = pod(&|_| {});
        assert_eq!((&*seen.namespace, seen.made), ("shop", 20_261_130_100_000));
        assert_eq!(seen.addresses, addresses([Some("10.0.0.1"), Some("fd00::1")]));
        let of = |change: &dyn Fn(&mut serde_json::Value)| pod(change).addresses;
        assert_eq!(of(&|pod| pod["spec"]["hostNetwork"] = true.into()), [None, None]);
        assert_eq!(of(&|pod| pod["status"]["phase"] = "Succeeded".into()), [None, None]);
        assert_eq!(of(&|pod| pod["status"]["phase"] = "Failed".into()), [None, None]);
        assert_eq!(of(&|pod| pod["status"] = json!({ "phase": "Pending" })), [None, None]);
        assert_eq!(
            of(&|pod| drop(pod["status"].as_object_mut().unwrap().remove("podIPs"))),
            addresses([Some("10.0.0.1"), None])
        );
        assert_eq!(
            of(&|pod| pod["status"] = json!({ "podIPs": [{ "ip": "fd00::2" }] })),
            addresses([None, Some("fd00::2")])
        );
        assert_ne!(pod(&|pod| pod["metadata"]["uid"] = "u2".into()).id, seen.id);
        assert!(pod(&|pod| pod["metadata"]["creationTimestamp"] = "2026-11-30T10:00:01Z".into()).made > seen.made);
    }
}

//! The real Envoy as a client of the same core, with Envoy's own resources, in both variants of the protocol.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use harness::process::{Process, START, eventually, free_port, get, log_path, script};
use registry_mox::testing::{
    snapshot::{partition::Partition, signals::Signals},
    xds::{
        drain::Drain,
        limits::{MaxBytes, MaxStreams, StreamLimits},
        listener::{Door, accept},
        pace::PaceRule,
        server::Ads,
        streams::Streams,
        workers::Workers,
    },
};
use serde_json::Value;
use tokio::{
    runtime::{self, Runtime},
    sync::watch,
};

use crate::envoy_types::{Kind, Xds, cluster, endpoints, listener, routes};

/// A server of a catalog; stops without a goodbye when dropped.
struct Server {
    runtime: Option<Runtime>,
    view: watch::Sender<Xds>,
    signals: Arc<Signals>,
    streams: Arc<Streams>,
    _ends: [watch::Sender<bool>; 2],
}

impl Server {
    fn start(port: u16, xds: Xds) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (view, signals) = (watch::Sender::new(xds), Arc::<Signals>::default());
        let bytes = MaxBytes { stream: 64 << 20, streams: 512 << 20, pinned: 1 << 30 };
        let streams = Arc::new(Streams::new(PaceRule { duty: 0.5, max: Duration::from_secs(5) }, bytes));
        let [draining, fenced] = [watch::Sender::new(false), watch::Sender::new(false)];
        let most = MaxStreams { in_all: 16, per_address: 16 };
        let ads = Ads {
            view: view.subscribe(),
            signals: Arc::clone(&signals),
            drain: Drain::new(draining.subscribe(), fenced.subscribe()),
            streams: Arc::clone(&streams),
            prime: true,
            limits: StreamLimits { streams: most, types: 16, request: 1 << 20, response: 1 << 30 },
        };
        let door = Arc::new(Door::new(vec![], most, None, Arc::clone(&streams)));
        let (workers, served) = Workers::new([runtime.handle().clone()]);
        let bound = eventually(START, "the port is free", || {
            runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))).ok()
        });
        runtime.spawn(accept(bound, Partition::WHOLE, door, Arc::new(workers)));
        for (runtime, connections) in served {
            let ads = ads.clone();
            runtime.spawn(async move { ads.serve(connections).await.unwrap() });
        }
        Self { runtime: Some(runtime), view, signals, streams, _ends: [draining, fenced] }
    }

    fn change(&self, change: impl FnOnce(&mut Xds)) {
        let old = self.view.borrow().clone();
        let mut new = old.clone();
        change(&mut new);
        self.signals.tell(&old, &new, || _ = self.view.send_replace(new.clone()));
    }

    /// Until nothing is to be said any more: every response was answered.
    fn wait_until_quiet(&self) {
        eventually(START, "every response is answered", || {
            let list = self.streams.list(0, usize::MAX);
            let answered = |stream: &registry_mox::testing::xds::streams::StreamState| {
                stream.types.len() == 4 && stream.types.values().all(|t| t.unacked_millis.is_none())
            };
            list.iter().any(answered).then_some(())
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A web server that answers every request with its name; its port.
fn backend(name: &'static str) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let (mut request, mut read) = ([0; 4096], 0);
                while !request[..read].windows(4).any(|end| end == b"\r\n\r\n") {
                    match stream.read(&mut request[read..]) {
                        Ok(0) | Err(_) => return,
                        Ok(more) => read += more,
                    }
                }
                let length = name.len();
                let _ =
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{name}");
            });
        }
    });
    port
}

struct Envoy {
    process: Process,
    admin: u16,
}

impl Envoy {
    fn start(ads: u16, api: &str) -> Self {
        let admin = free_port();
        let mut command: Command = script("envoy-ads.sh", &log_path(&format!("envoy-ads-{api}")));
        command.env("ADMIN_PORT", admin.to_string()).env("ADS_PORT", ads.to_string()).arg(api);
        Self { process: Process::start(&mut command), admin }
    }

    fn stat(&self, name: &str) -> u64 {
        let all: Value =
            serde_json::from_str(&get(self.admin, "/stats?format=json").unwrap_or_default()).unwrap_or_default();
        let found = all["stats"].as_array().and_then(|stats| stats.iter().find(|stat| stat["name"] == name));
        found.and_then(|stat| stat["value"].as_u64()).unwrap_or_default()
    }

    /// The active resources of a section of `/config_dump`, by name.
    fn dump(&self, section: &str) -> Vec<Value> {
        let path = format!("/config_dump?resource={section}");
        let dump: Value = serde_json::from_str(&get(self.admin, &path).unwrap_or_default()).unwrap_or_default();
        dump["configs"].as_array().cloned().unwrap_or_default()
    }

    fn names(&self, section: &str) -> Vec<String> {
        let name = |config: &Value| {
            let inner = match section {
                "dynamic_active_clusters" => &config["cluster"]["name"],
                "dynamic_listeners" if config["active_state"].is_object() => &config["name"],
                "dynamic_route_configs" => &config["route_config"]["name"],
                _ => &Value::Null,
            };
            inner.as_str().map(str::to_owned)
        };
        let mut names: Vec<_> = self.dump(section).iter().filter_map(name).collect();
        names.sort();
        names
    }

    /// Seconds that a cluster allows for connecting.
    fn connect_timeout(&self, cluster: &str) -> Option<String> {
        let all = self.dump("dynamic_active_clusters");
        let found = all.into_iter().find(|config| config["cluster"]["name"] == cluster)?;
        Some(found["cluster"]["connect_timeout"].as_str()?.to_owned())
    }

    fn wait_for(&mut self, what: &str, mut wanted: impl FnMut(&Self) -> bool) {
        eventually(START, what, || {
            assert!(self.process.alive(), "Envoy ended: see target/real/log/envoy-ads-*.log");
            wanted(self).then_some(())
        });
    }
}

/// Who answers a request to a listener.
fn who(port: u16) -> Option<String> {
    get(port, "/")
}

fn follow(api: &str) {
    let (ads, first, second) = (free_port(), free_port(), free_port());
    let (one, two) = (backend("one"), backend("two"));
    let mut xds = Xds::default();
    xds.set(Kind::Cluster, "a", Some(&cluster("a", 1)));
    xds.set(Kind::Endpoints, "a", Some(&endpoints("a", &[one])));
    xds.set(Kind::Listener, "first", Some(&listener("first", first, "all")));
    xds.set(Kind::Routes, "all", Some(&routes("all", "a")));
    let mut server = Server::start(ads, xds);
    let mut envoy = Envoy::start(ads, api);
    let is = |name: &'static str, port: u16| move |_: &Envoy| who(port).as_deref() == Some(name);
    envoy.wait_for("the first listener answers", is("one", first));

    // Endpoints change: nothing else is sent.
    let clusters = envoy.stat("cluster_manager.cds.update_success");
    server.change(|xds| xds.set(Kind::Endpoints, "a", Some(&endpoints("a", &[two]))));
    envoy.wait_for("the other backend answers", is("two", first));
    assert_eq!(envoy.stat("cluster_manager.cds.update_success"), clusters);

    // A cluster changes and its endpoints do not: it is warm only when it was told of them again.
    server.change(|xds| xds.set(Kind::Cluster, "a", Some(&cluster("a", 2))));
    envoy.wait_for("the cluster has changed", |envoy| envoy.connect_timeout("a").as_deref() == Some("2s"));
    assert_eq!(who(first).as_deref(), Some("two"));
    // In delta Envoy does not ask again: it waits for 15 s, then goes on with what it knows.
    let waited = u64::from(api == "DELTA_GRPC");
    assert_eq!(envoy.stat("cluster.a.init_fetch_timeout"), waited, "whether it gave up waiting for the endpoints");

    // Everything at once: what a route leads to is there before it.
    server.change(|xds| {
        xds.set(Kind::Cluster, "b", Some(&cluster("b", 1)));
        xds.set(Kind::Endpoints, "b", Some(&endpoints("b", &[one])));
        xds.set(Kind::Listener, "second", Some(&listener("second", second, "other")));
        xds.set(Kind::Routes, "other", Some(&routes("other", "b")));
    });
    envoy.wait_for("the second listener answers", is("one", second));
    // A route moves to a new cluster and the old one goes. The new one is told of first, but the route does not wait until
    // it is warm, so that requests may fail for a moment.
    server.change(|xds| {
        xds.set(Kind::Cluster, "c", Some(&cluster("c", 1)));
        xds.set(Kind::Endpoints, "c", Some(&endpoints("c", &[two])));
        xds.set(Kind::Routes, "other", Some(&routes("other", "c")));
        xds.set(Kind::Cluster, "b", None::<&crate::envoy_types::Cluster>);
        xds.set(Kind::Endpoints, "b", None::<&crate::envoy_types::Cluster>);
    });
    envoy.wait_for("the new cluster answers and the old one is gone", |envoy| {
        who(second).as_deref() == Some("two") && envoy.names("dynamic_active_clusters") == ["a", "c"]
    });
    assert_eq!(envoy.names("dynamic_listeners"), ["first", "second"]);

    // A cluster that Envoy refuses leaves it with the cluster it had, and a repair follows.
    let nacks = server.streams.nacks.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((nacks, envoy.stat("cluster_manager.cds.update_rejected")), (0, 0));
    server.change(|xds| xds.set(Kind::Cluster, "c", Some(&cluster("c", -1))));
    envoy.wait_for("the invalid cluster is rejected", |envoy| envoy.stat("cluster_manager.cds.update_rejected") == 1);
    server.wait_until_quiet();
    let told = server.streams.list(0, usize::MAX).into_iter().flat_map(|stream| stream.types.into_values());
    let errors: Vec<_> = told.filter_map(|t| t.error).collect();
    assert!(errors.len() == 1 && errors[0].contains("Invalid duration"), "{errors:?}");
    assert_eq!((envoy.connect_timeout("c").as_deref(), who(second).as_deref()), (Some("1s"), Some("two")));
    assert_eq!(server.streams.nacks.load(std::sync::atomic::Ordering::Relaxed), 1, "it is not sent again");
    server.change(|xds| xds.set(Kind::Cluster, "c", Some(&cluster("c", 3))));
    envoy.wait_for("the cluster is repaired", |envoy| envoy.connect_timeout("c").as_deref() == Some("3s"));
    assert_eq!(who(second).as_deref(), Some("two"));

    // A listener and all beneath it go.
    server.change(|xds| {
        xds.set(Kind::Listener, "second", None::<&crate::envoy_types::Cluster>);
        xds.set(Kind::Routes, "other", None::<&crate::envoy_types::Cluster>);
        xds.set(Kind::Cluster, "c", None::<&crate::envoy_types::Cluster>);
        xds.set(Kind::Endpoints, "c", None::<&crate::envoy_types::Cluster>);
    });
    envoy.wait_for("the second listener is gone", |envoy| {
        envoy.names("dynamic_listeners") == ["first"] && envoy.names("dynamic_active_clusters") == ["a"]
    });

    // The server is away and comes back with news; meanwhile Envoy goes on.
    let mut xds = server.view.borrow().clone();
    drop(server);
    envoy.wait_for("Envoy has noticed", |envoy| envoy.stat("control_plane.connected_state") == 0);
    assert_eq!(who(first).as_deref(), Some("two"));
    xds.set(Kind::Endpoints, "a", Some(&endpoints("a", &[one])));
    server = Server::start(ads, xds);
    envoy.wait_for("Envoy is back", is("one", first));
    server.wait_until_quiet();
    assert_eq!(envoy.names("dynamic_active_clusters"), ["a"]);
    assert_eq!(envoy.stat("cluster_manager.cluster_removed"), 2, "b and c, and never a");
    assert_eq!(envoy.stat("listener_manager.listener_removed"), 1);
    for kind in ["cluster_manager.cds", "listener_manager.lds"] {
        assert!(envoy.stat(&format!("{kind}.update_success")) > 0);
        assert_eq!(envoy.stat(&format!("{kind}.update_failure")), envoy.stat("listener_manager.lds.update_failure"));
    }
    assert_eq!(envoy.stat("listener_manager.lds.update_rejected"), 0);
}

pub(crate) fn state_of_the_world() {
    follow("GRPC");
}

pub(crate) fn incremental() {
    follow("DELTA_GRPC");
}

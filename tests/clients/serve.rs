//! `examples/serve.rs` as a process, told of services that are made up.

use std::{
    collections::BTreeMap,
    fs::{self, File},
};

use harness::{
    client::{MoxClient, SERVICE_ENTRY, State, node},
    nth as id,
    process::{log_path, mortal, root},
    serve::{Serve, program},
};
use serde_json::{Value, json};
use tokio::runtime::{self, Runtime};

/// Where it listens whole; part k of N is on this + N + k. Below the range that the kernel takes ports from.
pub(crate) const PORT: u16 = 24_700;

pub(crate) fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// `host:port` of what istiod is to be given: everything, or each of so many parts.
pub(crate) fn sources(count: u16) -> Vec<String> {
    if count == 1 { vec![address(PORT)] } else { (0..count).map(|k| address(PORT + count + k)).collect() }
}

pub(crate) fn name(n: usize) -> String {
    format!("com.example.s{n}")
}

/// The registry's content: of each service the version of each of its endpoints, which the address carries.
pub(crate) type Registered = BTreeMap<usize, Vec<i64>>;

pub(crate) fn registered(services: usize, endpoints: usize) -> Registered {
    (0..services).map(|n| (n, vec![1; endpoints])).collect()
}

/// Of an endpoint; all are different, and so are those of each of the first million versions.
pub(crate) fn ip(n: usize, endpoint: usize, version: i64) -> String {
    match version {
        1 => format!("10.{}.{}.{}", n / 250, n % 250, endpoint + 1),
        version => format!("11.{}.{}.{}", version / 62_500, version / 250 % 250, version % 250),
    }
}

fn url(n: usize, endpoint: usize, version: i64) -> String {
    let ip = ip(n, endpoint, version);
    format!(
        "{ip}:12200?rpcVer=51302&serialization=hessian2&weight=100&timeout=3000&appName=app-{}&p=1&v=4.0&zone=RZ{:02}A\
         &group=blue&env=prod&language=java&pid=4711&interface=com.example.S{n}&startTime=1700000000000",
        n % 100,
        n % 8
    )
}

fn publisher(n: usize, endpoint: usize, version: i64) -> Value {
    json!({
        "registerId": format!("r{endpoint}"), "version": version, "registerTimestamp": version,
        "data": [url(n, endpoint, version)], "cell": "rz00a",
    })
}

/// The server; killed without a goodbye when dropped.
pub(crate) struct Server {
    serve: Serve,
    runtime: Runtime,
}

impl Server {
    /// Starts it with these settings and what the registry holds; `loaded` is for the test to say.
    pub(crate) fn start(settings: Value, registered: &Registered) -> Self {
        let mut settings = settings;
        settings["listen"] = address(PORT).into();
        settings["threads"] = 2.into();
        settings["policy"] = json!({ "labels": ["group", "env"] });
        let (config, log) = (root().join("target/real/run/serve.json"), log_path("serve"));
        for path in [&config, &log] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(&config, settings.to_string()).unwrap();
        let log = File::options().append(true).create(true).open(log).unwrap();
        let serve = Serve::start(mortal(program()).arg("--config").arg(config).stderr(log));
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut server = Self { serve, runtime };
        for (n, versions) in registered {
            server.replace(*n, versions, 1);
        }
        server.flush();
        server
    }

    /// The same, serving.
    pub(crate) fn loaded(settings: Value, registered: &Registered) -> Self {
        let mut server = Self::start(settings, registered);
        server.load();
        server
    }

    pub(crate) fn load(&mut self) {
        self.serve.order(json!({ "op": "loaded" }));
        self.flush();
    }

    /// Replaces the policy.
    pub(crate) fn policy(&mut self, policy: &Value) {
        self.serve.order(json!({ "op": "policy", "policy": policy }));
        self.flush();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.serve.driven.process.pid()
    }

    pub(crate) fn flush(&mut self) {
        self.serve.flush();
    }

    /// Gives an endpoint of a service the next version, in `registered` too; returns its new address.
    pub(crate) fn change(&mut self, registered: &mut Registered, n: usize, endpoint: usize) -> String {
        let version = registered.values().flatten().max().unwrap() + 1;
        registered.get_mut(&n).unwrap()[endpoint] = version;
        let mut line = publisher(n, endpoint, version);
        line["op"] = "publish".into();
        line["dataInfoId"] = id(n).into();
        self.serve.say(&line);
        ip(n, endpoint, version)
    }

    /// A publisher of any service.
    pub(crate) fn publish(&mut self, data_info_id: &str, data: &[&str]) {
        self.serve.say(&json!({
            "op": "publish", "dataInfoId": data_info_id, "registerId": "r", "version": 1, "registerTimestamp": 1, "data": data,
        }));
        self.flush();
    }

    /// These are the endpoints of a service now, maybe none.
    pub(crate) fn replace(&mut self, n: usize, versions: &[i64], version: i64) {
        let publishers: Vec<_> = versions.iter().enumerate().map(|(e, version)| publisher(n, e, *version)).collect();
        let line = json!({ "op": "replace", "dataInfoId": id(n), "version": version, "publishers": publishers });
        self.serve.say(&line);
    }

    /// Takes an endpoint of a service away.
    pub(crate) fn unpublish(&mut self, n: usize, endpoint: usize, version: i64) {
        let register_id = format!("r{endpoint}");
        let line = json!({
            "op": "unpublish", "dataInfoId": id(n), "registerId": register_id, "version": version,
            "registerTimestamp": version,
        });
        self.serve.say(&line);
    }

    /// A page of `/mox`.
    pub(crate) fn page(&self, name: &str) -> Value {
        let page = self.serve.page(&format!("/mox/{name}")).good().expect("an admin page");
        serde_json::from_str(&page).unwrap()
    }

    /// Everything that is served, as a client of our own sees it.
    pub(crate) fn served(&self) -> State {
        self.runtime.block_on(async {
            let mut client = MoxClient::connect(&address(PORT), node("test")).await.unwrap();
            client.subscribe(SERVICE_ENTRY).unwrap();
            client.next_of(SERVICE_ENTRY).await;
            client.state().clone()
        })
    }
}

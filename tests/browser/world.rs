//! Engines whose pages are worth a look.

use std::time::Duration;

use harness::{
    Mox, SOON,
    client::{MoxClient, SERVICE_ENTRY, node},
    id, nth,
    process::eventually,
    random::Random,
    refusing,
    store::{Server, Table},
};
use registry_mox::testing::{
    host::{
        admin::{Credentials, Request, change},
        hour::{KEPT, Sample},
    },
    model::RegisterVersion,
    registry::frame::Publisher,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub const TOKEN: &str = "sesame";

/// What others write into every field that they fill. Each of those that can run a script would set [`MARK`].
pub const HOSTILE: [&str; 14] = [
    "<script>window.ran=1</script>",
    "\"><img src=x onerror=\"window.ran=1\">",
    "' autofocus onfocus='window.ran=1",
    "</textarea></pre></title></style><svg onload=window.ran=1>",
    "javascript:window.ran=1",
    "<iframe srcdoc=\"<script>parent.ran=1</script>\"></iframe>",
    "<base href=//127.0.0.9/><link rel=stylesheet href=//127.0.0.9/x.css>",
    "{{constructor.constructor('window.ran=1')()}}${window.ran=1}",
    "%3Cscript%3Ewindow.ran=1%3C%2Fscript%3E",
    "&lt;script&gt;window.ran=1&lt;/script&gt;&#60;b&#62;",
    "a/../..?q=b&as=json#c;d=%",
    "\u{202e}\u{2066}nepo\u{0}\u{7}\u{1b}[31m",
    "x\u{301}\u{302}\u{303}\u{304}\u{305}\u{306}\u{307}\u{308}",
    "\n\t<!-- -->]]>",
];

/// The global that a hostile script would set.
pub const MARK: &str = "window.ran";

/// An engine with its pages on a port of their own, and who is connected to it.
pub struct World {
    pub mox: Mox,
    pub runtime: Runtime,
    pub clients: Vec<MoxClient>,
}

impl World {
    pub fn new() -> Self {
        Self::of(json!({}))
    }

    /// With more settings than every world has.
    fn of(mut config: Value) -> Self {
        config["adminListen"] = "127.0.0.1:0".into();
        config["admin"] = json!({ "token": TOKEN });
        Self { mox: Mox::open(config), runtime: Runtime::new().unwrap(), clients: Vec::new() }
    }

    /// `host:port` of the pages.
    pub fn pages(&self) -> String {
        self.mox.engine.listen().unwrap().admin.unwrap().to_string()
    }

    /// Waits until everything is served.
    pub fn flush(&self) -> Option<String> {
        let flushed = self.runtime.block_on(self.mox.engine.flush());
        flushed.held.map(|held| serde_json::to_value(held).unwrap().as_str().unwrap().to_owned())
    }

    /// Somebody who follows what is served, and accepts it or says why not.
    pub fn client(&mut self, name: &str, refuses: Option<&str>) {
        let client = self.runtime.block_on(async {
            let mut client = MoxClient::asking(&self.mox.address(), node(name), SERVICE_ENTRY).await.unwrap();
            let response = tokio::time::timeout(SOON, client.next_raw()).await.unwrap().unwrap();
            match refuses {
                Some(why) => client.nack_raw(&response, why).unwrap(),
                None => client.ack_raw(&response).unwrap(),
            }
            client
        });
        self.clients.push(client);
    }

    /// Sets a policy as an operator does.
    pub fn policy(&self, query: &str, document: &str) {
        let shown = Credentials { token: TOKEN.to_owned(), ..Credentials::default() };
        let request = Request { path: "/mox/policy", query, if_match: "", body: document.as_bytes() };
        let page = change(&self.mox.engine, &shown, request);
        assert_eq!(page.status, 200, "{document}: {}", page.body);
    }

    /// A shop's sixty services, some of them with a trouble, and an istiod.
    pub fn shop() -> Self {
        let mut world = Self::new();
        let mox = &world.mox;
        for (n, area) in ["order", "stock", "payment", "customer", "search", "delivery"].into_iter().enumerate() {
            for (m, kind) in
                ["Query", "Change", "Report", "Import", "Export", "Audit", "Alert", "Batch", "Archive", "Price"]
                    .into_iter()
                    .enumerate()
            {
                let at = |host| format!("10.{n}.{m}.{host}:12200?app_name={area}&zone=RZ{host}&weight=100");
                mox.publish(&shop(area, kind), "10.7.0.1:41200", 1, &[&at(1), &at(2)]);
            }
        }
        mox.publish(&id("stock.Legacy"), "10.7.0.2:41200", 1, &["stock.example.com", "10.0.9.1:12200?app_name=stock"]);
        mox.publish(&id("Same"), "10.7.0.3:41200", 1, &["10.0.8.1:12200"]);
        mox.publish(&id("SAME"), "10.7.0.4:41200", 1, &["10.0.8.2:12200"]);
        mox.engine.loaded();
        world.flush();
        let policies = [
            ("ann", "nothing of the test environment", json!({ "exclude": ["com.example.test.*"] })),
            (
                "bob",
                "stock is for itself",
                json!({ "overrides": { "com.example.stock.*": { "exportTo": ["stock"] } } }),
            ),
        ];
        for (by, why, document) in policies {
            let query = format!("by={by}&why={}", why.replace(' ', "+"));
            world.policy(&query, &document.to_string());
        }
        world.flush();
        world.client("istiod-7d4b9c6f5-x2x7p.istio-system", None);
        world
    }

    /// The same with a third of it gone at once, which is held.
    pub fn shop_that_lost_much() -> Self {
        let world = Self::shop();
        // So that a round has all of it.
        world.mox.engine.freeze();
        for kind in ["Query", "Change", "Report", "Import"] {
            for area in ["order", "stock", "payment", "customer", "search", "delivery"] {
                world.mox.unpublish(&shop(area, kind), "10.7.0.1:41200", 2);
            }
        }
        world.mox.engine.thaw();
        assert_eq!(world.flush().as_deref(), Some("mass-delete"));
        world
    }

    /// Takes samples as of an hour in which providers came and went.
    pub fn hour(&self) {
        let mut random = Random::new(7);
        let mut hour = self.mox.engine.hour().lock();
        let mut pushes = 0;
        for n in 0..KEPT as u64 {
            let services = if n < 90 { 55 + n / 15 } else { 63 };
            pushes += random.below(3) as u64 + if n % 60 == 59 { 9 } else { 0 };
            let (endpoints, ack_millis) = (2 * services - random.below(9) as u64, 3 + random.below(5) as u64);
            hour.take(Sample { services, endpoints, pushes, ack_millis });
        }
    }

    /// Hostile texts, short and long, in every field of publishers, clients and operators.
    pub fn hostile() -> Self {
        let mut world = Self::new();
        world.mox.engine.loaded();
        for (n, text) in HOSTILE.into_iter().enumerate() {
            let (long, at) = (long(text), format!("10.0.0.{}:80?app_name={text}&zone={text}&{text}={text}", n + 1));
            let publisher = |register_id| Publisher {
                register_id,
                version: RegisterVersion { version: 1, timestamp: 0 },
                cell: text.into(),
                app_name: text.into(),
                source_address: text.into(),
                attributes: vec![(text.into(), text.into())],
                payloads: vec![at.as_bytes().into(), text.as_bytes().into(), long.as_bytes().into()],
                ..Publisher::default()
            };
            world.mox.put(&id(text), &publisher(text.into()));
            world.mox.put(&id(format_args!("Long{n}{}", long.replace(['@', '#'], ""))), &publisher((&*long).into()));
        }
        world.flush();
        for text in HOSTILE {
            let line: String = text.chars().filter(|c| !c.is_control()).collect();
            let query = format!("by={0}&why={0}", encoded(&line));
            let overrides = json!({ (format!("*{text}*")): { "exportTo": ["."] } });
            let document = json!({ "exclude": [format!("{text}*")], "overrides": overrides });
            world.policy(&query, &document.to_string());
            world.client(text, Some(text));
            world.client(&long(text), Some(&long(text)));
        }
        let all: Vec<String> = HOSTILE.iter().map(|text| format!("{text}*")).collect();
        world.policy("", &json!({ "exclude": all }).to_string());
        world.flush();
        world
    }

    /// A service for each hostile text, which is what an API server says to its objects.
    pub fn refused() -> Self {
        let config = refusing::start("browser-kubernetes", |object| {
            let n = (0..HOSTILE.len()).find(|n| object == format!("com.example.s{n}"));
            n.map_or_else(|| format!("no such object: {object}"), |n| long(HOSTILE[n]))
        });
        let world = Self::of(json!({ "kubernetes": { "enabled": true, "kubeconfig": config } }));
        for n in 0..HOSTILE.len() {
            world.mox.publish(&nth(n), "a", 1, &["10.0.0.1:80"]);
        }
        world.mox.engine.loaded();
        world.flush();
        eventually(SOON, "each object is refused", || {
            let page = world.mox.page("/mox/kubernetes", "").1;
            let page: Value = serde_json::from_str(&page).unwrap();
            (page["problemCount"] == HOSTILE.len()).then_some(())
        });
        world
    }

    /// Ten thousand services.
    pub fn large() -> Self {
        let world = Self::new();
        for n in 0..10_000 {
            let at = |host| format!("10.{}.{}.{host}:12200?app_name=app{}", n / 200, n % 200, n % 50);
            world.mox.publish(&nth(n), "10.7.0.1:41200", 1, &[&at(1), &at(2)]);
        }
        world.mox.engine.loaded();
        world.flush();
        world
    }
}

/// A session server where clients of hostile names subscribe to a service, each long and short.
pub struct Subscribed(Server);

impl Subscribed {
    pub fn new() -> Self {
        let table = Table::default();
        let policy = json!({ "visibility": { "mode": "on" } });
        let config = json!({ "listen": "127.0.0.1:0", "adminListen": "127.0.0.1:0", "policy": policy });
        let mut subscribed =
            Self(Server::start(Some(&table), config, |mox| mox.publish(&nth(0), "a", 1, &["10.0.0.1:80"])));
        eventually(SOON, "it is known who consumes what", || {
            subscribed.turn();
            std::thread::sleep(Duration::from_millis(100)); // the pace of the host
            let page = subscribed.0.mox.page("/mox/visibility", "").1;
            (serde_json::from_str::<Value>(&page).unwrap()["known"] == true).then_some(())
        });
        subscribed
    }

    /// `host:port` of the pages.
    pub fn pages(&self) -> String {
        self.0.mox.engine.listen().unwrap().admin.unwrap().to_string()
    }

    /// Says once more who subscribes; who says nothing for a while is not believed to know.
    pub fn turn(&mut self) {
        let server = "10.0.0.1";
        let wanted = self.0.tell(json!({ "op": "visibility", "server": format!("{server}/1") }));
        let mut said = json!({ "op": "consumers", "server": server, "own": true });
        if wanted["collect"] == true {
            let names = HOSTILE.iter().flat_map(|text| [(*text).to_owned(), long(text)]);
            let clients: Vec<String> =
                names.enumerate().map(|(n, name)| format!("10.1.0.{n}|{}|{name}", name.replace('|', ""))).collect();
            let all: Vec<String> = (0..clients.len()).map(|n| n.to_string()).collect();
            said["services"] = json!({ (nth(0)): all.join(" ") });
            said["clients"] = json!(clients);
        }
        self.0.tell(said);
        if wanted["collect"] == true {
            self.0.tell(json!({ "op": "consumersRound", "listed": [server] }));
        }
        self.0.poll();
    }
}

/// A text without a place where it could be broken.
fn long(text: &str) -> String {
    format!("{text}{}{}", "a".repeat(150), "好".repeat(80))
}

/// A text as far as every page shows it: without what is no letter of any script, and what is written another way.
pub fn shown(text: &str) -> String {
    let text = text.replace("\u{202e}", "\\u202e").replace("\u{2066}", "\\u2066");
    text.chars().filter(|c| !c.is_control() && !c.is_whitespace()).collect()
}

fn shop(area: &str, kind: &str) -> String {
    id(format_args!("{area}.{kind}Service"))
}

/// A text as it may stand in a query.
pub fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

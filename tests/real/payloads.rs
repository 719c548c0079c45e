//! Payloads of real clients, recorded in `tests/golden/payloads/captured`: a release that publishes another form fails
//! here. `REGISTRY_MOX_CAPTURE=1 cargo test --test real -- real_clients` records anew what is published; what it is to become
//! (`expect`) and a new file's other fields are written by hand. (Not `MOX_CAPTURE`: to Spring `MOX_*` are `mox.*` properties.)

use std::collections::{BTreeSet, HashMap};

use base64::{Engine, prelude::BASE64_STANDARD};
use harness::{
    golden::{Endpoint, Entry, Golden},
    parts::{Envoy, Istiod, Provider, Registry},
    process::{eventually_is, free_port, get},
};
use registry_mox::testing::translate::serialized;
use serde_json::Value;

/// The providers, with the ports that stand in the files.
const SOFARPC: [(&str, u64, &str); 7] = [
    ("bolt", 12200, ""),
    ("bolt", 12201, ":blue:50"),
    ("bolt", 12202, ":blue:200"),
    ("bolt", 12203, ":own:100:weight=7:zone=GZ00A"),
    ("tri", 50051, ""),
    ("h2c", 8080, ""),
    ("rest", 8341, ""),
];
/// The same of an application whose name is no label.
const CHINESE: (&str, u64, &str) = ("bolt", 12204, ":named:100");
const DUBBO: (u64, &str) = (20880, "blue:2.0.0");
const INTERFACE: &str = "com.example.DemoService";

pub(crate) fn real_clients(registry: &mut Registry) {
    let ports = Ports::choose();
    let service = |(protocol, port, more)| format!("{protocol}:{}{more}", ports.real(port));
    let services = SOFARPC.map(service);
    let arguments: Vec<_> = ["rpc-demo"].into_iter().chain(services.iter().map(String::as_str)).collect();
    let mut sofarpc = Provider::spawn("provider.sh", &arguments);
    sofarpc.wait_until_exported();
    let mut chinese = Provider::spawn("provider.sh", &["支付", &service(CHINESE)]);
    chinese.wait_until_exported();
    let mut dubbo = Provider::spawn("dubbo.sh", &["dubbo-demo", &ports.real(DUBBO.0).to_string(), DUBBO.1]);
    dubbo.wait_until_exported();

    let recorded = Golden::read_all("captured");
    published_as_recorded(&recorded, &ports);
    let istiod = Istiod::start(registry);
    for golden in &recorded {
        let wanted = golden.entry();
        let name = wanted.host.trim_end_matches(".sofa.mesh");
        eventually_is(&Some(wanted.clone().without_equal_weights()), &format!("{name} in configz"), || {
            let mut entry = Entry::of_json(&istiod.entry(name)?);
            entry.endpoints.iter_mut().for_each(|endpoint| endpoint.port = ports.recorded(endpoint.port));
            entry.endpoints.sort();
            Some(entry)
        });
    }
    let cluster = |entry: &Entry| format!("outbound|{}||{}", entry.port, entry.host);
    let rest = recorded.iter().find(|golden| golden.data_id().ends_with("@rest")).unwrap();
    let envoy = Envoy::start(&istiod, &cluster(rest.entry()));
    for golden in &recorded {
        let cluster = cluster(golden.entry());
        let host =
            |endpoint: &Endpoint| (format!("{}:{}", endpoint.address, ports.real(endpoint.port)), "HEALTHY".to_owned());
        let wanted: BTreeSet<_> = golden.entry().endpoints.iter().map(host).collect();
        eventually_is(&Some(wanted), &format!("the hosts of {cluster} in Envoy"), || {
            Some(envoy.hosts(&cluster)?.into_iter().collect())
        });
    }
    let answer = format!("hello mesh, from rpc-demo on 127.0.0.1:{}", ports.real(8341));
    assert_eq!(get(envoy.port, "/hello/mesh"), Some(answer), "the rest provider, called through Envoy");
}

/// Compares what the registry holds with the files, or rewrites them.
fn published_as_recorded(recorded: &[Golden], ports: &Ports) {
    let counts = |count: &dyn Fn(&Golden) -> usize| -> Vec<(String, usize)> {
        recorded.iter().map(|golden| (golden.data_info_id.clone(), count(golden))).collect()
    };
    let wanted = counts(&|golden| golden.entry().endpoints.len());
    eventually_is(&wanted, "publishers in the registry", || counts(&|golden| publishers(&golden.data_info_id).len()));
    let ids: BTreeSet<_> = recorded.iter().map(|golden| golden.data_info_id.clone()).collect();
    let all: BTreeSet<String> = serde_json::from_str(&get(9603, "/digest/getDataInfoIdList").unwrap()).unwrap();
    assert_eq!(all.into_iter().filter(|id| id.starts_with(INTERFACE)).collect::<BTreeSet<_>>(), ids, "ids published");

    let mut differences = String::new();
    for golden in recorded {
        let publishers = publishers(&golden.data_info_id);
        let mut data: Vec<_> = publishers.iter().flat_map(|publisher| texts(publisher, ports)).collect();
        data.sort();
        let now = Golden { cell: publishers[0]["cell"].as_str().unwrap().to_owned(), data, ..golden.clone() };
        if now == *golden {
            continue;
        }
        if std::env::var_os("REGISTRY_MOX_CAPTURE").is_some() {
            println!("records {}", golden.path.display());
            now.write();
            continue;
        }
        differences += &format!("{}\n", golden.path.display());
        let lines = |golden: &Golden| -> Vec<String> {
            let data = golden.data.iter().flat_map(|text| text.split_inclusive(['?', '&']).map(str::to_owned));
            [format!("cell {}", golden.cell)].into_iter().chain(data).collect()
        };
        let (before, after) = (lines(golden), lines(&now));
        if before.iter().all(|line| after.contains(line)) && after.iter().all(|line| before.contains(line)) {
            differences += "  the same in another order\n";
        }
        before.iter().filter(|line| !after.contains(line)).for_each(|line| differences += &format!("  - {line}\n"));
        after.iter().filter(|line| !before.contains(line)).for_each(|line| differences += &format!("  + {line}\n"));
    }
    assert!(differences.is_empty(), "not as recorded; REGISTRY_MOX_CAPTURE=1 records it anew:\n{differences}");
}

/// The publishers of a service, as the session server holds them.
fn publishers(data_info_id: &str) -> Vec<Value> {
    let path = format!("/digest/pub/data/query?dataInfoId={}", data_info_id.replace('#', "%23"));
    let answer: Value = serde_json::from_str(&get(9603, &path).unwrap()).unwrap();
    answer["PUB"].as_array().cloned().unwrap_or_default()
}

/// The texts that a publisher published, without what differs from run to run.
fn texts(publisher: &Value, ports: &Ports) -> Vec<String> {
    let text = |data: &Value| {
        let bytes = BASE64_STANDARD.decode(data["bytes"].as_str().unwrap()).unwrap();
        ports.in_recorded_form(&serialized::decode(&bytes).unwrap().unwrap())
    };
    publisher["dataList"].as_array().unwrap().iter().map(text).collect()
}

/// Ports that are free now, by those that stand in the files.
struct Ports(HashMap<u64, u64>);

impl Ports {
    fn choose() -> Self {
        let recorded = SOFARPC.iter().map(|(_, port, _)| *port).chain([CHINESE.1, DUBBO.0]);
        Self(recorded.map(|port| (port, u64::from(free_port()))).collect())
    }

    fn real(&self, recorded: u64) -> u64 {
        self.0[&recorded]
    }

    fn recorded(&self, real: u64) -> u64 {
        self.0.iter().find(|(_, port)| **port == real).map_or(real, |(recorded, _)| *recorded)
    }

    fn in_recorded_form(&self, text: &str) -> String {
        let constant = |pair: &str| match pair.split_once('=') {
            Some((key @ ("startTime" | "timestamp" | "pid"), _)) => format!("{key}=0"),
            _ => pair.to_owned(),
        };
        let text = text.split('&').map(constant).collect::<Vec<_>>().join("&");
        let with_port = |text: String, (recorded, real): (&u64, &u64)| {
            // Up to the end of the number: 127.0.0.1:4200 is not 127.0.0.1:42001.
            ['?', '/'].iter().fold(text, |text, end| {
                text.replace(&format!("127.0.0.1:{real}{end}"), &format!("127.0.0.1:{recorded}{end}"))
            })
        };
        self.0.iter().fold(text, with_port)
    }
}

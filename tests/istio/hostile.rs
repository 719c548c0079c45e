//! Everything that a registry may contain, and more, goes through an engine; Istio takes all that it serves.

use std::{collections::BTreeMap, time::Duration};

use harness::{
    Mox,
    client::{DESTINATION_RULE, SERVICE_ENTRY, WORKLOAD_ENTRY, istiod_node},
    random::Random,
};
use registry_mox::{
    proto::google::protobuf::Any,
    testing::{
        model::RegisterVersion,
        registry::frame::{self, Publisher},
    },
};
use serde_json::{Value, json};

use crate::oracle::{self, VERSIONS};

/// Services of one engine.
const BATCH: usize = 8_000;
/// How many settings there are.
const SETTINGS: usize = 13;
/// Far more than a round takes; one that panics is not answered.
const ROUND: Duration = Duration::from_secs(120);

pub(crate) fn run(inputs: usize, seed: u64) {
    let mut random = Random::new(seed);
    let (mut published, mut refused, mut judged, mut endpoints, mut empty) = (0, 0, 0, 0, 0);
    let mut rejects: BTreeMap<String, u64> = BTreeMap::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for round in 0.. {
        if published >= inputs && judged >= inputs && round >= SETTINGS {
            break;
        }
        let config = config(round);
        let mox = Mox::open(config.clone());
        mox.engine.loaded();
        let mut ids = Vec::new();
        // So that no round sees half a batch, and the seed alone decides what is served.
        mox.engine.freeze();
        for _ in 0..BATCH {
            let id = data_info_id(&mut random);
            for publisher in 0..=random.below(3) {
                let frame = publish(&mut random, &id, publisher);
                match frame.and_then(|frame| mox.engine.apply(&frame)) {
                    Ok(_) => published += usize::from(publisher == 0),
                    Err(_) => refused += 1,
                }
            }
            ids.push(id);
        }
        mox.engine.thaw();
        mox.engine.flush_within(ROUND).expect("a round ends");
        // Some lose their publishers and are served without endpoints for a while.
        for id in ids.iter().step_by(40) {
            let version = RegisterVersion { version: 2, timestamp: 0 };
            for publisher in 0..3 {
                let frame = frame::encode_unpublish("registry", id, &format!("p{publisher}"), version);
                let _ = frame.and_then(|frame| mox.engine.apply(&frame));
            }
        }
        mox.engine.flush_within(ROUND).expect("a round ends");
        let status = serde_json::to_value(mox.engine.status()).unwrap();
        let publisher = &status["publisher"];
        // Translation makes nothing that Istio would refuse; that it would be held back is no excuse.
        assert_eq!(publisher["quarantined"], json!({}), "policy {config}");
        assert_eq!(publisher["invalidEndpoints"], json!({}), "policy {config}");
        endpoints += status["served"]["endpoints"].as_u64().unwrap();
        empty += publisher["inGrace"].as_u64().unwrap();
        for (reason, count) in publisher["rejects"].as_object().unwrap() {
            *rejects.entry(reason.clone()).or_default() += count.as_u64().unwrap();
        }
        let resources = runtime.block_on(served(&mox));
        mox.engine.close();
        judged += resources.len();
        for (version, verdicts) in VERSIONS.iter().zip(oracle::verdicts(&resources)) {
            for (resource, verdict) in resources.iter().zip(verdicts) {
                if let Some(why) = verdict {
                    panic!("Istio {version} does not take what is served under {config}: {why}\n{resource:?}");
                }
            }
        }
    }
    println!(
        "hostile: {published} services published, {refused} publishers refused by limits, {judged} resources served"
    );
    println!("hostile: {empty} of them without endpoints, {endpoints} endpoints; not served: {rejects:?}");
    println!("hostile: 0 of {judged} refused by each of {VERSIONS:?}");
}

/// The resources that a client gets.
async fn served(mox: &Mox) -> Vec<Any> {
    let mut client = mox.client(istiod_node()).await;
    let mut resources = Vec::new();
    for type_url in [SERVICE_ENTRY, WORKLOAD_ENTRY, DESTINATION_RULE] {
        client.subscribe(type_url).unwrap();
        loop {
            let response = client.next_raw().await.unwrap();
            if response.type_url == type_url {
                resources.extend(response.resources);
                break;
            }
        }
    }
    resources
}

/// The usual settings and some odd ones, in turn.
fn config(round: usize) -> Value {
    let mut config = match round % SETTINGS {
        0 => json!({}),
        1 => json!({"vipCidr": null}),
        2 => json!({"vipCidr": "fd00:77::/64", "policy": {"exportTo": [".", "istio-system", "a"]}}),
        3 => json!({"policy": {"labels": ["rpcVer", "version", "example.com/Some.Key_1", "x".repeat(63)]}}),
        4 => json!({"policy": {"exportTo": ["~"], "ports": {"bolt": 65535, "tri": 1, "DUBBO": 80}}}),
        5 => json!({"policy": {"exportTo": [], "endpoints": {"allowLoopback": true}}, "namespace": "n".repeat(63)}),
        6 => json!({"hostSuffix": format!("{}.a", "s".repeat(63)), "vipCidr": "10.128.0.0/9"}),
        7 => json!({"endpointMode": "workload-entry", "policy": {"labels": ["rpcVer"], "locality": {"RZ1": "cn/rz1"}}}),
        8 => json!({"policy": {
            "overrides": {
                "*": {"dns": true, "warmup": "1s"},
                "*a*": {"port": 1, "protocol": "http_proxy", "exportTo": ["."]},
                "*b*": {"host": "one.example.com"},
            },
        }}),
        9 => json!({"endpointMode": "workload-entry", "policy": {
            "overrides": {"*": {"dns": true, "warmup": "1d"}, "*b*": {"warmup": "1s 1ms"}},
            "mtls": [{"applications": ["*"], "identities": ["spiffe://td/ns/a/sa/b"]}],
        }}),
        10 => json!({"policy": {
            "direct": {"applications": ["*"]},
            "mtls": [{"cidrs": ["10.0.0.0/8"], "identities": ["spiffe://td/ns/a/sa/b"]}],
        }}),
        11 => json!({"policy": {
            "direct": {"applications": ["*"], "balance": "mesh", "addresses": ["0.0.0.0/0", "::/0"],
                       "overrides": {"a*": {"warmup": "1m"}, "*": {"exportTo": ["a"], "warmup": "1s"}}},
            "mtls": [{"applications": ["a*"]}, {"cidrs": ["::/0"]}],
        }}),
        _ => json!({"policy": {"endpoints": {"deny": ["10.0.0.0/9", "2001:db8::/33"]}}, "hostSuffix": "1.a0"}),
    };
    // All services of a batch get their own VIP, and none waits for the other.
    config["limits"] = json!({"services": BATCH * 2});
    config
}

fn publish(random: &mut Random, id: &str, publisher: usize) -> Result<Vec<u8>, registry_mox::testing::error::Error> {
    let payloads: Vec<String> = (0..=random.below(3)).map(|_| payload(random)).collect();
    let serialized = random.percent(20);
    let bytes = |text: &String| {
        if serialized { java_string(text) } else { text.clone().into_bytes() }
    };
    let publisher = Publisher {
        register_id: format!("p{publisher}").into(),
        version: RegisterVersion { version: 1, timestamp: random.below(9) as i64 },
        cell: word(random).into(),
        app_name: word(random).into(),
        source_address: random.text(12).into(),
        attributes: vec![(word(random).into(), word(random).into())],
        serialized,
        payloads: payloads.iter().map(|text| bytes(text).into()).collect(),
    };
    frame::encode_publish("registry", id, &publisher)
}

/// `TC_LONGSTRING`; what is not the same in Java's UTF-8 makes it no string, which is hostile as well.
fn java_string(text: &str) -> Vec<u8> {
    [&[0xAC, 0xED, 0, 5, 0x7C], (text.len() as u64).to_be_bytes().as_slice(), text.as_bytes()].concat()
}

fn data_info_id(random: &mut Random) -> String {
    let part = |random: &mut Random, usual: &[&str]| {
        if random.percent(70) { random.pick(usual).to_owned() } else { word(random) }
    };
    let mut id = match random.below(12) {
        0 => random.text(200),
        1 => random.text(4_096),
        2 => format!("{}{}", "a.".repeat(random.below(200)), word(random)),
        _ => {
            let words: Vec<String> = (0..=random.below(5)).map(|_| word(random)).collect();
            words.join(".")
        }
    };
    if random.percent(70) {
        id += &format!(":{}", part(random, &["1.0", "2.0.0", "", "1", "v1", "0"]));
        if random.percent(20) {
            id += &format!(":{}", part(random, &["gray", "1", ""]));
        }
    }
    if random.percent(80) {
        let protocols = ["DEFAULT", "tri", "dubbo", "bolt", "TRI", "grpc", "rest", "h2c", "http", "tr", "xfire", ""];
        id += &format!("@{}", part(random, &protocols));
    }
    if random.percent(95) {
        let instances = ["DEFAULT_INSTANCE_ID", "default_instance_id", "tenant-a", "123", ""];
        id += &format!("#@#{}", part(random, &instances));
        id += &format!("#@#{}", part(random, &["SOFA", "sofa", "dubbo", "1", "9.9", ""]));
    }
    id
}

/// A piece of an id, a label or a parameter.
fn word(random: &mut Random) -> String {
    #[rustfmt::skip]
    let usual = [
        "com", "example", "DemoService", "v2", "1", "007", "99999999999999999999", "DEFAULT", "tri", "svc",
        "cluster", "local", "localhost", "istio.io", "kubernetes", "a-b", "A_B", "-", "--a--", "_", ".", "..", "",
        "é", "服务", "\0", "*", "*.a", "%", "xn--a", "true", "null", "DEFAULT_ZONE", "GZ00A",
    ];
    match random.below(100) {
        0..60 => random.pick(&usual).to_owned(),
        60..75 => random.text(12),
        75..80 => random.pick(&["x", "-", "9", "é", "."]).repeat(random.below(300)),
        80 => "huge".repeat(random.below(5_000)),
        _ => format!("{}{}", random.pick(&usual), random.below(100_000)),
    }
}

fn payload(random: &mut Random) -> String {
    #[rustfmt::skip]
    let hostile = [
        "localhost", "0.0.0.0", "127.0.0.1", "255.255.255.255", "224.0.0.1", "169.254.1.1", "10.0.0.01", "10.0.0",
        "10.0.0.256", "0x0a000001", "[fe80::1%eth0]", "[2001:db8::1%25a]", "[::]", "[::1]", "[::ffff:10.1.2.3]",
        "[::ffff:127.0.0.1]", "2001:DB8::9", "[2001:db8::1", "provider.example.com", "", "unix:///run/x",
        "248.1.2.3", "[fd00:77::5]", "10.200.1.1", "１０.0.0.1", "10.0.0.1\0", "a@10.0.0.7", "user:pass@10.0.0.8",
    ];
    let host = match random.below(8) {
        0..3 => format!("10.{}.{}.{}", random.below(128), random.below(4), 1 + random.below(99)),
        3 => format!("172.16.{}.{}", random.below(256), random.below(256)),
        4 => format!("[2001:db8:{:x}::{:x}]", random.below(0xFFFF), 1 + random.below(0xFFFF)),
        5 => word(random),
        _ => random.pick(&hostile).to_owned(),
    };
    let ports = ["12200", "1", "65535", "0", "65536", "-1", "+80", "080", "", "http", "99999999999", "80 "];
    let port = if random.percent(60) { (1 + random.below(65_535)).to_string() } else { random.pick(&ports).to_owned() };
    #[rustfmt::skip]
    let keys = [
        "weight", "_WEIGHT", "zone", "app_name", "appName", "application", "rpcVer", "version", "x",
        "example.com/Some.Key_1", "istio.io/rev", "security.istio.io/tlsMode", "kubernetes.io/name",
    ];
    let numbers = ["0", "1", "100", "-5", "1e12", "NaN", "inf", "4294967296", "0.1"];
    let mut parameters = Vec::new();
    for _ in 0..random.below(6) {
        let key = if random.percent(90) { random.pick(&keys).to_owned() } else { word(random) };
        let number = random.percent(30) || key.to_lowercase().ends_with("weight");
        parameters.push((key, if number { random.pick(&numbers).to_owned() } else { word(random) }));
    }
    let query = || {
        let pairs: Vec<String> = parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join("&")
    };
    match random.below(16) {
        0 => random.text(300),
        1 => {
            let metadata: BTreeMap<_, _> = parameters.into_iter().collect();
            json!({"host": host, "port": port.parse::<i64>().unwrap_or(-1), "metadata": metadata}).to_string()
        }
        2 => format!("{{\"host\":\"{host}\",\"port\":{port}"),
        3..6 => format!("{host}:{port}"),
        6..9 => {
            let scheme = random.pick(&["bolt", "tri", "rest", "dubbo", "http", "", "b d", "grpc+tls"]);
            format!("{scheme}://{host}:{port}/{}?{}", random.pick(&["", "a/b", "://", "?"]), query())
        }
        _ => format!("{host}:{port}?{}", query()),
    }
}

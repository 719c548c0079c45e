//! Whatever a publisher says, what is made of it Istio takes, and every payload is an endpoint or a counted reject.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use registry_mox::testing::{
    istio::validate,
    policy::{Policy, PolicyConfig, Rules},
    registry::frame::{self, Event, Publisher},
    translate::{
        Parsed,
        payload::{self, Address, Endpoint},
        service_entry::{self, EndpointMode, Member, Shape},
    },
};

const ID: &str = "com.example.DemoService:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
const MAX_WEIGHT: u32 = 100_000;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let policy = serde_json::json!({
        "labels": ["rpcVer", "example.com/lane"],
        "locality": {"RZ1": "cn/rz1"},
        "endpoints": {"deny": ["10.9.0.0/16"]},
        "overrides": {"com.example.*": {"dns": true}},
    });
    let policy: PolicyConfig = serde_json::from_value(policy).expect("a policy document");
    Policy::new(policy, &["248.0.0.0/6".parse().unwrap()], "ns").expect("a valid policy")
});

/// Of a service that may have host names, and of one that may not.
fn rules() -> [Rules<'static>; 2] {
    [POLICY.rules(ID), POLICY.rules("other")]
}

fn check(endpoint: &Endpoint, rules: &Rules<'_>) {
    assert!(endpoint.port != 0 && endpoint.weight <= MAX_WEIGHT);
    let plain = match &endpoint.address {
        Address::Ip(address) => {
            assert_eq!(*address, address.to_canonical(), "no IPv4 address in disguise");
            assert_eq!(POLICY.check_address(*address), Ok(()));
            std::net::SocketAddr::new(*address, endpoint.port).to_string()
        }
        Address::Name(name) => {
            assert!(rules.dns);
            format!("{name}:{}", endpoint.port)
        }
    };
    for (key, _) in endpoint.labels.iter() {
        assert!(["app", "zone", "rpcVer", "example.com/lane"].contains(&key), "{key}");
    }
    let parsed = Arc::new(Parsed { endpoints: [endpoint.clone()].into(), ..Parsed::default() });
    let members: Vec<Member> = Member::all(&parsed).collect();
    let shape =
        Shape { host: "a.sofa.mesh", vips: &[], id: ID, other: None, members: &members, mode: EndpointMode::Inline };
    assert_eq!(validate::service_entry(&service_entry::build(&shape, rules), "sofa-registry"), Ok(()));
    assert_eq!(validate::workload_entry(&service_entry::workload_entry("a.sofa.mesh", &members[0], "tcp", 1)), Ok(()));
    let again = payload::parse(&plain, "", payload::Client::Sofarpc, rules)
        .expect("the plain form of an address that was read");
    assert_eq!((&again.address, again.port), (&endpoint.address, endpoint.port));
}

fn parse_all(data: &[u8], serialized: bool, rules: &Rules<'_>) {
    let publisher = Publisher {
        register_id: "r".into(),
        serialized,
        payloads: vec![data.into(), b"10.0.0.1:12200".into()],
        ..Publisher::default()
    };
    let frame = frame::encode_publish("registry", ID, &publisher).expect("a small frame");
    for event in frame::decode(&frame).expect("a good frame") {
        let Event::Publish { body, .. } = event else { unreachable!("it is a publish") };
        let parsed = payload::parse_publisher(&body, payload::Client::Sofarpc, rules, 64);
        let rejected: u32 = parsed.rejects().map(|(_, (count, _))| count).sum();
        assert_eq!(parsed.endpoints.len() + rejected as usize, 2, "a payload is read or counted");
        parsed.endpoints.iter().for_each(|endpoint| check(endpoint, rules));
        for (_, (_, sample)) in parsed.rejects() {
            assert!(sample.chars().count() <= 120 && !sample.contains(char::is_control));
        }
    }
}

// The text of a payload; before a line feed, if there is one, the cell.
fuzz_target!(|data: &[u8]| {
    for rules in rules() {
        parse_all(data, true, &rules);
        parse_all(data, false, &rules);
        let Ok(text) = std::str::from_utf8(data) else { continue };
        let (cell, text) = text.split_once('\n').unwrap_or(("", text));
        for client in [payload::Client::Sofarpc, payload::Client::Dubbo, payload::Client::DubboApplication] {
            let made = payload::made(text, cell, client, &rules);
            assert!(!made.is_empty() && (made.len() == 1 || client != payload::Client::Sofarpc));
            assert_eq!(payload::made(&format!(" {text}\t"), cell, client, &rules), made);
            for (protocol, endpoint) in made.iter().flatten() {
                check(endpoint, &rules);
                assert!(protocol.as_ref().is_none_or(|protocol| POLICY.knows(protocol)));
            }
        }
    }
});

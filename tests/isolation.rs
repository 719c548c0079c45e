//! A publisher's data change nothing for any other service: neither host, VIP, bytes nor version.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use harness::{
    Mox,
    client::{Resource, SERVICE_ENTRY, node},
};
use proptest::{collection::vec, prelude::*, sample::select};
use registry_mox::testing::{
    model::RegisterVersion,
    registry::frame::{self, Publisher},
    translate::names,
};
use serde_json::json;

const REST: &str = "#@#DEFAULT_INSTANCE_ID#@#SOFA";

/// Services that behave, of every shape that a name has; none differs from another by letter case only.
fn good() -> Vec<String> {
    let ids = [
        "com.example.DemoService:1.0@DEFAULT",
        "com.example.DemoService:2.0@DEFAULT",
        "com.example.DemoService:1.0:gray@DEFAULT",
        "com.example.DemoService:1.0@tri",
        "com.example.DemoService@dubbo",
        "com.example.DemoService:2.0.0:blue@dubbo",
        "com.example.Demo_Service:1.0@DEFAULT",
        "com.example.Grüße:1.0@DEFAULT",
    ];
    let others =
        ["com.example.DemoService:1.0@DEFAULT#@#tenant-a#@#SOFA", "shop#@#DEFAULT_INSTANCE_ID#@#dubbo", "plain"];
    let ids = ids.iter().map(|id| format!("{id}{REST}"));
    ids.chain(others.map(str::to_owned)).chain([format!("{}:1.0@DEFAULT{REST}", "long.".repeat(80))]).collect()
}

fn publish_good(mox: &Mox) {
    for (n, id) in good().iter().enumerate() {
        mox.publish(id, "r1", 5, &[&format!("10.0.{n}.1:12200?weight=50&app_name=good"), &format!("10.0.{n}.2:12200")]);
        mox.publish(id, "r2", 5, &[&format!("10.0.{n}.3:12200?zone=RZ1")]);
    }
}

#[derive(Debug, Clone)]
struct Hostile {
    source: &'static str,
    id: String,
    register_id: &'static str,
    version: i64,
    cell: String,
    attributes: Vec<(String, String)>,
    serialized: bool,
    payloads: Vec<Vec<u8>>,
}

impl Hostile {
    fn publish(&self, mox: &Mox, timestamp: i64) {
        let publisher = Publisher {
            register_id: self.register_id.into(),
            version: RegisterVersion { version: self.version, timestamp },
            cell: (&self.cell).into(),
            app_name: (&self.cell).into(),
            source_address: (&self.cell).into(),
            attributes: self.attributes.iter().map(|(key, value)| (key.into(), value.into())).collect(),
            serialized: self.serialized,
            payloads: self.payloads.iter().map(|payload| payload.into()).collect(),
        };
        // An empty id is refused, as it should be.
        let _ = mox.engine.apply(&frame::encode_publish(self.source, &self.id, &publisher).unwrap());
    }

    fn unpublish(&self, mox: &Mox, timestamp: i64) {
        let version = RegisterVersion { version: self.version, timestamp };
        let frame = frame::encode_unpublish(self.source, &self.id, self.register_id, version).unwrap();
        let _ = mox.engine.apply(&frame);
    }
}

/// An id that wants another's host.
fn alike() -> impl Strategy<Value = String> {
    (select(good()), 0..14usize, any::<prop::sample::Index>()).prop_map(|(id, how, at)| {
        let name = names::candidates(&id, None, "sofa.mesh").next().unwrap();
        let hashed = names::candidates(&id, None, "sofa.mesh").nth(1).unwrap();
        let at = at.index(id.len());
        match how {
            0 => name,
            1 => format!("{name}:1.0@DEFAULT{REST}"),
            2 => format!("{name}.sofa.mesh{REST}"),
            3 => format!("{hashed}:1.0@DEFAULT{REST}"),
            4 => hashed,
            5 => id.to_ascii_lowercase(),
            6 => id.replace("DEFAULT", "default"),
            7 => id.replace("Service", "service"),
            8 => id.replace('_', "-"),
            9 => id.replace("#@#SOFA", "#@#sofa"),
            10 => id.replace('.', "-"),
            11 => format!("{id}#@#"),
            12 => id.replace(":1.0", ""),
            _ => id.char_indices().map(|(n, c)| if n == at { c.to_ascii_lowercase() } else { c }).collect(),
        }
    })
}

fn id() -> impl Strategy<Value = String> {
    let noise = prop_oneof![any::<String>(), "[#@:.a-z\\-]{0,30}", Just("x".repeat(4_096)), Just("é#@#".repeat(600))];
    let good: BTreeSet<String> = good().into_iter().collect();
    let is_another = move |id: &String| !good.contains(id);
    prop_oneof![4 => alike(), 1 => noise].prop_filter("one of the services themselves", is_another)
}

fn payload(vips: &[String]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let mut texts: Vec<String> = vips.iter().map(|vip| format!("{vip}:12200")).collect();
    texts.extend(
        [
            "10.0.0.1:12200?weight=0&app_name=evil",
            "10.0.1.2:12200?zone=evil",
            "10.66.0.1:1?istio.io/rev=x&security.istio.io/tlsMode=istio&topology.kubernetes.io/region=r",
            "127.0.0.1:15000",
            "169.254.169.254:80",
            "[::1]:15000",
            "[::ffff:127.0.0.1]:80",
            "0.0.0.0:0",
            "provider.example.com:80",
            "unix:///var/run/x:1",
            r#"{"host":"10.0.0.1","port":12200,"metadata":{"weight":"0","istio.io/rev":"x"}}"#,
            r#"{"host":[],"port":{}}"#,
        ]
        .map(str::to_owned),
    );
    prop_oneof![
        4 => select(texts).prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..200),
        1 => (any::<u8>(), Just(64 << 10)).prop_map(|(byte, n)| vec![byte; n]),
        1 => any::<String>().prop_map(|text| format!("10.66.0.1:80?app_name={text}&zone={text}").into_bytes()),
    ]
}

fn hostile(vips: &[String]) -> impl Strategy<Value = Hostile> + use<> {
    let attributes = vec((select(vec!["weight", "istio.io/rev", ""]), ".{0,9}"), 0..3);
    let who = (select(vec!["registry", "extension"]), select(vec!["r1", "r2", "x"]), select(vec![i64::MIN, 1, 5, 9]));
    (who, id(), ".{0,12}", attributes, any::<bool>(), vec(payload(vips), 0..5)).prop_map(
        |((source, register_id, version), id, cell, attributes, serialized, payloads)| {
            let attributes = attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            Hostile { source, id, register_id, version, cell, attributes, serialized, payloads }
        },
    )
}

/// Everything that is served, with its bytes, by dataInfoId.
fn served(runtime: &tokio::runtime::Runtime, mox: &Mox) -> BTreeMap<String, (bytes::Bytes, Resource)> {
    runtime.block_on(async {
        mox.engine.flush().await;
        let mut client = mox.client(node("probe")).await;
        client.subscribe(SERVICE_ENTRY).unwrap();
        let response = client.next().await.unwrap();
        let id = |resource: &Resource| resource.annotations["sofa.registry/data-info-id"].clone();
        let resources = response.bytes.into_iter().zip(response.resources);
        resources.map(|(bytes, resource)| (id(&resource), (bytes, resource))).collect()
    })
}

#[test]
fn no_publisher_changes_what_is_served_of_another_service() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let open = || {
        let mox = Mox::open(json!({}));
        mox.engine.loaded();
        mox
    };
    let undisturbed = open();
    publish_good(&undisturbed);
    let expected = served(&runtime, &undisturbed);
    assert_eq!(expected.keys().cloned().collect::<BTreeSet<_>>(), good().into_iter().collect());
    let vips: Vec<String> = expected.values().flat_map(|(_, resource)| resource.entry.addresses.clone()).collect();

    let check = |mox: &Mox, when: &str| {
        let all = served(&runtime, mox);
        for (id, (bytes, resource)) in &expected {
            let (now, other) = &all[id];
            assert_eq!(other, resource, "{when}");
            assert_eq!(now, bytes, "{when}");
        }
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for (_, resource) in all.values() {
            for claim in resource.entry.hosts.iter().chain(&resource.entry.addresses).chain([&resource.name]) {
                assert!(taken.insert(claim.clone()), "{claim} is there twice, {when}");
            }
            for key in resource.entry.endpoints.iter().flat_map(|endpoint| endpoint.labels.keys()) {
                assert!(["app", "zone"].contains(&&**key), "{key}, {when}");
            }
        }
        let report = mox.engine.status().rounds;
        assert_eq!((report.vips_moved, report.quarantined.len()), (0, 0), "{when}");
    };
    let cases = (vec(hostile(&vips), 1..12), any::<bool>(), vec(any::<u8>(), 0..64));
    proptest!(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() }, |((hostile, first, garbage) in cases)| {
        let mox = open();
        if first {
            hostile.iter().for_each(|one| one.publish(&mox, 0));
            runtime.block_on(mox.engine.flush());
            // Their going and the coming of the others are of one round.
            mox.engine.freeze();
            hostile.iter().for_each(|one| one.unpublish(&mox, 1));
        }
        publish_good(&mox);
        mox.engine.thaw();
        if first {
            check(&mox, "after they left early");
        }
        hostile.iter().for_each(|one| one.publish(&mox, 2));
        let _ = mox.engine.apply(&garbage);
        check(&mox, "while they are there");
        hostile.iter().for_each(|one| one.unpublish(&mox, 3));
        check(&mox, "after they left");
    });
}

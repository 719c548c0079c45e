//! The resources as istiod takes them.

use std::collections::{BTreeMap, BTreeSet};

use harness::{
    Mox,
    client::{SERVICE_ENTRY, Sotw},
    id,
};
use prost::Message;
use registry_mox::proto::istio::{mcp::v1alpha1::Resource, networking::v1alpha3::ServiceEntry};
use serde_json::json;

use crate::{resource, serving, set};

async fn all(mox: &Mox) -> Vec<(String, Resource)> {
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    let response = client.take(&[]).await;
    response.resources.into_iter().map(|any| (any.type_url, Resource::decode(any.value).unwrap())).collect()
}

/// The outer message is `istio.mcp.v1alpha1.Resource`, its body is of `istio.networking.v1alpha3`.
#[tokio::test]
async fn n38_a_resource_is_wrapped_as_istiod_reads_it() {
    let mox = serving(&["A"]).await;
    let (type_url, resource) = all(&mox).await.remove(0);
    assert_eq!(type_url, "type.googleapis.com/istio.mcp.v1alpha1.Resource");
    let body = resource.body.unwrap();
    assert_eq!(body.type_url, "type.googleapis.com/istio.networking.v1alpha3.ServiceEntry");
    assert_eq!(ServiceEntry::decode(body.value).unwrap().endpoints.len(), 1);
}

/// A name has one slash and legal parts; no two dataInfoIds share it.
#[tokio::test]
async fn n39_names_have_one_slash_and_are_unique() {
    let mox = serving(&["A", "B", "Ä", "a b", "a/b", "a_b", "a-b"]).await;
    let names: BTreeSet<String> = all(&mox).await.into_iter().map(|(_, r)| r.metadata.unwrap().name).collect();
    assert_eq!(names.len(), 7);
    for name in names {
        let (namespace, name) = name.split_once('/').unwrap();
        assert_eq!(namespace, "sofa-registry");
        assert!(name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        }));
    }
}

/// `metadata.version` is not empty, the same if and only if the rest of the resource is, and the same after a restart.
#[tokio::test]
async fn n40_a_resources_version_is_its_content() {
    let mut seen: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for _ in 0..2 {
        let mox = serving(&["A", "B"]).await;
        for n in 2..5 {
            for (_, mut resource) in all(&mox).await {
                let version = std::mem::take(&mut resource.metadata.as_mut().unwrap().version);
                assert!(!version.is_empty());
                let content = resource.encode_to_vec();
                assert!(seen.iter().all(|(known, other)| (*known == version) == (*other == content)));
                seen.insert(version, content);
            }
            set(&mox, "A", n);
            mox.engine.flush().await;
        }
    }
    assert_eq!(seen.len(), 4, "three states of A, one of B");
}

/// `create_time` is the same for ever.
#[tokio::test]
async fn n41_the_time_of_creation_is_constant() {
    let mox = serving(&["A", "B"]).await;
    for (_, resource) in all(&mox).await {
        assert_eq!(resource.metadata.unwrap().create_time.unwrap().seconds, 4_102_444_800, "2100-01-01T00:00:00Z");
    }
}

/// An endpoint that Istio would refuse is left out, and the service goes on without it.
#[tokio::test]
async fn n42_what_istio_would_refuse_is_left_out() {
    let mox = serving(&["A"]).await;
    let bad = ["10.0.0.2:0", "0.0.0.0:1", "x y:1", "10.0.0.3:99999", "127.0.0.1:1", "10.0.0.4:12200"];
    mox.publish(&id("B"), "b", 1, &bad);
    mox.engine.flush().await;
    let entry = |name: &str, all: &[(String, Resource)]| {
        let found = all.iter().find(|(_, r)| r.metadata.as_ref().unwrap().name == resource(name)).unwrap();
        ServiceEntry::decode(found.1.body.clone().unwrap().value).unwrap()
    };
    let all = all(&mox).await;
    assert_eq!(entry("A", &all).endpoints.len(), 1);
    let left: Vec<String> = entry("B", &all).endpoints.into_iter().map(|endpoint| endpoint.address).collect();
    assert_eq!(left, ["10.0.0.4"]);
}

/// The same data is the same bytes, in whatever order it came.
#[tokio::test]
async fn n43_encoding_is_deterministic() {
    let (one, two) = (serving(&["A", "B", "C"]).await, serving(&["C", "A", "B"]).await);
    let labels = "?zone=z&app_name=x&weight=5";
    for (mox, order) in [(&one, [1, 2, 3]), (&two, [3, 1, 2])] {
        for n in order {
            mox.publish(&id("D"), &format!("r{n}"), 1, &[&format!("10.9.0.{n}:12200{labels}")]);
        }
        mox.engine.flush().await;
    }
    assert_eq!(all(&one).await, all(&two).await);
}

/// Before the first complete view nothing is said of services; other types are answered meanwhile.
#[tokio::test]
async fn n44_nothing_is_said_before_the_view_is_complete() {
    let mox = Mox::open(json!({}));
    set(&mox, "A", 1);
    mox.engine.flush().await;
    let mut client = Sotw::connect(&mox.address()).await;
    client.ask(SERVICE_ENTRY, &[]);
    client.silent().await;
    mox.engine.loaded();
    assert_eq!(client.take(&[]).await.resources.len(), 1);
}

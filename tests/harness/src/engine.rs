//! An engine in this process, fed by the test.

use std::sync::Arc;

use registry_mox::{
    proto::envoy::config::core::v3::Node,
    testing::{
        config::Config,
        host::{
            admin::{self, Answer},
            command,
            engine::Engine,
        },
        model::RegisterVersion,
        registry::frame::{self, Publisher},
    },
};
use serde_json::Value;

use crate::client::MoxClient;

/// An engine and what a registry would tell it.
pub struct Mox {
    pub engine: Arc<Engine>,
}

impl Mox {
    /// An engine that listens on a free port of the loopback.
    pub fn open(config: Value) -> Self {
        let mut config = config;
        config["listen"] = "127.0.0.1:0".into();
        let mox = Self::closed(config);
        mox.engine.listen().unwrap();
        mox
    }

    /// An engine that does not listen.
    pub fn closed(config: Value) -> Self {
        let config = Config::from_json(config.to_string().as_bytes()).unwrap();
        Self { engine: Arc::new(Engine::open(config).unwrap()) }
    }

    /// `host:port` of its MoX listener.
    pub fn address(&self) -> String {
        self.engine.listen().unwrap().mox.to_string()
    }

    /// An admin page, read to its end: its status and its text.
    pub fn page(&self, path: &str, query: &str) -> (u16, String) {
        match admin::page(&self.engine, path, query) {
            Answer::Page(page) => (page.status, page.body),
            Answer::Large { cursor, .. } => {
                let chunks = std::iter::from_fn(|| cursor.next().unwrap());
                (200, String::from_utf8(chunks.flatten().collect()).unwrap())
            }
        }
    }

    /// A client of it that has not asked for anything.
    pub async fn client(&self, node: Node) -> MoxClient {
        MoxClient::connect(&self.address(), node).await.unwrap()
    }

    /// A publisher that says nothing but these payloads, as text.
    pub fn publish(&self, id: &str, register_id: &str, version: i64, data: &[&str]) {
        let publisher = Publisher {
            register_id: register_id.into(),
            version: RegisterVersion { version, timestamp: 0 },
            payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
            ..Publisher::default()
        };
        self.put(id, &publisher);
    }

    /// A publisher of the registry.
    pub fn put(&self, id: &str, publisher: &Publisher<'_>) {
        self.engine.apply(&frame::encode_publish("registry", id, publisher).unwrap()).unwrap();
    }

    /// The end of a publisher.
    pub fn unpublish(&self, id: &str, register_id: &str, version: i64) {
        let version = RegisterVersion { version, timestamp: 0 };
        self.engine.apply(&frame::encode_unpublish("registry", id, register_id, version).unwrap()).unwrap();
    }

    /// Tells it what a host tells it, as JSON, and answers what it says; an order that is refused is a fault of the test.
    #[track_caller]
    pub fn tell(&self, order: Value) -> Value {
        command::execute(&self.engine, order.to_string().as_bytes()).unwrap()
    }

    /// Replaces the policy; what is wrong with this one is a fault of the test.
    pub fn policy(&self, policy: Value) {
        self.engine.set_policy(serde_json::from_value(policy).unwrap()).unwrap();
    }
}

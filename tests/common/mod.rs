//! An engine on a free port, fed in process.
#![allow(dead_code)] // every test file needs only a part of it

use std::sync::Arc;

use registry_mox::{
    config::Config,
    host::{
        admin::{self, Answer},
        engine::Engine,
    },
    model::RegisterVersion,
    proto::envoy::config::core::v3::Node,
    registry::frame::{self, Publisher},
};

pub(crate) mod golden;
pub(crate) mod mox_client;
pub(crate) mod random;

pub(crate) struct Mox {
    pub(crate) engine: Arc<Engine>,
}

impl Mox {
    /// An engine that listens on a free port of the loopback.
    pub(crate) fn open(config: serde_json::Value) -> Self {
        let mut config = config;
        config["listen"] = "127.0.0.1:0".into();
        let mox = Self::closed(config);
        mox.engine.listen().unwrap();
        mox
    }

    /// An engine that does not listen.
    pub(crate) fn closed(config: serde_json::Value) -> Self {
        let config = Config::from_json(config.to_string().as_bytes()).unwrap();
        Self { engine: Arc::new(Engine::open(config).unwrap()) }
    }

    pub(crate) fn address(&self) -> String {
        self.engine.listen().unwrap().mox.to_string()
    }

    /// An admin page, read to its end: its status and its text.
    pub(crate) fn page(&self, path: &str, query: &str) -> (u16, String) {
        match admin::page(&self.engine, path, query) {
            Answer::Page(page) => (page.status, page.body),
            Answer::Large { cursor, .. } => {
                let chunks = std::iter::from_fn(|| cursor.next().unwrap());
                (200, String::from_utf8(chunks.flatten().collect()).unwrap())
            }
        }
    }

    pub(crate) async fn client(&self, node: Node) -> mox_client::MoxClient {
        mox_client::MoxClient::connect(&self.address(), node).await.unwrap()
    }

    pub(crate) fn publish(&self, id: &str, register_id: &str, version: i64, data: &[&str]) {
        let publisher = Publisher {
            register_id: register_id.into(),
            version: RegisterVersion { version, timestamp: 0 },
            payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
            ..Publisher::default()
        };
        self.engine.apply(&frame::encode_publish("registry", id, &publisher).unwrap()).unwrap();
    }

    pub(crate) fn unpublish(&self, id: &str, register_id: &str, version: i64) {
        let version = RegisterVersion { version, timestamp: 0 };
        self.engine.apply(&frame::encode_unpublish("registry", id, register_id, version).unwrap()).unwrap();
    }
}

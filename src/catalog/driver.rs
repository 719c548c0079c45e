//! Rounds driven by hand: the clock is set, and there is neither thread nor file.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost::Message;
use serde_json::Value;

use crate::{
    catalog::{
        assignment::Pins,
        key::ServiceKey,
        last_good::{LastGood, file::over_a_restart},
        notices::Notice,
        orders::Orders,
        report::Report,
        round::{Input, Output, Round},
    },
    config::Config,
    istio::names::{ID_ANNOTATION, PROTOCOL_ANNOTATION},
    model::{Millis, RegisterVersion},
    policy::Policy,
    proto::istio::{mcp::v1alpha1::Metadata, networking::v1alpha3::ServiceEntry},
    registry::{
        frame::{self, Publisher},
        store::Store,
    },
    snapshot::view::View,
    visibility::seen::Seen,
};

/// When a driver starts.
pub(crate) const START: Millis = 1_700_000_000_000;

/// The text of the key of the service that a resource is of.
pub(crate) fn key(metadata: &Metadata) -> Option<String> {
    let id = metadata.annotations.get(ID_ANNOTATION)?;
    let key = match metadata.annotations.get(PROTOCOL_ANNOTATION) {
        None => ServiceKey::from(&**id),
        Some(protocol) => ServiceKey::beside(id, protocol),
    };
    Some(key.text().to_string())
}

/// A registry, a round and what is served.
pub(crate) struct Driver {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Store,
    pub(crate) policy: Arc<Policy>,
    pub(crate) orders: Orders,
    pub(crate) pins: Arc<Pins>,
    pub(crate) seen: Option<Arc<Seen>>,
    pub(crate) now: Millis,
    pub(crate) round: Round,
    pub(crate) view: View,
    pub(crate) report: Report,
    /// Of the last round.
    pub(crate) notices: Vec<Notice>,
}

impl Driver {
    pub(crate) fn new(config: Value) -> Self {
        let config = Arc::new(Config::from_json(config.to_string().as_bytes()).unwrap());
        Self::started(config, START, None)
    }

    /// With an empty registry and the configuration's policy.
    pub(crate) fn started(config: Arc<Config>, now: Millis, last_good: Option<LastGood>) -> Self {
        let view = last_good.as_ref().map(|last| last.view.clone()).unwrap_or_default();
        Self {
            store: Store::new(config.limits.store()),
            policy: Arc::new(Policy::compile(config.policy.clone(), &config.vip_cidr).unwrap()),
            orders: Orders::default(),
            pins: Arc::default(),
            seen: None,
            now,
            round: Round::new(Arc::clone(&config), now, last_good),
            view,
            report: Report::new(),
            notices: Vec::new(),
            config,
        }
    }

    /// After a restart that finds the last good state as it is now, and takes so long.
    pub(crate) fn restarted(&self, after: Duration) -> Self {
        let publishers = self.store.counts().publishers;
        let last_good = over_a_restart(self.view.clone(), publishers, self.round.empty(), after);
        Self::started(Arc::clone(&self.config), self.now + after.as_millis() as Millis, Some(last_good))
    }

    pub(crate) fn publish(&self, id: &str, register_id: &str, version: i64, data: &[&str]) {
        self.publish_from("", id, register_id, version, data);
    }

    /// A client with this address publishes.
    pub(crate) fn publish_from(&self, source_address: &str, id: &str, register_id: &str, version: i64, data: &[&str]) {
        let publisher = Publisher {
            register_id: register_id.into(),
            source_address: source_address.into(),
            version: RegisterVersion { version, timestamp: 0 },
            payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
            ..Publisher::default()
        };
        self.apply(frame::encode_publish("registry", id, &publisher).unwrap());
    }

    pub(crate) fn unpublish(&self, id: &str, register_id: &str, version: i64) {
        let version = RegisterVersion { version, timestamp: 0 };
        self.apply(frame::encode_unpublish("registry", id, register_id, version).unwrap());
    }

    pub(crate) fn apply(&self, frame: Vec<u8>) {
        for event in frame::decode(&frame).unwrap() {
            self.store.apply(&event, self.now).unwrap();
        }
    }

    /// Sets a policy without the check at the door, so that Istio may refuse what is made under it.
    pub(crate) fn policy(&mut self, document: &Value) {
        let config = serde_json::from_value(document.clone()).unwrap();
        self.policy = Arc::new(Policy::compile(config, &self.config.vip_cidr).unwrap());
    }

    /// A round, as the thread of the rounds makes it.
    pub(crate) fn round(&mut self) {
        self.store.expire(self.now);
        let orders = self.orders.take();
        let dirty = match self.round.is_frozen(&orders) {
            true => Vec::new(),
            false => {
                self.round.see(self.now, &self.policy, self.seen.as_ref(), &orders);
                self.round.take(self.now, &self.store, &self.policy, &orders)
            }
        };
        let (policy, publishers) = (Arc::clone(&self.policy), self.store.counts().publishers);
        let output =
            self.round.round(Input { now: self.now, dirty, policy, orders, publishers, pins: Arc::clone(&self.pins) });
        let Output { changes, complete, shown, findings, notices } = output;
        self.view = View { complete, shown, ..changes.apply(&self.view) };
        self.report.take(findings, true);
        self.notices = notices;
    }

    /// Goes on as after a round that broke off.
    pub(crate) fn start_over(&mut self) {
        let served = LastGood::of_view(&self.view, &self.round.empty(), self.store.counts().publishers).unwrap();
        self.round = self.round.again(self.now, served);
        self.report.forget_names();
        self.store.mark_dirty(&self.store.ids());
    }

    /// The services that are served, by the texts of their keys, with the names of their resources.
    pub(crate) fn served(&self) -> BTreeMap<String, (String, ServiceEntry)> {
        let mut served = BTreeMap::new();
        for resource in self.view.service_entries.decode() {
            let metadata = resource.metadata.unwrap();
            if let Some(id) = key(&metadata) {
                let entry = ServiceEntry::decode(resource.body.unwrap().value).unwrap();
                assert!(served.insert(id.clone(), (metadata.name, entry)).is_none(), "{id} is served twice");
            }
        }
        served
    }

    /// Events of the last round's notices.
    pub(crate) fn events(&self) -> Vec<&'static str> {
        self.notices.iter().map(Notice::event).collect()
    }
}

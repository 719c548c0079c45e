//! The services, a page of them at a time, and each by itself: its publishers, what is served of it, and who has it.

use std::{collections::BTreeSet, sync::Arc};

use serde::Serialize;
use serde_json::Value;

use crate::{
    catalog::{key::ServiceKey, shared::Shared},
    host::{
        admin::{query, visibility},
        engine::Engine,
        explain::{
            self, Explained,
            facts::{self, Facts},
            find,
        },
    },
    policy::Policy,
    snapshot::{Set, kubectl::Dump, partition::Partition},
    translate::{payload::Reject, reading::Reading},
};

/// Services on a page.
const ROWS: usize = 50;
/// Endpoints up to which an entry is printed.
const MOST_PRINTED: usize = 1_000;

/// What may be with a service, beside being served.
pub const STATES: [&str; 8] =
    ["served", "not-served", "quarantined", "withheld", "waiting", "in-grace", "contested", "unknown"];

/// A page of the list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct List {
    /// Services that match.
    pub total: usize,
    /// The number of this page, from 1 on.
    pub page: usize,
    /// How many there are.
    pub pages: usize,
    /// By dataInfoId.
    pub services: Vec<Row>,
}

/// A service in the list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The text of its key.
    pub service: String,
    /// The host under which it is served.
    pub host: Option<String>,
    /// Publishers that the registry has.
    pub publishers: usize,
    /// Endpoints that are served.
    pub endpoints: usize,
    /// `exportTo`.
    pub export_to: Vec<String>,
    /// Some of [`STATES`].
    pub states: Vec<&'static str>,
}

/// What a list is asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// A part of the dataInfoId, whatever the case.
    pub part: String,
    /// An application that its providers name.
    pub application: String,
    /// One of [`STATES`].
    pub state: String,
    /// The page.
    pub page: usize,
}

impl Asked {
    /// As a query says it; an error is for the client.
    pub fn of(query: &str) -> Result<Self, String> {
        let text = |name: &str| query::value(query, name).unwrap_or_default().trim().to_owned();
        let (part, application, state) = (text("q"), text("app"), text("state"));
        if !state.is_empty() && !STATES.contains(&&*state) {
            return Err(format!("state={state:.40?} is not known; there are {}\n", STATES.join(", ")));
        }
        let page = match text("page") {
            none if none.is_empty() => 1,
            number => number.parse().ok().filter(|page| *page > 0).ok_or("page is a number from 1 on\n")?,
        };
        Ok(Self { part: part.to_lowercase(), application, state, page })
    }
}

/// A page of the services that match. Costs a walk over the dataInfoIds, over all that was read where an application is asked for,
/// and for each service of the page as much as its publishers are.
pub fn list(engine: &Engine, asked: &Asked) -> List {
    let shared = engine.shared();
    let ids: Vec<Arc<str>> = shared.store.ids();
    let mut keys: BTreeSet<ServiceKey> = match asked.application.is_empty() {
        true => ids.iter().map(ServiceKey::main).collect(),
        false => find::of_application(engine, &asked.application).into_iter().collect(),
    };
    let mut named = |state: &str, texts: &mut dyn Iterator<Item = &Arc<str>>| {
        if asked.application.is_empty() && asked.state == state {
            keys = texts.map(|text| ServiceKey::of_text(Arc::clone(text))).collect();
        }
    };
    let report = shared.report.lock();
    named("quarantined", &mut report.quarantined.keys());
    named("withheld", &mut report.withheld_services.iter());
    named("waiting", &mut report.waiting_services.iter());
    named("in-grace", &mut report.graces.keys());
    named("contested", &mut report.contested.values().flat_map(|contest| &contest.waiting));
    drop(report);
    keys.retain(|key| asked.part.is_empty() || key.text().to_lowercase().contains(&asked.part));
    let of_all = ["served", "not-served", "unknown"].contains(&&*asked.state);
    let now = Now::of(engine);
    if of_all || !(asked.application.is_empty() || asked.state.is_empty()) {
        keys.retain(|key| now.is(key, &asked.state));
    }
    let (total, pages) = (keys.len(), keys.len().div_ceil(ROWS).max(1));
    let page = asked.page.min(pages);
    let services = keys.iter().skip((page - 1) * ROWS).take(ROWS).map(|key| now.row(key)).collect();
    List { total, page, pages, services }
}

/// What rows are made of: little of each service, since there are many.
struct Now<'a> {
    shared: &'a Shared,
    policy: Arc<Policy>,
    served: Set,
}

impl<'a> Now<'a> {
    fn of(engine: &'a Engine) -> Self {
        let shared = engine.shared();
        let served = Set::new(Arc::clone(&engine.view().service_entries), Partition::WHOLE);
        Self { shared, policy: shared.policy.load_full(), served }
    }

    /// Whether this is with a service, one of [`STATES`].
    fn is(&self, key: &ServiceKey, state: &str) -> bool {
        let (text, report) = (key.text(), || self.shared.report.lock());
        let is_served = || facts::item(key, &self.policy, &self.shared.config, &self.served).is_some();
        match state {
            "served" => is_served(),
            "not-served" => !is_served(),
            "quarantined" => report().quarantined.contains_key(text),
            "withheld" => report().withheld_services.contains(text),
            "waiting" => report().waiting_services.contains(text),
            "in-grace" => report().graces.contains_key(text),
            "contested" => report().contested.values().any(|contest| contest.waiting.contains(text)),
            _ => self.shared.store.peek(&key.id().into()).is_some_and(|taken| taken.unknown),
        }
    }

    fn row(&self, key: &ServiceKey) -> Row {
        let taken = self.shared.store.peek(&key.id().into());
        let served = facts::served(key, &self.policy, &self.shared.config, &self.served);
        let (host, endpoints, export_to) = match served {
            Some(served) => (Some(served.host), served.endpoints, served.export_to),
            None => (None, 0, Vec::new()),
        };
        Row {
            service: key.text().to_string(),
            host,
            publishers: taken.map_or(0, |taken| taken.entries.len()),
            endpoints,
            export_to,
            states: STATES.into_iter().filter(|state| self.is(key, state)).collect(),
        }
    }
}

/// Everything about one service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Why it is, or is not, in the mesh.
    #[serde(flatten)]
    pub explained: Explained,
    /// The first of its publishers, by registerId.
    pub publishers: Vec<Publisher>,
    /// How many more it has.
    pub publishers_left_out: usize,
    /// Who consumes it, and who sees it.
    #[serde(flatten)]
    pub consumed: Value,
    /// The ServiceEntry as `kubectl` prints it in YAML; none of one with more than a thousand endpoints.
    pub entry: Option<String>,
}

/// A publisher and what became of each of its payloads.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Publisher {
    /// Its registerId.
    pub register_id: String,
    /// The first of its payloads.
    pub payloads: Vec<Payload>,
    /// How many more it has.
    pub payloads_left_out: usize,
}

/// A payload and its fate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Payload {
    /// Its start.
    pub text: String,
    /// The address and port that it makes, with the protocol if that is another than the dataInfoId's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Why it makes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Reject>,
}

/// A service by its dataInfoId, or the text of its key, or its host.
pub fn shown(engine: &Engine, name: &str) -> Option<Shown> {
    let key = find::service(engine, name)?;
    let facts = Facts::of(engine, &key, None);
    let publishers: Vec<Publisher> = facts
        .looked_at
        .iter()
        .map(|publisher| {
            let payload = |reading: &Reading| Payload {
                text: reading.text.clone(),
                endpoint: reading.made.as_ref().ok().map(|(protocol, endpoint)| {
                    let protocol = protocol.as_ref().map(|protocol| format!("{protocol}://")).unwrap_or_default();
                    format!("{protocol}{}:{}", endpoint.address, endpoint.port)
                }),
                rejected: reading.made.as_ref().err().copied(),
            };
            Publisher {
                register_id: publisher.register_id.clone(),
                payloads: publisher.readings.iter().map(payload).collect(),
                payloads_left_out: publisher.left_out,
            }
        })
        .collect();
    let publishers_left_out = facts.publishers.saturating_sub(publishers.len());
    let entry = facts.served.as_ref().filter(|served| served.endpoints <= MOST_PRINTED).and_then(|served| {
        let all = Set::new(Arc::clone(&engine.view().service_entries), Partition::WHOLE);
        Some(Dump::one("ServiceEntry", all.find(&served.name)?))
    });
    let consumed = visibility::of(engine, key.id());
    Some(Shown { explained: explain::of(&facts), publishers, publishers_left_out, consumed, entry })
}

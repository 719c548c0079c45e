//! The services, a page of them at a time, and each by itself: its publishers, what is served of it, and who has it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::{
    catalog::key::ServiceKey,
    error::quoted,
    host::{
        admin::{query, visibility},
        engine::Engine,
        explain::{
            self, Explained,
            facts::{self, Facts},
            find,
        },
    },
    istio::names::SERVICE_LABEL,
    snapshot::{
        Set,
        kubectl::{self, Dump},
        partition::Partition,
        resource,
    },
    translate::{payload::Reject, reading::Reading},
};

/// Services on a page.
const ROWS: usize = 50;
/// Endpoints up to which an entry is printed.
const MOST_PRINTED: usize = 1_000;

/// The states that a service may be in; several at once.
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
    /// Its states, of [`STATES`].
    pub states: Vec<&'static str>,
}

/// The filters of a list, and which page of it is wanted.
#[derive(Debug, Default)]
pub struct Asked {
    /// A part of the dataInfoId, whatever the case.
    pub part: String,
    /// An application that its providers name.
    pub application: String,
    /// A state of [`STATES`]; empty: any.
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
            return Err(format!("state={} is not known; there are {}\n", quoted(&state), STATES.join(", ")));
        }
        let page = match text("page") {
            none if none.is_empty() => 1,
            number => number.parse().ok().filter(|page| *page > 0).ok_or("page is a number from 1 on\n")?,
        };
        Ok(Self { part: part.to_lowercase(), application, state, page })
    }
}

/// The findings and the served entries that a list is made of, gathered once for all its rows.
struct Gathered {
    /// Served entries, each encoded, and how many endpoints it counts itself.
    entries: HashMap<ServiceKey, (Bytes, usize)>,
    /// States that the report names services for, by the texts of their keys.
    named: [(&'static str, HashSet<Arc<str>>); 5],
    /// The dataInfoIds that could not be read yet.
    unknown: HashSet<Arc<str>>,
}

impl Gathered {
    fn of(engine: &Engine) -> Self {
        let shared = engine.shared();
        let named =
            find::named(&shared.report.lock()).map(|(state, texts)| (state, texts.into_iter().cloned().collect()));
        let all = Set::new(Arc::clone(&engine.view().service_entries), Partition::WHOLE);
        let entry = |item| facts::entry(item).map(|(key, body)| (key, (body, item.endpoints() as usize)));
        let entries = all.items().filter_map(entry).collect();
        Self { entries, named, unknown: shared.store.unknown_ids().into_iter().collect() }
    }

    /// The main service of each dataInfoId, and every other that is served or named in the report.
    fn keys(&self, engine: &Engine) -> BTreeSet<ServiceKey> {
        let ids = engine.shared().store.ids();
        let mut keys: BTreeSet<ServiceKey> = ids.iter().map(ServiceKey::main).collect();
        keys.extend(self.entries.keys().cloned());
        let named = self.named.iter().flat_map(|(_, texts)| texts);
        keys.extend(named.map(|text| ServiceKey::of_text(Arc::clone(text))).filter(|key| !key.is_entry()));
        keys
    }

    /// The states of a service, of [`STATES`].
    fn states(&self, key: &ServiceKey) -> Vec<&'static str> {
        let served = if self.entries.contains_key(key) { "served" } else { "not-served" };
        let named = self.named.iter().filter(|(_, texts)| texts.contains(key.text())).map(|(state, _)| *state);
        let unknown = self.unknown.contains(key.id()).then_some("unknown");
        [served].into_iter().chain(named).chain(unknown).collect()
    }
}

/// A page of the services that match. Costs a walk over the dataInfoIds and the metadata of what is served, and a look at each service
/// of the page; over all that was read where an application is asked for; and over the WorkloadEntries where those are served.
pub fn list(engine: &Engine, asked: &Asked) -> List {
    let gathered = Gathered::of(engine);
    let mut keys: BTreeSet<ServiceKey> = match asked.application.is_empty() {
        true => gathered.keys(engine),
        false => find::of_application(engine, &asked.application).into_iter().collect(),
    };
    keys.retain(|key| asked.part.is_empty() || key.text().to_lowercase().contains(&asked.part));
    keys.retain(|key| asked.state.is_empty() || gathered.states(key).contains(&&*asked.state));
    let (total, pages) = (keys.len(), keys.len().div_ceil(ROWS).max(1));
    let page = asked.page.min(pages);
    let shown: Vec<ServiceKey> = keys.into_iter().skip((page - 1) * ROWS).take(ROWS).collect();
    List { total, page, pages, services: rows(engine, &gathered, &shown) }
}

/// A row for each of these services.
fn rows(engine: &Engine, gathered: &Gathered, keys: &[ServiceKey]) -> Vec<Row> {
    let store = &engine.shared().store;
    let spec = |key: &ServiceKey| {
        let (body, _) = gathered.entries.get(key)?;
        kubectl::spec_of("ServiceEntry", kubectl::without_endpoints(body)).ok()
    };
    let specs: Vec<Option<Value>> = keys.iter().map(spec).collect();
    let workloads = workloads(engine, specs.iter().flatten().filter_map(facts::selected));
    let row = |(key, spec): (&ServiceKey, &Option<Value>)| {
        let own = gathered.entries.get(key).map_or(0, |(_, endpoints)| *endpoints);
        let spec = spec.as_ref();
        let selected = spec.and_then(facts::selected).and_then(|label| workloads.get(label)).copied();
        let export_to = spec.and_then(|spec| spec["exportTo"].as_array()).into_iter().flatten();
        Row {
            service: key.text().to_string(),
            host: spec.and_then(|spec| spec["hosts"][0].as_str()).map(str::to_owned),
            publishers: store.peek(&key.id().into()).map_or(0, |taken| taken.entries.len()),
            endpoints: own + selected.unwrap_or_default(),
            export_to: export_to.filter_map(Value::as_str).map(str::to_owned).collect(),
            states: gathered.states(key),
        }
    };
    keys.iter().zip(&specs).map(row).collect()
}

/// How many WorkloadEntries have each of these labels.
fn workloads<'l>(engine: &Engine, labels: impl Iterator<Item = &'l str>) -> HashMap<&'l str, usize> {
    let mut counts: HashMap<&str, usize> = labels.map(|label| (label, 0)).collect();
    if counts.is_empty() {
        return counts;
    }
    let all = Set::new(Arc::clone(&engine.view().workload_entries), Partition::WHOLE);
    for item in all.items() {
        let body = resource::read(item.framed()).ok().and_then(|resource| resource.body);
        let label = body.and_then(|body| resource::workload_label(body.value, SERVICE_LABEL));
        if let Some(count) = label.and_then(|label| counts.get_mut(&*label)) {
            *count += 1;
        }
    }
    counts
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
    if facts.served.is_none() && !key.is_known(&engine.shared().store) {
        return None;
    }
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

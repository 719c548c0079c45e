//! The data that are published, and the state that clients must hold in the end.

use std::{
    cell::Cell,
    fmt::Write as _,
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::{BufWriter, Write},
    path::Path,
    sync::Arc,
};

use registry_mox::testing::{
    config::Config,
    host::engine::Engine,
    model::RegisterVersion,
    registry::frame::{Publisher, encode_publish, encode_replace},
    snapshot::{Set, partition::Partition},
};
use serde_json::json;

use crate::Result;

/// A registry's content: so many services with so many providers each. `startTime` of a provider's URL is a label, and
/// goes up with every change, so that a client sees which change it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) services: usize,
    pub(crate) endpoints: usize,
}

pub(crate) const SMOKE: Workload = Workload { name: "smoke", services: 200, endpoints: 3 };
pub(crate) const W1: Workload = Workload { name: "W1", services: 1_000, endpoints: 10 };
pub(crate) const W2: Workload = Workload { name: "W2", services: 10_000, endpoints: 10 };
pub(crate) const W4: Workload = Workload { name: "W4", services: 10_000, endpoints: 100 };

/// `startTime` before any change.
const BASE: u64 = 1_700_000_000_000;
pub(crate) const PORT: u32 = 12_200;

/// The properties of an endpoint that are compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Endpoint {
    pub(crate) address: String,
    pub(crate) port: u32,
    pub(crate) app: String,
    pub(crate) zone: String,
    pub(crate) serialization: String,
    pub(crate) start_time: String,
}

/// Stands for a service's endpoints, in any order.
pub(crate) fn digest(endpoints: &mut [Endpoint]) -> u64 {
    endpoints.sort_unstable();
    let mut hasher = DefaultHasher::new();
    endpoints.hash(&mut hasher);
    hasher.finish()
}

/// The change that a `startTime` comes from; 0: none.
pub(crate) fn change_of(start_time: &str) -> Option<usize> {
    start_time.parse::<u64>().ok()?.checked_sub(BASE).map(|change| change as usize)
}

/// Settings of the engine under every workload.
pub(crate) fn policy() -> serde_json::Value {
    json!({ "labels": ["serialization", "startTime"] })
}

impl Workload {
    /// Which provider the nth change (from 1) is of.
    pub(crate) fn place(&self, change: usize) -> (usize, usize) {
        (change * 7_919 % self.services, change % self.endpoints)
    }

    fn data_info_id(service: usize) -> String {
        format!("com.example.bench.Service{service:05}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA")
    }

    fn address(&self, service: usize, endpoint: usize) -> String {
        let n = service * self.endpoints + endpoint + 1;
        format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)
    }

    /// As SOFARPC writes it.
    fn url(&self, service: usize, endpoint: usize, change: usize) -> String {
        let (address, zone) = (self.address(service, endpoint), endpoint % 3);
        format!(
            "{address}:{PORT}?rpcVer=51302&serialization=hessian2&weight=100&appName=app-{service:05}&p=1&v=4.0\
             &_SERIALIZETYPE=hessian2&_WEIGHT=100&app_name=app-{service:05}&zone=RZ0{zone}A&startTime={}",
            BASE + change as u64
        )
    }

    fn expected(&self, service: usize, changes: &[usize]) -> u64 {
        let mut endpoints: Vec<Endpoint> = (0..self.endpoints)
            .map(|endpoint| Endpoint {
                address: self.address(service, endpoint),
                port: PORT,
                app: format!("app-{service:05}"),
                zone: format!("RZ0{}A", endpoint % 3),
                serialization: "hessian2".to_owned(),
                start_time: (BASE + changes[endpoint] as u64).to_string(),
            })
            .collect();
        digest(&mut endpoints)
    }

    /// The digest that each service must have after so many changes.
    pub(crate) fn state(&self, changes: usize) -> Vec<u64> {
        let mut newest = vec![vec![0; self.endpoints]; self.services];
        for change in 1..=changes {
            let (service, endpoint) = self.place(change);
            newest[service][endpoint] = change;
        }
        newest.iter().enumerate().map(|(service, changes)| self.expected(service, changes)).collect()
    }

    fn publisher(&self, service: usize, endpoint: usize, change: usize) -> Publisher<'static> {
        Publisher {
            register_id: format!("{service:05}-{endpoint:05}").into(),
            version: RegisterVersion { version: change as i64 + 1, timestamp: BASE as i64 },
            payloads: vec![self.url(service, endpoint, change).into_bytes().into()],
            ..Publisher::default()
        }
    }

    fn body(&self, service: usize, endpoint: usize, change: usize) -> serde_json::Value {
        json!({
            "registerId": format!("{service:05}-{endpoint:05}"),
            "version": change + 1,
            "registerTimestamp": BASE,
            "data": [self.url(service, endpoint, change)],
        })
    }

    /// The base as lines for `serve`.
    pub(crate) fn base_lines(&self, out: &mut impl Write) -> std::io::Result<()> {
        for service in 0..self.services {
            let publishers: Vec<_> = (0..self.endpoints).map(|endpoint| self.body(service, endpoint, 0)).collect();
            let line = json!({
                "op": "replace", "dataInfoId": Self::data_info_id(service), "version": 1, "publishers": publishers,
            });
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    /// A change as a line for `serve`.
    pub(crate) fn change_line(&self, change: usize) -> Vec<u8> {
        let (service, endpoint) = self.place(change);
        let mut line = self.body(service, endpoint, change);
        line["op"] = "publish".into();
        line["dataInfoId"] = Self::data_info_id(service).into();
        format!("{line}\n").into_bytes()
    }

    /// Writes the base's resources, as our own engine encodes them, to a file, and returns the records of the changes:
    /// index and length as little-endian `u32`, then so many bytes of `google.protobuf.Any`.
    pub(crate) fn records(&self, file: &Path, changes: usize) -> Result<Vec<Vec<u8>>> {
        let config = json!({ "listen": "127.0.0.1:0", "policy": policy() });
        let engine = Engine::open(Config::from_json(config.to_string().as_bytes())?)?;
        for service in 0..self.services {
            let bodies: Vec<_> = (0..self.endpoints).map(|endpoint| self.publisher(service, endpoint, 0)).collect();
            engine.apply(&encode_replace("registry", &Self::data_info_id(service), 1, 1, &bodies)?)?;
        }
        engine.loaded();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let records = runtime.block_on(async {
            engine.flush().await;
            let name = |service: usize| format!("sofa-registry/com.example.bench.service{service:05}");
            let served = || Set::new(Arc::clone(&engine.watch().borrow().service_entries), Partition::WHOLE);
            // In the order of the services.
            let all = served();
            let mut base = vec![Vec::new(); self.services];
            for item in all.items() {
                let index = index_of(item.name().as_bytes(), &Cell::default()).ok_or("a name that is not ours")?;
                base[index] = record(index, value(item.framed()).ok_or("a resource that is no field")?);
            }
            let mut out = BufWriter::new(File::create(file)?);
            for record in &base {
                out.write_all(record)?;
            }
            out.flush()?;
            let mut records = Vec::with_capacity(changes);
            for change in 1..=changes {
                let (service, endpoint) = self.place(change);
                let publisher = self.publisher(service, endpoint, change);
                engine.apply(&encode_publish("registry", &Self::data_info_id(service), &publisher)?)?;
                engine.flush().await;
                let served = served();
                let item = served.find(&name(service)).ok_or("a change took its own service away")?;
                records.push(record(service, value(item.framed()).ok_or("a resource that is no field")?));
            }
            Ok(records)
        });
        engine.close();
        records
    }
}

fn record(index: usize, any: &[u8]) -> Vec<u8> {
    [&(index as u32).to_le_bytes()[..], &(any.len() as u32).to_le_bytes(), any].concat()
}

/// The field without its tag and length.
fn value(field: &[u8]) -> Option<&[u8]> {
    let mut rest = field.strip_prefix(&[0x12])?;
    let length = prost::encoding::decode_varint(&mut rest).ok()? as usize;
    rest.get(..length)
}

/// The service that a resource is of, from its name in the first bytes: `service` and five digits, whatever stands around.
/// `hint` says where the name stood last time, which is where it stands as a rule.
pub(crate) fn index_of(head: &[u8], hint: &Cell<usize>) -> Option<usize> {
    const MARK: &[u8] = b"service";
    let is_here = |at: usize| head.get(at..).is_some_and(|rest| rest.starts_with(MARK));
    let at = if is_here(hint.get()) { hint.get() } else { (0..head.len()).find(|at| is_here(*at))? };
    hint.set(at);
    let digits = head.get(at + MARK.len()..at + MARK.len() + 5)?;
    digits.iter().try_fold(0, |n, digit| digit.is_ascii_digit().then(|| n * 10 + usize::from(digit - b'0')))
}

/// For people: `10,000 × 10`.
pub(crate) fn size(workload: &Workload) -> String {
    let mut text = String::new();
    let digits = workload.services.to_string();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    let _ = write!(text, " × {}", workload.endpoints);
    text
}

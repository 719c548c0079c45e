//! Endpoints from what publishers publish.
//!
//! A payload is free text. The forms of SOFARPC (`host:port?k=v`, `scheme://host:port/path?k=v`), Dubbo (full URL),
//! Dubbo 3 (a JSON instance) and plain `host:port` are read; anything else is counted by its reason and left out. So is a text
//! that the registry's own clients would not call.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    istio::grammar::is_kubernetes_label,
    model::{DataInfoId, RegisterVersion},
    policy::{Refusal, Rules},
    registry::{
        frame::{Body, Details},
        publication::Publication,
    },
    translate::{
        labels::Labels,
        provider::{self, Fault, Instance, Provider},
        serialized,
    },
};

/// A weight that stands for "unset", as in SOFARPC and Dubbo.
pub const DEFAULT_WEIGHT: u32 = 100;
/// Above this a weight says nothing more, and 40,000 endpoints still sum up below Envoy's 32 bits.
const MAX_WEIGHT: u32 = 100_000;
/// The cell of a client that names none, which is no label: open-source SOFARPC registers everything in it.
const DEFAULT_ZONE: &str = "DEFAULT_ZONE";
const MAX_LABEL_VALUE: usize = 63;
/// Characters of a payload in a log line.
const SAMPLE: usize = 120;

/// Where an endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A host name, lower case, where the policy allows it.
    Name(Box<str>),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// An address of a publisher.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Where the provider listens.
    pub address: Address,
    /// Port of the provider, never 0.
    pub port: u16,
    /// [`DEFAULT_WEIGHT`] if the publisher says nothing; 0: it takes no traffic, and no older word on its address counts.
    pub weight: u32,
    /// Labels as they are served.
    pub labels: Labels,
    /// `None`: the endpoint has none of [`Extras`], as most have.
    extras: Option<Box<Extras>>,
}

/// Of an endpoint what few have: there may be millions in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extras {
    /// The application's name as it was given, where the label `app` differs from it.
    pub raw_application: Option<Box<str>>,
    /// `region/zone`, if the policy knows its zone.
    pub locality: Option<Box<str>>,
    /// Called with mTLS, as one of these identities (if there are any).
    pub mtls: Option<Arc<[String]>>,
}

impl Endpoint {
    /// An endpoint with extras or without.
    pub fn new(address: Address, port: u16, weight: u32, labels: Labels, extras: Extras) -> Self {
        let extras = (extras != Extras::default()).then(|| Box::new(extras));
        Self { address, port, weight, labels, extras }
    }

    /// The name of the application as it was given.
    pub fn application(&self) -> Option<&str> {
        let raw = self.extras.as_ref().and_then(|extras| extras.raw_application.as_deref());
        raw.or_else(|| self.labels.get("app"))
    }

    /// The endpoint under an application's name, of which it has the label.
    pub fn of_application(self, name: &str) -> Self {
        let raw_application = (self.labels.get("app") != Some(name)).then(|| name.into());
        let extras = Extras { raw_application, ..self.extras.map(|extras| *extras).unwrap_or_default() };
        Self::new(self.address, self.port, self.weight, self.labels, extras)
    }

    /// The endpoint, called with mTLS as one of these identities, or without.
    pub fn with_mtls(self, mtls: Option<Arc<[String]>>) -> Self {
        let extras = Extras { mtls, ..self.extras.map(|extras| *extras).unwrap_or_default() };
        Self::new(self.address, self.port, self.weight, self.labels, extras)
    }

    /// See [`Extras::locality`].
    pub fn locality(&self) -> Option<&str> {
        self.extras.as_ref()?.locality.as_deref()
    }

    /// See [`Extras::mtls`].
    pub fn mtls(&self) -> Option<&Arc<[String]>> {
        self.extras.as_ref()?.mtls.as_ref()
    }
}

/// Why a payload, or an endpoint in it, is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reject {
    /// Not a Java-serialized string, or not UTF-8.
    NotText,
    /// An empty or null string.
    Empty,
    /// None of the known forms.
    UnknownForm,
    /// No port, or one outside 1..65535.
    BadPort,
    /// A host name where an address is needed, or one that no name server can be asked for.
    HostName,
    /// Loopback, unspecified, link-local, multicast or broadcast.
    UnusableAddress,
    /// Inside the range that VIPs are taken from.
    VipRange,
    /// Left out by the policy's `endpoints.allow` or `endpoints.deny`.
    Denied,
    /// A weight of zero or less: the publisher takes no traffic. A decision of the publisher's.
    ZeroWeight,
    /// Disabled, so that no client would call it. A decision of the publisher's.
    OutOfService,
    /// An override, a route or another text that Dubbo's clients keep among providers. A decision of the publisher's.
    NotAProvider,
    /// Of Dubbo's client, by a protocol that has no usual port and that the policy's `ports` does not name; once for an instance.
    UnknownProtocol,
    /// Above `mox.limits.endpointsPerPublisher`, or an instance's fifth protocol.
    PublisherLimit,
    /// Above `mox.limits.endpointsPerService`.
    ServiceLimit,
}

impl Reject {
    /// Whether it could be served, if there were not so many.
    pub fn is_limit(self) -> bool {
        matches!(self, Self::PublisherLimit | Self::ServiceLimit)
    }

    /// Whether the publisher wants it so; other rejects are errors.
    pub fn is_decision(self) -> bool {
        matches!(self, Self::ZeroWeight | Self::OutOfService | Self::NotAProvider)
    }
}

impl From<Fault> for Reject {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Form => Self::UnknownForm,
            Fault::Port => Self::BadPort,
            Fault::Scheme => Self::NotAProvider,
        }
    }
}

impl std::fmt::Display for Reject {
    /// The name that status and metrics use.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        serde::Serialize::serialize(self, f)
    }
}

impl From<Refusal> for Reject {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unusable => Self::UnusableAddress,
            Refusal::VipRange => Self::VipRange,
            Refusal::Denied => Self::Denied,
        }
    }
}

/// A publisher's payloads, read under one policy.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Whose they are.
    pub register_id: Box<str>,
    /// In which version.
    pub version: RegisterVersion,
    /// The address that their client connects from, if it is known.
    pub source_address: Option<IpAddr>,
    /// Endpoints that can be served.
    pub endpoints: Box<[Endpoint]>,
    /// Endpoints of other protocols than the dataInfoId's, by their names in lower case; each is a service of its own.
    #[allow(clippy::box_collection)] // nearly no publisher has others, and each has this field
    pub others: Option<Box<BTreeMap<Arc<str>, Arc<Parsed>>>>,
    /// Payloads that cannot be served, counted by reason, with a sample of each.
    pub rejects: Option<Box<Rejects>>,
}

/// Counts by reason, with a sample of each.
pub type Rejects = BTreeMap<Reject, (u32, Box<str>)>;

/// The payloads of a publication, of which at most so many endpoints are served; read again only if the policy reads otherwise
/// than last time.
pub fn parsed(publication: &Publication, client: Client, rules: &Rules<'_>, limit: usize) -> Arc<Parsed> {
    let (memo, key) = (&publication.memo, rules.policy.reading(client.names_protocols()));
    let read = || parse_publisher(&publication.body(), client, rules, limit);
    if rules.keeps { memo.get(key, read) } else { memo.peek(key, read) }
}

/// Reads every payload of a publisher; what is kept of them does not grow with their number.
pub fn parse_publisher(body: &Body<'_>, client: Client, rules: &Rules<'_>, limit: usize) -> Parsed {
    let nothing = |source_address| Parsed {
        register_id: body.register_id.as_str().into(),
        version: body.version,
        source_address,
        ..Parsed::default()
    };
    let Ok(details) = body.details() else { return nothing(None) };
    let source_address = source_address(details.source_address);
    let (mut parsed, mut found) = (nothing(source_address), Vec::<Found>::new());
    for payload in &details.payloads {
        let (text, made) = read(payload, &details, client, rules);
        for one in made {
            match one {
                Ok(one) => found.push(one),
                Err(reject) => parsed.reject(reject, 1, || start(&text, SAMPLE).into()),
            }
        }
        if found.len() / 2 >= limit {
            parsed.keep_smallest(&mut found, limit);
        }
    }
    if found.len() > limit {
        parsed.keep_smallest(&mut found, limit);
    }
    let (mut main, mut others) = (Vec::new(), BTreeMap::<Box<str>, Vec<Endpoint>>::new());
    for (protocol, endpoint) in found {
        let service = match protocol {
            Some(protocol) => others.entry(protocol).or_default(),
            None => &mut main,
        };
        service.push(endpoint);
    }
    parsed.endpoints = main.into();
    if !others.is_empty() {
        let other = |endpoints: Vec<Endpoint>| Parsed { endpoints: endpoints.into(), ..nothing(source_address) };
        let others = others.into_iter().map(|(protocol, endpoints)| (protocol.into(), Arc::new(other(endpoints))));
        parsed.others = Some(Box::new(others.collect()));
    }
    parsed
}

/// An endpoint, with the protocol that it is called by if that is another than the dataInfoId's.
pub type Found = (Option<Box<str>>, Endpoint);

/// What a payload makes: an endpoint, or of an instance one for each protocol; and the reasons why there is none or not more, each
/// once.
pub type Made = Vec<Result<Found, Reject>>;

/// Reads a payload of a publisher: its text, and what that makes.
pub(super) fn read<'a>(
    payload: &'a [u8],
    details: &Details<'_>,
    client: Client,
    rules: &Rules<'_>,
) -> (Cow<'a, str>, Made) {
    let text = if details.serialized {
        serialized::decode(payload).ok().map(|text| text.unwrap_or_default().into())
    } else {
        std::str::from_utf8(payload).ok().map(Cow::Borrowed)
    };
    let Some(text) = text else { return ("(not text)".into(), vec![Err(Reject::NotText)]) };
    let made = made(&text, details.cell, client, rules);
    (text, made)
}

impl Parsed {
    fn reject(&mut self, reject: Reject, count: u32, sample: impl FnOnce() -> Box<str>) {
        self.rejects.get_or_insert_default().entry(reject).or_insert_with(|| (0, sample())).0 += count;
    }

    /// The parts of the payloads that cannot be served, counted by reason, with a sample of each.
    pub fn rejects(&self) -> impl Iterator<Item = (Reject, &(u32, Box<str>))> {
        self.rejects.iter().flat_map(|rejects| rejects.iter()).map(|(reject, found)| (*reject, found))
    }

    /// Leaves out what is above a publisher's limit, whatever the protocols: the largest addresses. Of several endpoints on one
    /// address and port one stays of each protocol, as where services are put together.
    fn keep_smallest(&mut self, found: &mut Vec<Found>, limit: usize) {
        fn place((protocol, endpoint): &Found) -> (&Address, u16, &Option<Box<str>>) {
            (&endpoint.address, endpoint.port, protocol)
        }
        found.sort_unstable_by(|a, b| place(a).cmp(&place(b)).then_with(|| b.1.cmp(&a.1)));
        found.dedup_by(|b, a| place(a) == place(b));
        if let Some((_, Endpoint { address, port, .. })) = found.get(limit) {
            let (count, sample) = (found.len() - limit, format!("{address}:{port}"));
            self.reject(Reject::PublisherLimit, count as u32, || sample.into());
            found.truncate(limit);
        }
    }
}

/// The address in what the registry writes for a connection: an address, or an address, `:` and a port. An IPv6 address stands
/// there without brackets, and in full where a port follows, as Java writes it.
fn source_address(text: &str) -> Option<IpAddr> {
    let without_port = || text.rsplit_once(':').map_or(text, |(address, _)| address);
    let bare = |text: &str| {
        let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        text.split('%').next().and_then(|text| text.parse::<IpAddr>().ok())
    };
    bare(text).or_else(|| bare(without_port())).map(|address| address.to_canonical())
}

/// So many characters of a publisher's text, fit for one line.
pub(super) fn start(text: &str, characters: usize) -> String {
    text.chars().take(characters).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The clients that publish under a dataInfoId, and so how its texts are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// SOFARPC's, or what is published as if by it. The dataInfoId says the protocol.
    Sofarpc,
    /// Dubbo's, which ends every dataId in `@dubbo`, whatever its providers speak (`SofaRegistry.java:228-242`).
    Dubbo,
    /// Dubbo 3's, with instances of an application, which tell their protocols.
    DubboApplication,
}

impl Client {
    /// The clients of a dataInfoId.
    pub fn of(data_info_id: &str) -> Self {
        match DataInfoId::parse(data_info_id) {
            Some(id) if id.protocol().is_some_and(|name| name.eq_ignore_ascii_case(DUBBO)) => Self::Dubbo,
            Some(id) if id.group == DUBBO && id.protocol().is_none() => Self::DubboApplication,
            _ => Self::Sofarpc,
        }
    }

    /// Whether the texts say by which protocol their providers are called.
    pub fn names_protocols(self) -> bool {
        self != Self::Sofarpc
    }
}

/// The most protocols of an instance that are served, by their names, but `dubbo` first.
pub const PROTOCOLS_OF_INSTANCE: usize = 4;

/// Protocol in the dataIds of Dubbo's client, and group of its applications.
const DUBBO: &str = "dubbo";

/// A protocol, whose name is in lower case, if it is another than that of a dataInfoId of Dubbo's client.
fn other_protocol(protocol: Cow<'_, str>, rules: &Rules<'_>) -> Result<Option<Box<str>>, Reject> {
    match &*protocol {
        DUBBO => Ok(None),
        other if provider::is_scheme(other) && rules.policy.knows(other) => Ok(Some(protocol.into())),
        _ => Err(Reject::UnknownProtocol),
    }
}

/// The text without the blanks and control characters around it, as Java trims.
fn trimmed(text: &str) -> &str {
    text.trim_matches(|c| c <= ' ')
}

/// What a text makes that was published under a dataInfoId.
pub fn made(text: &str, cell: &str, client: Client, rules: &Rules<'_>) -> Made {
    let text = trimmed(text);
    if text.is_empty() {
        return vec![Err(Reject::Empty)];
    }
    // A bug, for the tests of those who have to live with one.
    #[cfg(test)]
    assert!(!text.starts_with("panic://"));
    if text.starts_with('{') {
        return of_instance(text, cell, client, rules).unwrap_or_else(|reject| vec![Err(reject)]);
    }
    vec![of_url(text, cell, client, rules)]
}

fn of_url(text: &str, cell: &str, client: Client, rules: &Rules<'_>) -> Result<Found, Reject> {
    let is_dubbo = client != Client::Sofarpc;
    let provider = Provider::of_url(text, is_dubbo)?;
    let endpoint = endpoint(&provider, is_dubbo, cell, rules)?;
    let protocol = match provider.scheme.filter(|_| client.names_protocols()) {
        Some(scheme) if scheme.bytes().any(|byte| byte.is_ascii_uppercase()) => scheme.to_ascii_lowercase().into(),
        scheme => Cow::Borrowed(scheme.unwrap_or(DUBBO)),
    };
    Ok((other_protocol(protocol, rules)?, endpoint))
}

/// What an instance makes. By which protocols it is called is for itself alone to say: one that speaks Triple only is no
/// provider of protocol dubbo, whatever the others of its application speak.
fn of_instance(text: &str, cell: &str, client: Client, rules: &Rules<'_>) -> Result<Made, Reject> {
    let instance = Instance::parse(text)?;
    let (mut ports, own) = (instance.ports()?, instance.own_port());
    let endpoint = endpoint(&Provider::of_instance(&instance), true, cell, rules)?;
    let at = |port| -> Result<Endpoint, Reject> { Ok(Endpoint { port: provider::port(port)?, ..endpoint.clone() }) };
    if ports.is_empty() {
        ports.insert(DUBBO.to_owned(), own);
    }
    if !client.names_protocols() {
        // The dataInfoId says by which it is called; no client publishes instances there.
        let only = ports.values().next().filter(|_| ports.len() == 1);
        let port = only.or_else(|| ports.get(DUBBO)).copied().unwrap_or(own);
        return Ok(vec![at(port).map(|endpoint| (None, endpoint))]);
    }
    let (mut made, mut reasons) = (Made::new(), BTreeSet::new());
    // The bounds of a publisher count its texts, so that one text may not make many endpoints.
    let main = ports.remove_entry(DUBBO);
    for (protocol, port) in main.into_iter().chain(ports) {
        match other_protocol(protocol.into(), rules).and_then(|protocol| Ok((protocol, at(port)?))) {
            Ok(_) if made.len() == PROTOCOLS_OF_INSTANCE => drop(reasons.insert(Reject::PublisherLimit)),
            Ok(found) => made.push(Ok(found)),
            Err(reject) => drop(reasons.insert(reject)),
        }
    }
    made.extend(reasons.into_iter().map(Err));
    Ok(made)
}

/// What a text makes that makes one endpoint or none, as every URL does.
#[cfg(any(test, feature = "testing"))]
pub fn parse(text: &str, cell: &str, client: Client, rules: &Rules<'_>) -> Result<Endpoint, Reject> {
    match made(text, cell, client, rules).remove(0) {
        Ok((_, endpoint)) => Ok(endpoint),
        Err(reject) => Err(reject),
    }
}

fn endpoint(provider: &Provider<'_>, is_dubbo: bool, cell: &str, rules: &Rules<'_>) -> Result<Endpoint, Reject> {
    // SOFARPC's consumers look at none of these parameters.
    if is_dubbo && !provider.is_provider() {
        return Err(Reject::NotAProvider);
    }
    if is_dubbo && !provider.is_in_service() {
        return Err(Reject::OutOfService);
    }
    let (port, parameter) = (provider.port, |key: &str| provider.parameter(key));
    let address = match provider.host.parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            rules.policy.check_address(address)?;
            Address::Ip(address)
        }
        Err(_) => Address::Name(host_name(provider.host, rules.dns)?),
    };
    let weight = provider.weight().map_or(DEFAULT_WEIGHT, |weight| weight.max(0).cast_unsigned().min(MAX_WEIGHT));
    let zone = provider.zone().or_else(|| Some(cell).filter(|cell| !cell.trim().is_empty()));
    let app = provider.application();
    let named = [("app", app), ("zone", zone.filter(|zone| *zone != DEFAULT_ZONE))].into_iter();
    let allowed = rules.labels.iter().map(|key| (&**key, parameter(key)));
    let labels: Labels = allowed.chain(named).filter_map(|(key, value)| Some((key, label_value(value?)?))).collect();
    let raw_application = app.filter(|app| labels.get("app") != Some(*app)).map(Into::into);
    let ip = match &address {
        Address::Ip(address) => Some(*address),
        Address::Name(_) => None,
    };
    let locality = rules.policy.locality(zone, ip).map(Into::into);
    let mtls = rules.policy.mtls(ip, app, zone);
    Ok(Endpoint::new(address, port, weight, labels, Extras { raw_application, locality, mtls }))
}

/// A host name that Envoy may resolve. Its last label starts with a letter, since resolvers read `127.1` or `0x7f.1` as
/// addresses.
fn host_name(text: &str, allowed: bool) -> Result<Box<str>, Reject> {
    let name = text.to_ascii_lowercase();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
        return Err(Reject::UnknownForm);
    }
    let labels = name.split('.').all(is_kubernetes_label);
    let last = name.rsplit('.').next().unwrap_or_default();
    if !allowed
        || !labels
        || name.len() > 253
        || !last.starts_with(|c: char| c.is_ascii_lowercase())
        || last == "localhost"
    {
        return Err(Reject::HostName);
    }
    Ok(name.into())
}

/// A legal label value that resembles `text`: other characters become `-`, ends are letters or digits, at most 63
/// bytes; `None` if nothing is left.
pub fn label_value(text: &str) -> Option<Cow<'_, str>> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = ['-', '_', '.'];
    if text.len() <= MAX_LABEL_VALUE && text.chars().all(is_legal) {
        return Some(text.trim_matches(ends)).filter(|value| !value.is_empty()).map(Cow::Borrowed);
    }
    let value: String = text.chars().map(|c| if is_legal(c) { c } else { '-' }).take(MAX_LABEL_VALUE).collect();
    let value = value.trim_matches(ends);
    (!value.is_empty()).then(|| value.to_owned().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::{Policy, PolicyConfig},
        registry::{
            frame,
            store::{Limits, Store},
        },
    };

    fn policy(json: serde_json::Value) -> Policy {
        Policy::new(serde_json::from_value::<PolicyConfig>(json).unwrap(), &["248.0.0.0/6".parse().unwrap()], "ns")
            .unwrap()
    }

    fn read(text: &str) -> Result<(String, u32, Vec<(String, String)>), Reject> {
        let policy = policy(serde_json::json!({"labels": ["rpcVer"]}));
        parse(text, "", Client::Sofarpc, &policy.rules("")).map(|e| {
            let address = match e.address {
                Address::Ip(address) => std::net::SocketAddr::new(address, e.port).to_string(),
                Address::Name(name) => format!("{name}:{}", e.port),
            };
            (address, e.weight, e.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
        })
    }

    fn pairs(labels: &[(&str, &str)]) -> Vec<(String, String)> {
        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn sofarpc_forms() {
        let bolt = "10.77.0.1:12201?rpcVer=51302&serialization=hessian2&weight=50&appName=rpc-demo&p=1&v=4.0&_WEIGHT=50&app_name=rpc-demo&startTime=1";
        let labels = pairs(&[("app", "rpc-demo"), ("rpcVer", "51302")]);
        assert_eq!(read(bolt), Ok(("10.77.0.1:12201".into(), 50, labels)));
        let old = "10.209.76.82:12200?_TIMEOUT=3000&p=13&app_name=ipayprocess&zone=GZ00A&[xx]=[_AUTORECONNECT#false@_TIMEOUT#2000]";
        assert_eq!(read(old).unwrap().2, pairs(&[("app", "ipayprocess"), ("zone", "GZ00A")]));
        assert_eq!(read("tri://10.15.232.229:55555?v=4.0&app_name=test").unwrap().0, "10.15.232.229:55555");
        assert_eq!(read("bolt://10.244.22.1:8080?url=http://x/y").unwrap().0, "10.244.22.1:8080");
        assert_eq!(read("10.244.22.1:8080/ctx?callback=http://x").unwrap().0, "10.244.22.1:8080");
    }

    #[test]
    fn dubbo_forms() {
        let url = "dubbo://10.0.0.9:20881/example.HelloService?anyhost=true&application=dubbo-demo&weight=200";
        assert_eq!(read(url), Ok(("10.0.0.9:20881".into(), 200, pairs(&[("app", "dubbo-demo")]))));
        let json = r#"{"id":"x","host":"10.0.0.7","port":20880,"name":"demo","metadata":{"application":"demo"}}"#;
        assert_eq!(read(json), Ok(("10.0.0.7:20880".into(), 100, pairs(&[("app", "demo")]))));
        assert_eq!(read(r#"{"host":"10.0.0.7","port":70000}"#), Err(Reject::BadPort));
        assert_eq!(read(r#"{"host":"10.0.0.7"}"#), Err(Reject::UnknownForm));
    }

    #[test]
    fn plain_and_ipv6_forms() {
        assert_eq!(read(" 10.0.0.1:80 ").unwrap().0, "10.0.0.1:80");
        assert_eq!(read("[2001:db8::1]:12200?x=y").unwrap().0, "[2001:db8::1]:12200");
        assert_eq!(read("2001:db8::1:12200").unwrap().0, "[2001:db8::1]:12200");
        assert_eq!(read("[::ffff:10.0.0.1]:80").unwrap().0, "10.0.0.1:80");
    }

    #[test]
    fn a_source_address_is_read_with_and_without_a_port() {
        for (text, address) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:54321", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8:0:0:0:0:0:1", "2001:db8::1"),
            ("2001:db8:0:0:0:0:0:1:54321", "2001:db8::1"),
            ("[2001:db8::1]:54321", "2001:db8::1"),
            ("fe80:0:0:0:0:0:0:1%eth0:54321", "fe80::1"),
        ] {
            assert_eq!(source_address(text), address.parse().ok(), "{text}");
        }
        for text in ["", ":", "host", "host:1", "10.0.0:1", "10.0.0.1:1:2", "1.2.3.4.5"] {
            assert_eq!(source_address(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_served_has_a_reason() {
        for (text, reject) in [
            ("", Reject::Empty),
            ("hello", Reject::UnknownForm),
            ("10.0.0.1", Reject::UnknownForm),
            ("10.0.0.1:0", Reject::BadPort),
            ("10.0.0.1:65536", Reject::BadPort),
            ("provider.example.com:12200", Reject::HostName),
            ("!!:12200", Reject::UnknownForm),
            ("127.0.0.1:12200", Reject::UnusableAddress),
            ("[::1]:12200", Reject::UnusableAddress),
            ("0.0.0.0:1", Reject::UnusableAddress),
            ("169.254.169.254:80", Reject::UnusableAddress),
            ("[fe80::1]:80", Reject::UnusableAddress),
            ("224.0.0.1:80", Reject::UnusableAddress),
            ("255.255.255.255:80", Reject::UnusableAddress),
            ("[::ffff:127.0.0.1]:80", Reject::UnusableAddress),
            ("248.1.2.3:80", Reject::VipRange),
        ] {
            assert_eq!(read(text), Err(reject), "{text}");
        }
    }

    #[test]
    fn weights_are_bounded_and_forgiving() {
        for (weight, read_as) in
            [("0", 0), ("-5", 0), ("2", 2), ("1.5", 100), ("abc", 100), ("2000000000", 100_000), ("1e12", 100)]
        {
            assert_eq!(read(&format!("10.0.0.1:80?_WEIGHT={weight}")).unwrap().1, read_as, "{weight}");
        }
    }

    #[test]
    fn the_operator_decides_on_addresses() {
        let strict = policy(serde_json::json!({"endpoints": {"allow": ["10.0.0.0/8"], "deny": ["10.9.0.0/16"]}}));
        assert!(parse("10.1.0.1:80", "", Client::Sofarpc, &strict.rules("")).is_ok());
        assert_eq!(parse("10.9.0.1:80", "", Client::Sofarpc, &strict.rules("")), Err(Reject::Denied));
        assert_eq!(parse("192.168.0.1:80", "", Client::Sofarpc, &strict.rules("")), Err(Reject::Denied));
        let demo = policy(serde_json::json!({"endpoints": {"allowLoopback": true}}));
        assert!(parse("127.0.0.1:80", "", Client::Sofarpc, &demo.rules("")).is_ok());
    }

    #[test]
    fn host_names_are_served_only_where_the_operator_says_so() {
        let policy = policy(serde_json::json!({"overrides": {"*": {"dns": true}}}));
        let read = |text: &str| parse(text, "", Client::Sofarpc, &policy.rules("")).map(|e| e.address.to_string());
        assert_eq!(read("Provider-1.example.COM:12200"), Ok("provider-1.example.com".into()));
        assert_eq!(read("10.0.0.1:12200"), Ok("10.0.0.1".into()));
        assert_eq!(read("127.0.0.1:12200"), Err(Reject::UnusableAddress));
        for hidden in
            ["localhost", "a.localhost", "127.1", "2130706433", "0x7f.1", "0x7f000001", "a_b.c", "a..b", "-a.b"]
        {
            assert_eq!(read(&format!("{hidden}:80")), Err(Reject::HostName), "{hidden}");
        }
    }

    #[test]
    fn a_zone_is_a_locality_only_through_the_policy() {
        let policy = policy(serde_json::json!({
            "locality": {"GZ00A": "cn-gz/a", "DEFAULT_ZONE": "x/y", "10.1.0.0/16": "cn-gz/b", "10.1.2.0/24": "cn-gz/c"},
        }));
        let locality = |text: &str, cell: &str| {
            parse(text, cell, Client::Sofarpc, &policy.rules("")).unwrap().locality().map(str::to_owned)
        };
        assert_eq!(locality("10.0.0.1:80", "GZ00A"), Some("cn-gz/a".into()));
        assert_eq!(locality("10.0.0.1:80?zone=GZ00A", "other"), Some("cn-gz/a".into()));
        assert_eq!(locality("10.0.0.1:80?zone=GZ00B", "GZ00A"), None, "what the URL says is nearer");
        assert_eq!(locality("10.0.0.1:80?zone=", "GZ00A"), Some("cn-gz/a".into()), "a blank zone says nothing");
        assert_eq!(locality("10.0.0.1:80", "DEFAULT_ZONE"), Some("x/y".into()));
        assert_eq!(locality("10.1.0.1:80", "GZ00B"), Some("cn-gz/b".into()));
        assert_eq!(locality("10.1.2.1:80", ""), Some("cn-gz/c".into()), "the longest prefix decides");
        assert_eq!(locality("10.1.2.1:80", "GZ00A"), Some("cn-gz/a".into()), "a zone says more than an address");
        let all = super::tests::policy(serde_json::json!({"locality": {"*": "cn-gz/z", "GZ00A": "cn-gz/a"}}));
        let locality = |text: &str, cell: &str| {
            parse(text, cell, Client::Sofarpc, &all.rules("")).unwrap().locality().map(str::to_owned)
        };
        assert_eq!(locality("10.0.0.1:80", "GZ00B"), Some("cn-gz/z".into()));
        assert_eq!(locality("10.0.0.1:80", "GZ00A"), Some("cn-gz/a".into()));
    }

    #[test]
    fn what_no_client_would_call_is_left_out_by_the_publishers_decision() {
        let rules = policy(serde_json::json!({}));
        let client = |is_dubbo| if is_dubbo { Client::Dubbo } else { Client::Sofarpc };
        let read = |text: &str, is_dubbo| parse(text, "", client(is_dubbo), &rules.rules("")).map(|_| ());
        assert_eq!(
            read("override://10.0.0.1:80/x?category=configurators&disabled=true", true),
            Err(Reject::NotAProvider)
        );
        assert_eq!(read("override://10.0.0.1:80/x", false), Err(Reject::NotAProvider));
        assert_eq!(read("dubbo://10.0.0.1:80/x?disabled=true", true), Err(Reject::OutOfService));
        assert_eq!(read("10.0.0.1:80?disabled=true&enabled=false&category=x", false), Ok(()), "words of SOFARPC's own");
        for (reject, decision) in [
            (Reject::NotAProvider, true),
            (Reject::OutOfService, true),
            (Reject::ZeroWeight, true),
            (Reject::BadPort, false),
        ] {
            assert_eq!(reject.is_decision(), decision, "{reject}");
        }
        for (id, is) in [
            ("com.example.A@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA", Client::Dubbo),
            ("com.example.A@dubbo#@#DEFAULT_INSTANCE_ID#@#dubbo", Client::Dubbo),
            ("app#@#DEFAULT_INSTANCE_ID#@#dubbo", Client::DubboApplication),
            ("com.example.A:1.0@tri#@#DEFAULT_INSTANCE_ID#@#dubbo", Client::Sofarpc),
            ("com.example.A:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA", Client::Sofarpc),
        ] {
            assert_eq!(Client::of(id), is, "{id}");
        }
    }

    #[test]
    fn what_dubbos_client_publishes_is_told_apart_by_its_scheme() {
        let rules = policy(serde_json::json!({"ports": {"Hessian": 1}}));
        let by = |text: &str, client| match &made(text, "", client, &rules.rules(""))[..] {
            [one] => one.clone().map(|(by, _)| by.map(String::from)),
            several => panic!("{text}: {several:?}"),
        };
        for (text, protocol) in [
            ("dubbo://10.0.0.1:80/x", Ok(None)),
            (" Dubbo://10.0.0.1:80/x", Ok(None)),
            ("10.0.0.1:80?url=tri://10.0.0.1:80", Ok(None)),
            (r#"{"host":"10.0.0.7","port":1,"x":"tri://"}"#, Ok(None)),
            (" tri://10.0.0.1:80", Ok(Some("tri".to_owned()))),
            ("\u{1}tri://10.0.0.1:80\0", Ok(Some("tri".to_owned()))),
            ("REST://10.0.0.1:80", Ok(Some("rest".to_owned()))),
            ("hessian://10.0.0.1:80", Ok(Some("hessian".to_owned()))),
            ("rmi://10.0.0.1:80", Err(Reject::UnknownProtocol)),
        ] {
            assert_eq!(by(text, Client::Dubbo), protocol, "{text}");
            assert_eq!(by(text, Client::DubboApplication), protocol, "{text}");
            assert_eq!(by(text, Client::Sofarpc), Ok(None), "{text}");
        }
    }

    /// Whoever else publishes under the id: what an instance makes is in its own text, so nobody changes how others are called.
    #[test]
    fn an_instance_is_called_by_each_protocol_that_it_tells() {
        let rules = policy(serde_json::json!({"ports": {"Hessian": 1}}));
        let read = |instance: &str, client| -> Vec<String> {
            let shown = |one: Result<Found, Reject>| match one {
                Ok((by, endpoint)) => format!("{}:{}", by.as_deref().unwrap_or("-"), endpoint.port),
                Err(reject) => reject.to_string(),
            };
            made(instance, "", client, &rules.rules("")).into_iter().map(shown).collect()
        };
        let instance = |port: u32, endpoints: Option<&str>, more: &str| {
            let endpoints =
                endpoints.map(|text| format!(r#""dubbo.endpoints":{},"#, serde_json::to_string(text).unwrap()));
            let endpoints = endpoints.unwrap_or_default();
            format!(r#"{{"host":"10.0.0.7","port":{port},"name":"a","metadata":{{{endpoints}{more}"x":"y"}}}}"#)
        };
        let list = |ports: &[(u32, &str)]| {
            let entry = |(port, protocol): &(u32, &str)| format!(r#"{{"port":{port},"protocol":"{protocol}"}}"#);
            format!("[{}]", ports.iter().map(entry).collect::<Vec<_>>().join(","))
        };
        // The ports, what each protocol makes, and the one that is read where the dataInfoId says the protocol.
        for (ports, made, only) in [
            (&[(1, "dubbo")][..], &["-:1"][..], "-:1"),
            (&[(1, "tri")], &["tri:1"], "-:1"),
            (&[(1, "tri"), (2, "dubbo")], &["-:2", "tri:1"], "-:2"),
            (&[(2, "Dubbo"), (1, "REST"), (3, "tri")], &["-:2", "rest:1", "tri:3"], "-:2"),
            (&[(1, "tri"), (2, "rest")], &["rest:2", "tri:1"], "-:20880"),
            (&[(1, "tri"), (2, "tri")], &["tri:1"], "-:1"),
            (&[(1, "tri"), (1, "dubbo")], &["-:1", "tri:1"], "-:1"),
            (&[(1, "hessian"), (2, "rmi"), (3, "thrift")], &["hessian:1", "unknown-protocol"], "-:20880"),
            (&[(1, "rmi")], &["unknown-protocol"], "-:1"),
            (&[(1, ""), (2, "tri")], &["tri:2", "unknown-protocol"], "-:20880"),
            (&[(1, "a://b"), (2, "tri")], &["tri:2", "unknown-protocol"], "-:20880"),
            (&[(0, "tri"), (2, "dubbo")], &["-:2", "bad-port"], "-:2"),
            (&[(0, "tri"), (70_000, "rest"), (5, "rmi")], &["bad-port", "unknown-protocol"], "-:20880"),
            (&[], &["-:20880"], "-:20880"),
            (
                &[(1, "bolt"), (2, "grpc"), (3, "http"), (4, "rest"), (5, "tri"), (6, "x"), (7, "dubbo")],
                &["-:7", "bolt:1", "grpc:2", "http:3", "unknown-protocol", "publisher-limit"],
                "-:7",
            ),
        ] {
            let text = instance(20_880, Some(&list(ports)), "");
            assert_eq!(read(&text, Client::DubboApplication), made, "{ports:?}");
            assert_eq!(read(&text, Client::Dubbo), made, "{ports:?}");
            assert_eq!(read(&text, Client::Sofarpc), [only], "{ports:?}");
        }
        let both = list(&[(1, "tri"), (2, "dubbo")]);
        for (text, made) in [
            (instance(20_880, None, ""), &["-:20880"][..]),
            (instance(20_880, Some("{"), ""), &["-:20880"]),
            (instance(0, Some(&both), ""), &["bad-port"]),
            (instance(70_000, Some(&both), ""), &["-:2", "tri:1"]),
            (instance(70_000, None, ""), &["bad-port"]),
            (instance(20_880, Some(&both), r#""disabled":"true","#), &["out-of-service"]),
            (instance(20_880, Some(&both), "").replace("10.0.0.7", "127.0.0.1"), &["unusable-address"]),
        ] {
            assert_eq!(read(&text, Client::DubboApplication), made, "{text}");
        }
        let endpoints =
            made(&instance(1, Some(&both), r#""weight":"7","#), "z", Client::DubboApplication, &rules.rules(""));
        let alike = |one: Result<Found, Reject>| one.map(|(_, endpoint)| Endpoint { port: 1, ..endpoint }).unwrap();
        let alike: Vec<Endpoint> = endpoints.into_iter().map(alike).collect();
        assert_eq!((alike[0].weight, alike[0].application(), alike[0].labels.get("zone")), (7, Some("a"), Some("z")));
        assert_eq!(alike[0], alike[1]);
    }

    #[test]
    fn an_application_keeps_its_name_beside_its_label() {
        let rules = policy(serde_json::json!({}));
        let read =
            |app: &str| parse(&format!("10.0.0.1:80?app_name={app}"), "", Client::Sofarpc, &rules.rules("")).unwrap();
        for (app, label) in [("shop", Some("shop")), ("a b", Some("a-b")), ("支付", None)] {
            let endpoint = read(app);
            assert_eq!((endpoint.application(), endpoint.labels.get("app")), (Some(app), label));
        }
        assert_eq!(read("").application(), None);
    }

    #[test]
    fn label_values_are_made_legal() {
        assert_eq!(label_value("-a b/c_"), Some("a-b-c".into()));
        assert_eq!(label_value("---"), None);
        assert_eq!(label_value(&"x".repeat(100)).unwrap().len(), 63);
        let zoned = parse("10.0.0.1:80", "RZ 1", Client::Sofarpc, &policy(serde_json::json!({})).rules("")).unwrap();
        assert_eq!(zoned.labels.get("zone"), Some("RZ-1"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*", cell in "\\PC*") {
            let _ = parse(&text, &cell, Client::Sofarpc, &policy(serde_json::json!({})).rules(""));
            let _ = parse(&format!("10.0.0.1:80?{text}"), &cell, Client::Sofarpc, &policy(serde_json::json!({})).rules(""));
        }
    }

    #[test]
    fn a_publication_is_read_again_only_where_the_policy_reads_otherwise() {
        let publisher = frame::Publisher {
            register_id: "r".into(),
            payloads: vec![b"10.0.0.1:80".as_slice().into()],
            ..frame::Publisher::default()
        };
        let store = Store::new(Limits::NONE);
        let frame = frame::encode_publish("registry", "a", &publisher).unwrap();
        frame::decode(&frame).unwrap().into_iter().for_each(|event| {
            store.apply(&event, 0).unwrap();
        });
        let [publication] = &store.read("a")[..] else { panic!("one was published") };
        let read = |policy: serde_json::Value| {
            let policy = Policy::new(serde_json::from_value(policy).unwrap(), &[], "ns").unwrap();
            parsed(publication, Client::Sofarpc, &policy.rules("a"), usize::MAX)
        };
        let mut before = read(serde_json::json!({}));
        for (policy, again) in [
            (serde_json::json!({"exclude": ["b"], "exportTo": ["~"], "ports": {"bolt": 1}}), false),
            (serde_json::json!({"direct": {"applications": ["*"]}, "overrides": {"a": {"port": 1}}}), false),
            (serde_json::json!({"overrides": {"a": {"port": 2, "host": "a.b"}}}), false),
            (serde_json::json!({"ports": {"hessian": 1}, "overrides": {"a": {"port": 3}}}), false),
            (serde_json::json!({"overrides": {"a": {"dns": true}}}), true),
            (serde_json::json!({"labels": ["x"]}), true),
            (serde_json::json!({"mtls": [{"zones": ["x"]}]}), true),
        ] {
            let now = read(policy.clone());
            assert_eq!(!Arc::ptr_eq(&before, &now), again, "{policy}");
            before = now;
        }
    }
}

//! Endpoints from what publishers publish.
//!
//! A payload is free text. The forms of SOFARPC (`host:port?k=v`, `scheme://host:port/path?k=v`), Dubbo (full URL),
//! Dubbo 3 (a JSON instance) and plain `host:port` are read; anything else is counted by its reason and left out.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    istio::grammar::is_kubernetes_label,
    model::RegisterVersion,
    policy::{Refusal, Rules},
    registry::{frame::Body, publication::Publication},
    translate::{labels::Labels, serialized},
};

/// A weight that stands for "unset", as in SOFARPC and Dubbo.
pub const DEFAULT_WEIGHT: u32 = 100;
/// Above this a weight says nothing more, and 40,000 endpoints still sum up below Envoy's 32 bits.
const MAX_WEIGHT: u32 = 100_000;
/// The cell of a client that names none.
const DEFAULT_ZONE: &str = "DEFAULT_ZONE";
const MAX_LABEL_VALUE: usize = 63;
const APP_KEYS: [&str; 5] = ["app_name", "appName", "self_app_name", "application", "app"];

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

/// One address of one publisher.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// Its port, never 0.
    pub port: u16,
    /// [`DEFAULT_WEIGHT`] if the publisher says nothing; 0: it takes no traffic, and no older word on its address counts.
    pub weight: u32,
    /// Its labels.
    pub labels: Labels,
    /// `region/zone`, if the policy knows its zone.
    pub locality: Option<Box<str>>,
    /// Called with mTLS, as one of these identities (if there are any).
    pub mtls: Option<Arc<[String]>>,
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
    /// A weight of zero or less: the publisher takes no traffic. Not an error.
    ZeroWeight,
    /// Above `mox.limits.endpointsPerPublisher`.
    PublisherLimit,
    /// Above `mox.limits.endpointsPerService`.
    ServiceLimit,
}

impl Reject {
    /// Whether it could be served, if there were not so many.
    pub fn is_limit(self) -> bool {
        matches!(self, Self::PublisherLimit | Self::ServiceLimit)
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
    /// What can be served.
    pub endpoints: Vec<Endpoint>,
    /// What cannot, counted by reason, with a sample of each.
    pub rejects: BTreeMap<Reject, (u32, Box<str>)>,
}

/// The payloads of a publication, of which at most so many endpoints are served; read again only if the policy reads otherwise
/// than last time.
pub fn parsed(publication: &Publication, rules: &Rules<'_>, limit: usize) -> Arc<Parsed> {
    publication.memo.get(rules.policy.reading(), || parse_publisher(&publication.body(), rules, limit))
}

/// Reads every payload of a publisher; what is kept of them does not grow with their number.
pub fn parse_publisher(body: &Body<'_>, rules: &Rules<'_>, limit: usize) -> Parsed {
    let register_id = body.register_id.as_str().into();
    let mut parsed = Parsed { register_id, version: body.version, ..Parsed::default() };
    let Ok(details) = body.details() else { return parsed };
    for payload in &details.payloads {
        let text = if details.serialized {
            serialized::decode(payload).map(Option::unwrap_or_default).map_err(|_| Reject::NotText)
        } else {
            std::str::from_utf8(payload).map(str::to_owned).map_err(|_| Reject::NotText)
        };
        match text.as_deref().map_err(|reject| *reject).and_then(|text| parse(text, details.cell, rules)) {
            Ok(endpoint) => parsed.endpoints.push(endpoint),
            Err(reject) => parsed.reject(reject, 1, || sample(text.as_deref().unwrap_or("(not text)"))),
        }
        if parsed.endpoints.len() / 2 >= limit {
            parsed.keep_smallest(limit);
        }
    }
    if parsed.endpoints.len() > limit {
        parsed.keep_smallest(limit);
    }
    // Most publishers have one, and a list that grows begins with room for four.
    parsed.endpoints.shrink_to_fit();
    parsed
}

impl Parsed {
    fn reject(&mut self, reject: Reject, count: u32, sample: impl FnOnce() -> Box<str>) {
        self.rejects.entry(reject).or_insert_with(|| (0, sample())).0 += count;
    }

    /// Leaves out what is above a limit: the largest addresses. Of several endpoints on one address and port one stays, as
    /// where services are put together.
    fn keep_smallest(&mut self, limit: usize) {
        self.endpoints.sort_unstable_by(|a, b| (&a.address, a.port).cmp(&(&b.address, b.port)).then_with(|| b.cmp(a)));
        self.endpoints.dedup_by(|b, a| (&a.address, a.port) == (&b.address, b.port));
        if let Some(Endpoint { address, port, .. }) = self.endpoints.get(limit) {
            let (count, sample) = (self.endpoints.len() - limit, format!("{address}:{port}"));
            self.reject(Reject::PublisherLimit, count as u32, || sample.into());
            self.endpoints.truncate(limit);
        }
    }
}

/// The start of a publisher's text, fit for a log line.
fn sample(text: &str) -> Box<str> {
    text.chars().take(120).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Reads one payload.
pub fn parse(text: &str, cell: &str, rules: &Rules<'_>) -> Result<Endpoint, Reject> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Reject::Empty);
    }
    // A bug, for the tests of those who have to live with one.
    #[cfg(test)]
    assert!(!text.starts_with("panic://"));
    if text.starts_with('{') {
        let instance: Instance = serde_json::from_str(text).map_err(|_| Reject::UnknownForm)?;
        let port = u16::try_from(instance.port).map_err(|_| Reject::BadPort)?;
        let parameter = |key: &str| instance.metadata.get(key).and_then(|value| value.as_str());
        return endpoint(&instance.host, port, cell, rules, parameter);
    }
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) => rest,
        Some((before, _)) if !before.contains('?') => return Err(Reject::UnknownForm),
        _ => text,
    };
    let (authority, query) = match rest.find(['/', '?']) {
        Some(end) => (&rest[..end], rest[end..].split_once('?').map_or("", |(_, query)| query)),
        None => (rest, ""),
    };
    let authority = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
    let (host, port) = authority.rsplit_once(':').ok_or(Reject::UnknownForm)?;
    let port = port.parse().map_err(|_| Reject::BadPort)?;
    let parameter = |key: &str| {
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    endpoint(host, port, cell, rules, parameter)
}

/// What Dubbo 3's service discovery publishes.
#[derive(serde::Deserialize)]
struct Instance {
    host: String,
    port: u32,
    #[serde(default)]
    metadata: BTreeMap<String, serde_json::Value>,
}

fn endpoint<'a>(
    host: &str,
    port: u16,
    cell: &'a str,
    rules: &Rules<'_>,
    parameter: impl Fn(&str) -> Option<&'a str>,
) -> Result<Endpoint, Reject> {
    if port == 0 {
        return Err(Reject::BadPort);
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address = match bare.parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            rules.policy.check_address(address)?;
            Address::Ip(address)
        }
        Err(_) => Address::Name(host_name(bare, rules.dns)?),
    };
    let weight = match parameter("weight").or_else(|| parameter("_WEIGHT")).map(str::parse::<f64>) {
        Some(Ok(weight)) if weight <= 0.0 => 0,
        Some(Ok(weight)) if weight.is_finite() => (weight.round() as u32).clamp(1, MAX_WEIGHT),
        _ => DEFAULT_WEIGHT,
    };
    let zone = parameter("zone").unwrap_or(cell);
    let zone = (zone != DEFAULT_ZONE).then_some(zone);
    let app = APP_KEYS.iter().find_map(|key| parameter(key));
    let named = [("app", app), ("zone", zone)].into_iter();
    let allowed = rules.labels.iter().map(|key| (&**key, parameter(key)));
    let labels = allowed.chain(named).filter_map(|(key, value)| Some((key, label_value(value?)?))).collect();
    let locality = zone.and_then(|zone| rules.policy.locality(zone)).map(Into::into);
    let ip = match &address {
        Address::Ip(address) => Some(*address),
        Address::Name(_) => None,
    };
    let mtls = rules.policy.mtls(ip, app, zone);
    Ok(Endpoint { address, port, weight, labels, locality, mtls })
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
fn label_value(text: &str) -> Option<Box<str>> {
    let legal = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let value: String = text.chars().map(legal).take(MAX_LABEL_VALUE).collect();
    let value = value.trim_matches(['-', '_', '.']);
    (!value.is_empty()).then(|| value.into())
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
        Policy::new(serde_json::from_value::<PolicyConfig>(json).unwrap(), "248.0.0.0/6".parse().ok(), "ns").unwrap()
    }

    fn read(text: &str) -> Result<(String, u32, Vec<(String, String)>), Reject> {
        let policy = policy(serde_json::json!({"labels": ["rpcVer"]}));
        parse(text, "", &policy.rules("")).map(|e| {
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
            [("0", 0), ("-5", 0), ("0.4", 1), ("1.5", 2), ("abc", 100), ("1e12", 100_000), ("NaN", 100)]
        {
            assert_eq!(read(&format!("10.0.0.1:80?_WEIGHT={weight}")).unwrap().1, read_as, "{weight}");
        }
    }

    #[test]
    fn the_operator_decides_on_addresses() {
        let strict = policy(serde_json::json!({"endpoints": {"allow": ["10.0.0.0/8"], "deny": ["10.9.0.0/16"]}}));
        assert!(parse("10.1.0.1:80", "", &strict.rules("")).is_ok());
        assert_eq!(parse("10.9.0.1:80", "", &strict.rules("")), Err(Reject::Denied));
        assert_eq!(parse("192.168.0.1:80", "", &strict.rules("")), Err(Reject::Denied));
        let demo = policy(serde_json::json!({"endpoints": {"allowLoopback": true}}));
        assert!(parse("127.0.0.1:80", "", &demo.rules("")).is_ok());
    }

    #[test]
    fn host_names_are_served_only_where_the_operator_says_so() {
        let policy = policy(serde_json::json!({"overrides": {"*": {"dns": true}}}));
        let read = |text: &str| parse(text, "", &policy.rules("")).map(|e| e.address.to_string());
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
        let policy = policy(serde_json::json!({"locality": {"GZ00A": "cn-gz/a", "DEFAULT_ZONE": "x/y"}}));
        let locality = |text: &str, cell: &str| parse(text, cell, &policy.rules("")).unwrap().locality;
        assert_eq!(locality("10.0.0.1:80", "GZ00A"), Some("cn-gz/a".into()));
        assert_eq!(locality("10.0.0.1:80?zone=GZ00A", "other"), Some("cn-gz/a".into()));
        assert_eq!(locality("10.0.0.1:80?zone=GZ00B", "GZ00A"), None, "what the URL says is nearer");
        assert_eq!(locality("10.0.0.1:80", "DEFAULT_ZONE"), None);
    }

    #[test]
    fn label_values_are_made_legal() {
        assert_eq!(label_value("-a b/c_"), Some("a-b-c".into()));
        assert_eq!(label_value("---"), None);
        assert_eq!(label_value(&"x".repeat(100)).unwrap().len(), 63);
        let zoned = parse("10.0.0.1:80", "RZ 1", &policy(serde_json::json!({})).rules("")).unwrap();
        assert_eq!(zoned.labels.get("zone"), Some("RZ-1"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*", cell in "\\PC*") {
            let _ = parse(&text, &cell, &policy(serde_json::json!({})).rules(""));
            let _ = parse(&format!("10.0.0.1:80?{text}"), &cell, &policy(serde_json::json!({})).rules(""));
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
            let policy = Policy::new(serde_json::from_value(policy).unwrap(), None, "ns").unwrap();
            parsed(publication, &policy.rules("a"), usize::MAX)
        };
        let mut before = read(serde_json::json!({}));
        for (policy, again) in [
            (serde_json::json!({"exclude": ["b"], "exportTo": ["~"], "ports": {"bolt": 1}}), false),
            (serde_json::json!({"direct": {"applications": ["*"]}, "overrides": {"a": {"port": 1}}}), false),
            (serde_json::json!({"overrides": {"a": {"port": 2, "host": "a.b"}}}), false),
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

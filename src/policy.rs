//! What an operator decides about services and endpoints; replaceable while running, as one document.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::{
    digest::{self, hex},
    error::{Error, Result},
    istio::{grammar::is_kubernetes_label, rule::Rule, validate},
    translate::payload::Reject,
};

/// The document under `mox.policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Globs (`*`, `?`) on dataInfoIds; a service that matches none is not served. An empty list is every service.
    pub include: Vec<String>,
    /// Globs on dataInfoIds; a service that matches one is not served, whatever `include` says.
    pub exclude: Vec<String>,
    /// `exportTo` of every ServiceEntry: namespaces, `.`, `*` or `~`.
    pub export_to: Vec<String>,
    /// Service port numbers by protocol, in place of the usual ones.
    pub ports: BTreeMap<String, u16>,
    /// URL parameters of publishers that become endpoint labels.
    pub labels: Vec<String>,
    /// Istio localities, `region`, `region/zone` or `region/zone/subzone`, by the zone or cell of a publisher.
    pub locality: BTreeMap<String, String>,
    /// Which addresses publishers may name.
    pub endpoints: EndpointPolicy,
    /// Which endpoints are called with mTLS; the first rule that matches decides.
    pub mtls: Vec<MtlsRule>,
    /// Entries for consumers that dial providers' addresses.
    pub direct: DirectPolicy,
    /// Exceptions for services, by a glob on their dataInfoIds. Where several match, the one with the most characters
    /// that are no wildcards decides, then the first by its text; each setting by itself.
    pub overrides: BTreeMap<String, Override>,
}

/// `mox.policy.overrides.<glob>`: what is another for some services. What is not set stays as it is for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Override {
    /// The whole host. Of several services with one host the bytewise smallest dataInfoId has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The service port's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The service port's protocol, one of Istio's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// As [`PolicyConfig::export_to`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_to: Option<Vec<String>>,
    /// Publishers may name hosts; Envoy resolves them (resolution `DNS`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<bool>,
    /// As [`PolicyConfig::labels`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
}

impl Override {
    /// One with every setting, for readers that need to know their types.
    pub(crate) fn full() -> Self {
        let (text, list) = (Some(String::new()), Some(Vec::new()));
        Self {
            host: text.clone(),
            port: Some(0),
            protocol: text,
            export_to: list.clone(),
            dns: Some(false),
            labels: list,
        }
    }
}

/// `mox.policy.endpoints`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EndpointPolicy {
    /// If not empty, only addresses in these ranges.
    pub allow: Vec<IpNet>,
    /// No addresses in these ranges.
    pub deny: Vec<IpNet>,
    /// Serve loopback addresses, for demos on one machine.
    pub allow_loopback: bool,
}

/// `mox.policy.mtls[<n>]`: endpoints of these applications, in these ranges and zones are called with mTLS. What is empty
/// matches all, but not everything may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MtlsRule {
    /// Globs on application names.
    pub applications: Vec<String>,
    /// Ranges of addresses.
    pub cidrs: Vec<IpNet>,
    /// Zones, as publishers name them.
    pub zones: Vec<String>,
    /// Whom the provider's certificate must name, as `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`; none:
    /// anyone whom the mesh's authority has certified.
    pub identities: Vec<String>,
}

/// `mox.policy.direct`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DirectPolicy {
    /// Globs on application names; none: no such entries.
    pub applications: Vec<String>,
    /// Who chooses the provider.
    pub balance: Balance,
}

/// Who chooses the provider of a call to an address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// The consumer: the call goes where it was dialed to.
    #[default]
    Client,
    /// The proxy: any provider of the application's port.
    Mesh,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            include: vec!["*".to_owned()],
            exclude: Vec::new(),
            export_to: vec!["*".to_owned()],
            ports: BTreeMap::new(),
            labels: Vec::new(),
            locality: BTreeMap::new(),
            endpoints: EndpointPolicy::default(),
            mtls: Vec::new(),
            direct: DirectPolicy::default(),
            overrides: BTreeMap::new(),
        }
    }
}

/// A checked [`PolicyConfig`], ready to ask.
#[derive(Debug)]
pub struct Policy {
    config: PolicyConfig,
    include: Vec<WildMatch>,
    exclude: Vec<WildMatch>,
    direct: Vec<WildMatch>,
    mtls: Vec<(Vec<WildMatch>, Arc<[String]>)>,
    /// The most specific first.
    overrides: Vec<(WildMatch, Override)>,
    vip_range: Option<IpNet>,
    hash: String,
    reading: u64,
}

impl Policy {
    /// Checks the whole document; an error names every mistake, a line each.
    pub fn new(config: PolicyConfig, vip_range: Option<IpNet>) -> Result<Self> {
        let errors = config.errors();
        if !errors.is_empty() {
            return Err(Error::Config(errors.join("\n")));
        }
        let mut overrides: Vec<(&String, &Override)> = config.overrides.iter().collect();
        overrides.sort_by_key(|(glob, _)| std::cmp::Reverse(glob.chars().filter(|c| !"*?".contains(*c)).count()));
        let hash = digest(&config)?;
        let reads = |exception: &Override| (exception.dns, exception.labels.clone());
        let exceptions = config.overrides.iter().map(|(glob, it)| (glob, reads(it)));
        let exceptions: Vec<_> = exceptions.filter(|(_, reads)| *reads != (None, None)).collect();
        let reading =
            digest(&(&config.labels, &config.locality, &config.endpoints, &config.mtls, exceptions, vip_range))?;
        Ok(Self {
            include: config.include.iter().map(|glob| WildMatch::new(glob)).collect(),
            exclude: config.exclude.iter().map(|glob| WildMatch::new(glob)).collect(),
            direct: config.direct.applications.iter().map(|glob| WildMatch::new(glob)).collect(),
            mtls: config.mtls.iter().map(MtlsRule::compiled).collect(),
            overrides: overrides.into_iter().map(|(glob, it)| (WildMatch::new(glob), it.clone())).collect(),
            vip_range,
            hash: hex(&hash),
            reading: u64::from_be_bytes(reading),
            config,
        })
    }

    /// Equal for two policies under which every publisher's payloads are read alike; what was read under one holds under
    /// the other.
    pub fn reading(&self) -> u64 {
        self.reading
    }

    /// Whether entries for consumers that dial addresses are made alike, of the same endpoints.
    pub fn makes_direct_as(&self, other: &Self) -> bool {
        self.config.direct == other.config.direct && self.config.export_to == other.config.export_to
    }

    /// Equal documents have equal hashes, on every session server.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether a service is served at all.
    pub fn serves(&self, data_info_id: &str) -> bool {
        let any = |globs: &[WildMatch]| globs.iter().any(|glob| glob.matches(data_info_id));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// Whether an address may be an endpoint.
    pub fn check_address(&self, address: IpAddr) -> Result<(), Reject> {
        let endpoints = &self.config.endpoints;
        let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&address));
        let link_local_or_broadcast = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if address.is_unspecified()
            || address.is_multicast()
            || link_local_or_broadcast
            || (address.is_loopback() && !endpoints.allow_loopback)
        {
            Err(Reject::UnusableAddress)
        } else if self.vip_range.is_some_and(|range| range.contains(&address)) {
            Err(Reject::VipRange)
        } else if within(&endpoints.deny) || !(endpoints.allow.is_empty() || within(&endpoints.allow)) {
            Err(Reject::Denied)
        } else {
            Ok(())
        }
    }

    /// Whom an endpoint's certificate must name; `None`: it is called without mTLS.
    pub fn mtls(
        &self,
        address: Option<IpAddr>,
        application: Option<&str>,
        zone: Option<&str>,
    ) -> Option<Arc<[String]>> {
        let matches = |(rule, (applications, _)): &(&MtlsRule, &(Vec<WildMatch>, Arc<[String]>))| {
            let named = |glob: &WildMatch| application.is_some_and(|application| glob.matches(application));
            let inside = |range: &IpNet| address.is_some_and(|address| range.contains(&address));
            (applications.is_empty() || applications.iter().any(named))
                && (rule.cidrs.is_empty() || rule.cidrs.iter().any(inside))
                && (rule.zones.is_empty() || rule.zones.iter().any(|known| Some(known.as_str()) == zone))
        };
        let found = self.config.mtls.iter().zip(&self.mtls).find(matches);
        found.map(|(_, (_, identities))| Arc::clone(identities))
    }

    /// Whether that of any application may.
    pub fn has_direct(&self) -> bool {
        !self.direct.is_empty()
    }

    /// Whether an application's consumers may dial addresses.
    pub fn is_direct(&self, application: &str) -> bool {
        self.direct.iter().any(|glob| glob.matches(application))
    }

    /// Who chooses the provider there.
    pub fn balance(&self) -> Balance {
        self.config.direct.balance
    }

    /// `exportTo` of what belongs to no single service.
    pub fn export_to(&self) -> &[String] {
        &self.config.export_to
    }

    /// What is decided for one service.
    pub fn rules<'a>(&'a self, data_info_id: &str) -> Rules<'a> {
        let matching: Vec<&Override> = self
            .overrides
            .iter()
            .filter(|(glob, _)| glob.matches(data_info_id))
            .map(|(_, exception)| exception)
            .collect();
        let PolicyConfig { export_to, labels, .. } = &self.config;
        Rules {
            policy: self,
            host: matching.iter().find_map(|it| it.host.as_deref()),
            port: matching.iter().find_map(|it| it.port),
            protocol: matching.iter().find_map(|it| it.protocol.as_deref()),
            export_to: matching.iter().find_map(|it| it.export_to.as_ref()).unwrap_or(export_to),
            dns: matching.iter().find_map(|it| it.dns).unwrap_or_default(),
            labels: matching.iter().find_map(|it| it.labels.as_ref()).unwrap_or(labels),
        }
    }

    /// The locality of a zone or cell.
    pub fn locality(&self, zone: &str) -> Option<&str> {
        self.config.locality.get(zone).map(String::as_str)
    }

    /// The service port that replaces a protocol's usual one.
    pub fn port(&self, protocol: &str) -> Option<u16> {
        self.config.ports.iter().find(|(name, _)| name.eq_ignore_ascii_case(protocol)).map(|(_, port)| *port)
    }
}

/// The first bytes of a SHA-256 over a part of a document.
fn digest(part: &impl Serialize) -> Result<[u8; 8]> {
    let json = serde_json::to_vec(part).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(digest::prefix_of(json))
}

/// A policy as it is for one service.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// What holds for all services.
    pub policy: &'a Policy,
    /// The whole host, in place of the one made from the dataInfoId.
    pub host: Option<&'a str>,
    /// The service port's number, in place of that of its protocol.
    pub port: Option<u16>,
    /// The service port's protocol in Istio.
    pub protocol: Option<&'a str>,
    /// `exportTo` of the ServiceEntry.
    pub export_to: &'a [String],
    /// Whether publishers may name hosts.
    pub dns: bool,
    /// URL parameters that become labels.
    pub labels: &'a [String],
}

impl PolicyConfig {
    /// Every mistake that its types let pass.
    pub(crate) fn errors(&self) -> Vec<String> {
        let mut errors = Vec::new();
        check_labels("policy", &self.labels, &mut errors);
        for (protocol, port) in &self.ports {
            if *port == 0 {
                errors.push(format!("policy.ports.{protocol}: 0 is no port; allowed are 1 to 65535"));
            }
        }
        check_export_to("policy", &self.export_to, &mut errors);
        for (zone, locality) in &self.locality {
            if !is_locality(locality) {
                errors.push(format!(
                    "policy.locality.{zone}: \"{locality}\" is no locality; allowed are region, region/zone and \
                     region/zone/subzone of 1 to 63 letters, digits, '-', '_' and '.' each"
                ));
            }
        }
        self.mtls.iter().enumerate().for_each(|(index, rule)| check_mtls(index, rule, &mut errors));
        self.overrides.iter().for_each(|(glob, exception)| check_override(glob, exception, &mut errors));
        errors
    }
}

impl MtlsRule {
    fn compiled(&self) -> (Vec<WildMatch>, Arc<[String]>) {
        let mut identities = self.identities.clone();
        identities.sort();
        identities.dedup();
        (self.applications.iter().map(|glob| WildMatch::new(glob)).collect(), identities.into())
    }
}

fn check_mtls(index: usize, rule: &MtlsRule, errors: &mut Vec<String>) {
    if rule.applications.is_empty() && rule.cidrs.is_empty() && rule.zones.is_empty() {
        errors.push(format!(
            "policy.mtls[{index}]: it names no applications, cidrs or zones; to match all, say applications: [\"*\"]"
        ));
    }
    for identity in &rule.identities {
        let parts: Vec<&str> = identity.strip_prefix("spiffe://").unwrap_or_default().split('/').collect();
        if !matches!(parts[..], [domain, "ns", namespace, "sa", account] if ![domain, namespace, account].contains(&""))
        {
            errors.push(format!(
                "policy.mtls[{index}].identities: \"{identity}\" is none; it is spiffe://<trust domain>/ns/<namespace>/sa/<account>"
            ));
        }
    }
}

fn check_override(glob: &str, exception: &Override, errors: &mut Vec<String>) {
    let path = format!("policy.overrides.{glob}");
    if let Some(host) = &exception.host
        && (!validate::is_service_host(host) || host.chars().any(|c| c.is_ascii_uppercase()))
    {
        errors.push(format!(
            "{path}.host: \"{host}\" is not possible; it needs two or more lower-case DNS labels, the last no number"
        ));
    }
    if exception.port == Some(0) {
        errors.push(format!("{path}.port: 0 is no port; allowed are 1 to 65535"));
    }
    if let Some(protocol) = &exception.protocol
        && !validate::is_protocol(protocol)
    {
        errors.push(format!("{path}.protocol: \"{protocol}\": {}", Rule::Protocol.remedy()));
    }
    check_export_to(&path, exception.export_to.as_deref().unwrap_or_default(), errors);
    check_labels(&path, exception.labels.as_deref().unwrap_or_default(), errors);
}

fn check_labels(path: &str, labels: &[String], errors: &mut Vec<String>) {
    for key in labels {
        if let Some(remedy) = refuse_label(key) {
            errors.push(format!("{path}.labels: \"{key}\" cannot be a label: {remedy}"));
        }
    }
}

fn is_locality(text: &str) -> bool {
    let legal = |part: &str| {
        (1..=63).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    text.split('/').count() <= 3 && text.split('/').all(legal)
}

/// `exportTo` as Istio's validation takes it: `*` and `~` stand alone, nothing twice, else `.` or namespaces.
fn check_export_to(path: &str, export_to: &[String], errors: &mut Vec<String>) {
    const ALLOWED: &str = "allowed are \"*\" or \"~\" alone, \".\", and namespaces (DNS labels)";
    let mut seen = std::collections::BTreeSet::new();
    for value in export_to {
        let alone = matches!(value.as_str(), "*" | "~");
        if !(alone || value == "." || is_kubernetes_label(value))
            || (alone && export_to.len() > 1)
            || !seen.insert(value)
        {
            errors.push(format!("{path}.exportTo: \"{value}\" is not possible here; {ALLOWED}, each once"));
        }
    }
}

/// Why a publisher's parameter cannot be a label key. Keys of Istio and Kubernetes steer the mesh and are the
/// operator's alone.
fn refuse_label(key: &str) -> Option<&'static str> {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let legal_name = name.len() <= 63
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && alphanumeric(name.chars().next())
        && alphanumeric(name.chars().last());
    let reserved = |domain: &str| prefix.is_some_and(|p| p == domain || p.ends_with(&format!(".{domain}")));
    if reserved("istio.io") || prefix.is_some_and(|p| p.ends_with("kubernetes.io")) || prefix == Some("sofa.registry") {
        Some("names under istio.io, kubernetes.io and sofa.registry steer the mesh")
    } else if !legal_name || prefix.is_some_and(|p| p.len() > 253 || !p.split('.').all(is_kubernetes_label)) {
        Some("it needs 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends")
    } else if matches!(key, "app" | "zone") {
        Some("\"app\" and \"zone\" are always made")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: serde_json::Value) -> Result<Policy> {
        Policy::new(serde_json::from_value(json).unwrap(), None)
    }

    #[test]
    fn exclude_beats_include() {
        let policy = policy(serde_json::json!({"include": ["com.example.*"], "exclude": ["*Internal*"]})).unwrap();
        assert!(policy.serves("com.example.Demo:1.0@DEFAULT#@#x#@#SOFA"));
        assert!(!policy.serves("com.example.InternalDemo:1.0@DEFAULT#@#x#@#SOFA"));
        assert!(!policy.serves("org.example.Demo:1.0@DEFAULT#@#x#@#SOFA"));
    }

    #[test]
    fn an_include_left_blank_is_no_reason_to_serve_nothing() {
        assert!(policy(serde_json::json!({"include": []})).unwrap().serves("any"));
    }

    #[test]
    fn a_bad_document_is_refused_with_every_mistake() {
        let labels = ["security.istio.io/tlsMode", "istio.io/rev", "x.kubernetes.io/y", "-a", "app", "rpcVer"];
        let bad = policy(serde_json::json!({"labels": labels, "exportTo": ["*", "a"], "ports": {"bolt": 0}}));
        let text = bad.unwrap_err().to_string();
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(text.contains("policy.ports.bolt: 0") && text.contains("policy.exportTo: \"*\""), "{text}");
    }

    #[test]
    fn of_several_overrides_the_most_specific_decides_each_setting() {
        let policy = policy(serde_json::json!({"exportTo": ["."], "overrides": {
            "*": {"port": 1, "exportTo": ["~"], "dns": true},
            "com.example.*": {"port": 2, "protocol": "HTTP"},
            "com.example.Demo*": {"host": "demo.example.com", "dns": false},
            "com.example.?emo*": {"host": "other.example.com"},
        }}))
        .unwrap();
        let rules = policy.rules("com.example.Demo:1.0@DEFAULT#@#x#@#SOFA");
        assert_eq!((rules.host, rules.port, rules.protocol), (Some("demo.example.com"), Some(2), Some("HTTP")));
        assert_eq!((rules.dns, rules.export_to), (false, &["~".to_owned()][..]));
        let rules = policy.rules("org.example");
        assert_eq!((rules.host, rules.port, rules.dns), (None, Some(1), true));
    }

    #[test]
    fn a_bad_override_or_locality_is_named_with_its_path() {
        let bad = policy(serde_json::json!({
            "locality": {"RZ1": "a//b", "RZ2": "a/b/c/d", "RZ3": "cn-hz/rz3"},
            "overrides": {"x*": {"host": "Demo.Example.com", "port": 0, "protocol": "bolt", "exportTo": ["~", "."],
                                 "labels": ["sofa.registry/service"]}},
        }));
        let text = bad.unwrap_err().to_string();
        assert_eq!(text.lines().count(), 7, "{text}");
        for says in ["locality.RZ1", "locality.RZ2", "overrides.x*.host", "x*.port", "x*.protocol", "x*.labels"] {
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn the_first_mtls_rule_that_matches_decides() {
        let identity = "spiffe://cluster.local/ns/orders/sa/orders";
        let policy = policy(serde_json::json!({"mtls": [
            {"applications": ["ord*"], "cidrs": ["10.0.0.0/8"], "identities": [identity]},
            {"zones": ["RZ1"]},
        ]}))
        .unwrap();
        let ask = |address: &str, application, zone| policy.mtls(address.parse().ok(), application, zone);
        assert_eq!(ask("10.1.1.1", Some("orders"), None).as_deref(), Some(&[identity.to_owned()][..]));
        assert_eq!(ask("11.1.1.1", Some("orders"), None), None);
        assert_eq!(ask("10.1.1.1", None, Some("RZ2")), None);
        assert_eq!(ask("10.1.1.1", Some("orders"), Some("RZ1")).unwrap().len(), 1);
        assert_eq!(ask("11.1.1.1", None, Some("RZ1")).unwrap().len(), 0);
        let bad = super::tests::policy(serde_json::json!({"mtls": [{}, {"zones": ["a"], "identities": ["orders"]}]}));
        let text = bad.unwrap_err().to_string();
        assert!(
            text.contains("policy.mtls[0]: it names no") && text.contains("policy.mtls[1].identities: \"orders\""),
            "{text}"
        );
    }

    #[test]
    fn equal_documents_have_equal_hashes() {
        let hash = |json| policy(json).unwrap().hash().to_owned();
        assert_eq!(hash(serde_json::json!({})), hash(serde_json::json!({"include": ["*"]})));
        assert_ne!(hash(serde_json::json!({})), hash(serde_json::json!({"include": ["a"]})));
    }
}

//! What an operator decides about services and endpoints; replaceable while running, as one document.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wildmatch::WildMatch;

use crate::{
    error::{Error, Result},
    translate::{names::hex, payload::Reject},
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
    /// Which addresses publishers may name.
    pub endpoints: EndpointPolicy,
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

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            include: vec!["*".to_owned()],
            exclude: Vec::new(),
            export_to: vec!["*".to_owned()],
            ports: BTreeMap::new(),
            labels: Vec::new(),
            endpoints: EndpointPolicy::default(),
        }
    }
}

/// A checked [`PolicyConfig`], ready to ask.
#[derive(Debug)]
pub struct Policy {
    config: PolicyConfig,
    include: Vec<WildMatch>,
    exclude: Vec<WildMatch>,
    vip_range: Option<IpNet>,
    hash: String,
    generation: u64,
}

impl Policy {
    /// Checks the whole document; an error names every mistake, a line each.
    pub fn new(config: PolicyConfig, vip_range: Option<IpNet>) -> Result<Self> {
        static GENERATION: AtomicU64 = AtomicU64::new(0);
        let mut errors = Vec::new();
        for key in &config.labels {
            if let Some(remedy) = refuse_label(key) {
                errors.push(format!("policy.labels: \"{key}\" cannot be a label: {remedy}"));
            }
        }
        for (protocol, port) in &config.ports {
            if *port == 0 {
                errors.push(format!("policy.ports.{protocol}: 0 is no port; allowed are 1 to 65535"));
            }
        }
        check_export_to(&config.export_to, &mut errors);
        if !errors.is_empty() {
            return Err(Error::Config(errors.join("\n")));
        }
        let json = serde_json::to_vec(&config).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(Self {
            include: config.include.iter().map(|glob| WildMatch::new(glob)).collect(),
            exclude: config.exclude.iter().map(|glob| WildMatch::new(glob)).collect(),
            vip_range,
            hash: hex(&Sha256::digest(json)[..8]),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            config,
        })
    }

    /// Differs between any two policies of a process; what was derived under one is stale under the other.
    pub fn generation(&self) -> u64 {
        self.generation
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

    /// URL parameters that become labels.
    pub fn labels(&self) -> &[String] {
        &self.config.labels
    }

    /// `exportTo` of every ServiceEntry.
    pub fn export_to(&self) -> &[String] {
        &self.config.export_to
    }

    /// The service port that replaces a protocol's usual one.
    pub fn port(&self, protocol: &str) -> Option<u16> {
        self.config.ports.iter().find(|(name, _)| name.eq_ignore_ascii_case(protocol)).map(|(_, port)| *port)
    }
}

/// `exportTo` as Istio's validation takes it: `*` and `~` stand alone, nothing twice, else `.` or namespaces.
fn check_export_to(export_to: &[String], errors: &mut Vec<String>) {
    const ALLOWED: &str = "allowed are \"*\" or \"~\" alone, \".\", and namespaces (DNS labels)";
    let mut seen = std::collections::BTreeSet::new();
    for value in export_to {
        let alone = matches!(value.as_str(), "*" | "~");
        if !(alone || value == "." || is_dns_label(value)) || (alone && export_to.len() > 1) || !seen.insert(value) {
            errors.push(format!("policy.exportTo: \"{value}\" is not possible here; {ALLOWED}, each once"));
        }
    }
}

pub(crate) fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
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
    if reserved("istio.io") || reserved("kubernetes.io") || prefix.is_some_and(|p| p.ends_with("kubernetes.io")) {
        Some("names under istio.io and kubernetes.io steer the mesh")
    } else if !legal_name || prefix.is_some_and(|p| p.len() > 253 || !p.split('.').all(is_dns_label)) {
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
    fn equal_documents_have_equal_hashes() {
        let hash = |json| policy(json).unwrap().hash().to_owned();
        assert_eq!(hash(serde_json::json!({})), hash(serde_json::json!({"include": ["*"]})));
        assert_ne!(hash(serde_json::json!({})), hash(serde_json::json!({"include": ["a"]})));
    }
}

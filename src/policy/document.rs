//! The policy as an operator writes it, and every mistake that its types let pass.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::istio::{grammar::is_kubernetes_label, rule::Rule, validate};

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

impl PolicyConfig {
    /// Every mistake that its types let pass, for resources in `namespace`.
    pub(crate) fn errors(&self, namespace: &str) -> Vec<String> {
        let mut errors = Vec::new();
        check_labels("policy", &self.labels, &mut errors);
        for (protocol, port) in &self.ports {
            if *port == 0 {
                errors.push(format!("policy.ports.{protocol}: 0 is no port; allowed are 1 to 65535"));
            }
        }
        check_export_to("policy", &self.export_to, namespace, &mut errors);
        for (zone, locality) in &self.locality {
            if !is_locality(locality) {
                errors.push(format!(
                    "policy.locality.{zone}: \"{locality}\" is no locality; allowed are region, region/zone and \
                     region/zone/subzone of 1 to 63 letters, digits, '-', '_' and '.' each"
                ));
            }
        }
        self.mtls.iter().enumerate().for_each(|(index, rule)| check_mtls(index, rule, &mut errors));
        let overrides = self.overrides.iter();
        overrides.for_each(|(glob, exception)| check_override(glob, exception, namespace, &mut errors));
        errors
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

fn check_override(glob: &str, exception: &Override, namespace: &str, errors: &mut Vec<String>) {
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
    check_export_to(&path, exception.export_to.as_deref().unwrap_or_default(), namespace, errors);
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

/// Istio's grammar, in the namespace that resources have; and no name that no namespace of Kubernetes can have.
fn check_export_to(path: &str, export_to: &[String], namespace: &str, errors: &mut Vec<String>) {
    if let Err(value) = validate::check_export_to(export_to, namespace) {
        let (all, remedy) = (export_to.join(", "), Rule::ExportTo.remedy());
        errors.push(format!(
            "{path}.exportTo: \"{value}\" is not possible in \"{all}\", in namespace {namespace}; {remedy}"
        ));
    } else if let Some(value) = export_to.iter().find(|value| value.bytes().any(|byte| byte.is_ascii_uppercase())) {
        errors.push(format!("{path}.exportTo: \"{value}\" is no namespace; names of namespaces are in lower case"));
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

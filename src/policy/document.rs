//! The policy as an operator writes it, and every mistake that its types let pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    duration,
    error::Mistake,
    istio::{
        grammar::{KUBERNETES_NAMES, is_kubernetes_label, is_kubernetes_name},
        rule::Rule,
        validate,
    },
    model::PROTOCOLS,
    policy::visibility::{Mode, VisibilityPolicy},
};

/// Each address that lingers is a listener in every proxy that sees its entry.
const MOST_LINGER: Duration = Duration::from_secs(600);

/// Istio takes whole milliseconds from one on.
const WARMUP: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Below, a round that is late takes a service from who needs it; above, nothing ever goes.
const HOLD: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);

/// The document under `mox.policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Globs (`*`, `?`) on dataIds or dataInfoIds, of which a service has to match one to be served; none: every service is.
    /// Default: `*`.
    pub include: Vec<String>,
    /// Globs on dataIds or dataInfoIds; a service that matches one is not served, whatever `include` says. Default: none.
    pub exclude: Vec<String>,
    /// `exportTo` of every ServiceEntry: `*` or `~` alone, or namespaces, of which `.` is the own one. Default: `*`.
    pub export_to: Vec<String>,
    /// Service port numbers by protocol, 1 to 65535, in place of the usual ones: bolt, tr 12200; tri, triple, grpc 50051; dubbo 20880;
    /// rest 8341; h2c, http 8080. What speaks another protocol is served only if it is named here, as TCP. Default: none.
    pub ports: BTreeMap<String, u16>,
    /// URL parameters of publishers that become endpoint labels, beside `app` and `zone`. Default: none.
    pub labels: Vec<String>,
    /// Istio localities, `region`, `region/zone` or `region/zone/subzone`, by the zone or cell of a publisher; where that is not
    /// named, by the prefix (CIDR) that its address is in, the longest first; else by `*`. Default: none.
    pub locality: BTreeMap<String, String>,
    /// Which addresses publishers may name.
    pub endpoints: EndpointPolicy,
    /// Which endpoints are called with mTLS; the first rule that matches decides. Default: none.
    pub mtls: Vec<MtlsRule>,
    /// Entries for consumers that dial providers' addresses.
    pub direct: DirectPolicy,
    /// Which namespaces see a service, by who subscribes to it.
    #[serde(skip_serializing_if = "VisibilityPolicy::is_default")]
    pub visibility: VisibilityPolicy,
    /// Exceptions for services, by a glob on their dataIds, or, with a `#` in it, on their dataInfoIds. Where several match, the
    /// one with the most characters that are no wildcards decides, then the first by its text; each setting by itself. Default:
    /// none.
    pub overrides: BTreeMap<String, Override>,
}

/// `mox.policy.overrides[<glob>]`: settings that some services have of their own. A setting that is left out is as for all
/// services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Override {
    /// The whole host: two or more DNS labels in lower case, no name that Kubernetes gives to Services. Of several
    /// services with one host the one that is served under it and has endpoints keeps it, else the bytewise smallest
    /// dataInfoId has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Number of the service port, 1 to 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Protocol of the service port, one of Istio's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// As [`PolicyConfig::export_to`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_to: Option<Vec<String>>,
    /// Whether publishers may name hosts, which Envoy resolves (resolution `DNS`); else they may not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<bool>,
    /// As [`PolicyConfig::labels`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// How long the share of calls grows that a new endpoint gets, 1 s to 1 day, in whole milliseconds; else it gets a full one
    /// at once.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Duration>,
    /// As [`VisibilityPolicy::mode`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visibility: Option<Mode>,
}

/// `mox.policy.endpoints`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EndpointPolicy {
    /// Ranges that an endpoint's address has to be in. Left out in any case are ranges that are nobody's service: loopback,
    /// link-local, multicast, `0.0.0.0/8`, `240.0.0.0/4`, the virtual addresses and the metadata services of clouds
    /// (169.254.169.254, 100.100.100.200, 168.63.129.16, fd00:ec2::254). A part of them is opened by naming just that, as
    /// `100.100.100.200/32`; with `0.0.0.0/0` and `::/0` beside it all others stay allowed. An IPv6 address that carries an IPv4 one
    /// is judged as both. Default: none, which means all addresses.
    pub allow: Vec<IpNet>,
    /// Ranges that no endpoint's address may be in, whatever `allow` says. Default: none.
    pub deny: Vec<IpNet>,
    /// Whether loopback addresses are served, for demos on one machine. Default: false.
    pub allow_loopback: bool,
}

/// `mox.policy.mtls[<n>]`: endpoints of these applications, in these ranges and zones are called with mTLS. A list that is
/// empty matches all, but not all three may be empty.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DirectPolicy {
    /// Globs on the names of the providers' applications that have such entries. Default: none.
    pub applications: Vec<String>,
    /// Who chooses the provider. Default: `client`.
    pub balance: Balance,
    /// Ranges of addresses that anybody may publish with `balance: mesh`; others only those who connect to the registry from
    /// them. Default: none.
    pub addresses: Vec<IpNet>,
    /// How long an address stays in its entry after its provider went, 0 to 10 minutes: a consumer hears of that later than its
    /// proxy, and would else dial past the mesh. Default: 60 s.
    #[serde(with = "duration")]
    pub linger: Duration,
    /// Exceptions for applications, by a glob on their names. Where several match, the same one decides as of
    /// [`PolicyConfig::overrides`]. Default: none.
    pub overrides: BTreeMap<String, DirectOverride>,
}

/// `mox.policy.direct.overrides[<glob>]`: settings that the entries of some applications have of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DirectOverride {
    /// As [`PolicyConfig::export_to`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_to: Option<Vec<String>>,
    /// As [`Override::warmup`], where the proxy chooses the provider.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Duration>,
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

impl Default for DirectPolicy {
    fn default() -> Self {
        Self {
            applications: Vec::new(),
            balance: Balance::default(),
            addresses: Vec::new(),
            linger: Duration::from_secs(60),
            overrides: BTreeMap::new(),
        }
    }
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
            visibility: VisibilityPolicy::default(),
            overrides: BTreeMap::new(),
        }
    }
}

impl PolicyConfig {
    /// Every mistake that its types let pass, for resources in `namespace`; `root` is the document's own key.
    pub(crate) fn mistakes(&self, root: &str, namespace: &str) -> Vec<Mistake> {
        let mut mistakes = self.protocol_mistakes(root);
        mistakes.extend(self.mistakes_of_stored(root, namespace));
        mistakes
    }

    /// The names in `ports` that mean nothing. A document that is stored may be older than that was a mistake, and counts all the same.
    pub(crate) fn protocol_mistakes(&self, root: &str) -> Vec<Mistake> {
        let mut checks = Checks { namespace: "", mistakes: Vec::new() };
        let mut known = BTreeSet::new();
        for protocol in self.ports.keys() {
            let key = Mistake::entry(&format!("{root}.ports"), protocol);
            checks.protocol(&key, protocol, known.insert(protocol.to_ascii_lowercase()));
        }
        checks.mistakes
    }

    /// Every other mistake.
    pub(crate) fn mistakes_of_stored(&self, root: &str, namespace: &str) -> Vec<Mistake> {
        let Self {
            include: _,
            exclude: _,
            export_to,
            ports,
            labels,
            locality,
            endpoints: EndpointPolicy { allow: _, deny: _, allow_loopback: _ },
            mtls,
            direct: DirectPolicy { applications: _, balance: _, addresses: _, linger, overrides: direct_overrides },
            visibility,
            overrides,
        } = self;
        let mut checks = Checks { namespace, mistakes: Vec::new() };
        checks.export_to(root, export_to);
        for (protocol, port) in ports {
            checks.port(Mistake::entry(&format!("{root}.ports"), protocol), *port);
        }
        checks.labels(root, labels);
        for (zone, locality) in locality {
            checks.locality(Mistake::entry(&format!("{root}.locality"), zone), locality);
        }
        for (index, rule) in mtls.iter().enumerate() {
            checks.mtls(&format!("{root}.mtls[{index}]"), rule);
        }
        if *linger > MOST_LINGER {
            let (linger, most) = (duration::shown(*linger), duration::shown(MOST_LINGER));
            checks.add(format!("{root}.direct.linger"), format!("{linger} is out of bounds; allowed are 0s to {most}"));
        }
        for (glob, DirectOverride { export_to, warmup }) in direct_overrides {
            let key = Mistake::entry(&format!("{root}.direct.overrides"), glob);
            checks.export_to(&key, export_to.as_deref().unwrap_or_default());
            checks.warmup(&key, *warmup);
        }
        checks.visibility(&format!("{root}.visibility"), visibility);
        for (glob, exception) in overrides {
            checks.exception(&Mistake::entry(&format!("{root}.overrides"), glob), exception);
        }
        checks.mistakes
    }
}

/// The checks of a document and the mistakes that they find.
struct Checks<'a> {
    namespace: &'a str,
    mistakes: Vec<Mistake>,
}

impl Checks<'_> {
    fn add(&mut self, key: String, text: String) {
        self.mistakes.push(Mistake { key, text });
    }

    fn port(&mut self, key: String, port: u16) {
        if port == 0 {
            self.add(key, "0 is no port; allowed are 1 to 65535".to_owned());
        }
    }

    /// A protocol of the operator's own may have any name that stands before `://` or behind the `@` of a dataId.
    fn protocol(&mut self, key: &str, protocol: &str, is_new: bool) {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
        let known = PROTOCOLS.join(", ");
        let wrong = if !protocol.starts_with(|c: char| c.is_ascii_alphabetic()) || !protocol.chars().all(is_part) {
            format!(
                "\"{protocol}\" is no protocol; allowed are {known}, and names of your own: letters, digits, '+', '-', '.' \
                 and '_', a letter first"
            )
        } else if protocol.eq_ignore_ascii_case("DEFAULT") {
            format!("\"{protocol}\" is no protocol of its own but bolt's usual name; say bolt")
        } else if !is_new {
            format!("\"{protocol}\" stands there twice, since case does not count; leave one of them out")
        } else {
            return;
        };
        self.add(key.to_owned(), wrong);
    }

    fn labels(&mut self, root: &str, labels: &[String]) {
        for label in labels {
            if let Some(remedy) = refuse_label(label) {
                self.add(format!("{root}.labels"), format!("\"{label}\" cannot be a label: {remedy}"));
            }
        }
    }

    /// Istio's grammar, in the namespace that resources have; and no name that no namespace of Kubernetes can have.
    fn export_to(&mut self, root: &str, export_to: &[String]) {
        let wrong = if let Err(value) = validate::check_export_to(export_to, self.namespace) {
            let (all, namespace, remedy) = (export_to.join(", "), self.namespace, Rule::ExportTo.remedy());
            format!("\"{value}\" is not possible in \"{all}\", in namespace {namespace}; {remedy}")
        } else if let Some(value) = export_to.iter().find(|value| value.bytes().any(|byte| byte.is_ascii_uppercase())) {
            format!("\"{value}\" is no namespace; names of namespaces are in lower case")
        } else {
            return;
        };
        self.add(format!("{root}.exportTo"), wrong);
    }

    fn locality(&mut self, key: String, locality: &str) {
        if !is_locality(locality) {
            let allowed = "allowed are region, region/zone and region/zone/subzone of 1 to 63 letters, digits, '-', '_' \
                           and '.' each";
            self.add(key, format!("\"{locality}\" is no locality; {allowed}"));
        }
    }

    fn mtls(&mut self, key: &str, rule: &MtlsRule) {
        let MtlsRule { applications, cidrs, zones, identities } = rule;
        if applications.is_empty() && cidrs.is_empty() && zones.is_empty() {
            let text = "it names no applications, cidrs or zones; to match all, say applications: [\"*\"]";
            self.add(key.to_owned(), text.to_owned());
        }
        for identity in identities.iter().filter(|identity| !is_identity(identity)) {
            let allowed = "allowed are spiffe://<trust domain>/ns/<namespace>/sa/<service account>";
            self.add(format!("{key}.identities"), format!("\"{identity}\" is no identity; {allowed}"));
        }
    }

    fn exception(&mut self, key: &str, exception: &Override) {
        let Override { host, port, protocol, export_to, dns: _, labels, warmup, visibility: _ } = exception;
        if let Some(host) = host {
            self.host(format!("{key}.host"), host);
        }
        if let Some(port) = port {
            self.port(format!("{key}.port"), *port);
        }
        if let Some(protocol) = protocol.as_ref().filter(|protocol| !validate::is_protocol(protocol)) {
            let remedy = Rule::Protocol.remedy();
            self.add(format!("{key}.protocol"), format!("\"{protocol}\" is not possible: {remedy}"));
        }
        self.export_to(key, export_to.as_deref().unwrap_or_default());
        self.labels(key, labels.as_deref().unwrap_or_default());
        self.warmup(key, *warmup);
    }

    fn warmup(&mut self, key: &str, warmup: Option<Duration>) {
        if let Some(warmup) = warmup.filter(|warmup| !WARMUP.contains(warmup) || warmup.subsec_nanos() % 1_000_000 > 0)
        {
            let [warmup, least, most] = [warmup, *WARMUP.start(), *WARMUP.end()].map(duration::shown);
            let text = format!("{warmup} is not possible; allowed are {least} to {most}, in whole milliseconds");
            self.add(format!("{key}.warmup"), text);
        }
    }

    fn visibility(&mut self, key: &str, visibility: &VisibilityPolicy) {
        let VisibilityPolicy { mode: _, namespaces, cidrs, kubernetes: _, always, unused: _, hold } = visibility;
        for (glob, names) in namespaces {
            self.namespaces(Mistake::entry(&format!("{key}.namespaces"), glob), names);
        }
        for (range, names) in cidrs {
            self.namespaces(Mistake::entry(&format!("{key}.cidrs"), &range.to_string()), names);
        }
        for name in always.iter().filter(|name| *name != "." && !is_kubernetes_label(name)) {
            self.add(
                format!("{key}.always"),
                format!("\"{name}\" is no namespace; allowed are names of namespaces and \".\""),
            );
        }
        if !HOLD.contains(hold) {
            let [hold, least, most] = [*hold, *HOLD.start(), *HOLD.end()].map(duration::shown);
            self.add(format!("{key}.hold"), format!("{hold} is out of bounds; allowed are {least} to {most}"));
        }
    }

    fn namespaces(&mut self, key: String, names: &[String]) {
        if names.is_empty() {
            self.add(key, "it names no namespace; name one or more, or leave it out".to_owned());
        } else if let Some(name) = names.iter().find(|name| !is_kubernetes_label(name)) {
            self.add(
                key,
                format!("\"{name}\" is no namespace; allowed are lower-case letters, digits and '-', 63 at most"),
            );
        }
    }

    fn host(&mut self, key: String, host: &str) {
        if !validate::is_service_host(host) || host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let allowed = "allowed are two or more lower-case DNS labels, the last no number, as demo.example.com";
            self.add(key, format!("\"{host}\" is not possible; {allowed}"));
        } else if is_kubernetes_name(host) {
            self.add(key, format!("\"{host}\" is not possible: {KUBERNETES_NAMES}"));
        }
    }
}

fn is_identity(text: &str) -> bool {
    let parts: Vec<&str> = text.strip_prefix("spiffe://").unwrap_or_default().split('/').collect();
    matches!(parts[..], [domain, "ns", namespace, "sa", account] if ![domain, namespace, account].contains(&""))
}

fn is_locality(text: &str) -> bool {
    let legal = |part: &str| {
        (1..=63).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    text.split('/').count() <= 3 && text.split('/').all(legal)
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
        Some("names under istio.io, kubernetes.io and sofa.registry steer the mesh; leave it out")
    } else if !legal_name || key.len() > 63 || prefix.is_some_and(|p| !p.split('.').all(is_kubernetes_label)) {
        Some(
            "it needs 1 to 63 letters, digits, '-', '_' or '.', its prefix included, with a letter or digit at both ends",
        )
    } else if matches!(key, "app" | "zone") {
        Some("\"app\" and \"zone\" are always made; leave it out")
    } else if key == "service" {
        Some("a WorkloadEntry has a \"service\" already; leave it out")
    } else {
        None
    }
}

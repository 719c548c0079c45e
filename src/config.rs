//! Node settings: read once, checked whole.
//!
//! The tree may come from Spring (kebab-case keys, every value a string) or from JSON. `normalize` brings it to the
//! shape of the defaults; what the defaults do not have is refused there with the nearest known name.

mod kubernetes;
mod tree;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tree::{normalize, over, tree_of, typed};

use crate::{
    error::{Error, Result},
    istio::grammar::is_kubernetes_label,
    policy::PolicyConfig,
    registry::store,
    snapshot::partition::{MAX_PARTS, Part},
    translate::service_entry::EndpointMode,
};

pub use kubernetes::Kubernetes;

/// What istiod takes of a response, less some for what is not resources.
const MAX_RESPONSE: usize = i32::MAX as usize - (1 << 20);

/// Everything under `mox.` but `enabled`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where istiod connects to.
    pub listen: SocketAddr,
    /// Into how many parts the services are divided, each on a port of its own beside [`Config::listen`]: part k of N listens
    /// on that port + N + k. Powers of two from 2 to 128.
    pub partitions: Vec<usize>,
    /// Certificates of the MoX listeners; without, they are plaintext.
    pub tls: TlsFiles,
    /// Who may connect to MoX and to [`Config::admin_listen`]; empty: everybody.
    pub allow_cidrs: Vec<IpNet>,
    /// Where the admin pages are served besides the session server's own port; none: nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// Which publishers are served.
    pub scope: Scope,
    /// How the registry's data servers are followed; for the host that does it.
    pub cluster: Cluster,
    /// Last part of every host; two DNS labels or more.
    pub host_suffix: String,
    /// Namespace of every resource; it need not exist in Kubernetes.
    pub namespace: String,
    /// Where endpoints stand.
    pub endpoint_mode: EndpointMode,
    /// Range that virtual addresses are taken from; none: no `addresses`.
    pub vip_cidr: Option<IpNet>,
    /// Own threads, 1 to 64.
    pub threads: usize,
    /// How pushes are made.
    pub push: Push,
    /// What protects the mesh from a registry that is not whole.
    pub protect: Protect,
    /// Where the last good state is kept over restarts; none: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Bounds on memory.
    pub limits: Limits,
    /// The other way into the mesh: objects of the Kubernetes API.
    pub kubernetes: Kubernetes,
    /// Who may change something while the engine runs.
    pub admin: Admin,
    /// The policy to start with.
    pub policy: PolicyConfig,
}

/// Which publishers a session server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Those of the local data center, as the data servers know them.
    Cluster,
    /// Those that this session server accepted.
    Local,
}

/// `mox.cluster`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cluster {
    /// How long notices of changed services are gathered before these are read.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub debounce: Duration,
    /// How often everything is compared with the data servers, in case a notice was lost.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub reconcile: Duration,
    /// Most services read in a second.
    pub reads: usize,
    /// Where data servers compare what they have with others (`data.server.syncDataPort`).
    pub sync_port: u16,
}

/// `mox.tls`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TlsFiles {
    /// The server's certificate and its chain, PEM. Read again when it changes.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// Authorities of clients' certificates, PEM; without, clients need none.
    pub client_ca: Option<PathBuf>,
}

/// `mox.admin`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Admin {
    /// What a request has to show that changes something; none: every such request is refused.
    pub token: Option<Secret>,
}

/// A text that no log, page or file shows.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The bytes, to sign with.
    pub fn key(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Whether `given` is the secret; takes as long whatever is wrong with it.
    pub fn is(&self, given: &str) -> bool {
        let (own, given) = (Sha256::digest(&self.0), Sha256::digest(given));
        !self.0.is_empty() && own.iter().zip(given).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// `mox.push`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Push {
    /// How long after the first pending change a snapshot is made, so that a batch becomes one; at most 10 s.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub quiet: Duration,
    /// Share of an istiod's time that pushes may take, from sending one to its ACK; above 0, 1: push as fast as it can take.
    pub duty: f64,
    /// How long a change waits for that at most; 0 to 10 min.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub max: Duration,
    /// Fill the 100 places in which istiod keeps responses for life with empty ones.
    pub prime: bool,
}

/// `mox.protect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Protect {
    /// How long after the start nothing is served. With local scope clients have this time to come back; with cluster
    /// scope the last good state is shown after it where the first complete view is not in.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub startup_hold: Duration,
    /// How long a service without endpoints keeps its entry.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub empty_grace: Duration,
    /// Removals are withheld above this percentage of the services, or of the endpoints, within a minute.
    pub mass_delete_share: usize,
    /// But not for this many services or fewer.
    pub mass_delete_services: usize,
    /// And not for this many endpoints or fewer.
    pub mass_delete_endpoints: usize,
    /// How long removals are withheld at most.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub mass_delete_hold: Duration,
    /// With cluster scope: how old the last good state may be to be served while the first complete view is not in.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub last_good_max_age: Duration,
    /// With cluster scope: how long a session server may be without the data servers before it leaves istiod to others.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub max_staleness: Duration,
}

/// `mox.limits`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Most services.
    pub services: usize,
    /// Most publishers, remembered removals included.
    pub publishers: usize,
    /// Most sources (`registry` and one for each extension).
    pub sources: usize,
    /// Most streams at once; there may be twice as many connections.
    pub streams: usize,
    /// Most of them from one address; istiods behind one NAT share it.
    pub streams_per_address: usize,
    /// Most types one stream may ask for.
    pub types: usize,
    /// Largest request, in bytes. The first of a delta client that comes back lists what it has, about 107 bytes a resource.
    pub request: usize,
    /// Largest response, in bytes. istiod takes less than 2 GiB; what is larger is not sent, and the last one stays.
    pub response: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 9700)),
            partitions: Vec::new(),
            tls: TlsFiles::default(),
            allow_cidrs: Vec::new(),
            admin_listen: None,
            scope: Scope::Cluster,
            cluster: Cluster::default(),
            host_suffix: "sofa.mesh".to_owned(),
            namespace: "sofa-registry".to_owned(),
            endpoint_mode: EndpointMode::Inline,
            vip_cidr: "248.0.0.0/6".parse().ok(),
            threads: 2,
            push: Push::default(),
            protect: Protect::default(),
            state_dir: None,
            limits: Limits::default(),
            kubernetes: Kubernetes::default(),
            admin: Admin::default(),
            policy: PolicyConfig::default(),
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(100),
            reconcile: Duration::from_secs(30),
            reads: 2_000,
            sync_port: 9_621,
        }
    }
}

impl Default for Push {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(1), duty: 0.5, max: Duration::from_secs(5), prime: true }
    }
}

impl Default for Protect {
    fn default() -> Self {
        Self {
            startup_hold: Duration::from_secs(60),
            empty_grace: Duration::from_secs(600),
            mass_delete_share: 30,
            mass_delete_services: 10,
            mass_delete_endpoints: 50,
            mass_delete_hold: Duration::from_secs(600),
            last_good_max_age: Duration::from_secs(600),
            max_staleness: Duration::from_secs(120),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: 200_000,
            publishers: 5_000_000,
            sources: 64,
            streams: 4_096,
            streams_per_address: 1_024,
            types: 64,
            request: 16 << 20,
            response: MAX_RESPONSE,
        }
    }
}

impl Limits {
    /// The part that the store keeps.
    pub fn store(&self) -> store::Limits {
        store::Limits { services: self.services, publishers: self.publishers, sources: self.sources }
    }
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|_| {
        D::Error::custom(format!("\"{text}\" is no duration; allowed are 250ms, 10s, 5m, 1h and the like"))
    })
}

fn to_text<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

impl Config {
    /// Reads and checks a configuration; the error has a line for every mistake that could be found.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        Self::from_json_over(&Self::default(), json)
    }

    /// The same for a program with defaults of its own.
    pub fn from_json_over(defaults: &Self, json: &[u8]) -> Result<Self> {
        let given: Value =
            serde_json::from_slice(json).map_err(|error| Error::Config(format!("mox: this is no JSON: {error}")))?;
        let mut errors = Vec::new();
        let known = tree_of(defaults);
        let tree = normalize("mox", &known, given, &mut errors);
        let config = typed::<Self>("mox", over(known, tree), &mut errors);
        config.iter().for_each(|config| config.check(&mut errors));
        all_or_errors(config, errors)
    }

    fn check(&self, errors: &mut Vec<String>) {
        let mut bounds = |key: &str, value: usize, low: usize, high: usize| {
            if !(low..=high).contains(&value) {
                errors.push(format!("mox.{key}: {value} is out of bounds; allowed are {low} to {high}"));
            }
        };
        bounds("threads", self.threads, 1, 64);
        bounds("push.quiet (ms)", self.push.quiet.as_millis() as usize, 0, 10_000);
        bounds("protect.emptyGrace (s)", self.protect.empty_grace.as_secs() as usize, 0, 365 * 86_400);
        bounds("protect.massDeleteShare (%)", self.protect.mass_delete_share, 0, 100);
        bounds("protect.massDeleteHold (s)", self.protect.mass_delete_hold.as_secs() as usize, 0, 365 * 86_400);
        bounds("protect.lastGoodMaxAge (s)", self.protect.last_good_max_age.as_secs() as usize, 0, 365 * 86_400);
        bounds("protect.maxStaleness (s)", self.protect.max_staleness.as_secs() as usize, 10, 86_400);
        bounds("cluster.debounce (ms)", self.cluster.debounce.as_millis() as usize, 0, 10_000);
        bounds("cluster.reconcile (ms)", self.cluster.reconcile.as_millis() as usize, 1_000, 3_600_000);
        bounds("cluster.reads", self.cluster.reads, 1, 1_000_000);
        bounds("limits.services", self.limits.services, 1, 10_000_000);
        bounds("limits.publishers", self.limits.publishers, 1, 100_000_000);
        bounds("limits.sources", self.limits.sources, 1, 1_024);
        bounds("limits.streams", self.limits.streams, 1, 100_000);
        bounds("limits.streamsPerAddress", self.limits.streams_per_address, 1, 100_000);
        bounds("limits.response", self.limits.response, 1 << 10, MAX_RESPONSE);
        bounds("push.max (ms)", self.push.max.as_millis() as usize, 0, 600_000);
        bounds("limits.types", self.limits.types, 16, 1_024);
        bounds("limits.request", self.limits.request, 1_024, 256 << 20);
        if !(self.push.duty > 0.0 && self.push.duty <= 1.0) {
            errors.push(format!("mox.push.duty: {} is out of bounds; it is above 0 and at most 1", self.push.duty));
        }
        for (index, count) in self.partitions.iter().enumerate() {
            if *count < 2 || Part::new(0, *count).is_none() || self.partitions[..index].contains(count) {
                errors.push(format!(
                    "mox.partitions: {count} is not possible; they are powers of two from 2 to {MAX_PARTS}, each once"
                ));
            }
        }
        // Part k of N has the port + N + k.
        let highest = self.partitions.iter().map(|count| 2 * count).max().unwrap_or_default();
        if self.listen.port() != 0 && usize::from(self.listen.port()) + highest > 1 << 16 {
            errors.push(format!("mox.listen: port {} leaves no ports for mox.partitions above it", self.listen.port()));
        }
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            errors.push("mox.tls: cert and key go together".to_owned());
        } else if self.tls.client_ca.is_some() && self.tls.cert.is_none() {
            errors.push("mox.tls.clientCa: without cert and key there is no TLS that it would be for".to_owned());
        }
        let labels: Vec<&str> = self.host_suffix.split('.').collect();
        let numeric_end = labels.last().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if labels.len() < 2
            || !labels.iter().all(|l| is_kubernetes_label(l))
            || self.host_suffix.len() > 100
            || numeric_end
        {
            errors.push(format!(
                "mox.hostSuffix: \"{}\" is not possible; it needs two or more lower-case DNS labels, the last no \
                 number, 100 characters at most",
                self.host_suffix
            ));
        }
        if !is_kubernetes_label(&self.namespace) {
            errors.push(format!("mox.namespace: \"{}\" is no DNS label", self.namespace));
        }
        errors.extend(self.policy.errors().into_iter().map(|error| format!("mox.{error}")));
        errors.extend(self.kubernetes.errors());
    }
}

/// Reads a policy document as it comes from an operator or an extension; the error has a line for every mistake.
pub fn policy_from_json(document: Value) -> Result<PolicyConfig> {
    let mut errors = Vec::new();
    let tree = normalize("policy", &tree_of(&PolicyConfig::default()), document, &mut errors);
    let policy = typed::<PolicyConfig>("policy", tree, &mut errors);
    policy.iter().for_each(|policy| errors.extend(policy.errors()));
    all_or_errors(policy, errors)
}

fn all_or_errors<T>(read: Option<T>, errors: Vec<String>) -> Result<T> {
    read.filter(|_| errors.is_empty()).ok_or_else(|| Error::Config(errors.join("\n")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn read(json: &str) -> Result<Config> {
        Config::from_json(json.as_bytes())
    }

    fn error(json: &str) -> String {
        read(json).unwrap_err().to_string()
    }

    #[test]
    fn nothing_given_is_the_defaults() {
        assert_eq!(read("{}").unwrap(), Config::default());
    }

    #[test]
    fn spring_text_and_typed_json_mean_the_same() {
        let spring = read(
            r#"{"listen": "127.0.0.1:0", "host-suffix": "a.mesh", "threads": "4", "vip-cidr": "",
                "push": {"prime": "false", "QUIET": "5ms"}, "protect": {"startup-hold": "2s", "emptygrace": "1m"},
                "policy": {"include": "com.*, org.*", "labels": {"0": "x", "1": "y"}, "ports": {"bolt": "12300"},
                           "endpoints": {"allow-loopback": "TRUE", "deny": "10.0.0.0/8"}}}"#,
        );
        let json = read(
            r#"{"listen": "127.0.0.1:0", "hostSuffix": "a.mesh", "threads": 4, "vipCidr": null,
                "push": {"prime": false, "quiet": "5ms"}, "protect": {"startupHold": "2s", "emptyGrace": "60s"},
                "policy": {"include": ["com.*", "org.*"], "labels": ["x", "y"], "ports": {"bolt": 12300},
                           "endpoints": {"allowLoopback": true, "deny": ["10.0.0.0/8"]}}}"#,
        );
        assert_eq!(spring.unwrap(), json.unwrap());
    }

    #[test]
    fn partitions_and_pacing_are_read_from_text_too() {
        let spring = read(r#"{"partitions": {"0": "16", "1": "64"}, "push": {"duty": "0.25", "max": "1s"}}"#).unwrap();
        let text = read(r#"{"partitions": "16, 64", "push": {"duty": 0.25, "max": "1s"}}"#).unwrap();
        assert_eq!((&spring, spring.partitions.as_slice()), (&text, &[16, 64][..]));
    }

    #[test]
    fn a_token_is_compared_and_never_shown() {
        let config = read(r#"{"admin": {"token": "open sesame"}}"#).unwrap();
        let token = config.admin.token.clone().unwrap();
        assert!(token.is("open sesame") && !token.is("open sesam") && !token.is(""));
        assert!(!Secret(String::new()).is(""), "an empty one lets nobody in");
        let shown = format!("{config:?}{}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest_name() {
        let text = error(r#"{"lisen": "x", "protect": {"start-hold": "1s"}, "policy": {"excludes": "a"}}"#);
        assert!(text.contains("mox.lisen: unknown key; did you mean listen?"), "{text}");
        assert!(text.contains("mox.protect.start-hold: unknown key; did you mean startupHold?"), "{text}");
        assert!(text.contains("mox.policy.excludes: unknown key; did you mean exclude?"), "{text}");
    }

    #[test]
    fn a_bad_policy_is_refused_with_every_mistake() {
        let document = serde_json::json!({
            "includes": ["a"],
            "exclude": 7,
            "exportTo": ["*", "a"],
            "ports": {"bolt": 0, "tri": 70_000, "rest": "x"},
            "labels": [5, "ok", true, "istio.io/rev"],
            "locality": {"RZ1": "a//b"},
            "endpoints": {"deny": ["nonsense", "10.0.0.0/8", "10.0.0.0/40"], "allowLoopback": "maybe"},
            "mtls": [{"cidrs": ["x"], "zones": ["a"]}, {"applications": "a", "zone": "b"}, 3, {},
                     {"cidrs": ["10.0.0.0/8", "y"]}],
            "direct": {"balance": "nobody"},
            "overrides": {"x*": {"host": "A", "dns": "perhaps", "prot": 1}, "y/z": {"port": -1}},
        });
        let text = policy_from_json(document).unwrap_err().to_string();
        let told: BTreeSet<&str> = text.lines().map(|line| line.split(": ").next().unwrap()).collect();
        let wrong = [
            "includes",
            "exclude",
            "exportTo",
            "ports.bolt",
            "ports.tri",
            "ports.rest",
            "labels[0]",
            "labels[2]",
            "labels",
            "locality.RZ1",
            "endpoints.deny[0]",
            "endpoints.deny[2]",
            "endpoints.allowLoopback",
            "mtls[0].cidrs[0]",
            "mtls[1].zone",
            "mtls[2]",
            "mtls[4].cidrs[1]",
            "direct.balance",
            "overrides.x*.host",
            "overrides.x*.dns",
            "overrides.x*.prot",
            "overrides.y/z.port",
        ];
        let wrong: Vec<String> = wrong.iter().map(|path| format!("policy.{path}")).collect();
        let missing: Vec<_> = wrong.iter().filter(|path| !told.contains(path.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?} are not in\n{text}");
        // What is left of the rules is checked as well.
        assert_eq!(text.lines().count(), wrong.len() + 2, "{text}");
        for left in ["policy.mtls[2]: it names no", "policy.mtls[3]: it names no"] {
            assert!(text.contains(left), "{text}");
        }
    }

    #[test]
    fn mtls_rules_are_read_as_spring_hands_them_on() {
        let spring = read(
            r#"{"policy": {"mtls": {"0": {"applications": {"0": "orders", "1": "shop"}},
                                    "1": {"CIDRS": "10.0.0.0/8,11.0.0.0/8", "zones": "RZ1"}}}}"#,
        );
        let json = read(
            r#"{"policy": {"mtls": [{"applications": ["orders", "shop"]},
                                    {"cidrs": ["10.0.0.0/8", "11.0.0.0/8"], "zones": ["RZ1"]}]}}"#,
        );
        assert_eq!(spring.unwrap(), json.unwrap());
    }

    #[test]
    fn bad_values_are_named_with_what_is_allowed() {
        for (json, says) in [
            (r#"{"listen": "nowhere"}"#, "mox.listen: \"nowhere\""),
            (r#"{"protect": {"startupHold": "soon"}}"#, "mox.protect.startupHold: \"soon\": \"soon\" is no duration"),
            (r#"{"threads": "many"}"#, "mox.threads: \"many\" is no whole number"),
            (r#"{"threads": 0}"#, "mox.threads: 0 is out of bounds; allowed are 1 to 64"),
            (r#"{"push": {"prime": "maybe"}}"#, "mox.push.prime: \"maybe\""),
            (r#"{"hostSuffix": "mesh"}"#, "mox.hostSuffix: \"mesh\""),
            (r#"{"namespace": "A"}"#, "mox.namespace: \"A\""),
            (r#"{"scope": "all"}"#, "mox.scope: \"all\""),
            (r#"{"kubernetes": {"owner": "a.b"}}"#, "mox.kubernetes.owner: \"a.b\" is not possible"),
            (r#"{"kubernetes": {"lease": "1s"}}"#, "mox.kubernetes.lease (s): 1 is out of bounds; allowed are 3 to"),
            (r#"{"kubernetes": {"name-space": "A"}}"#, "mox.kubernetes.namespace: \"A\" is no DNS label"),
            (r#"{"kubernetes": {"kube-cfg": "A"}}"#, "mox.kubernetes.kube-cfg: unknown key; did you mean kubeconfig?"),
            (r#"{"vipCidr": "248.0.0.0/60"}"#, "mox.vipCidr: \"248.0.0.0/60\""),
            (r#"{"policy": {"exportTo": "A"}}"#, "mox.policy.exportTo: \"A\""),
            (r#"{"policy": {"ports": {"bolt": 70000}}}"#, "mox.policy.ports.bolt: 70000"),
            (r#"{"host-suffix": "a.b", "hostSuffix": "c.d"}"#, "mox.hostSuffix: it has two values"),
            (r#"{"partitions": [3]}"#, "mox.partitions: 3 is not possible"),
            (r#"{"partitions": [64, 64]}"#, "mox.partitions: 64 is not possible"),
            (r#"{"partitions": "many"}"#, "mox.partitions"),
            (r#"{"listen": "0.0.0.0:65500", "partitions": [64]}"#, "mox.listen: port 65500"),
            (r#"{"push": {"duty": "0"}}"#, "mox.push.duty: 0 is out of bounds"),
            (r#"{"push": {"duty": 1.5}}"#, "mox.push.duty: 1.5 is out of bounds"),
            (r#"{"tls": {"cert": "a"}}"#, "mox.tls: cert and key go together"),
            (r#"{"allowCidrs": ["10.0.0.1/40"]}"#, "mox.allowCidrs"),
            ("[]", "mox"),
            ("{", "this is no JSON"),
        ] {
            let text = error(json);
            assert!(text.contains(says), "{json}: {text}");
        }
    }
}

//! Node settings: what one engine needs to know at its start, under `mox.` in a session server's properties.
//!
//! Takes a tree from Spring or from JSON; gives a checked [`Config`], or every mistake in the tree by its key. Knows the
//! policy's document and the bounds of what it configures, and nothing that runs.

mod check;
mod kubernetes;
mod mistakes;
mod relaxed;
mod spelling;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    duration,
    error::{Error, Mistake, Result},
    policy::PolicyConfig,
    registry::store,
    translate::{Bounds, service_entry::EndpointMode},
};

pub use kubernetes::Kubernetes;

/// Most bytes of resources in a response: istiod takes less than 2 GiB, of which some are for the rest of it.
const MAX_RESPONSE: usize = i32::MAX as usize - (1 << 20);

/// Everything under `mox.` but `enabled`, which is the host's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Address that istiod connects to. Default: `0.0.0.0:9700`; port 0 is any free one.
    pub listen: SocketAddr,
    /// Numbers of partitions that the services are divided into, each partition on a port of its own: k of N on that of
    /// [`Config::listen`] + N + k. Powers of two from 2 to 128, each once. Default: none.
    pub partitions: Vec<usize>,
    /// Certificates of the MoX listeners. Default: plaintext.
    pub tls: TlsFiles,
    /// Ranges of addresses that may connect to the MoX listeners and to [`Config::admin_listen`]. Default: none, which means every address.
    pub allow_cidrs: Vec<IpNet>,
    /// Address of the admin pages, besides the session server's own port: 64 connections at most, with a request each, which has
    /// 30 s. Default: none.
    pub admin_listen: Option<SocketAddr>,
    /// Which publishers are served. Default: `cluster`.
    pub scope: Scope,
    /// How the registry's data servers are followed, by the host.
    pub cluster: Cluster,
    /// End of every host: two or more DNS labels in lower case, at most 100 characters, no name that Kubernetes gives to
    /// Services. Default: `sofa.mesh`.
    pub host_suffix: String,
    /// Namespace of every resource, a DNS label in lower case; Kubernetes need not have it. No Kubernetes Service there may select by
    /// labels `sofa.registry/…`: istiod gives a Service the WorkloadEntries of its namespace that have them. Default: `sofa-registry`.
    pub namespace: String,
    /// Where endpoints stand; `workload-entry` needs Istio 1.13.9, 1.14.5 or newer, and has publishers' labels as
    /// `sofa.registry/app`, since by `app` a Kubernetes Service of that namespace could select them. Default: `inline`.
    pub endpoint_mode: EndpointMode,
    /// Ranges of the virtual addresses, of which a service has one of each; one range, or one of each family, for meshes with
    /// both. None: services have no `addresses`. Default: `248.0.0.0/6`.
    #[serde(deserialize_with = "or_none")]
    pub vip_cidr: Vec<IpNet>,
    /// Threads that serve, 1 to 64; another one translates. Default: 2.
    pub threads: usize,
    /// How changes are pushed.
    pub push: Push,
    /// Protection of the mesh from a registry that is not whole.
    pub protect: Protect,
    /// Folder in which the last good state outlives a restart, about 150 bytes an endpoint. Written when it changes, every 10 s at
    /// most, more rarely where a write takes longer than half a second, and above 1 GiB not at all; a start may find it that old.
    /// Default: none, and nothing outlives it.
    pub state_dir: Option<PathBuf>,
    /// Bounds on memory.
    pub limits: Limits,
    /// The other way into the mesh: objects in a Kubernetes API server.
    pub kubernetes: Kubernetes,
    /// Who may change something while the engine runs.
    pub admin: Admin,
    /// The policy to start with.
    pub policy: PolicyConfig,
}

/// A list that may be `null`, as what has a default and may be none.
fn or_none<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<IpNet>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Which publishers a session server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All of the local data center, as the data servers know them.
    Cluster,
    /// Only those that this session server accepted.
    Local,
}

/// `mox.cluster`: how the data servers are followed with [`Scope::Cluster`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cluster {
    /// How long notices of changed services are gathered before these are read, 0 to 10 s. Default: 100 ms.
    #[serde(with = "duration")]
    pub debounce: Duration,
    /// How often everything is compared with the data servers, in case a notice was lost, 1 s to 1 h; a quarter of
    /// [`Protect::max_staleness`] where that is less. Default: 30 s.
    #[serde(with = "duration")]
    pub reconcile: Duration,
    /// Most services read in a second, 1 to 1,000,000. Default: 2,000.
    pub reads: usize,
    /// Port on which data servers compare what they have with others, their `data.server.syncDataPort`; 1 to 65535.
    /// Default: 9621.
    pub sync_port: u16,
}

/// `mox.tls`: PEM files, read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TlsFiles {
    /// The server's certificate and its chain. Default: none, and the listeners are plaintext.
    pub cert: Option<PathBuf>,
    /// The certificate's private key, set where the certificate is.
    pub key: Option<PathBuf>,
    /// Authorities whose certificates clients must have. Default: none, and clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// `mox.admin`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Admin {
    /// Secret that a request has to show in `X-Mox-Token` if it changes something, the same on all session servers. With 16 bytes or
    /// more it also signs the documents that they share. To the others goes a signature by it, good once and for 5 minutes, so
    /// their clocks must agree; what they answer to how fresh they are and how much they serve then counts only if it is signed.
    /// Default: none, and each such request is refused.
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
    /// How long after the first pending change a snapshot is made, so that a batch becomes one push; 0 to 10 s. Default:
    /// 1 ms.
    #[serde(with = "duration")]
    pub quiet: Duration,
    /// Share of an istiod's time that pushes may take, each from its sending to its ACK; 0.001 to 1, and 1 pushes as
    /// fast as istiod takes it. Default: 0.5.
    pub duty: f64,
    /// How long a change waits for that share at most, 0 to 10 min. Default: 5 s.
    #[serde(with = "duration")]
    pub max: Duration,
    /// Whether the 100 places in which istiod keeps responses for life are filled with empty ones. Default: true.
    pub prime: bool,
}

/// `mox.protect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Protect {
    /// How long after the start nothing is served. With local scope clients have this time to come back; with cluster
    /// scope the last good state is shown after it where the first complete view is not in. Without a bound. Default: 60 s.
    #[serde(with = "duration")]
    pub startup_hold: Duration,
    /// How long a service without endpoints keeps its entry, 0 to 365 days. Default: 10 min.
    #[serde(with = "duration")]
    pub empty_grace: Duration,
    /// Percentage of the services, or of the endpoints, above which removals within a minute are withheld; 0 to 100.
    /// Default: 30.
    pub mass_delete_share: usize,
    /// Number of services up to which removals are not withheld for the services' sake. Default: 10.
    pub mass_delete_services: usize,
    /// Number of endpoints up to which removals are not withheld for the endpoints' sake. Default: 50.
    pub mass_delete_endpoints: usize,
    /// How long removals are withheld at most, 0 to 365 days. Default: 10 min.
    #[serde(with = "duration")]
    pub mass_delete_hold: Duration,
    /// Number of new services up to which none waits within a minute. Default: 1,000.
    pub mass_add_services: usize,
    /// Part of the served services up to which no new one waits within a minute, 0 to 10; 0.5 is half of them. Default: 0.5.
    pub mass_add_share: f64,
    /// How long after the first complete view new services never wait, 0 to 365 days. Default: 10 min.
    #[serde(with = "duration")]
    pub mass_add_settle: Duration,
    /// How long new services wait at most where too many come, 0 to 365 days; 0: never. Default: 10 min.
    #[serde(with = "duration")]
    pub mass_add_hold: Duration,
    /// With cluster scope: age up to which the last good state is served while the first complete view is not in, 0 to
    /// 365 days. Default: 10 min.
    #[serde(with = "duration")]
    pub last_good_max_age: Duration,
    /// With cluster scope: how long a session server may be without the data servers before it leaves istiod to others,
    /// 10 s to 1 day. Default: 2 min.
    #[serde(with = "duration")]
    pub max_staleness: Duration,
}

/// `mox.limits`: bounds; what is above them is refused and counted, and what is there stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Most services that have publishers, 1 to 10,000,000. Default: 200,000.
    pub services: usize,
    /// Most publishers, 1 to 100,000,000. Default: 5,000,000.
    pub publishers: usize,
    /// Most bytes that publishers brought, with 128 for keeping each and its registerId twice, and of the dataInfoIds of their
    /// services; 1 MiB to 1 TiB. Removals are remembered in an eighth of it beside. Default: 2 GiB.
    pub bytes: usize,
    /// Most endpoints in all, 1 to 1,000,000,000; each text that is published counts as one, also an instance of Dubbo 3 that makes
    /// one for each of up to four protocols. Default: 2,000,000.
    pub endpoints: usize,
    /// Most endpoints of a publisher that are served, those with the smallest addresses; 1 to 65,535. Default: 64.
    pub endpoints_per_publisher: usize,
    /// Most endpoints of a service that are served, those with the smallest addresses; 1 to 1,000,000. Default: 50,000.
    pub endpoints_per_service: usize,
    /// Most sources (`registry`, and one for each extension), 1 to 1,024. Default: 64.
    pub sources: usize,
    /// Most streams at once, 1 to 100,000; there may be twice as many connections, but no more than half of the files that the
    /// process may open. Default: 4,096.
    pub streams: usize,
    /// Most streams from one address, which istiods behind one NAT share; 1 to 100,000. Default: 1,024.
    pub streams_per_address: usize,
    /// Most types that one stream may ask for, 16 to 1,024. Default: 64.
    pub types: usize,
    /// Largest request in bytes, 1 KiB to 256 MiB. The first one of a delta client that comes back lists what it has, about
    /// 107 bytes a resource. Default: 16 MiB.
    pub request: usize,
    /// Most bytes that one stream may make us keep: names that it asks for, about 150 bytes each, and its request while that
    /// comes in; 64 KiB to 4 GiB. A delta client that comes back with 50,000 names takes 50 MB for a moment. Default: 64 MiB.
    pub stream_bytes: usize,
    /// Most bytes that all streams together may make us keep, but for the first 64 KiB of each; 1 MiB to 64 GiB. Default: 512 MiB.
    pub streams_bytes: usize,
    /// Most bytes of pages that only streams hold, since what is served has changed meanwhile, beyond those of one whole state;
    /// above, the stream ends that holds some for longest; 1 MiB to 64 GiB. Default: 1 GiB.
    pub pinned_bytes: usize,
    /// Largest response in bytes, 1 KiB to 1 MiB below 2 GiB, since istiod takes less than 2 GiB; what is larger is not
    /// sent, and the last one stays. Default: the most.
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
            vip_cidr: "248.0.0.0/6".parse().into_iter().collect(),
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
            mass_add_services: 1_000,
            mass_add_share: 0.5,
            mass_add_settle: Duration::from_secs(600),
            mass_add_hold: Duration::from_secs(600),
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
            bytes: 2 << 30,
            endpoints: 2_000_000,
            endpoints_per_publisher: 64,
            endpoints_per_service: 50_000,
            sources: 64,
            streams: 4_096,
            streams_per_address: 1_024,
            types: 64,
            request: 16 << 20,
            stream_bytes: 64 << 20,
            streams_bytes: 512 << 20,
            pinned_bytes: 1 << 30,
            response: MAX_RESPONSE,
        }
    }
}

impl Limits {
    /// The part that the store keeps.
    pub fn store(&self) -> store::Limits {
        let Self { services, publishers, sources, bytes, endpoints, endpoints_per_publisher, .. } = *self;
        store::Limits { services, publishers, sources, bytes, endpoints, endpoints_per_publisher, removals: bytes / 8 }
    }

    /// The part that translation keeps.
    pub fn bounds(&self) -> Bounds {
        Bounds { per_publisher: self.endpoints_per_publisher, per_service: self.endpoints_per_service }
    }
}

impl Config {
    /// Reads and checks a configuration; the error has a line for every mistake that could be found.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        Self::from_tree(&tree(json)?)
    }

    /// Like [`Config::from_json`], for a program with defaults of its own, which hold no secrets.
    #[cfg(any(test, feature = "testing"))]
    pub fn from_json_over(defaults: &Self, json: &[u8]) -> Result<Self> {
        let defaults = serde_json::to_value(defaults).map_err(|error| Error::Internal(error.to_string()))?;
        Self::from_tree(&spelling::over(defaults, tree(json)?))
    }

    fn from_tree(tree: &Value) -> Result<Self> {
        checked("mox", tree, |config: &Self| config.mistakes())
    }
}

/// Reads a policy document, for resources in `namespace`, as it comes from an operator or an extension; the error has a
/// line for every mistake.
pub fn policy_from_json(document: Value, namespace: &str) -> Result<PolicyConfig> {
    checked("policy", &document, |policy: &PolicyConfig| policy.mistakes("policy", namespace))
}

/// Reads a policy document that was accepted once, maybe by an older release.
pub fn stored_policy_from_json(document: &Value, namespace: &str) -> Result<PolicyConfig> {
    checked("policy", document, |policy: &PolicyConfig| policy.mistakes_of_stored("policy", namespace))
}

fn tree(json: &[u8]) -> Result<Value> {
    serde_json::from_slice(json).map_err(|error| Error::Config(format!("mox: this is no JSON: {error}")))
}

/// Settings without a mistake, else every mistake: of the tree, and of what could be read of it.
fn checked<T: DeserializeOwned>(root: &str, tree: &Value, mistakes: impl Fn(&T) -> Vec<Mistake>) -> Result<T> {
    let mut reading = relaxed::read(root, tree);
    if let Some(found) = reading.settings.as_ref().map(mistakes) {
        reading.add(found);
    }
    match reading.settings {
        Some(settings) if reading.mistakes.is_empty() => Ok(settings),
        _ => Err(reading.mistakes.into()),
    }
}

#[cfg(test)]
mod tests;

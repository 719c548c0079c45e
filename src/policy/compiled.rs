//! A checked policy, ready to be asked for each service and endpoint.

use std::{borrow::Cow, collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::Serialize;
use wildmatch::WildMatch;

use crate::{
    digest::{self, hex},
    error::{Error, Result},
    model::PROTOCOLS,
    policy::{
        address::{self, Refusal},
        document::{Balance, DirectOverride, MtlsRule, Override, PolicyConfig},
        globs::Globs,
        visibility::{Consumers, Exported, Mode, Places, Source},
    },
};

/// A checked [`PolicyConfig`], ready to ask.
#[derive(Debug)]
pub struct Policy {
    config: PolicyConfig,
    pub(super) include: Globs,
    pub(super) exclude: Globs,
    pub(super) direct: Vec<WildMatch>,
    /// Exceptions of applications, the most specific first.
    direct_overrides: Vec<(WildMatch, DirectOverride)>,
    pub(super) mtls: Vec<(Vec<WildMatch>, Arc<[String]>)>,
    /// Localities by prefixes of addresses, the longest first.
    localities: Vec<(IpNet, String)>,
    /// The most specific first, their texts, and what is about those that each matches.
    pub(super) exceptions: Globs,
    pub(super) override_globs: Vec<String>,
    overrides: Vec<Override>,
    vip_ranges: Vec<IpNet>,
    hash: String,
    /// Protocols that `ports` names beside [`PROTOCOLS`], in lower case.
    protocols: BTreeSet<String>,
    /// For texts that name protocols, and for others.
    reading: [u64; 2],
    admitting: u64,
    places: Places,
    on_trial: bool,
}

impl Policy {
    /// Checks the document as if it were stored, for resources in `namespace`; an error names every mistake, a line each.
    pub fn new(config: PolicyConfig, vip_ranges: &[IpNet], namespace: &str) -> Result<Self> {
        let mistakes = config.mistakes_of_stored("policy", namespace);
        if mistakes.is_empty() { Self::compile(config, vip_ranges) } else { Err(mistakes.into()) }
    }

    /// Like [`Policy::new`], for a document that has no mistakes.
    pub(crate) fn compile(config: PolicyConfig, vip_ranges: &[IpNet]) -> Result<Self> {
        let mut overrides: Vec<(&String, &Override)> = config.overrides.iter().collect();
        overrides.sort_by_key(|(glob, _)| specific(glob));
        let mut direct_overrides: Vec<(&String, &DirectOverride)> = config.direct.overrides.iter().collect();
        direct_overrides.sort_by_key(|(glob, _)| specific(glob));
        let direct_overrides = direct_overrides.into_iter().map(|(glob, it)| (WildMatch::new(glob), it.clone()));
        let direct_overrides = direct_overrides.collect();
        let by_prefix = |(key, locality): (&String, &String)| Some((key.parse().ok()?, locality.clone()));
        let mut localities: Vec<(IpNet, String)> = config.locality.iter().filter_map(by_prefix).collect();
        localities.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        let hash = digest(&config)?;
        let reads = |exception: &Override| (exception.dns, exception.labels.clone());
        let exceptions = config.overrides.iter().map(|(glob, it)| (glob, reads(it)));
        let exceptions: Vec<_> = exceptions.filter(|(_, reads)| *reads != (None, None)).collect();
        let reading =
            digest(&(&config.labels, &config.locality, &config.endpoints, &config.mtls, exceptions, vip_ranges))?;
        let protocols: BTreeSet<String> = config.ports.keys().map(|name| name.to_ascii_lowercase()).collect();
        let protocols: BTreeSet<String> =
            protocols.into_iter().filter(|name| !PROTOCOLS.contains(&name.as_str())).collect();
        let of_protocols = digest(&(reading, &protocols))?;
        let dns = |(glob, exception): (&String, &Override)| exception.dns.map(|dns| (glob.clone(), dns));
        let dns: Vec<_> = config.overrides.iter().filter_map(dns).collect();
        let admitting = digest(&(&config.endpoints, &config.mtls, dns, vip_ranges))?;
        Ok(Self {
            include: Globs::new(config.include.iter().map(String::as_str)),
            exclude: Globs::new(config.exclude.iter().map(String::as_str)),
            direct: config.direct.applications.iter().map(|glob| WildMatch::new(glob)).collect(),
            direct_overrides,
            mtls: config.mtls.iter().map(MtlsRule::compiled).collect(),
            localities,
            exceptions: Globs::new(overrides.iter().map(|(glob, _)| glob.as_str())),
            override_globs: overrides.iter().map(|(glob, _)| (*glob).clone()).collect(),
            overrides: overrides.into_iter().map(|(_, exception)| exception.clone()).collect(),
            vip_ranges: vip_ranges.to_vec(),
            hash: hex(&hash),
            protocols,
            reading: [of_protocols, reading].map(u64::from_be_bytes),
            admitting: u64::from_be_bytes(admitting),
            places: Places::new(&config.visibility, specific),
            on_trial: false,
            config,
        })
    }

    /// The same policy for a dry run, of which nothing is to be kept.
    pub fn on_trial(self) -> Self {
        Self { on_trial: true, ..self }
    }

    /// The document that was compiled.
    pub fn document(&self) -> &PolicyConfig {
        &self.config
    }

    /// Equal for two policies under which payloads are read alike, such as name protocols or others; what was read under one
    /// holds under the other.
    pub fn reading(&self, names_protocols: bool) -> u64 {
        self.reading[usize::from(!names_protocols)]
    }

    /// Whether there may be services of a protocol, whose name is in lower case.
    pub fn knows(&self, protocol: &str) -> bool {
        PROTOCOLS.contains(&protocol) || self.protocols.contains(protocol)
    }

    /// Whether the same protocols are known under another policy.
    pub fn knows_as(&self, other: &Self) -> bool {
        self.protocols == other.protocols
    }

    /// Whether the same endpoints of a service are served, and called with mTLS, under another policy that serves it.
    pub fn admits_as(&self, other: &Self) -> bool {
        self.admitting == other.admitting
    }

    /// Whether entries for consumers that dial addresses are made alike, of the same endpoints.
    pub fn makes_direct_as(&self, other: &Self) -> bool {
        self.config.direct == other.config.direct
            && self.config.export_to == other.config.export_to
            && self.config.visibility == other.config.visibility
    }

    /// Equal documents have equal hashes, on every session server.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether a service is served at all.
    pub fn serves(&self, data_info_id: &str) -> bool {
        (self.include.is_empty() || self.include.any(data_info_id)) && !self.exclude.any(data_info_id)
    }

    /// Whether an address may be an endpoint.
    pub fn check_address(&self, address: IpAddr) -> Result<(), Refusal> {
        address::check(address, &self.config.endpoints, &self.vip_ranges)
    }

    /// The range of `endpoints.deny` that leaves an address out; `None`: none of these does.
    pub fn denied_by(&self, address: IpAddr) -> Option<&IpNet> {
        address::denied_by(address, &self.config.endpoints)
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

    /// Whether consumers of any application may dial addresses.
    pub fn has_direct(&self) -> bool {
        !self.direct.is_empty()
    }

    /// Whether consumers of `application` may dial addresses.
    pub fn is_direct(&self, application: &str) -> bool {
        self.direct.iter().any(|glob| glob.matches(application))
    }

    /// Who chooses the provider of a call to an address.
    pub fn balance(&self) -> Balance {
        self.config.direct.balance
    }

    /// Whether an endpoint at an address that is not its publisher's own may be an application's. Where the consumer chooses it
    /// may: its calls go where it dials to. Where the proxy does, all that is dialed to the address goes to any of the entry.
    pub fn is_vouched_for(&self, address: IpAddr) -> bool {
        self.balance() == Balance::Client || self.config.direct.addresses.iter().any(|range| range.contains(&address))
    }

    /// How long an address stays in its entry after its provider went.
    pub fn linger(&self) -> Duration {
        self.config.direct.linger
    }

    /// How long the share of a new provider of an application grows, where the proxy chooses.
    pub fn direct_warmup(&self, application: &str) -> Option<Duration> {
        self.direct_overrides.iter().filter(|(glob, _)| glob.matches(application)).find_map(|(_, it)| it.warmup)
    }

    /// `exportTo` of the entries of an application.
    pub fn direct_export_to(&self, application: &str) -> &[String] {
        self.own_direct_export_to(application).unwrap_or(&self.config.export_to)
    }

    fn own_direct_export_to(&self, application: &str) -> Option<&[String]> {
        let matching = self.direct_overrides.iter().filter(|(glob, _)| glob.matches(application));
        matching.map(|(_, it)| it).find_map(|it| it.export_to.as_deref())
    }

    /// Like [`Policy::direct_export_to`] where that follows the consumers of any of the application's services; an exception for the
    /// application decides alone. `None`: nobody is known to consume one.
    pub fn direct_visible_to(
        &self,
        application: &str,
        consumers: Option<&Consumers>,
        namespace: &str,
    ) -> Cow<'_, [String]> {
        let exported = Exported { to: &self.config.export_to, is_own: false };
        let of_consumers = || exported.to(&self.config.visibility, consumers, namespace);
        self.own_direct_export_to(application).map_or_else(of_consumers, Cow::Borrowed)
    }

    /// Whether `exportTo` of applications' entries follows the consumers.
    pub fn direct_follows(&self) -> bool {
        self.config.visibility.mode == Mode::On
    }

    /// The namespaces that a consumer of this application and address is in, and what says so; `None`: not known.
    pub fn place_of(&self, application: Option<&str>, address: Option<IpAddr>) -> Option<(Source, &[Arc<str>])> {
        self.places.of(application, address)
    }

    /// Whether Kubernetes is asked where consumers are of which the policy says nothing.
    pub fn asks_for_pods(&self) -> bool {
        self.config.visibility.kubernetes && self.asks_for_consumers()
    }

    /// Whether the consumers of all services are in the same namespaces under another policy.
    pub fn places_as(&self, other: &Self) -> bool {
        let (one, other) = (&self.config.visibility, &other.config.visibility);
        (&one.namespaces, &one.cidrs, one.kubernetes) == (&other.namespaces, &other.cidrs, other.kubernetes)
    }

    /// Whether it matters for any service who subscribes to it.
    pub fn asks_for_consumers(&self) -> bool {
        let asks = |mode: Mode| mode != Mode::Off;
        asks(self.config.visibility.mode) || self.overrides.iter().filter_map(|it| it.visibility).any(asks)
    }

    /// The decisions for one service.
    pub fn rules<'a>(&'a self, data_info_id: &str) -> Rules<'a> {
        let matching = self.exceptions.matching(data_info_id);
        let exports = |n: &usize| Some((&*self.override_globs[*n], self.overrides[*n].export_to.as_ref()?));
        let (export_to_glob, own_export_to) = matching.iter().find_map(exports).unzip();
        let matching: Vec<&Override> = matching.into_iter().map(|n| &self.overrides[n]).collect();
        let PolicyConfig { export_to, labels, visibility, .. } = &self.config;
        Rules {
            policy: self,
            keeps: !self.on_trial,
            host: matching.iter().find_map(|it| it.host.as_deref()),
            port: matching.iter().find_map(|it| it.port),
            protocol: matching.iter().find_map(|it| it.protocol.as_deref()),
            export_to: own_export_to.unwrap_or(export_to),
            export_to_glob,
            visibility: matching.iter().find_map(|it| it.visibility).unwrap_or(visibility.mode),
            dns: matching.iter().find_map(|it| it.dns).unwrap_or_default(),
            labels: matching.iter().find_map(|it| it.labels.as_ref()).unwrap_or(labels),
            warmup: matching.iter().find_map(|it| it.warmup),
        }
    }

    /// The locality of an endpoint: that of its zone or cell, else that of the longest prefix that has its address, else `*`.
    pub fn locality(&self, zone: Option<&str>, address: Option<IpAddr>) -> Option<&str> {
        let known = &self.config.locality;
        let by_zone = zone.and_then(|zone| known.get(zone));
        let by_address =
            || self.localities.iter().find(|(net, _)| address.is_some_and(|address| net.contains(&address)));
        let found = by_zone.or_else(|| by_address().map(|(_, locality)| locality)).or_else(|| known.get("*"));
        found.map(String::as_str)
    }

    /// The service port that replaces a protocol's usual one.
    pub fn port(&self, protocol: &str) -> Option<u16> {
        self.config.ports.iter().find(|(name, _)| name.eq_ignore_ascii_case(protocol)).map(|(_, port)| *port)
    }
}

/// Sorts globs: the one with the most characters that are no wildcards comes first.
fn specific(glob: &str) -> std::cmp::Reverse<usize> {
    std::cmp::Reverse(glob.chars().filter(|c| !"*?".contains(*c)).count())
}

/// The first bytes of a SHA-256 over a part of a document.
fn digest(part: &impl Serialize) -> Result<[u8; 8]> {
    let json = serde_json::to_vec(part).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(digest::prefix_of(json))
}

impl Rules<'_> {
    /// The rules for a service that a dataInfoId has beside its main one, by another protocol: an override's host, port and
    /// protocol are the main service's.
    pub fn beside(self) -> Self {
        Self { host: None, port: None, protocol: None, ..self }
    }
}

impl<'a> Rules<'a> {
    /// `exportTo` where it follows the consumers, for resources in `namespace`; `None`: nobody is known to consume the service.
    pub fn visible_to(&self, consumers: Option<&Consumers>, namespace: &str) -> Cow<'a, [String]> {
        let exported = Exported { to: self.export_to, is_own: self.export_to_glob.is_some() };
        exported.to(&self.policy.config.visibility, consumers, namespace)
    }
}

/// A policy as it is for one service.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// The policy that holds for all services.
    pub policy: &'a Policy,
    /// Whether what is read under them is kept for the next who reads it; not where somebody only looks.
    pub keeps: bool,
    /// The whole host, in place of the one made from the dataInfoId.
    pub host: Option<&'a str>,
    /// The service port's number, in place of that of its protocol.
    pub port: Option<u16>,
    /// The service port's protocol in Istio.
    pub protocol: Option<&'a str>,
    /// `exportTo` of the ServiceEntry.
    pub export_to: &'a [String],
    /// The glob of the exception that names that; `None`: the policy for all does.
    pub export_to_glob: Option<&'a str>,
    /// Whether that follows the consumers.
    pub visibility: Mode,
    /// Whether publishers may name hosts.
    pub dns: bool,
    /// URL parameters that become labels.
    pub labels: &'a [String],
    /// How long the share of a new endpoint grows.
    pub warmup: Option<Duration>,
}

impl MtlsRule {
    fn compiled(&self) -> (Vec<WildMatch>, Arc<[String]>) {
        let mut identities = self.identities.clone();
        identities.sort();
        identities.dedup();
        (self.applications.iter().map(|glob| WildMatch::new(glob)).collect(), identities.into())
    }
}

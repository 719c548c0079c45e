//! Entries for consumers that dial the addresses which the registry gives them.
//!
//! A ServiceEntry with a virtual address never sees such a call. One whose `addresses` are the providers' own makes istiod
//! listen on each of them, so that the call goes through the mesh. Listeners are keyed by address and port, and dozens of
//! interfaces share one, so there is an entry for each (application, port) that the policy names, beside the services'.
//! Its host has the port in it: istiod 1.29.1 mixes the endpoints of two entries with one host. It is TCP whatever is
//! spoken: of an entry without resolution istiod makes no listener for an HTTP port.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use crate::{
    catalog::services::RoundChanges,
    config::Config,
    digest::{hex, prefix_of},
    istio::{names::APPLICATION_ANNOTATION, validate},
    policy::{Balance, Policy},
    proto::istio::networking::v1alpha3::{
        ClientTlsSettings, DestinationRule, ServiceEntry, ServicePort, TrafficPolicy, WorkloadEntry,
        client_tls_settings,
        service_entry::{Location, Resolution},
    },
    snapshot::{Resource, partition::slice_of},
    translate::{
        names,
        payload::{Address, Endpoint},
        service_entry::{self, Member},
    },
};

const PORT_NAME: &str = "tcp";
/// Most addresses of an entry: each is a listener in every proxy that sees it.
const MAX_ADDRESSES: usize = 3_500;

/// An application's port: what there is an entry for.
type Key = (Box<str>, u16);

/// Counts for status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectCounts {
    /// Entries served.
    pub entries: usize,
    /// Addresses and ports that two applications claim; the newest has it.
    pub contested: usize,
    /// Endpoints of services that name no application, and so are in no entry.
    pub unnamed: usize,
    /// Entries of which some addresses only are to be called with mTLS, so that none is.
    pub mixed_mtls: usize,
    /// Addresses left out since their entry has too many.
    pub left_out: usize,
}

/// The entries, kept up as services change.
#[derive(Debug, Default)]
pub struct Direct {
    /// Who publishes an address and port, by service.
    claims: HashMap<(IpAddr, u16), BTreeMap<Arc<str>, Member>>,
    entries: BTreeMap<Key, BTreeMap<IpAddr, Member>>,
    touched: BTreeSet<Key>,
    /// Slices and names of the entries that are served.
    served: BTreeMap<Key, (usize, Arc<str>)>,
    contested: BTreeSet<(IpAddr, u16)>,
    /// Entries of which some addresses only are to be called with mTLS.
    mixed: BTreeSet<Key>,
    unnamed: usize,
}

impl Direct {
    /// Notes that a service has other endpoints than before. Costs the endpoints that differ.
    pub fn update(&mut self, id: &Arc<str>, before: &[Member], after: &[Member]) {
        let keep: HashMap<_, &Member> = after.iter().map(|member| (member.key(), member)).collect();
        let had: HashMap<_, &Member> = before.iter().map(|member| (member.key(), member)).collect();
        for member in before.iter().filter(|member| !keep.contains_key(&member.key())) {
            self.claim(id, member, None);
        }
        for member in after.iter().filter(|member| had.get(&member.key()) != Some(member)) {
            self.claim(id, member, Some(member));
        }
        let unnamed = |members: &[Member]| members.iter().filter(|member| application(member).is_none()).count();
        self.unnamed = self.unnamed + unnamed(after) - unnamed(before);
    }

    fn claim(&mut self, id: &Arc<str>, at: &Member, by: Option<&Member>) {
        let Endpoint { address: Address::Ip(address), port, .. } = at.endpoint() else { return };
        let place = (*address, *port);
        let claims = self.claims.entry(place).or_default();
        let before = winner(claims).cloned();
        match by {
            Some(member) => claims.insert(Arc::clone(id), member.clone()),
            None => claims.remove(id),
        };
        let after = winner(claims).cloned();
        let applications: BTreeSet<&str> = claims.values().filter_map(application).collect();
        let contested = applications.len() > 1;
        if contested && !self.contested.contains(&place) {
            let newest = after.as_ref().and_then(application);
            tracing::warn!(%address, port, newest, claimed_by = ?applications, "two applications publish one address and port");
        }
        match contested {
            true => self.contested.insert(place),
            false => self.contested.remove(&place),
        };
        if claims.is_empty() {
            self.claims.remove(&place);
        }
        for member in [&before, &after].into_iter().flatten() {
            if let Some(application) = application(member) {
                self.touched.insert((application.into(), *port));
            }
        }
        if let Some(application) = before.as_ref().and_then(application) {
            let key = (application.into(), *port);
            let entry = self.entries.entry(key.clone()).or_default();
            entry.remove(address);
            if entry.is_empty() {
                self.entries.remove(&key);
            }
        }
        if let Some((application, member)) = after.as_ref().and_then(|member| Some((application(member)?, member))) {
            self.entries.entry((application.into(), *port)).or_default().insert(*address, member.clone());
        }
    }

    /// Looks at every entry again, for another policy.
    pub fn touch_all(&mut self) {
        self.touched.extend(self.entries.keys().chain(self.served.keys()).cloned());
    }

    /// What changed in the entries since the last time.
    pub fn changes(&mut self, config: &Config, policy: &Policy, changes: &mut RoundChanges) {
        for key in std::mem::take(&mut self.touched) {
            let (application, port) = &key;
            let Some(entry) = self.entries.get(&key).filter(|_| policy.is_direct(application)) else {
                self.mixed.remove(&key);
                if let Some(place) = self.served.remove(&key) {
                    changes.service_entries.insert(place.clone(), None);
                    changes.destination_rules.insert(place, None);
                }
                continue;
            };
            let host = host(application, *port, &config.host_suffix);
            let slice = slice_of(&Sha256::digest(&host).into());
            let name = names::resource_name(&host, &config.host_suffix);
            let name: Arc<str> = format!("{}/{name}", config.namespace).into();
            let annotations: BTreeMap<_, _> = [(APPLICATION_ANNOTATION.to_owned(), application.to_string())].into();
            let place = (slice, Arc::clone(&name));
            let rule = mtls(&host, entry, policy);
            let some = entry.values().any(|member| member.endpoint().mtls.is_some());
            if some && rule.is_none() && policy.balance() == Balance::Client {
                tracing::warn!(
                    application = &**application,
                    port,
                    "policy.mtls names some providers of this entry, so none is called with it"
                );
                self.mixed.insert(key.clone());
            } else {
                self.mixed.remove(&key);
            }
            let entry = build(&host, *port, entry, policy);
            if let Err(invalid) = validate::service_entry(&entry, &config.namespace) {
                tracing::error!(application = &**application, port, %invalid, "Istio would refuse this entry");
                continue;
            }
            changes.encodes += 1 + u64::from(rule.is_some());
            let rule = rule.map(|rule| Resource::destination_rule(name.to_string(), annotations.clone(), &rule));
            changes.destination_rules.insert(place.clone(), rule);
            let entry = Resource::beside(name.to_string(), annotations, &entry);
            changes.service_entries.insert(place.clone(), Some(entry));
            self.served.insert(key, place);
        }
    }

    /// For status.
    pub fn counts(&self) -> DirectCounts {
        let over = |key: &Key| self.entries.get(key).map_or(0, |entry| entry.len().saturating_sub(MAX_ADDRESSES));
        DirectCounts {
            entries: self.served.len(),
            contested: self.contested.len(),
            unnamed: self.unnamed,
            mixed_mtls: self.mixed.len(),
            left_out: self.served.keys().map(over).sum(),
        }
    }
}

fn application(member: &Member) -> Option<&str> {
    member.endpoint().labels.get("app")
}

/// Whose an address and port are: the newest's, by the registry's clock; at a tie the first by application and registerId.
fn winner(claims: &BTreeMap<Arc<str>, Member>) -> Option<&Member> {
    let named = claims.values().filter(|member| application(member).is_some());
    named.max_by(|a, b| {
        let newer = (a.version().timestamp, a.version().version).cmp(&(b.version().timestamp, b.version().version));
        let name = |member: &Member| (application(member).map(str::to_owned), member.register_id().to_owned());
        newer.then_with(|| name(b).cmp(&name(a)))
    })
}

/// `p<port>.<application>.app.<suffix>`; a name that is no DNS label, or looks like a hashed one, carries its hash.
fn host(application: &str, port: u16, suffix: &str) -> String {
    let label = match names::label(application) {
        Some(label) if label == application && label.len() <= 63 && !names::carries_hash(&label) => label,
        label => {
            let label = label.unwrap_or_else(|| "application".to_owned());
            let digest = hex(&prefix_of::<4>(application));
            format!("{}-{digest}", label[..label.len().min(54)].trim_end_matches('-'))
        }
    };
    format!("p{port}.{label}.{}.{suffix}", names::APPLICATIONS)
}

fn build(host: &str, port: u16, entry: &BTreeMap<IpAddr, Member>, policy: &Policy) -> ServiceEntry {
    let members = || entry.iter().take(MAX_ADDRESSES);
    let uniform = members().zip(members().skip(1)).all(|((_, a), (_, b))| a.endpoint().weight == b.endpoint().weight);
    let endpoint = |(address, member): (&IpAddr, &Member)| WorkloadEntry {
        address: address.to_string(),
        ports: [(PORT_NAME.to_owned(), u32::from(port))].into(),
        labels: service_entry::labels(member.endpoint()),
        locality: member.endpoint().locality.as_deref().unwrap_or_default().to_owned(),
        weight: if uniform { 0 } else { member.endpoint().weight },
        ..WorkloadEntry::default()
    };
    let (resolution, endpoints) = match policy.balance() {
        Balance::Client => (Resolution::None, Vec::new()),
        Balance::Mesh => (Resolution::Static, members().map(endpoint).collect()),
    };
    ServiceEntry {
        hosts: vec![host.to_owned()],
        addresses: members().map(|(address, _)| address.to_string()).collect(),
        ports: vec![ServicePort {
            number: u32::from(port),
            protocol: "TCP".to_owned(),
            name: PORT_NAME.to_owned(),
            target_port: 0,
        }],
        location: Location::MeshInternal.into(),
        resolution: resolution.into(),
        endpoints,
        export_to: policy.export_to().to_vec(),
        subject_alt_names: service_entry::identities(&members().map(|(_, member)| member.clone()).collect::<Vec<_>>()),
        ..ServiceEntry::default()
    }
}

/// An entry without resolution has no endpoints to carry a label, so a DestinationRule makes istiod originate mTLS. It is for
/// the whole host, so there is one only where every address is to be called so.
fn mtls(host: &str, entry: &BTreeMap<IpAddr, Member>, policy: &Policy) -> Option<DestinationRule> {
    let members: Vec<Member> = entry.values().take(MAX_ADDRESSES).cloned().collect();
    if policy.balance() == Balance::Mesh || members.iter().any(|member| member.endpoint().mtls.is_none()) {
        return None;
    }
    let tls = ClientTlsSettings {
        mode: client_tls_settings::TlSmode::IstioMutual.into(),
        subject_alt_names: service_entry::identities(&members),
    };
    Some(DestinationRule {
        host: host.to_owned(),
        traffic_policy: Some(TrafficPolicy { tls: Some(tls) }),
        export_to: policy.export_to().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_tell_applications_apart() {
        assert_eq!(host("orders", 12200, "sofa.mesh"), "p12200.orders.app.sofa.mesh");
        let odd = ["Orders", "or.ders", "or_ders", "orders-0123abcd", "x".repeat(70).leak() as &str, "\u{738b}"];
        let hosts: BTreeSet<String> = odd.iter().map(|application| host(application, 1, "sofa.mesh")).collect();
        assert_eq!(hosts.len(), odd.len());
        for host in hosts {
            assert!(validate::is_service_host(&host), "{host}");
        }
    }
}

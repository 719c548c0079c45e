//! The entry of an application's port, for consumers that dial the addresses which the registry gives them.
//!
//! The host has the port in it: istiod 1.29.1 mixes the endpoints of two entries with one host. The port is TCP whatever is
//! spoken: of an entry without resolution istiod makes no listener for an HTTP port.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    digest::{hex, prefix_of},
    policy::{Balance, Policy},
    proto::istio::networking::v1alpha3::{
        ClientTlsSettings, DestinationRule, ServiceEntry, ServicePort, TrafficPolicy, WorkloadEntry,
        client_tls_settings,
        service_entry::{Location, Resolution},
    },
    translate::{
        names,
        service_entry::{self, Member},
    },
};

const PORT_NAME: &str = "tcp";
/// Most addresses of an entry: each is a listener in every proxy that sees it.
pub const MAX_ADDRESSES: usize = 3_500;

/// `p<port>.<application>.app.<suffix>`; a name that is no DNS label, or looks like a hashed one, carries its hash.
pub fn host(application: &str, port: u16, suffix: &str) -> String {
    let label = match names::label(application) {
        Some(label) if label == application && label.len() <= 63 && !names::carries_hash(&label) => label,
        label => {
            let label = label.unwrap_or_else(|| "application".to_owned());
            let digest = hex(&prefix_of::<{ names::HASH_BYTES }>(application));
            format!("{}-{digest}", label[..label.len().min(63 - 1 - digest.len())].trim_end_matches('-'))
        }
    };
    format!("p{port}.{label}.{}.{suffix}", names::APPLICATIONS)
}

/// The addresses of an application's port.
#[derive(Debug)]
pub struct Addresses<'a> {
    /// Its providers.
    pub living: &'a BTreeMap<IpAddr, Member>,
    /// Providers that went, whose addresses consumers may still dial; at none of them is another provider.
    pub lingering: &'a BTreeMap<IpAddr, Member>,
}

impl Addresses<'_> {
    /// As many as an entry may have, first the living ones.
    pub fn all(&self) -> impl Iterator<Item = (&IpAddr, &Member)> {
        self.living.iter().chain(self.lingering).take(MAX_ADDRESSES)
    }
}

/// The ServiceEntry of an application's port.
pub fn build(host: &str, port: u16, addresses: &Addresses<'_>, export_to: &[String], policy: &Policy) -> ServiceEntry {
    let members = || addresses.living.iter().take(MAX_ADDRESSES);
    let uniform = members().zip(members().skip(1)).all(|((_, a), (_, b))| a.endpoint().weight == b.endpoint().weight);
    let endpoint = |(address, member): (&IpAddr, &Member)| WorkloadEntry {
        address: address.to_string(),
        ports: [(PORT_NAME.to_owned(), u32::from(port))].into(),
        labels: service_entry::labels(member.endpoint()),
        locality: member.endpoint().locality().unwrap_or_default().to_owned(),
        weight: if uniform { 0 } else { member.endpoint().weight },
        ..WorkloadEntry::default()
    };
    // The proxy sends no call to a provider that went; what the consumer dials is still checked to be whom it says.
    let (resolution, endpoints, called) = match policy.balance() {
        Balance::Client => (Resolution::None, Vec::new(), cloned(addresses.all())),
        Balance::Mesh => (Resolution::Static, members().map(endpoint).collect(), cloned(members())),
    };
    let dialed: BTreeSet<&IpAddr> = addresses.all().map(|(address, _)| address).collect();
    ServiceEntry {
        hosts: vec![host.to_owned()],
        addresses: dialed.into_iter().map(IpAddr::to_string).collect(),
        ports: vec![ServicePort {
            number: u32::from(port),
            protocol: "TCP".to_owned(),
            name: PORT_NAME.to_owned(),
            target_port: 0,
        }],
        location: Location::MeshInternal.into(),
        resolution: resolution.into(),
        endpoints,
        export_to: export_to.to_vec(),
        subject_alt_names: service_entry::identities(&called),
        ..ServiceEntry::default()
    }
}

/// The DestinationRule, for all that the entry cannot say: where the proxy chooses, that new providers warm up; where the
/// consumer does, that istiod originates mTLS, as there are no endpoints to carry a label. A rule is for the whole host, so
/// there is the latter only where every address is to be called with mTLS.
pub fn rule(
    application: &str,
    host: &str,
    addresses: &Addresses<'_>,
    export_to: &[String],
    policy: &Policy,
) -> Option<DestinationRule> {
    if policy.balance() == Balance::Mesh {
        return policy.direct_warmup(application).map(|warmup| service_entry::warmup(host, warmup));
    }
    let members = cloned(addresses.all());
    if members.iter().any(|member| member.endpoint().mtls().is_none()) {
        return None;
    }
    let tls = ClientTlsSettings {
        mode: client_tls_settings::TlSmode::IstioMutual.into(),
        subject_alt_names: service_entry::identities(&members),
    };
    Some(DestinationRule {
        host: host.to_owned(),
        traffic_policy: Some(TrafficPolicy { load_balancer: None, tls: Some(tls) }),
        export_to: export_to.to_vec(),
    })
}

fn cloned<'a>(members: impl Iterator<Item = (&'a IpAddr, &'a Member)>) -> Vec<Member> {
    members.map(|(_, member)| member.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::validate;

    #[test]
    fn hosts_tell_applications_apart() {
        assert_eq!(host("orders", 12200, "sofa.mesh"), "p12200.orders.app.sofa.mesh");
        let odd = ["Orders", "or.ders", "or_ders", "orders-0123456789ab", "x".repeat(70).leak() as &str, "\u{738b}"];
        let hosts: BTreeSet<String> = odd.iter().map(|application| host(application, 1, "sofa.mesh")).collect();
        assert_eq!(hosts.len(), odd.len());
        for host in hosts {
            assert!(validate::is_service_host(&host), "{host}");
        }
    }
}

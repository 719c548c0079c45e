//! Which addresses may be endpoints.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::policy::document::EndpointPolicy;

/// Why an address may not be an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Loopback, unspecified, link-local, multicast or broadcast.
    Unusable,
    /// Inside the range that VIPs are taken from.
    VipRange,
    /// Left out by `endpoints.allow` or `endpoints.deny`.
    Denied,
}

/// Whether `address` may be an endpoint under `policy`, where VIPs are taken from `vip_range`.
pub(super) fn check(address: IpAddr, policy: &EndpointPolicy, vip_range: Option<IpNet>) -> Result<(), Refusal> {
    let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&address));
    let link_local_or_broadcast = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified()
        || address.is_multicast()
        || link_local_or_broadcast
        || (address.is_loopback() && !policy.allow_loopback)
    {
        Err(Refusal::Unusable)
    } else if vip_range.is_some_and(|range| range.contains(&address)) {
        Err(Refusal::VipRange)
    } else if within(&policy.deny) || !(policy.allow.is_empty() || within(&policy.allow)) {
        Err(Refusal::Denied)
    } else {
        Ok(())
    }
}

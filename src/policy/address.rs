//! Which addresses may be endpoints.
//!
//! A publisher's word sends the mesh's traffic to an address, so addresses that are nobody's service are left out:
//! of this machine or link, of groups, of cloud metadata services, and ranges that no host may have. An operator who has
//! a service there names it in `endpoints.allow`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::policy::document::EndpointPolicy;

/// Why an address may not be an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// In a range in which nobody has a service for others.
    Unusable,
    /// Inside a range that VIPs are taken from.
    VipRange,
    /// Left out by `endpoints.allow` or `endpoints.deny`.
    Denied,
}

const fn v4(network: [u8; 4], length: u8) -> IpNet {
    let [a, b, c, d] = network;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(network: u128, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(network), length))
}

/// Loopback, which `endpoints.allowLoopback` opens as well.
const LOOPBACK: [IpNet; 2] = [v4([127, 0, 0, 0], 8), v6(1, 128)];

/// Ranges in which nobody has a service for others (IANA's special-purpose address registries), and the metadata services
/// of clouds, which answer with credentials.
const RESERVED: [IpNet; 10] = [
    v4([0, 0, 0, 0], 8),                  // this network
    v4([169, 254, 0, 0], 16),             // link-local, with the metadata of most clouds
    v4([224, 0, 0, 0], 4),                // multicast
    v4([240, 0, 0, 0], 4),                // reserved, with the broadcast address
    v4([100, 100, 100, 200], 32),         // metadata of Alibaba Cloud
    v4([168, 63, 129, 16], 32),           // platform services of Azure
    v6(0, 128),                           // unspecified
    v6(0xfe80 << 112, 10),                // link-local
    v6(0xff << 120, 8),                   // multicast
    v6((0xfd00_0ec2 << 96) | 0x254, 128), // metadata of AWS
];

/// NAT64 of one's own network (RFC 8215); an IPv4 address stands at the end, or behind the prefix and around byte 8.
const OWN_NAT64: IpNet = v6(0x0064_ff9b_0001 << 80, 48);

/// Prefixes of IPv6 addresses that carry an IPv4 one, with the number of bits behind it.
const CARRIERS: [(IpNet, u32); 5] = [
    (v6(0, 96), 0),                 // IPv4-compatible (RFC 4291)
    (v6(0xffff << 32, 96), 0),      // IPv4-mapped (RFC 4291)
    (v6(0x0064_ff9b << 96, 96), 0), // NAT64 (RFC 6052)
    (OWN_NAT64, 0),
    (v6(0x2002 << 112, 16), 80), // 6to4 (RFC 3056)
];

/// Whether `address` may be an endpoint under `policy`, where VIPs are taken from `vip_ranges`. An address that carries
/// another is judged as that one, too; `allow` has to name only the address itself.
pub(super) fn check(address: IpAddr, policy: &EndpointPolicy, vip_ranges: &[IpNet]) -> Result<(), Refusal> {
    let within = |ranges: &[IpNet], address: IpAddr| ranges.iter().any(|range| range.contains(&address));
    for judged in judged(address) {
        if within(vip_ranges, judged) {
            return Err(Refusal::VipRange);
        }
        if is_unusable(judged, policy) {
            return Err(Refusal::Unusable);
        }
        if within(&policy.deny, judged) {
            return Err(Refusal::Denied);
        }
    }
    if policy.allow.is_empty() || within(&policy.allow, address) { Ok(()) } else { Err(Refusal::Denied) }
}

/// The range of `endpoints.deny` that an address, or one that it carries, is in.
pub(super) fn denied_by(address: IpAddr, policy: &EndpointPolicy) -> Option<&IpNet> {
    policy.deny.iter().find(|range| judged(address).any(|judged| range.contains(&judged)))
}

/// An address, and those that it carries.
fn judged(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    [Some(address)].into_iter().chain(carried(address)).flatten()
}

/// Whether `address` is in a range without services for others. A range of `allow` opens what it names: `10.0.0.0/8` or
/// `0.0.0.0/0` opens no metadata service, `169.254.169.254/32` does.
fn is_unusable(address: IpAddr, policy: &EndpointPolicy) -> bool {
    let named = |range: &IpNet| policy.allow.iter().any(|allow| range.contains(allow) && allow.contains(&address));
    let closed = |range: &&IpNet| range.contains(&address) && !named(range);
    (!policy.allow_loopback && LOOPBACK.iter().any(|range| closed(&range)))
        || RESERVED.iter().any(|range| closed(&range))
}

/// The IPv4 addresses that an IPv6 one may carry. `::` and `::1` carry none, though the prefix of IPv4-compatible addresses
/// has them.
fn carried(address: IpAddr) -> [Option<IpAddr>; 2] {
    let IpAddr::V6(v6) = address else { return [None, None] };
    let bits = v6.to_bits();
    let found = CARRIERS.iter().find(|(prefix, _)| prefix.contains(&address) && bits > 1);
    let v4 = |bits: u128| IpAddr::from(Ipv4Addr::from_bits(bits as u32));
    // RFC 6052, 2.2: behind a prefix of 48 bits come two bytes, a zero and the other two.
    let split = || v4((bits >> 64 & 0xffff) << 16 | (bits >> 40 & 0xffff));
    [found.map(|(_, behind)| v4(bits >> behind)), OWN_NAT64.contains(&address).then(split)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIPS: [IpNet; 2] = [v4([248, 0, 0, 0], 6), v6(0xfd00_00f8 << 96, 32)];

    fn ask(address: &str, policy: &EndpointPolicy) -> Result<(), Refusal> {
        check(address.parse().unwrap(), policy, &VIPS)
    }

    fn policy(allow: &[&str], deny: &[&str]) -> EndpointPolicy {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        EndpointPolicy { allow: ranges(allow), deny: ranges(deny), allow_loopback: false }
    }

    #[test]
    fn what_is_nobodys_service_is_left_out_in_every_notation() {
        let open = policy(&[], &[]);
        for usable in ["10.0.0.1", "100.100.100.201", "168.63.129.17", "8.8.8.8", "fd00:ec2::253", "2001:db8::1"] {
            assert_eq!(ask(usable, &open), Ok(()), "{usable}");
        }
        for usable in
            ["64:ff9b:1:a00:0:100:a00:1", "64:ff9b::10.0.0.1", "::10.0.0.1", "::ffff:10.0.0.1", "2002:a00:1::5"]
        {
            assert_eq!(ask(usable, &open), Ok(()), "{usable}");
        }
        for unusable in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::100.100.100.200",
            "64:ff9b:1:7f00:0:100:1:1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
        ] {
            assert_eq!(ask(unusable, &open), Err(Refusal::Unusable), "{unusable}");
        }
        for vip in ["248.0.0.1", "251.255.255.255", "64:ff9b::f800:1", "fd00:f8::1"] {
            assert_eq!(ask(vip, &open), Err(Refusal::VipRange), "{vip}");
        }
    }

    #[test]
    fn a_denied_address_is_denied_in_every_notation() {
        let denying = policy(&[], &["10.9.0.0/16"]);
        for denied in ["10.9.0.1", "::10.9.0.1", "::ffff:10.9.0.1", "64:ff9b::a09:1", "2002:a09:1::"] {
            assert_eq!(ask(denied, &denying), Err(Refusal::Denied), "{denied}");
        }
        assert_eq!(ask("10.8.0.1", &denying), Ok(()));
        assert_eq!(ask("10.9.0.1", &policy(&["10.9.0.1/32"], &["10.9.0.0/16"])), Err(Refusal::Denied), "deny wins");
    }

    #[test]
    fn what_is_allowed_has_to_be_named() {
        let wide = policy(&["0.0.0.0/0", "::/0"], &[]);
        assert_eq!(ask("10.0.0.1", &wide), Ok(()));
        for unusable in ["100.100.100.200", "127.0.0.1", "240.0.0.1", "fd00:ec2::254"] {
            assert_eq!(ask(unusable, &wide), Err(Refusal::Unusable), "{unusable}");
        }
        let named = policy(&["240.0.0.0/5", "100.100.100.200/32", "127.0.0.0/8", "64:ff9b::/96"], &[]);
        for usable in ["240.0.0.1", "100.100.100.200", "127.0.0.1", "64:ff9b::10.0.0.1"] {
            assert_eq!(ask(usable, &named), Ok(()), "{usable}");
        }
        assert_eq!(ask("10.0.0.1", &named), Err(Refusal::Denied));
        let demo = EndpointPolicy { allow_loopback: true, ..policy(&[], &[]) };
        assert_eq!([ask("127.0.0.1", &demo), ask("::1", &demo)], [Ok(()), Ok(())]);
        assert_eq!(ask("169.254.0.1", &demo), Err(Refusal::Unusable));
    }
}

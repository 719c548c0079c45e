//! The virtual addresses of a host.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use ipnet::IpNet;

/// How many families of addresses there are.
pub const FAMILIES: usize = 2;

/// At most one virtual address of each family, IPv4 first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vips(pub [Option<IpAddr>; FAMILIES]);

/// The place of an address's family in [`Vips`].
pub fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

impl Vips {
    /// In the order in which they are served: that of the ranges that they are taken from.
    pub fn in_order(self, ranges: &[IpNet]) -> Vec<IpAddr> {
        let Self([v4, v6]) = self;
        let is_v6_first = ranges.first().is_some_and(|range| range.addr().is_ipv6());
        let all = if is_v6_first { [v6, v4] } else { [v4, v6] };
        all.into_iter().flatten().collect()
    }
}

impl FromIterator<IpAddr> for Vips {
    /// Of several of a family the first.
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut vips = Self::default();
        for address in addresses {
            vips.0[family(address)].get_or_insert(address);
        }
        vips
    }
}

impl Display for Vips {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().flatten().map(IpAddr::to_string).collect();
        f.write_str(if all.is_empty() { "none" } else { "" })?;
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_served_in_the_order_of_the_ranges() {
        let of = |addresses: &[&str]| addresses.iter().map(|address| address.parse().unwrap()).collect::<Vips>();
        let both = of(&["fd00::1", "248.0.0.1", "248.0.0.2"]);
        assert_eq!(both, of(&["248.0.0.1", "fd00::1"]));
        for (ranges, order) in [
            (vec![], "248.0.0.1 fd00::1"),
            (vec!["248.0.0.0/6", "fd00::/64"], "248.0.0.1 fd00::1"),
            (vec!["fd00::/64", "248.0.0.0/6"], "fd00::1 248.0.0.1"),
        ] {
            let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
            let served: Vec<String> = both.in_order(&ranges).iter().map(IpAddr::to_string).collect();
            assert_eq!(served.join(" "), order);
        }
        assert_eq!((both.to_string(), of(&[]).to_string()), ("248.0.0.1, fd00::1".into(), "none".into()));
    }
}

//! Partitions: shares of what is served, for clients that take it over several connections.
//!
//! istiod decodes all of a source on each change, so one source of N partitions makes a change cost 1/N. N is a power of two and
//! partition k of N has the hosts whose SHA-256 starts with k in its first log2(N) bits; so partitions nest, and a resource's partition of
//! any N is known from its slice.

use std::{fmt, ops::Range};

/// Into how many slices resources are divided.
pub const SLICES: usize = 128;

/// Most partitions that there may be.
pub const MAX_PARTITIONS: usize = SLICES;

/// The slice of a host: the top 7 bits of its SHA-256.
pub fn slice_of(host_digest: &[u8; 32]) -> usize {
    usize::from(host_digest[0] >> 1)
}

/// A partition: share k of N equal shares of all hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    count: u16,
    index: u16,
}

impl Partition {
    /// Everything.
    pub const WHOLE: Self = Self { count: 1, index: 0 };

    /// Partition `index` of `count`; `None` unless `count` is a power of two up to [`MAX_PARTITIONS`] and `index` is below it.
    pub fn new(index: usize, count: usize) -> Option<Self> {
        let possible = count.is_power_of_two() && count <= MAX_PARTITIONS && index < count;
        possible.then_some(Self { count: count as u16, index: index as u16 })
    }

    /// All partitions of `count`, in order.
    pub fn all_of(count: usize) -> impl Iterator<Item = Self> {
        (0..count).filter_map(move |index| Self::new(index, count))
    }

    /// N: the number of partitions that together are everything.
    pub fn count(self) -> usize {
        usize::from(self.count)
    }

    /// k, from 0.
    pub fn index(self) -> usize {
        usize::from(self.index)
    }

    /// Differs between any two partitions: partition k of N has N + k, below 2 × [`MAX_PARTITIONS`]. The two halves of
    /// partition n are 2n and 2n + 1. A partition's port is as far as its number from the port that serves everything.
    pub fn number(self) -> usize {
        self.count() + self.index()
    }

    /// The slices of a snapshot that the partition has.
    pub fn slices(self) -> Range<usize> {
        let each = SLICES / self.count();
        self.index() * each..(self.index() + 1) * each
    }

    /// The partition that a host name asks for: `p3-of-64.<any name>`, with or without a port. A name of another form asks for
    /// none; one that is meant as a partition's but is not one is an error, since it must not be taken for everything.
    pub fn named_in(authority: &str) -> Result<Option<Self>, String> {
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let label = host.split(['.', ':']).next().unwrap_or_default();
        let Some((index, count)) = label.strip_prefix(['p', 'P']).and_then(|rest| rest.split_once("-of-")) else {
            return Ok(None);
        };
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if !digits(index) && !digits(count) {
            return Ok(None);
        }
        let number = |text: &str| text.parse::<usize>().ok().filter(|number| number.to_string() == text);
        let partition = number(index).zip(number(count)).and_then(|(index, count)| Self::new(index, count));
        let partition = partition.filter(|partition| partition.count() > 1);
        partition.map(Some).ok_or_else(|| {
            format!(
                "\"{label}\" names no partition; p<k>-of-<N> has a power of two from 2 to {MAX_PARTITIONS} for N, and k below it"
            )
        })
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => f.write_str("all"),
            count => write!(f, "{}/{count}", self.index),
        }
    }
}

impl serde::Serialize for Partition {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_every_count_are_disjoint_complete_and_nested() {
        let mut numbers = std::collections::BTreeSet::new();
        for count in [1, 2, 4, 8, 16, 32, 64, 128] {
            let mut slices: Vec<usize> = Vec::new();
            for partition in Partition::all_of(count) {
                assert!(numbers.insert(partition.number()) && partition.number() < 2 * MAX_PARTITIONS, "{partition}");
                slices.extend(partition.slices());
                let within = Partition::new(partition.index() / 2, count / 2);
                assert!(within.is_none_or(|w| partition.slices().all(|slice| w.slices().contains(&slice))
                    && w.number() == partition.number() / 2));
            }
            assert_eq!(slices, (0..SLICES).collect::<Vec<_>>());
        }
        assert_eq!(
            [Partition::new(0, 0), Partition::new(0, 3), Partition::new(0, 256), Partition::new(4, 4)],
            [None; 4]
        );
    }

    #[test]
    fn a_name_asks_for_a_part_or_for_none_or_is_refused() {
        let partition = |index, count| Ok(Partition::new(index, count));
        assert_eq!(Partition::named_in("p3-of-64.mox.example.com:9700"), partition(3, 64));
        assert_eq!(Partition::named_in("p0-of-2:9700"), partition(0, 2));
        for none in ["mox.example.com:9700", "127.0.0.1:9700", "[::1]:9700", "prod-of-emea.example.com", "p3.x", ""] {
            assert_eq!(Partition::named_in(none), Ok(None), "{none}");
        }
        for bad in [
            "p64-of-64.x",
            "p3-of-60.x",
            "p-of-64.x",
            "p3-of-.x",
            "p03-of-64.x",
            "p0-of-1.x",
            "p1-of-256",
            "px-of-64.x",
        ] {
            assert!(Partition::named_in(bad).is_err(), "{bad}");
        }
    }
}

//! Any set of ids: every name is legal, read back or hashed, and all are told apart whatever the order.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use registry_mox::testing::{
    catalog::assignment::claims::Claims,
    digest::{hex, prefix_of},
    translate::names,
};

const MAX_ID: usize = 4_096;
const MAX_IDS: usize = 16;

/// Istio's rules for a host, and ours: lower case.
fn check_host(host: &str) {
    assert!(host.len() <= 255 && host.contains('.'), "{host}");
    for label in host.split('.') {
        assert!((1..=63).contains(&label.len()), "{host}");
        assert!(label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')), "{host}");
        assert!(!label.starts_with('-') && !label.ends_with('-'), "{host}");
    }
    assert!(!host.rsplit('.').next().unwrap_or_default().bytes().all(|b| b.is_ascii_digit()), "{host}");
}

/// Whether it is what a port of an application is called, and so nothing else may be.
fn is_application(name: &str) -> bool {
    let labels: Vec<&str> = name.split('.').collect();
    labels.len() == 3
        && labels[2] == "app"
        && labels[0].strip_prefix('p').is_some_and(|port| port.parse::<u16>().is_ok())
}

/// The name of the service of an id, or of the one that it has beside that by another protocol.
fn check(id: &str, other: Option<&str>, suffix: &str) {
    let candidates: Vec<String> = names::candidates(id, other, suffix).collect();
    candidates.iter().for_each(|name| check_host(&format!("{name}.{suffix}")));
    let name = candidates.first().expect("every id has a name");
    if let Some(read) = names::read(name) {
        assert_eq!(read, (id.to_ascii_lowercase(), other), "{name}");
        return;
    }
    let whole = other.map_or_else(|| id.to_owned(), |other| format!("{other}://{id}"));
    let digest = hex(&prefix_of::<32>(whole));
    let (first, rest) = name.split_once('.').map_or((&**name, None), |(first, rest)| (first, Some(rest)));
    let plain = first.strip_suffix(&format!("-{}", &digest[..12])).unwrap_or_else(|| panic!("{id:?} is {name}"));
    // Where nothing can have been cut, the name without the hash must not have been good enough.
    if plain.len() < 63 - 13 && rest.is_none_or(|rest| rest.split('.').all(|label| label.len() < 63)) && name.len() < 63
    {
        let plain = rest.map_or(plain.to_owned(), |rest| format!("{plain}.{rest}"));
        let good = names::read(&plain) == Some((id.to_ascii_lowercase(), other)) && !is_application(&plain);
        assert!(!good, "{id:?} is {name} in vain");
    }
}

/// The hosts of a set of ids, as the publisher gives them.
fn assign<'a>(ids: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, String> {
    let mut claims: Claims<(), &str, String> = Claims::default();
    let mut all = BTreeSet::new();
    for id in ids {
        claims.set(&id, names::candidates(id, None, "sofa.mesh").map(|host| (host, ())));
        all.insert(id);
    }
    all.into_iter().map(|id| (id, claims.get(&id).unwrap_or_else(|| panic!("{id:?} has no host")).clone())).collect()
}

// Ids, a line each.
fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let ids: BTreeSet<&str> = text.lines().filter(|id| id.len() <= MAX_ID).take(MAX_IDS).collect();
    for id in &ids {
        for other in [None, Some("tri"), Some("hessian")] {
            check(id, other, "sofa.mesh");
            check(id, other, &format!("{}.{}.mesh", "a".repeat(63), "b".repeat(31)));
        }
    }
    let assigned = assign(ids.iter().copied());
    assert_eq!(assigned.values().collect::<BTreeSet<_>>().len(), ids.len(), "{assigned:?}");
    assert_eq!(assign(ids.iter().rev().copied()), assigned);
});

//! The library that goes into the jar (`make native`).
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeSet, path::Path};

/// The registry's own image has glibc 2.27; CentOS 7 has 2.17.
const NEWEST: (u32, u32) = (2, 17);

/// Every glibc version that the library asks for, by the names in its dynamic string table.
fn glibc_versions(library: &[u8]) -> BTreeSet<(u32, u32)> {
    let prefix = b"GLIBC_";
    let starts = (0..library.len()).filter(|at| library[*at..].starts_with(prefix));
    let text = starts.map(|at| library[at + prefix.len()..].split(|byte| *byte == 0).next().unwrap());
    let version = |text: &[u8]| {
        let mut parts = std::str::from_utf8(text).ok()?.split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    text.filter_map(version).collect()
}

#[test]
fn the_library_loads_with_an_old_glibc() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/native/libregistry_mox.so");
    let library = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run `make native`", path.display()));
    let versions = glibc_versions(&library);
    assert!(versions.contains(&(2, 2)), "some are there: {versions:?}");
    assert!(versions.last().unwrap() <= &NEWEST, "{versions:?}");
}

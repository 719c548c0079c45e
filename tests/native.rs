//! The library that goes into the jar (`make native`).
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

/// The registry's own image has glibc 2.27; CentOS 7 has 2.17.
const NEWEST: (u32, u32) = (2, 17);
/// Machines in the header of an ELF file.
const X86_64: u16 = 62;
const AARCH64: u16 = 183;

/// What follows a prefix in each of a library's texts that has it, up to the text's end.
fn after<'a>(library: &'a [u8], prefix: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let starts = (0..library.len()).filter(move |at| library[*at..].starts_with(prefix));
    starts.map(move |at| library[at + prefix.len()..].split(|byte| *byte == 0).next().unwrap())
}

/// Every glibc version that the library asks for, by the names in its dynamic string table.
fn glibc_versions(library: &[u8]) -> BTreeSet<(u32, u32)> {
    let version = |text: &[u8]| {
        let mut parts = std::str::from_utf8(text).ok()?.split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    after(library, b"GLIBC_").filter_map(version).collect()
}

/// Where a library lies that `make native`, or `make native-all`, built for a platform.
fn library_of(platform: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/native").join(platform).join("libregistry_mox.so")
}

/// The processor that a library is for, as its header says.
fn machine(library: &[u8]) -> u16 {
    assert_eq!(&library[..4], b"\x7fELF");
    u16::from_le_bytes([library[18], library[19]])
}

fn has(library: &[u8], text: &[u8]) -> bool {
    library.windows(text.len()).any(|part| part == text)
}

#[test]
fn the_library_loads_with_an_old_glibc() {
    let path = library_of("");
    let library = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run `make native`", path.display()));
    let versions = glibc_versions(&library);
    assert!(versions.contains(&(2, 2)), "some are there: {versions:?}");
    assert!(versions.last().unwrap() <= &NEWEST, "{versions:?}");
    assert_eq!(machine(&library), X86_64);
}

/// The library of `make native`, and that for aarch64 if it is there: `make test` does not build it.
fn libraries() -> Vec<(&'static str, Vec<u8>)> {
    let read = |platform| fs::read(library_of(platform)).ok().map(|library| (platform, library));
    ["", "linux-aarch64"].into_iter().filter_map(read).collect()
}

#[test]
fn libraries_of_other_platforms_are_what_their_folders_say() {
    for (platform, library) in libraries() {
        assert_eq!(machine(&library), if platform == "linux-aarch64" { AARCH64 } else { X86_64 }, "{platform}");
        let versions = glibc_versions(&library);
        assert!(versions.last().is_some_and(|newest| newest <= &NEWEST), "{platform} {versions:?}");
    }
}

/// musl's loader takes these names for its own, since it has all of them in one library. Any other is a library more, and that of
/// glibc's loader (`ld-linux-…`) is missing where there is no glibc.
#[test]
fn no_library_is_needed_that_musl_has_not() {
    const KNOWN: [&str; 5] = ["libc.so.6", "libpthread.so.0", "libdl.so.2", "libm.so.6", "librt.so.1"];
    for (platform, _) in libraries() {
        let said = Command::new("readelf")
            .args(["--wide", "--dynamic", "--version-info"])
            .arg(library_of(platform))
            .output()
            .unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let needed =
            said.lines().filter(|line| line.contains("(NEEDED)")).map(|line| line.split(['[', ']']).nth(1).unwrap());
        let versioned =
            said.lines().filter_map(|line| line.split_once("File: ")).map(|(_, rest)| rest.split(' ').next().unwrap());
        let names: BTreeSet<&str> = needed.chain(versioned).collect();
        assert!(names.contains("libc.so.6") && names.iter().all(|name| KNOWN.contains(name)), "{platform} {names:?}");
    }
}

/// A name that is missing is an `UnsatisfiedLinkError` when it is called first; symbols of the rest only make the jar larger.
#[test]
fn each_library_exports_the_natives_and_is_stripped() {
    let bridge = "java/src/main/java/com/alipay/sofa/registry/mox/NativeBridge.java";
    let bridge = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(bridge)).unwrap();
    let native = bridge.lines().filter(|line| line.trim_start().starts_with("static native "));
    let names: BTreeSet<String> =
        native.map(|line| line.split('(').next().unwrap().rsplit(' ').next().unwrap().to_owned()).collect();
    assert!(names.contains("abiVersion") && names.contains("apply"), "{bridge}");
    let libraries = libraries();
    assert!(!libraries.is_empty(), "run `make native`");
    for (platform, library) in libraries {
        // Names of sections: the table of all symbols, and what a debugger reads.
        for section in ["\0.symtab\0", "\0.debug_info\0"] {
            assert!(!has(&library, section.as_bytes()), "{platform} has {section:?}");
        }
        let found = after(&library, b"Java_com_alipay_sofa_registry_mox_NativeBridge_");
        let found: BTreeSet<String> = found.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        assert_eq!(found, names, "{platform}");
    }
}

/// The folders that it was built in are no part of a library.
#[test]
fn the_library_knows_no_folder_of_this_machine() {
    let library = fs::read(library_of("")).unwrap();
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo"))).unwrap();
    for folder in [Path::new(env!("CARGO_MANIFEST_DIR")), &cargo] {
        assert!(!has(&library, folder.as_os_str().as_bytes()), "{} is in it", folder.display());
    }
    assert!(has(&library, b"cargo/registry/src/"), "what stands in the place of the second");
}

//! Compiles the protos of this folder without `protoc`.

use std::path::Path;

const FILES: [&str; 4] = [
    "envoy/service/discovery/v3/discovery.proto",
    "istio/mcp/v1alpha1/resource.proto",
    "istio/networking/v1alpha3/destination_rule.proto",
    "istio/networking/v1alpha3/service_entry.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo runs this in the folder of the package, wherever it was built before.
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [root])?;
    prost_build::Config::new()
        // Maps are sorted, so that equal content encodes to equal bytes.
        .btree_map(["."])
        // Bodies are shared, not copied.
        .bytes([".google.protobuf.Any"])
        .compile_well_known_types()
        .include_file("protos.rs")
        .disable_comments(["."])
        .compile_fds(descriptors)?;
    Ok(())
}

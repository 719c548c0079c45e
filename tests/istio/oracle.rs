//! Istio's verdicts.

use std::{
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use prost::Message;
use registry_mox::proto::google::protobuf::Any;

/// The versions of Istio that `tests/real/install.sh validation` builds.
pub(crate) const VERSIONS: [&str; 3] = ["1.29.1", "1.32-dev", "1.22-dev"];

/// For each of [`VERSIONS`], for each resource: nothing if Istio takes it, else why it does not.
pub(crate) fn verdicts(resources: &[Any]) -> [Vec<Option<String>>; VERSIONS.len()] {
    thread::scope(|scope| {
        VERSIONS.map(|version| scope.spawn(|| ask(version, resources))).map(|one| one.join().unwrap())
    })
}

fn ask(version: &str, resources: &[Any]) -> Vec<Option<String>> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/real/bin").join(format!("validate-{version}"));
    let mut child = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; run tests/real/install.sh validation", program.display()));
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let verdicts = thread::scope(|scope| {
        scope.spawn(move || {
            let mut stdin = BufWriter::new(stdin);
            for resource in resources {
                stdin.write_all(&(resource.encoded_len() as u32).to_be_bytes()).unwrap();
                stdin.write_all(&resource.encode_to_vec()).unwrap();
            }
            stdin.flush().unwrap();
        });
        let lines = BufReader::new(stdout).lines().map(|line| match line.unwrap().as_str() {
            "ok" => None,
            refused => Some(refused.to_owned()),
        });
        lines.collect::<Vec<_>>()
    });
    assert!(child.wait().unwrap().success(), "{version} failed");
    assert_eq!(verdicts.len(), resources.len(), "{version} gave another number of verdicts");
    verdicts
}

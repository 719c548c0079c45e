//! istiod's own client, `adsc`, of three versions of Istio.

use std::collections::BTreeMap;

use base64::Engine;
use harness::{
    SOON,
    client::{Resource, State},
    process::{Driven, START, eventually, log_path, mortal, root},
};
use prost::Message;
use serde::Deserialize;
use serde_json::json;

use crate::serve::{Server, name, registered, sources};

/// A line of tests/tools/adsc/main.go.
#[derive(Debug, Clone, Default, Deserialize)]
struct Line {
    synced: bool,
    entries: BTreeMap<String, Entry>,
    /// Names in two stores.
    twice: usize,
    /// Every deletion so far.
    deleted: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Entry {
    version: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    spec: String,
}

/// The same of what is served.
fn entries(served: &State) -> BTreeMap<String, Entry> {
    let some = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone());
    let entry = |(name, resource): (&String, &Resource)| {
        let spec = base64::engine::general_purpose::STANDARD.encode(resource.entry.encode_to_vec());
        let (labels, annotations) = (some(&resource.labels), some(&resource.annotations));
        (name.clone(), Entry { version: resource.version.clone(), labels, annotations, spec })
    };
    served.iter().map(entry).collect()
}

struct Adsc {
    driven: Driven,
    now: Line,
}

impl Adsc {
    fn start(version: &str, sources: &[String]) -> Self {
        let program = root().join(format!("target/real/bin/adsc-{version}"));
        assert!(program.is_file(), "{} is missing: tests/real/install.sh clients", program.display());
        let log = log_path(&format!("adsc-{version}"));
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        let mut command = mortal(program);
        command.args(sources).stderr(std::fs::File::create(log).unwrap());
        Self { driven: Driven::start(&mut command), now: Line::default() }
    }

    fn read(&mut self) {
        self.now = serde_json::from_str(&self.driven.line(SOON)).unwrap();
        assert_eq!(self.now.twice, 0, "a name came from two parts");
    }

    /// Reads until its stores hold what is served; `deleted` is all that may have been deleted on the way, in total.
    fn wait_until_as_served(&mut self, serve: &Server, deleted: &[String]) {
        let wanted = entries(&serve.served());
        while !(self.now.synced && self.now.entries == wanted && self.now.deleted == deleted) {
            assert!(deleted.starts_with(&self.now.deleted), "deleted: {:?}, not {deleted:?}", self.now.deleted);
            self.read();
        }
    }
}

/// Starts, follows changes, loses a service and outlives two restarts of its server, the second with other data.
fn follow(version: &str, parts: u16) {
    let settings = json!({ "partitions": [4], "protect": { "emptyGrace": "0s" } });
    let mut state = registered(40, 3);
    let mut serve = Server::loaded(settings.clone(), &state);
    let mut adsc = Adsc::start(version, &sources(parts));
    adsc.wait_until_as_served(&serve, &[]);
    assert_eq!(adsc.now.entries.len(), 40);
    for n in 0..20 {
        serve.change(&mut state, n, n % 3);
    }
    serve.flush();
    adsc.wait_until_as_served(&serve, &[]);
    serve.replace(40, &[1, 1], 1);
    state.insert(40, vec![1, 1]);
    serve.flush();
    adsc.wait_until_as_served(&serve, &[]);
    assert_eq!(adsc.now.entries.len(), 41);
    for (endpoint, at) in state.remove(&7).unwrap().into_iter().enumerate() {
        serve.unpublish(7, endpoint, at);
    }
    serve.flush();
    let deleted = [format!("sofa-registry/{}", name(7))];
    adsc.wait_until_as_served(&serve, &deleted);
    for changes in [0, 5] {
        drop(serve);
        serve = Server::start(settings.clone(), &state);
        for n in 20..20 + changes {
            serve.change(&mut state, n, 1);
        }
        eventually(START, "it is back on every port", || {
            let page = serve.page("streams");
            let clients = page["clients"].as_array()?;
            clients.iter().any(|client| client["streams"] == parts && client["wrong"].is_null()).then_some(())
        });
        // The client is connected and told nothing yet.
        serve.load();
        adsc.wait_until_as_served(&serve, &deleted);
    }
    assert_eq!((adsc.now.entries.len(), adsc.now.deleted.len()), (40, 1));
}

fn both(version: &str) {
    for parts in [1, 4] {
        follow(version, parts);
    }
}

pub(crate) fn of_1_22() {
    both("1.22-dev");
}

pub(crate) fn of_1_29() {
    both("1.29.1");
}

pub(crate) fn of_1_32() {
    both("1.32-dev");
}

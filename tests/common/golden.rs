//! The files in `tests/golden/payloads`, described in its README. Used by `tests/payloads.rs` and the tests on the real parts.
#![allow(dead_code)] // every user needs only a part of it

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Golden {
    #[serde(skip)]
    pub(crate) path: PathBuf,
    /// Who publishes it, or where the sample is from.
    pub(crate) from: String,
    pub(crate) data_info_id: String,
    pub(crate) cell: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub(crate) policy: Value,
    pub(crate) data: Vec<String>,
    pub(crate) expect: Expect,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Expect {
    Reject { reject: String },
    Served(Entry),
}

/// What matters of a ServiceEntry with one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) host: String,
    pub(crate) port: u64,
    pub(crate) protocol: String,
    pub(crate) port_name: String,
    pub(crate) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoint {
    pub(crate) address: String,
    pub(crate) port: u64,
    /// 0: unset.
    pub(crate) weight: u64,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Golden {
    /// Every file of a folder, by name.
    pub(crate) fn read_all(folder: &str) -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/payloads").join(folder);
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    fn read(path: PathBuf) -> Self {
        let golden = serde_json::from_slice(&fs::read(&path).unwrap());
        Self { path: path.clone(), ..golden.unwrap_or_else(|error| panic!("{}: {error}", path.display())) }
    }

    pub(crate) fn write(&self) {
        fs::write(&self.path, serde_json::to_string_pretty(self).unwrap() + "\n").unwrap();
    }

    /// The entry that it is served as.
    pub(crate) fn entry(&self) -> &Entry {
        match &self.expect {
            Expect::Served(entry) => entry,
            Expect::Reject { .. } => panic!("{}: it is not served", self.path.display()),
        }
    }

    pub(crate) fn data_id(&self) -> &str {
        self.data_info_id.split("#@#").next().unwrap()
    }
}

impl Entry {
    /// A ServiceEntry as `kubectl` and istiod's `configz` print it.
    pub(crate) fn of_json(item: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let spec = &item["spec"];
        let port = &spec["ports"][0];
        let endpoint = |endpoint: &Value| Endpoint {
            address: text(&endpoint["address"]),
            port: endpoint["ports"][port["name"].as_str().unwrap_or_default()].as_u64().unwrap_or_default(),
            weight: endpoint["weight"].as_u64().unwrap_or_default(),
            labels: serde_json::from_value(endpoint["labels"].clone()).unwrap_or_default(),
        };
        Self {
            host: text(&spec["hosts"][0]),
            port: port["number"].as_u64().unwrap_or_default(),
            protocol: text(&port["protocol"]),
            port_name: text(&port["name"]),
            endpoints: spec["endpoints"].as_array().into_iter().flatten().map(endpoint).collect(),
        }
    }

    /// As it is sent: equal weights are left out.
    pub(crate) fn without_equal_weights(mut self) -> Self {
        if self.endpoints.windows(2).all(|pair| pair[0].weight == pair[1].weight) {
            self.endpoints.iter_mut().for_each(|endpoint| endpoint.weight = 0);
        }
        self
    }
}

//! The files in `tests/golden/payloads`, described in its README: payloads, and the entries that they must become.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::process::root;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Golden {
    #[serde(skip)]
    pub path: PathBuf,
    /// Who publishes it, or where the sample is from.
    pub from: String,
    pub data_info_id: String,
    pub cell: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub policy: Value,
    pub data: Vec<String>,
    pub expect: Expect,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Expect {
    Reject {
        reject: String,
    },
    Served(Entry),
    /// An instance of several protocols, by host.
    Several(Vec<Entry>),
}

/// The fields that matter of a ServiceEntry with one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    pub host: String,
    pub port: u64,
    pub protocol: String,
    pub port_name: String,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    pub address: String,
    pub port: u64,
    /// 0: unset.
    pub weight: u64,
    pub labels: BTreeMap<String, String>,
}

impl Golden {
    /// Every file of a folder, by name.
    pub fn read_all(folder: &str) -> Vec<Self> {
        let folder = root().join("tests/golden/payloads").join(folder);
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    fn read(path: PathBuf) -> Self {
        let golden = serde_json::from_slice(&fs::read(&path).unwrap());
        Self { path: path.clone(), ..golden.unwrap_or_else(|error| panic!("{}: {error}", path.display())) }
    }

    pub fn write(&self) {
        fs::write(&self.path, serde_json::to_string_pretty(self).unwrap() + "\n").unwrap();
    }

    /// The one entry that it is served as.
    pub fn entry(&self) -> &Entry {
        match self.entries() {
            [entry] => entry,
            others => panic!("{}: it is served as {}", self.path.display(), others.len()),
        }
    }

    /// The entries that it is served as.
    pub fn entries(&self) -> &[Entry] {
        match &self.expect {
            Expect::Reject { .. } => &[],
            Expect::Served(entry) => std::slice::from_ref(entry),
            Expect::Several(entries) => entries,
        }
    }

    pub fn data_id(&self) -> &str {
        self.data_info_id.split("#@#").next().unwrap()
    }
}

impl Entry {
    /// A ServiceEntry as `kubectl` and istiod's `configz` print it.
    pub fn of_json(item: &Value) -> Self {
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
    pub fn without_equal_weights(mut self) -> Self {
        if self.endpoints.windows(2).all(|pair| pair[0].weight == pair[1].weight) {
            self.endpoints.iter_mut().for_each(|endpoint| endpoint.weight = 0);
        }
        self
    }
}

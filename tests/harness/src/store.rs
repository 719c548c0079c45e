//! What session servers share: the registry's table of documents, and engines whose host carries rows between them and it, as
//! the registry's binding does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use crate::Mox;

/// The token that all of them have where a test sets none.
pub const TOKEN: &str = "open sesame 1234";

/// The registry's table, by the rows' keys: version and value.
#[derive(Clone, Default)]
pub struct Table(Arc<Mutex<BTreeMap<String, (i64, String)>>>);

impl Table {
    pub fn row(&self, name: &str) -> Option<(i64, String)> {
        self.0.lock().unwrap().get(&key(name)).cloned()
    }

    /// Loses every row.
    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Somebody who reaches the database.
    pub fn set(&self, name: &str, value: String) {
        let mut rows = self.0.lock().unwrap();
        let version = rows.get(&key(name)).map_or(1, |(version, _)| version + 1);
        rows.insert(key(name), (version, value));
    }
}

fn key(name: &str) -> String {
    format!("registry-mox.{name}#@#9600#@#CONFIG")
}

/// A session server: its engine, and what carries rows. Without a table the database is away.
pub struct Server {
    /// Its engine.
    pub mox: Mox,
    /// The table, if the database is there.
    pub table: Option<Table>,
    /// Keys that are read beside the usual ones.
    pub more: Value,
}

impl Server {
    /// Starts one that reads the table, and that a registry tells of services before its view is complete.
    pub fn start(table: Option<&Table>, config: Value, tell: impl FnOnce(&Mox)) -> Self {
        let mut config = config;
        if config["admin"].is_null() {
            config["admin"] = json!({ "token": TOKEN });
        }
        let mox = Mox::closed(config);
        mox.tell(json!({ "op": "awaitDocuments" }));
        tell(&mox);
        let mut server = Self { mox, table: table.cloned(), more: json!({}) };
        server.poll();
        server.mox.engine.loaded();
        server
    }

    #[track_caller]
    pub fn tell(&self, order: Value) -> Value {
        self.mox.tell(order)
    }

    /// Reads all rows, and writes those that the engine wants to be written.
    pub fn poll(&mut self) {
        let Some(table) = self.table.clone() else {
            self.tell(json!({ "op": "rows", "failure": "the database is away" }));
            return;
        };
        let keys = self.tell(json!({ "op": "settings" }))["documents"].clone();
        let row = |(name, _): (&String, &Value)| (name.clone(), shown(table.row(name)));
        loop {
            let keys = keys.as_object().unwrap().iter().chain(self.more.as_object().unwrap());
            let rows: BTreeMap<String, Value> = keys.map(row).collect();
            let answer = self.tell(json!({ "op": "rows", "rows": rows }));
            for write in answer["writes"].as_array().unwrap() {
                self.put(write);
            }
            let more = answer["read"].as_object().unwrap();
            let is_more = more.keys().any(|name| !rows.contains_key(name));
            self.more = answer["read"].clone();
            if !is_more {
                return;
            }
        }
    }

    fn put(&mut self, write: &Value) -> Value {
        let key = write["key"].as_str().unwrap();
        let (mut stored, mut row) = (false, None);
        if let Some(table) = &self.table {
            let mut rows = table.0.lock().unwrap();
            let there = rows.get(key).map_or(0, |(version, _)| *version);
            stored = there == write["expect"];
            if stored {
                let written = (write["version"].as_i64().unwrap(), write["value"].as_str().unwrap().to_owned());
                rows.insert(key.to_owned(), written);
            }
            row = rows.get(key).cloned();
        }
        let read = self.table.is_some();
        self.tell(
            json!({ "op": "written", "ticket": write["ticket"], "stored": stored, "read": read, "row": shown(row) }),
        )
    }

    /// Status and body of what an operator asks for.
    pub fn post(&mut self, path: &str, query: &str, if_match: &str, body: &str) -> (u64, String) {
        let shown = json!({ "token": TOKEN });
        let mut next = self.tell(json!({
            "op": "change", "path": path, "query": query, "ifMatch": if_match, "shown": shown, "body": body,
        }));
        while next["write"].is_object() {
            next = self.put(&next["write"].clone());
        }
        (next["status"].as_u64().unwrap(), next["body"].as_str().unwrap().to_owned())
    }

    pub fn policy(&self) -> Value {
        serde_json::from_str(&self.mox.page("/mox/policy", "").1).unwrap()
    }

    pub fn document(&self, name: &str) -> Value {
        let status = serde_json::to_value(self.mox.engine.status()).unwrap();
        status["documents"]["documents"][name].clone()
    }

    pub fn state(&self) -> (String, String) {
        let status = serde_json::to_value(self.mox.engine.status()).unwrap();
        let text = |key: &str| status["documents"][key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("why"))
    }

    /// The version of what is served, and how many services that are.
    pub async fn serves(&self) -> (String, usize) {
        let served = self.mox.engine.flush().await;
        (served.version, served.services)
    }
}

fn shown(row: Option<(i64, String)>) -> Value {
    row.map_or(Value::Null, |(version, value)| json!({ "version": version, "value": value }))
}

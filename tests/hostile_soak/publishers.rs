//! Publishers that say anything.

use harness::{id, nth, random::Random};
use serde_json::{Value, json};

/// Bad publishers, and what they have published.
pub(crate) struct Bad {
    random: Random,
    version: usize,
    published: Vec<(String, String)>,
}

/// Publishers that are remembered in order to be unpublished.
const REMEMBERED: usize = 3_000;

impl Bad {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed ^ 0xBAD), version: 0, published: Vec::new() }
    }

    /// A few lines of one kind, with its name; `services` good ones may be aimed at.
    pub(crate) fn lines(&mut self, services: usize) -> (&'static str, Vec<Value>) {
        self.version += 1;
        let aim = nth(self.random.below(services));
        match self.random.below(10) {
            0 => ("odd texts", self.odd(&aim)),
            1 => ("many services", self.many_services()),
            2 => ("twins", self.twins(&aim)),
            3 => ("heavy publishers", self.heavy(&aim)),
            4 => ("removals of nobody", self.tombstones()),
            5 => ("garbage", self.garbage(&aim)),
            6 => ("bad addresses", self.addresses(&aim)),
            7 => ("others' addresses", self.hijack()),
            8 => ("empty reads", self.empty_read(&aim)),
            _ => ("takings back", self.take_back()),
        }
    }

    fn publish(&mut self, data_info_id: &str, data: Vec<String>) -> Value {
        let register_id = format!("bad-{}", self.random.below(100_000));
        if self.published.len() < REMEMBERED {
            self.published.push((data_info_id.to_owned(), register_id.clone()));
        }
        json!({
            "op": "publish", "dataInfoId": data_info_id, "registerId": register_id, "version": self.version,
            "registerTimestamp": self.version, "data": data, "sourceAddress": "203.0.113.66",
        })
    }

    /// Identifiers and texts of any characters and lengths.
    fn odd(&mut self, aim: &str) -> Vec<Value> {
        let (register_id, cell) = (self.random.text(700), self.random.text(200));
        let data: Vec<String> = (0..self.random.below(20)).map(|_| self.random.text(300)).collect();
        let data_info_id = if self.random.percent(50) { aim.to_owned() } else { self.random.text(300) };
        vec![json!({
            "op": "publish", "dataInfoId": data_info_id, "registerId": register_id, "cell": cell, "version": self.version,
            "registerTimestamp": self.version, "data": data,
        })]
    }

    /// A tenant that registers services by the hundred, and takes them back at once or never.
    fn many_services(&mut self) -> Vec<Value> {
        let (from, tenant) = (self.random.below(10_000), self.random.below(3));
        let mut lines = Vec::new();
        for n in from..from + 100 {
            let id = format!("com.evil.S{n}:1.0@DEFAULT#@#tenant{tenant}#@#SOFA");
            let line = self.publish(&id, vec![format!("203.0.113.{}:1", n % 250 + 1)]);
            if self.random.percent(40) {
                let back = json!({ "op": "unpublish", "dataInfoId": id, "registerId": line["registerId"],
                                   "version": self.version + 1, "registerTimestamp": self.version + 1 });
                lines.extend([line, back]);
            } else {
                lines.push(line);
            }
        }
        lines
    }

    /// Ids that want a good service's host: other letter case, and characters that a host does not have.
    fn twins(&mut self, aim: &str) -> Vec<Value> {
        let twins = [aim.replace("com.", "COM."), aim.replace("example", "Example"), aim.replace(".S", ".S_")];
        twins.map(|twin| self.publish(&twin, vec!["203.0.113.66:12200".to_owned()])).to_vec()
    }

    /// Thousands of endpoints of the greatest weight in one publisher.
    fn heavy(&mut self, aim: &str) -> Vec<Value> {
        let octets: Vec<usize> = (0..2_000).map(|_| self.random.below(65_536)).collect();
        let data = octets.iter().map(|n| format!("203.{}.{}.9:12200?weight=100000", n >> 8, n & 255));
        let data = data.collect();
        vec![self.publish(aim, data)]
    }

    /// Removals of publishers that never were.
    fn tombstones(&mut self) -> Vec<Value> {
        let from = self.random.below(1_000_000);
        let line = |n| {
            json!({ "op": "unpublish", "dataInfoId": id(format_args!("Never{}", n % 50)), "version": 1,
                               "registerId": format!("never-{n}"), "registerTimestamp": 1 })
        };
        (from..from + 200).map(line).collect()
    }

    /// Bytes that are no text, and texts that are nearly addresses.
    fn garbage(&mut self, aim: &str) -> Vec<Value> {
        let mut line = self.publish(aim, Vec::new());
        if self.random.percent(50) {
            line.as_object_mut().unwrap().remove("data");
            line["dataBase64"] = json!(["rO0ABXQAAA==", "AAAA", "rO0ABXx//w=="]);
        } else {
            let text = self.random.text(40);
            line["data"] = json!([format!("dubbo://{text}"), format!("10.0.0.1:{text}"), "{\"name\":", "[::1", ":1"]);
        }
        vec![line]
    }

    /// Addresses that nobody should be sent to.
    fn addresses(&mut self, aim: &str) -> Vec<Value> {
        let bad =
            ["127.0.0.1:1", "169.254.169.254:80", "100.100.100.200:80", "[::ffff:127.0.0.1]:1", "[fe80::1%eth0]:1"];
        vec![self.publish(aim, bad.map(str::to_owned).to_vec())]
    }

    /// Another application's address as its own.
    fn hijack(&mut self) -> Vec<Value> {
        let n = self.random.below(200);
        let id = id(format_args!("Orders{n}"));
        vec![self.publish(&id, vec![format!("10.1.{n}.0:12200?app_name=orders&weight=100000")])]
    }

    /// A read of a data server that has nobody.
    fn empty_read(&mut self, aim: &str) -> Vec<Value> {
        let version = self.version;
        vec![json!({ "op": "replace", "source": "bad", "dataInfoId": aim, "version": version, "publishers": [] })]
    }

    fn take_back(&mut self) -> Vec<Value> {
        let count = self.random.below(self.published.len() + 1);
        let version = self.version;
        let back = |(data_info_id, register_id)| {
            json!({ "op": "unpublish", "dataInfoId": data_info_id, "registerId": register_id, "version": version,
                    "registerTimestamp": version })
        };
        self.published.drain(..count).map(back).collect()
    }
}

//! Answers of other session servers to the same, beside this one's: where they differ, one server is late, or follows another
//! policy or release.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest answer of another server that is looked at, in bytes.
const MOST: usize = 256 << 10;
/// How much of what another server says is repeated, in characters.
const REPEATED: usize = 300;

/// The answer of another session server.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// Its address.
    pub server: String,
    /// HTTP status; 0: none came.
    pub status: u16,
    /// The answer; it may be anything.
    pub body: String,
}

/// Another session server, and where it differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Beside {
    /// Its address.
    pub server: String,
    /// Why it says nothing; `None`: it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
    /// The steps at which it is otherwise there.
    pub differs: Vec<Difference>,
}

/// A step that is otherwise on another session server.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The service.
    pub service: String,
    /// The step.
    pub step: String,
    /// The state here.
    pub here: String,
    /// The state there.
    pub there: String,
}

/// The verdict of each step of each service, with the keys of its reasons.
fn steps(explanation: &Value) -> BTreeMap<(String, String), String> {
    let mut all = BTreeMap::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().chars().take(REPEATED).collect::<String>();
    for service in explanation["services"].as_array().into_iter().flatten() {
        for rung in service["ladder"].as_array().into_iter().flatten() {
            let keys: BTreeSet<String> =
                rung["reasons"].as_array().into_iter().flatten().map(|reason| text(&reason["key"])).collect();
            let mut so = text(&rung["verdict"]);
            if !keys.is_empty() {
                so = format!("{so}: {}", keys.into_iter().collect::<Vec<_>>().join(", "));
            }
            // What is served has a version that is the same wherever the same is served.
            if rung["step"] == "served" {
                so = format!("{so}, {}", text(&rung["found"]));
            }
            all.insert((text(&service["service"]), text(&rung["step"])), so);
        }
    }
    all
}

/// The others beside this one's own explanation. Who is connected to a server is its own matter, and differs.
pub fn beside(own: &Value, answers: Vec<Answer>) -> Vec<Beside> {
    let here = steps(own);
    let one = |Answer { server, status, body }: Answer| {
        let silent = |why: String| Beside { server: server.clone(), silent: Some(why), differs: Vec::new() };
        if status != 200 {
            let said: String = body.chars().take(REPEATED).map(|c| if c.is_control() { ' ' } else { c }).collect();
            return silent(format!("status {status}: {}", said.trim()));
        }
        if body.len() > MOST {
            return silent(format!("its answer has {} bytes, and {MOST} are looked at", body.len()));
        }
        let Ok(there) = serde_json::from_str::<Value>(&body) else { return silent("its answer is no JSON".to_owned()) };
        let there = steps(&there);
        let all: BTreeSet<_> = here.keys().chain(there.keys()).filter(|(_, step)| step != "clients").collect();
        let so = |steps: &BTreeMap<_, String>, at| steps.get(at).cloned().unwrap_or_else(|| "nothing".to_owned());
        let differs = all.into_iter().filter(|at| here.get(*at) != there.get(*at)).map(|at| Difference {
            service: at.0.clone(),
            step: at.1.clone(),
            here: so(&here, at),
            there: so(&there, at),
        });
        Beside { differs: differs.collect(), silent: None, server }
    };
    answers.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn explanation(verdict: &str, keys: &[&str], version: &str) -> Value {
        let reasons: Vec<Value> = keys.iter().map(|key| json!({ "key": key })).collect();
        let ladder = json!([
            { "step": "policy", "verdict": verdict, "reasons": reasons },
            { "step": "served", "verdict": "passed", "found": version },
            { "step": "clients", "verdict": "failed" },
        ]);
        json!({ "services": [{ "service": "a", "ladder": ladder }] })
    }

    fn answer(status: u16, body: String) -> Answer {
        Answer { server: "10.0.0.2".into(), status, body }
    }

    #[test]
    fn servers_are_told_apart_by_what_is_otherwise_there() {
        let own = explanation("passed", &[], "v1");
        let all = |body: &Value| beside(&own, vec![answer(200, body.to_string())]).remove(0);
        assert_eq!(all(&own), Beside { server: "10.0.0.2".into(), silent: None, differs: vec![] });
        let mut connected = own.clone();
        connected["services"][0]["ladder"][2]["verdict"] = "passed".into();
        assert_eq!(all(&connected).differs, [], "who is connected is a server's own matter");
        let other = all(&explanation("failed", &["excluded"], "v2"));
        let told: Vec<_> = other.differs.iter().map(|it| (&*it.step, &*it.here, &*it.there)).collect();
        assert_eq!(told, [("policy", "passed", "failed: excluded"), ("served", "passed, v1", "passed, v2")]);
        assert_eq!(all(&json!({})).differs.len(), 2, "it knows of no such service");
    }

    #[test]
    fn whatever_another_server_says_is_bounded() {
        let own = explanation("passed", &[], "v1");
        let silent = |status, body: String| beside(&own, vec![answer(status, body)]).remove(0).silent.unwrap();
        assert_eq!(silent(503, "MoX is off\n\u{1b}[31m".into()), "status 503: MoX is off  [31m");
        assert!(silent(0, "x".repeat(9_999)).len() < 400);
        assert!(silent(200, "x".repeat(MOST + 1)).contains("are looked at"));
        assert_eq!(silent(200, "<html>".into()), "its answer is no JSON");
        let long = explanation("passed", &["k"], &"v".repeat(9_999));
        assert!(serde_json::to_string(&beside(&own, vec![answer(200, long.to_string())])).unwrap().len() < 2_000);
    }
}

//! Policy documents, as an operator or what session servers share has them: every document is refused with its mistakes, or is
//! compiled, means the same when it is written and read again, and answers for each service what plain matching answers.
#![no_main]

use std::cmp::Reverse;

use libfuzzer_sys::fuzz_target;
use registry_mox::testing::{
    config::policy_from_json,
    policy::{Policy, PolicyConfig},
};
use serde_json::{Map, Value, json};

const NAMESPACE: &str = "sofa-registry";

/// Pieces of globs and of dataInfoIds.
const PIECES: [&str; 16] = [
    "*",
    "?",
    "com.",
    "a",
    "b",
    "A",
    "é",
    "S",
    ":1.0@",
    "DEFAULT",
    "#",
    "#@#",
    "#@#DEFAULT_INSTANCE_ID#@#SOFA",
    "Facade",
    "com.example.",
    "**",
];
const HOSTS: [&str; 6] =
    ["x.example.com", "a.sofa.mesh", "nodot", "X.example.com", "kubernetes.default.svc.cluster.local", ""];
const PROTOCOLS: [&str; 5] = ["HTTP", "TCP", "GRPC", "bolt", ""];
const LABELS: [&str; 5] = ["rpcVer", "startTime", "security.istio.io/tlsMode", "app", "-a"];
const EXPORTS: [&str; 5] = ["*", "~", ".", "a", "sofa-registry"];
const DURATIONS: [&str; 5] = ["0s", "1s", "90s", "2d", "soon"];
const RANGES: [&str; 6] = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "0.0.0.0/0", "10.1.2.3/32", "none"];

/// Bytes to choose by.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn next(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }

    fn text(&mut self) -> String {
        (0..self.next() % 6).map(|_| PIECES[self.next() % PIECES.len()]).collect()
    }

    fn some(&mut self, of: &[&str]) -> Vec<String> {
        (0..self.next() % 4).map(|_| of[self.next() % of.len()].to_owned()).collect()
    }

    fn exception(&mut self) -> Value {
        let mut all = Map::new();
        for _ in 0..self.next() % 4 {
            let (key, value) = match self.next() % 7 {
                0 => ("host", json!(HOSTS[self.next() % HOSTS.len()])),
                1 => ("port", json!(self.next() * 257)),
                2 => ("protocol", json!(PROTOCOLS[self.next() % PROTOCOLS.len()])),
                3 => ("exportTo", json!(self.some(&EXPORTS))),
                4 => ("dns", json!(self.next() % 2 == 0)),
                5 => ("warmup", json!(DURATIONS[self.next() % DURATIONS.len()])),
                _ => ("labels", json!(self.some(&LABELS))),
            };
            all.insert(key.to_owned(), value);
        }
        all.into()
    }

    fn document(&mut self) -> Value {
        let mut all = json!({});
        while !self.0.is_empty() {
            match self.next() % 10 {
                0 | 1 => all["include"] = (0..self.next() % 16).map(|_| self.text()).collect(),
                2 => all["exclude"] = (0..self.next() % 16).map(|_| self.text()).collect(),
                3 | 4 => {
                    let exceptions = (0..self.next() % 24).map(|_| (self.text(), self.exception()));
                    all["overrides"] = exceptions.collect::<Map<_, _>>().into();
                }
                5 => all["exportTo"] = self.some(&EXPORTS).into(),
                6 => {
                    let (allow, deny) = (self.some(&RANGES), self.some(&RANGES));
                    all["endpoints"] = json!({ "allow": allow, "deny": deny });
                }
                7 => all["ports"] = json!({ PROTOCOLS[self.next() % PROTOCOLS.len()]: self.next() * 257 }),
                8 => {
                    let (applications, exception) = (vec![self.text()], self.some(&EXPORTS));
                    let linger = DURATIONS[self.next() % DURATIONS.len()];
                    let overrides = json!({ self.text(): { "exportTo": exception } });
                    all["direct"] = json!({ "applications": applications, "linger": linger, "overrides": overrides });
                }
                _ => {
                    let (labels, applications) = (self.some(&LABELS), self.text());
                    all["labels"] = labels.into();
                    all["mtls"] = json!([{ "applications": [applications] }]);
                }
            }
        }
        all
    }
}

/// Whether a glob matches, said as plainly as it can be.
fn matches(glob: &[char], text: &[char]) -> bool {
    // By the length of the text's start: whether what there is of the glob so far matches it.
    let mut known = vec![false; text.len() + 1];
    known[0] = true;
    for piece in glob {
        match piece {
            '*' => (1..=text.len()).for_each(|at| known[at] |= known[at - 1]),
            piece => {
                for at in (1..=text.len()).rev() {
                    known[at] = known[at - 1] && (*piece == '?' || *piece == text[at - 1]);
                }
                known[0] = false;
            }
        }
    }
    known[text.len()]
}

/// A glob without `#` is one on the dataId as well.
fn is_about(glob: &str, id: &str) -> bool {
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    let data_id = id.split_once("#@#").map(|(data_id, _)| data_id).filter(|_| !glob.contains('#'));
    matches(&chars(glob), &chars(id)) || data_id.is_some_and(|data_id| matches(&chars(glob), &chars(data_id)))
}

/// A policy answers for a service as its document says.
fn ask(policy: &Policy, config: &PolicyConfig, id: &str) {
    let any = |globs: &[String]| globs.iter().any(|glob| is_about(glob, id));
    let serves = (config.include.is_empty() || any(&config.include)) && !any(&config.exclude);
    assert_eq!(policy.serves(id), serves, "{id:?}");
    let mut about: Vec<_> = config.overrides.iter().filter(|(glob, _)| is_about(glob, id)).collect();
    about.sort_by_key(|(glob, _)| (Reverse(glob.chars().filter(|c| !matches!(c, '*' | '?')).count()), *glob));
    let rules = policy.rules(id);
    let first = |setting: &dyn Fn(usize) -> bool| (0..about.len()).find(|n| setting(*n)).map(|n| about[n].1);
    assert_eq!(rules.host, first(&|n| about[n].1.host.is_some()).and_then(|it| it.host.as_deref()), "{id:?}");
    assert_eq!(rules.port, first(&|n| about[n].1.port.is_some()).and_then(|it| it.port), "{id:?}");
    let protocol = first(&|n| about[n].1.protocol.is_some()).and_then(|it| it.protocol.as_deref());
    assert_eq!(rules.protocol, protocol, "{id:?}");
    let export_to = first(&|n| about[n].1.export_to.is_some()).and_then(|it| it.export_to.as_ref());
    assert_eq!(rules.export_to, export_to.unwrap_or(&config.export_to), "{id:?}");
    assert_eq!(rules.dns, first(&|n| about[n].1.dns.is_some()).and_then(|it| it.dns).unwrap_or_default(), "{id:?}");
    assert_eq!(rules.warmup, first(&|n| about[n].1.warmup.is_some()).and_then(|it| it.warmup), "{id:?}");
    let labels = first(&|n| about[n].1.labels.is_some()).and_then(|it| it.labels.as_ref());
    assert_eq!(rules.labels, labels.unwrap_or(&config.labels), "{id:?}");
}

fn check(document: Value) {
    let config = match policy_from_json(document, NAMESPACE) {
        Ok(config) => config,
        Err(mistakes) => return assert!(!mistakes.to_string().is_empty()),
    };
    let policy = Policy::new(config.clone(), &[], NAMESPACE).expect("what has no mistake is compiled");
    let written = serde_json::to_value(&config).expect("a document is JSON");
    let again = policy_from_json(written, NAMESPACE).expect("what was written is read");
    assert_eq!(again, config);
    let again = Policy::new(again, &[], NAMESPACE).expect("what was written is compiled");
    let reading = |policy: &Policy| [true, false].map(|names_protocols| policy.reading(names_protocols));
    assert_eq!((again.hash(), reading(&again)), (policy.hash(), reading(&policy)));
    assert!(policy.admits_as(&again) && policy.makes_direct_as(&again));
    let globs = config.include.iter().chain(&config.exclude).chain(config.overrides.keys());
    for glob in globs.take(24) {
        let id = glob.replace('*', "a").replace('?', "é");
        ask(&policy, &config, &id);
        ask(&policy, &config, &format!("{id}#@#DEFAULT_INSTANCE_ID#@#SOFA"));
        ask(&policy, &config, &glob.replace(['*', '?'], ""));
    }
    ask(&policy, &config, "com.example.SFacade:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA");
    for range in &config.endpoints.deny {
        assert!(policy.check_address(range.addr()).is_err(), "{range} is denied");
    }
}

fuzz_target!(|data: &[u8]| {
    match data {
        [kind, text @ ..] if kind % 2 == 0 => serde_json::from_slice(text).into_iter().for_each(check),
        [_, choices @ ..] => check(Choices(choices).document()),
        [] => {}
    }
});

//! Texts as they may stand in a registry, read by the clients' own parsers (`java/…/SofaRpcReading.java`, `DubboReading.java`, `Dubbo3Reading.java`)
//! and by ours. `REGISTRY_CORPUS` is how many of each client there are at least, `REGISTRY_SEED` the seed that they are made
//! from. Where the two may differ, and why, is in [`DISAGREEMENTS`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use harness::{
    SOON,
    process::{Driven, START, log_path, script},
    random::Random,
    trials::{Trial, trial},
};
use registry_mox::testing::{
    policy::{Policy, PolicyConfig},
    translate::payload::{self, Endpoint, Made, Reject},
};
use serde_json::{Value, json};

/// Parameters that are compared, as labels: the first by its own name, the others since the policy allows them.
const PARAMETERS: [&str; 3] = ["zone", "x", "rpcVer"];
const SCHEMES: [&str; 7] = ["override", "route", "condition", "script", "consumer", "empty", "provider"];
const BATCH: usize = 1_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Client {
    SofaRpc,
    Dubbo,
    /// By instances alone; URLs are read as [`Dubbo`] reads them.
    Dubbo3,
}
use Client::{Dubbo, Dubbo3, SofaRpc};

pub(crate) fn trials() -> [Trial; 3] {
    [
        (SofaRpc, "corpus_is_read_as_sofarpc_reads_it"),
        (Dubbo, "corpus_is_read_as_dubbo_reads_it"),
        (Dubbo3, "corpus_is_read_as_dubbo_3_reads_it"),
    ]
    .map(|(client, name)| trial(name, move || compare(client)))
}

/// What a client makes of a text.
#[derive(Debug)]
enum Theirs {
    Called(Provider),
    /// It is no provider, or out of service.
    Skipped,
    /// The client's parser throws, and its whole list is lost.
    Error(String),
}

#[derive(Debug)]
struct Provider {
    host: String,
    port: i64,
    weight: i64,
    application: Option<String>,
    parameters: Vec<Option<String>>,
    /// Of an instance, the protocols by which it is called, each with its port.
    ports: Vec<(String, i64)>,
}

/// One text, and what both make of it.
struct Case<'a> {
    client: Client,
    text: &'a str,
    theirs: &'a Theirs,
    ours: &'a Result<Endpoint, Reject>,
    /// All that we make of it; `ours` is the first that is served, if one is.
    made: &'a Made,
}

/// In what the two may differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Field {
    /// They call what we leave out.
    LeftOut,
    /// We serve what they do not call.
    Served,
    Address,
    Port,
    /// Of an instance: by which protocols it is called, and where.
    Protocols,
    Weight,
    Application,
    Parameter,
}

/// Of whom, fields, where they may differ, and why.
type Disagreement = (&'static [Client], &'static [Field], fn(&Case) -> bool, &'static str);

const ALL: &[Client] = &[SofaRpc, Dubbo, Dubbo3];

/// Every case in which the readings may differ.
const DISAGREEMENTS: &[Disagreement] = &[
    (
        ALL,
        &[Field::LeftOut],
        |case| matches!(case.ours, Err(Reject::UnusableAddress | Reject::VipRange | Reject::Denied)),
        "the operator decides on addresses, and some are the mesh's own or lead back into it",
    ),
    (
        ALL,
        &[Field::LeftOut],
        |case| case.is_form() && case.called().is_some_and(|provider| provider.ip().is_none()),
        "Envoy takes addresses: a host name is served where the policy says `dns`; Java's 10.1 and 010.0.0.1 never are",
    ),
    (
        ALL,
        &[Field::LeftOut],
        |case| {
            let none = |provider: &Provider| match case.client {
                Dubbo3 => provider.ports.iter().all(|(protocol, port)| !is_known(protocol) || !is_port(*port)),
                SofaRpc | Dubbo => !is_port(provider.port),
            };
            case.is_form() && case.called().is_some_and(none)
        },
        "nobody can be called at such a port",
    ),
    (
        &[Dubbo, Dubbo3],
        &[Field::LeftOut],
        |case| {
            let unknown = |provider: &Provider| match case.client {
                Dubbo3 => provider.ports.iter().all(|(protocol, _)| !is_known(protocol)),
                SofaRpc | Dubbo => case.scheme().is_some_and(|scheme| !is_known(&scheme.to_ascii_lowercase())),
            };
            matches!(case.ours, Err(Reject::UnknownProtocol)) && case.called().is_some_and(unknown)
        },
        "a protocol that has no usual port and that the policy does not name has no service",
    ),
    (
        &[SofaRpc],
        &[Field::LeftOut],
        |case| case.is_form() && case.called().is_some_and(|p| p.port == 80) && !case.authority().contains(':'),
        "to SOFARPC no port is 80; none of its providers leaves it out, and plain words would be providers",
    ),
    (
        &[SofaRpc],
        &[Field::LeftOut],
        |case| case.scheme().is_some_and(is_other),
        "a configurator or a route of Dubbo's is no provider under any id; SOFARPC publishes none, and would dial it",
    ),
    (
        &[SofaRpc],
        &[Field::LeftOut],
        |case| case.is_form() && case.scheme().is_some_and(|scheme| !is_scheme(scheme)),
        "SOFARPC takes anything before :// for a protocol; none is registered under such a name",
    ),
    (
        &[SofaRpc],
        &[
            Field::LeftOut,
            Field::Served,
            Field::Address,
            Field::Port,
            Field::Weight,
            Field::Application,
            Field::Parameter,
        ],
        |case| case.scheme().is_some_and(|before| before.contains('?')),
        "SOFARPC takes a :// in a parameter for the one after a scheme, and calls what comes after it",
    ),
    (
        &[SofaRpc],
        &[Field::Served],
        |case| case.authority().matches(':').count() > 1 && case.is_error("NumberFormatException"),
        "SOFARPC 5.13.2 cannot read an IPv6 address; other publishers and readers of the registry can",
    ),
    (
        &[SofaRpc],
        &[Field::Served, Field::Address],
        |case| case.text != java_trim(case.text),
        "white space around a text is no part of it, as Dubbo has it",
    ),
    (
        &[Dubbo],
        &[Field::Served],
        |case| case.scheme().is_none(),
        "a text without a scheme under a Dubbo id is taken for one of protocol dubbo (Dubbo's consumer fails on it)",
    ),
    (
        &[Dubbo],
        &[Field::Served],
        |case| case.scheme().is_some_and(|scheme| scheme != "dubbo"),
        "other protocols than dubbo are called by consumers that have them (2.7.23 has rest with its jars, and no tri)",
    ),
    (
        &[Dubbo, Dubbo3],
        &[Field::Served],
        |case| case.is_error("NumberFormatException") && case.weight() == Some(100),
        "a weight that is no number: each call of a Dubbo consumer fails on it; it is read as none, as SOFARPC does",
    ),
    (
        ALL,
        &[Field::Weight],
        |case| case.called().is_some_and(|provider| provider.weight > 100_000) && case.weight() == Some(100_000),
        "above 100,000 a weight says nothing more, and Envoy adds them up in 32 bits",
    ),
    (
        &[SofaRpc],
        &[Field::Weight],
        |case| case.called().is_some_and(|provider| provider.weight < 0) && case.weight() == Some(0),
        "a weight below zero is never chosen, as zero",
    ),
    (
        ALL,
        &[Field::LeftOut, Field::Weight],
        |case| case.text.chars().any(|c| c.is_numeric() && !c.is_ascii()),
        "to Java digits of all scripts are digits; no client writes them",
    ),
    (
        ALL,
        &[Field::Application],
        |case| case.called().is_some_and(|provider| is_blank(provider.application.as_deref())),
        "a blank name is none, and the next parameter that may name an application is asked, the other client's too",
    ),
    (
        &[Dubbo3],
        &[Field::Served],
        |case| case.is_error("NullPointerException"),
        "a consumer fails on an instance without metadata; its port is known",
    ),
    (
        &[Dubbo3],
        &[Field::LeftOut, Field::Served, Field::Protocols],
        |case| case.has_endpoints_that_are_no_list(),
        "fastjson2 reads more than JSON in dubbo.endpoints, and no list of ports there is no word on them",
    ),
    (
        &[Dubbo3],
        &[Field::LeftOut],
        |case| case.is_form(),
        "Gson reads more than JSON: quoted numbers, words without quotes; Dubbo's client writes JSON with numbers",
    ),
    (
        &[Dubbo3],
        &[Field::LeftOut, Field::Served, Field::Weight, Field::Parameter],
        |case| case.has_numbers(),
        "Gson turns numbers into text; Dubbo's client writes text into metadata",
    ),
];

fn compare(client: Client) {
    let (texts, seed) = (number("REGISTRY_CORPUS", 10_000), number("REGISTRY_SEED", 20_261_129));
    println!("REGISTRY_CORPUS={texts} REGISTRY_SEED={seed}");
    let mut random = Random::new(seed);
    let (program, read_as) = match client {
        SofaRpc => ("SofaRpcReading", payload::Client::Sofarpc),
        Dubbo => ("DubboReading", payload::Client::Dubbo),
        Dubbo3 => ("Dubbo3Reading", payload::Client::DubboApplication),
    };
    let mut arguments = vec![program];
    arguments.extend(PARAMETERS);
    let mut reader = Driven::start(script("reading.sh", &log_path(program)).args(&arguments));
    let policy: PolicyConfig = serde_json::from_value(json!({ "labels": PARAMETERS[1..] })).unwrap();
    let policy = Policy::new(policy, &["248.0.0.0/6".parse().unwrap()], "sofa-registry").unwrap();
    let rules = policy.rules("");

    let (mut read, mut served, mut left_out) = (0, 0, BTreeMap::new());
    let mut counts = vec![0; DISAGREEMENTS.len()];
    let mut wrong = Vec::new();
    while read < texts {
        let batch: Vec<_> = (0..BATCH).map(|_| text(&mut random, client)).collect();
        batch.iter().for_each(|text| reader.tell(&BASE64_STANDARD.encode(text)));
        for text in &batch {
            let theirs = answer(client, &reader.line(if read == 0 { START } else { SOON }));
            let made = payload::made(text, "", read_as, &rules);
            let first = made.iter().find(|one| one.is_ok()).unwrap_or(&made[0]);
            let ours = first.clone().map(|(_, endpoint)| endpoint);
            match &ours {
                Ok(_) => served += 1,
                Err(reject) => *left_out.entry(reject.to_string()).or_insert(0) += 1,
            }
            read += 1;
            let case = Case { client, text, theirs: &theirs, ours: &ours, made: &made };
            for field in case.differences() {
                let applies = |(clients, fields, applies, _): &Disagreement| {
                    clients.contains(&client) && fields.contains(&field) && applies(&case)
                };
                match DISAGREEMENTS.iter().position(applies) {
                    Some(row) => counts[row] += 1,
                    None => wrong.push(format!("{field:?} of {text:?}\n  {client:?}: {theirs:?}\n  ours: {ours:?}")),
                }
            }
        }
    }
    println!("{client:?}: {read} texts, {served} served, left out {left_out:?}; differences that are listed:");
    for ((.., why), count) in DISAGREEMENTS.iter().zip(&counts).filter(|((clients, ..), _)| clients.contains(&client)) {
        println!("  {count:7}  {why}");
        assert!(*count > 0 || read < 10_000, "no text differs for this reason any more: {why}");
    }
    assert!(
        wrong.is_empty(),
        "{} differences are not listed:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    assert!(served > read / 10 && left_out.len() > 3, "the texts are of all kinds");
}

fn number(name: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return otherwise };
    text.parse().unwrap_or_else(|_| panic!("{name}: \"{text}\" is no decimal number"))
}

/// A line of `Reading.java`.
fn answer(client: Client, line: &str) -> Theirs {
    let mut words = line.split(' ');
    let text = |word: Option<&str>| {
        let encoded = word.expect("a word more").strip_prefix('+')?;
        Some(String::from_utf8(BASE64_STANDARD.decode(encoded).unwrap()).unwrap())
    };
    let number = |word: Option<&str>| word.unwrap().parse().unwrap();
    match words.next() {
        Some("skipped") => Theirs::Skipped,
        Some("error") => Theirs::Error(text(words.next()).unwrap()),
        Some("called") => {
            let (host, port, weight) =
                (text(words.next()).unwrap_or_default(), number(words.next()), number(words.next()));
            let application = text(words.next());
            let mut parameters: Vec<Option<String>> = words.map(|word| text(Some(word))).collect();
            let ports = if client == Dubbo3 { parameters.pop().unwrap().unwrap() } else { String::new() };
            let ports = ports.split(',').filter_map(|each| each.rsplit_once(':'));
            let ports = ports.map(|(protocol, port)| (protocol.to_owned(), port.parse().unwrap())).collect();
            Theirs::Called(Provider { host, port, weight, application, parameters, ports })
        }
        _ => panic!("an answer of another kind: {line}"),
    }
}

impl Provider {
    /// Of an instance, where it can be called by protocols that have services.
    fn callable(&self) -> BTreeSet<(String, i64)> {
        self.ports.iter().filter(|(protocol, port)| is_known(protocol) && is_port(*port)).cloned().collect()
    }

    /// Its address, if it has one, without brackets and zone id.
    fn ip(&self) -> Option<IpAddr> {
        let bare = self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host);
        let bare = match bare.split_once('%') {
            Some((address, _)) if address.contains(':') => address,
            _ => bare,
        };
        bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
    }
}

impl Case<'_> {
    fn differences(&self) -> Vec<Field> {
        let (provider, endpoint) = match (self.theirs, self.ours) {
            (Theirs::Called(provider), Ok(endpoint)) => (provider, endpoint),
            (Theirs::Called(_), Err(_)) => return vec![Field::LeftOut],
            (_, Ok(_)) => return vec![Field::Served],
            (_, Err(_)) => return Vec::new(),
        };
        let labels = provider.parameters.iter().map(|value| {
            let value = value.as_deref().filter(|value| *value != "DEFAULT_ZONE");
            value.and_then(payload::label_value)
        });
        let served = PARAMETERS.iter().map(|key| endpoint.labels.get(key).map(Into::into));
        [
            (Field::Address, provider.ip().map(|ip| ip.to_string()) == Some(endpoint.address.to_string())),
            (Field::Port, self.client == Dubbo3 || provider.port == i64::from(endpoint.port)),
            (Field::Protocols, self.client != Dubbo3 || provider.callable() == self.ports()),
            (Field::Weight, provider.weight == i64::from(endpoint.weight)),
            (Field::Application, provider.application.as_deref() == endpoint.application()),
            (Field::Parameter, labels.eq(served)),
        ]
        .into_iter()
        .filter_map(|(field, equal)| (!equal).then_some(field))
        .collect()
    }

    /// Where we have it called, by which protocols.
    fn ports(&self) -> BTreeSet<(String, i64)> {
        let served = self.made.iter().filter_map(|one| one.as_ref().ok());
        served.map(|(protocol, it)| (protocol.as_deref().unwrap_or("dubbo").to_owned(), it.port.into())).collect()
    }

    fn called(&self) -> Option<&Provider> {
        match self.theirs {
            Theirs::Called(provider) => Some(provider),
            _ => None,
        }
    }

    fn is_error(&self, kind: &str) -> bool {
        matches!(self.theirs, Theirs::Error(error) if error.contains(kind))
    }

    /// Left out since the text is not of a form that is read.
    fn is_form(&self) -> bool {
        matches!(self.ours, Err(Reject::UnknownForm | Reject::BadPort | Reject::HostName | Reject::Empty))
    }

    fn weight(&self) -> Option<u32> {
        self.ours.as_ref().ok().map(|endpoint| endpoint.weight)
    }

    /// The metadata of an instance.
    fn metadata(&self) -> serde_json::Map<String, Value> {
        let instance: Value = serde_json::from_str(java_trim(self.text)).unwrap_or_default();
        instance["metadata"].as_object().cloned().unwrap_or_default()
    }

    fn has_numbers(&self) -> bool {
        self.metadata().values().any(|value| !value.is_string())
    }

    fn has_endpoints_that_are_no_list(&self) -> bool {
        let metadata = self.metadata();
        let told = metadata.get("dubbo.endpoints").and_then(Value::as_str).unwrap_or_default();
        let is_port = |entry: &serde_json::Map<String, Value>| {
            entry.get("port").is_none_or(Value::is_u64) && entry.get("protocol").is_none_or(Value::is_string)
        };
        let list = serde_json::from_str::<Vec<serde_json::Map<String, Value>>>(told);
        !told.is_empty() && !list.is_ok_and(|list| list.iter().all(is_port))
    }

    /// What stands before the first `://`; to Dubbo one in a parameter is none.
    fn scheme(&self) -> Option<&str> {
        let text = if self.client == Dubbo { self.text.split('?').next().unwrap_or_default() } else { self.text };
        java_trim(text).split_once("://").map(|(scheme, _)| scheme)
    }

    fn authority(&self) -> &str {
        let rest = self.text.split_once("://").map_or(self.text, |(_, rest)| rest);
        rest.split(['/', '?']).next().unwrap_or_default()
    }
}

fn java_trim(text: &str) -> &str {
    text.trim_matches(|c| c <= ' ')
}

fn is_port(port: i64) -> bool {
    (1..=65_535).contains(&port)
}

/// Whether a protocol has a usual port.
fn is_known(protocol: &str) -> bool {
    ["bolt", "tr", "tri", "triple", "grpc", "rest", "dubbo", "h2c", "http"].contains(&protocol)
}

fn is_blank(text: Option<&str>) -> bool {
    text.is_none_or(|text| text.trim().is_empty())
}

fn is_other(scheme: &str) -> bool {
    SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme))
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// A text that a client might find.
fn text(random: &mut Random, client: Client) -> String {
    let mut text = match (random.below(100), client) {
        (0 | 1, _) => random.text(40),
        (_, Dubbo3) => instance(random),
        _ => url(random, client),
    };
    if random.percent(4) {
        // Anywhere, one character more or less.
        let at = text.char_indices().map(|(at, _)| at).nth(random.below(text.chars().count().max(1))).unwrap_or(0);
        match random.percent(50) {
            true => text.insert(at, random.character()),
            false if !text.is_empty() => drop(text.remove(at)),
            false => {}
        }
    }
    match random.below(100) {
        0 => format!(" {text}"),
        1 => format!("{text}\n"),
        2 => format!("\u{3000}{text}"),
        _ => text,
    }
}

fn url(random: &mut Random, client: Client) -> String {
    #[rustfmt::skip]
    let schemes = [
        "override", "route", "condition", "script", "consumer", "empty", "provider", "Override", "tri", "rest", "bolt", "grpc",
        "http", "hessian", "dubbo", "DUBBO", "", "b d", "h2c", "injvm", "mock", "registry",
    ];
    let scheme = match (client, random.below(100)) {
        (SofaRpc, 0..70) => String::new(),
        (Dubbo, 0..70) => "dubbo://".to_owned(),
        (_, 70..73) => String::new(),
        _ => format!("{}://", random.pick(&schemes)),
    };
    let user = if random.percent(3) { random.pick(&["user@", "user:secret@", "@", "a@b@"]) } else { "" };
    let ports =
        ["12200", "20880", "80", "1", "65535", "0", "65536", "-1", "+80", "080", "", "http", "99999999999", "８０"];
    let port = match random.below(10) {
        0..7 => format!(":{}", 1 + random.below(65_535)),
        7..9 => format!(":{}", random.pick(&ports)),
        _ => String::new(),
    };
    let paths = ["", "", "/", "/com.example.DemoService", "/a/b", "/a:1", "#x", "/a#b", "/://", "/@", "/支付"];
    let path = random.pick(&paths);
    format!("{scheme}{user}{}{port}{path}{}", host(random), query(random))
}

fn host(random: &mut Random) -> String {
    #[rustfmt::skip]
    let odd = [
        "127.0.0.1", "0.0.0.0", "255.255.255.255", "169.254.1.1", "10.0.0.01", "10.1", "10.0.0.256", "[::1]", "[fe80::1%eth0]",
        "fe80:0:0:0:0:0:0:1%eth0", "2001:db8:1:0:0:0:0:10%3", "[2001:db8::10%3]", "2001:db8::9", "[::ffff:10.1.2.3]",
        "[2001:db8::1", "provider.example.com", "localhost", "", "10.0.0.1%eth0", "248.1.2.3", "服务", "10.0.0.１", "a_b", "!!",
    ];
    match random.below(10) {
        0..6 => format!("10.{}.{}.{}", random.below(256), random.below(256), random.below(256)),
        6 => format!("[2001:db8:{:x}::{:x}]", random.below(0xFFFF), random.below(0xFFFF)),
        7 => format!("2001:db8:0:0:0:0:0:{:x}%{}", random.below(0xFFFF), random.below(9)),
        _ => random.pick(&odd).to_owned(),
    }
}

fn query(random: &mut Random) -> String {
    let mut query = String::new();
    for n in 0..random.below(9) {
        query += match (n, random.below(20)) {
            (0, _) => "?",
            (_, 0) => ";",
            (_, 1) => "&&",
            (_, 2) => "& ",
            _ => "&",
        };
        query += &pair(random);
    }
    query
}

fn pair(random: &mut Random) -> String {
    #[rustfmt::skip]
    let keys = [
        "weight", "weight", "_WEIGHT", "zone", "appName", "app_name", "self_app_name", "application", "app", "rpcVer", "x",
        "disabled", "enabled", "category", "compatible_config", "timeout", "startTime", "[hello]", "xx", "",
    ];
    let key = random.pick(&keys);
    let value = value(random, key);
    let prefix = if random.percent(10) { "default." } else { "" };
    match random.below(30) {
        0 => format!("{prefix}{key}"),
        1 => format!(" {prefix}{key} = {value} "),
        2 => format!("\u{3000}{prefix}{key}={value}\u{1}"),
        3 => format!("{prefix}{key}={value}\t"),
        _ => format!("{prefix}{key}={value}"),
    }
}

fn value(random: &mut Random, key: &str) -> String {
    let values: &[&str] = match key {
        "weight" | "_WEIGHT" => &[
            "0",
            "1",
            "7",
            "100",
            "200",
            "-5",
            "",
            "abc",
            "1.5",
            "1e3",
            "+7",
            "007",
            " 7",
            "99999999999",
            "2147483647",
            "100001",
            "７",
            "0x10",
            "-0",
        ],
        "disabled" | "enabled" => &["true", "false", "TRUE", "True", "", "1", "yes", "true ", "false;", "tru\u{435}"],
        "category" => &["providers", "", "configurators", "routers", "consumers", "Providers", "dynamicconfigurators"],
        "compatible_config" => &["", "true", "false"],
        "zone" => &["GZ00A", "RZ 1", "", " ", "DEFAULT_ZONE", "一区", "a,b"],
        "[hello]" => &["[clientTimeout#3000]", "[_TIMEOUT#1@a#b]"],
        _ => &[
            "shop",
            "支付",
            "",
            " ",
            "a b",
            "%E6%94%AF%E4%BB%98",
            "%",
            "%20",
            "-",
            "a=b",
            "http://x",
            "#",
            "51302",
            "\u{3000}",
            "default",
            "a/b",
        ],
    };
    let value = random.pick(values);
    if random.percent(3) { format!("{value}{}", random.text(3)) } else { value.to_owned() }
}

/// Protocols, each with its port; as good as always a list.
fn endpoints(random: &mut Random) -> String {
    if random.percent(10) {
        return "{".to_owned();
    }
    let mut list = Vec::new();
    for _ in 0..random.below(4) {
        let protocol = random.pick(&["dubbo", "dubbo", "tri", "tri", "rest", "rmi"]);
        list.push(match random.below(20) {
            0 => json!({"protocol": protocol}),
            1 => json!({"port": 65_536, "protocol": protocol}),
            2 => json!({"port": 20_880, "protocol": protocol}),
            _ => json!({"port": 1 + random.below(65_535), "protocol": protocol}),
        });
    }
    json!(list).to_string()
}

fn instance(random: &mut Random) -> String {
    let mut metadata = serde_json::Map::new();
    for _ in 0..random.below(5) {
        #[rustfmt::skip]
        let key = random.pick(&[
            "zone", "x", "rpcVer", "application", "dubbo.endpoints", "dubbo.endpoints", "dubbo.metadata.revision", "weight",
            "disabled", "enabled", "category",
        ]);
        let value = match key {
            "dubbo.endpoints" => endpoints(random),
            key => value(random, key),
        };
        metadata.insert(key.to_owned(), if random.percent(3) { json!(random.below(9)) } else { json!(value) });
    }
    let port = match random.below(12) {
        0 => json!(0),
        1 => json!(70_000),
        2 => json!("20880"),
        _ => json!(1 + random.below(65_535)),
    };
    let mut instance = json!({"id": "x", "host": host(random), "port": port, "name": value(random, "name")});
    match random.below(10) {
        0 => {}
        1 => instance["metadata"] = json!(null),
        _ => instance["metadata"] = metadata.into(),
    }
    instance.to_string()
}

//! Tables of the figures, and the record of the runs: `results.json`, and made from it the tables in `docs/benchmarks.md`.

use std::{fmt::Write as _, fs, process::Command};

use harness::{
    figures::{self, Machine},
    process::root,
};
use serde_json::{Value, json};

use crate::world::WAYS;

const BEGIN: &str = "<!-- what proxies take: written by make scale -->";
const END: &str = "<!-- end of what proxies take -->";

/// The record, from the root of the project.
const RECORD: &str = "tests/scale/results.json";

fn read() -> Value {
    let text = fs::read_to_string(root().join(RECORD)).unwrap_or_else(|error| panic!("{RECORD}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{RECORD} is not JSON, take it from git again: {error}"))
}

/// Shows the tables of so many services, and with `UPDATE=1` replaces what the record has of them; says which.
pub(crate) fn keep(services: usize, ways: Value) -> String {
    let figures = json!({ "machine": machine(), "ways": rounded(ways) });
    let size = services.to_string();
    println!("\n{}", tables(&json!({ "sizes": { &size: &figures } })));
    if std::env::var_os("UPDATE").is_none() {
        return format!("with UPDATE=1 the figures would go to {RECORD} and docs/benchmarks.md");
    }
    let mut all = read();
    all["sizes"][size] = figures;
    fs::write(root().join(RECORD), format!("{all:#}\n")).unwrap();
    write();
    format!("the figures are in {RECORD} and docs/benchmarks.md")
}

/// Without digits that mean nothing: those below a microsecond.
fn rounded(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, rounded(value))).collect(),
        Value::Array(items) => items.into_iter().map(rounded).collect(),
        Value::Number(number) if number.is_f64() => json!((number.as_f64().unwrap() * 1e3).round() / 1e3),
        other => other,
    }
}

/// Writes the tables into docs/benchmarks.md.
pub(crate) fn write() {
    let page = root().join("docs/benchmarks.md");
    let text = fs::read_to_string(&page).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("docs/benchmarks.md has a place for the figures");
    let (_, tail) = rest.split_once(END).expect("docs/benchmarks.md has an end of the figures");
    fs::write(page, format!("{head}{BEGIN}\n\n{}\n{END}{tail}", tables(&read()))).unwrap();
}

/// Processor, kernel and programs of the run.
fn machine() -> String {
    let Machine { cores, cpu, kernel } = figures::machine();
    // `…/envoy  version: COMMIT/1.40.0/…`
    let envoy = Command::new(root().join("target/real/py/bin/envoy")).arg("--version").output();
    let envoy = String::from_utf8_lossy(&envoy.map(|output| output.stdout).unwrap_or_default()).into_owned();
    let envoy = envoy.split('/').find(|part| part.split('.').count() == 3).unwrap_or("?");
    format!("{cores} cores of {cpu}, {kernel}; istiod {}, Envoy {envoy}", istiod())
}

/// The version of `pilot-discovery`, by the script that installs it; that in the Go module is of a commit.
fn istiod() -> String {
    let text = fs::read_to_string(root().join("tests/real/install.sh")).unwrap();
    let mut installed =
        text.lines().filter_map(|line| line.split_once("|| istiod ")?.1.strip_suffix(" go pilot-discovery 3"));
    installed.next().expect("tests/real/install.sh installs istiod").to_owned()
}

/// A column: its title, where its figures are, of which there may be several in a cell, and what they are divided by.
type Column = (&'static str, &'static [&'static str], f64);

const SIDECAR: [Column; 8] = [
    ("memory MB", &["/sidecar/residentBytes"], 1e6),
    ("clusters", &["/sidecar/clusters"], 1.0),
    ("listeners", &["/sidecar/listeners"], 1.0),
    ("CPU s until ready", &["/sidecar/startCpuMs"], 1e3),
    ("ready after s", &["/sidecar/readyMs"], 1e3),
    ("CPU ms an endpoint", &["/sidecar/endpointCpuMs"], 1.0),
    ("CPU ms a new service", &["/sidecar/serviceCpuMs"], 1.0),
    ("CPU ms a second at rest", &["/sidecar/idleCpuMs"], 1.0),
];

const ISTIOD: [Column; 4] = [
    ("CPU ms an endpoint", &["/istiod/endpointCpuMs/0", "/istiod/endpointCpuMs/1"], 1.0),
    ("kB sent an endpoint", &["/istiod/endpointBytes/0", "/istiod/endpointBytes/1"], 1e3),
    ("CPU ms a new service", &["/istiod/serviceCpuMs/0", "/istiod/serviceCpuMs/1"], 1.0),
    ("kB sent a new service", &["/istiod/serviceBytes/0", "/istiod/serviceBytes/1"], 1e3),
];

/// With and without: the ways that are compared.
const PAIRS: [(usize, usize); 2] = [(0, 1), (2, 3)];

fn tables(all: &Value) -> String {
    let mut sizes: Vec<(usize, &Value)> =
        all["sizes"].as_object().into_iter().flatten().map(|(size, it)| (size.parse().unwrap(), it)).collect();
    sizes.sort_by_key(|(size, _)| *size);
    let mut text = String::new();
    let mut machines: Vec<&str> = sizes.iter().filter_map(|(_, it)| it["machine"].as_str()).collect();
    machines.dedup();
    let _ = writeln!(text, "{}.", machines.join("; "));
    for (title, columns) in [("One sidecar", &SIDECAR[..]), ("istiod, with one proxy and with ten", &ISTIOD[..])] {
        let titles: Vec<&str> = columns.iter().map(|(title, ..)| *title).collect();
        let _ = writeln!(text, "\n### {title}\n\n| services × 10 | way | {} |", titles.join(" | "));
        let _ = writeln!(text, "| ---: | --- |{}", " ---: |".repeat(titles.len()));
        for (size, it) in &sizes {
            for (wide, narrow) in PAIRS {
                for way in [wide, narrow] {
                    let cell = |column: &Column| joined(values(&it["ways"], way, column).into_iter().map(number));
                    row(&mut text, *size, WAYS[way].title, columns.iter().map(cell));
                }
                let ratio = |column: &Column| {
                    let [wide, narrow] = [wide, narrow].map(|way| values(&it["ways"], way, column));
                    joined(wide.iter().zip(narrow).map(|(wide, narrow)| format!("*{}*", number(wide / narrow))))
                };
                row(&mut text, *size, "*so many times less*", columns.iter().map(ratio));
            }
        }
    }
    text
}

fn row(text: &mut String, size: usize, title: &str, cells: impl Iterator<Item = String>) {
    let _ = writeln!(text, "| {} | {title} | {} |", grouped(size), joined_by(cells, " | "));
}

fn joined(texts: impl Iterator<Item = String>) -> String {
    joined_by(texts, " / ")
}

fn joined_by(texts: impl Iterator<Item = String>, between: &str) -> String {
    texts.collect::<Vec<_>>().join(between)
}

/// The figures of a cell; none where a way was not measured.
fn values(ways: &Value, way: usize, (_, paths, unit): &Column) -> Vec<f64> {
    let figure = |path: &&str| Some(ways[WAYS[way].name].pointer(path)?.as_f64()? / unit);
    paths.iter().filter_map(figure).collect()
}

/// Two or three significant digits.
fn number(value: f64) -> String {
    match value {
        v if v >= 9.95 => grouped(v.round() as usize),
        v if v >= 0.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn grouped(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Of how many services something is demanded.
const JUDGED: usize = 10_000;
/// Demands on them: a column of which ways, and how many times less it has to be.
const GOALS: [(&str, usize, &Column, f64); 3] = [
    ("memory of a sidecar", 0, &SIDECAR[0], 10.0),
    ("its CPU for a new service", 0, &SIDECAR[6], 50.0),
    ("its CPU for a change of an endpoint in direct mode", 1, &SIDECAR[5], 10.0),
];

/// Says how many times less each demand's figure is, and of the services that it is about whether it is met. Answers whether none is
/// missed.
pub(crate) fn verdict(services: usize, ways: &Value) -> bool {
    let mut none_missed = true;
    for (what, pair, column, least) in GOALS {
        let (wide, narrow) = PAIRS[pair];
        let [wide, narrow] = [wide, narrow].map(|way| values(ways, way, column)[0]);
        let ratio = wide / narrow;
        let met = match ratio >= least {
            _ if services != JUDGED => "",
            true => ": as demanded",
            false => {
                none_missed = false;
                ": LESS THAN DEMANDED"
            }
        };
        let (wide, narrow) = (number(wide), number(narrow));
        println!(
            "  {what}: {wide} → {narrow}, {ratio:.0} times less (at {} services {least} times){met}",
            grouped(JUDGED)
        );
    }
    none_missed
}

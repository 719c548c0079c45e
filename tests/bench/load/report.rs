//! The record of the runs: `results.json`, and made from it the figures in `README.md` and the chart.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use harness::figures::{self, Machine, first_line};
use serde_json::{Value, json};

use crate::{
    Result,
    run::{Figures, Happening},
    sections::{SECTIONS, Section},
    server::{Kind, Ours},
    workload,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench")
}

/// The runs of a section, by server.
#[derive(Debug, Default)]
pub(crate) struct Rows(BTreeMap<&'static str, (Option<Kind>, Vec<Value>)>);

impl Rows {
    pub(crate) fn add(&mut self, kind: Kind, outcome: Result<Figures>) {
        let run = match outcome {
            Ok(figures) => json!(figures),
            Err(error) => json!({ "failed": error.to_string() }),
        };
        let (of, runs) = self.0.entry(kind.name()).or_default();
        *of = Some(kind);
        runs.push(run);
    }
}

/// The figures of a run on a line, for who watches.
pub(crate) fn line(figures: &Figures) -> String {
    let shown = |(name, value): (&&str, &f64)| match name.starts_with("rss") || name.starts_with("bytes") {
        true => format!("{name} {:.2}M", value / 1e6),
        false => format!("{name} {value:.2}"),
    };
    figures.iter().map(shown).collect::<Vec<_>>().join("  ")
}

/// The middle one of each figure.
fn medians(runs: &[Value]) -> Value {
    let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in runs.iter().filter_map(Value::as_object).flatten() {
        if let Some(value) = value.as_f64() {
            by_name.entry(name).or_default().push(value);
        }
    }
    let median =
        |(name, values): (&str, Vec<f64>)| (name.to_owned(), json!((figures::median(values) * 1e4).round() / 1e4));
    by_name.into_iter().map(median).collect::<serde_json::Map<_, _>>().into()
}

fn read() -> Value {
    let text = fs::read_to_string(folder().join("results.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_else(|_| json!({ "sections": {} }))
}

/// Replaces what is known of the servers that ran in a section, or adds to it.
pub(crate) fn keep(section: &Section, rows: Rows, add: bool) -> Result<()> {
    let mut results = read();
    results["machine"] = machine();
    let kept = &mut results["sections"][section.name];
    kept["workload"] = json!({
        "name": section.workload.name, "services": section.workload.services, "endpoints": section.workload.endpoints,
    });
    kept["clients"] = section.clients.into();
    for (name, (kind, new)) in rows.0 {
        let before = kept["servers"][name]["rounds"].as_array().filter(|_| add).cloned();
        let runs: Vec<Value> = before.unwrap_or_default().into_iter().chain(new).collect();
        let (changes, rate) = match kind.map(|kind| section.happening(kind)) {
            Some(Happening::Changes { count, rate }) => (Some(count), Some(rate)),
            _ => (None, None),
        };
        kept["servers"][name] = json!({ "changes": changes, "rate": rate, "median": medians(&runs), "rounds": runs });
    }
    fs::write(folder().join("results.json"), format!("{results:#}\n"))?;
    Ok(())
}

/// The machine that the runs are on, and the versions of its compilers and its Java.
fn machine() -> Value {
    let Machine { cores, cpu, kernel } = figures::machine();
    json!({
        "cores": cores,
        "cpu": cpu,
        "kernel": kernel,
        "rust": first_line("rustc", &["--version"]),
        "go": first_line("go", &["version"]),
        "java": first_line("java", &["-version"]),
    })
}

/// A section's figures of one server; `None` where it did not run or failed in every round.
fn median<'a>(results: &'a Value, section: &str, server: &str) -> Option<&'a Value> {
    let median = &results["sections"][section]["servers"][server]["median"];
    median.as_object().is_some_and(|median| !median.is_empty()).then_some(median)
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v if v >= 0.0995 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

/// A column: its title, the figure, and what that is divided by.
type Column = (&'static str, &'static str, f64);

const MB: f64 = 1e6;

const CHANGES: &[Column] = &[
    ("p50 ms", "p50_ms", 1.0),
    ("p99 ms", "p99_ms", 1.0),
    ("max ms", "max_ms", 1.0),
    ("CPU ms a change", "cpu_ms_per_change", 1.0),
    ("CPU ms a push", "cpu_ms_per_push", 1.0),
    ("MB a change", "bytes_per_change", MB),
    ("memory MB", "rss_live", MB),
    ("peak MB", "rss_peak", MB),
];

const RECONNECT: &[Column] = &[
    ("half served ms", "served_p50_ms", 1.0),
    ("all served ms", "served_all_ms", 1.0),
    ("CPU ms", "cpu_ms_all", 1.0),
    ("CPU ms of all clients", "client_cpu_ms", 1.0),
    ("MB a client", "bytes_per_client", MB),
    ("memory MB", "rss_live", MB),
    ("peak MB", "rss_peak", MB),
];

const IDLE: &[Column] = &[("CPU ms a second", "idle_cpu_ms_per_s", 1.0), ("memory MB", "rss_live", MB)];

fn table(results: &Value, section: &Section) -> String {
    let (columns, compared) = match section.happening(Kind::Pass) {
        Happening::Changes { .. } => (CHANGES, "cpu_ms_per_change"),
        Happening::Reconnect => (RECONNECT, "served_all_ms"),
        Happening::Idle(_) => (IDLE, ""),
    };
    let kept = &results["sections"][section.name];
    let mut text = format!("### {}: {}", section.name, workload::size(&section.workload));
    let _ = writeln!(text, ", {} client{}\n", section.clients, if section.clients == 1 { "" } else { "s" });
    let ours = median(results, section.name, Kind::Ours(Ours::Whole).name()).map(|median| &median[compared]);
    let mut titles = vec!["server"];
    titles.extend(["changes/s"].iter().filter(|_| columns == CHANGES));
    titles.extend(columns.iter().map(|(title, ..)| *title));
    titles.extend(["ratio"].iter().filter(|_| ours.is_some_and(Value::is_f64)));
    let _ = writeln!(text, "| {} |\n| --- |{}", titles.join(" | "), " ---: |".repeat(titles.len() - 1));
    for kind in section.servers() {
        let runs = kept["servers"][kind.name()]["rounds"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(figures) = median(results, section.name, kind.name()) else {
            if let Some(why) = runs.iter().find_map(|run| run["failed"].as_str()) {
                let _ = writeln!(text, "| {} | failed: {why} |", kind.name());
            }
            continue;
        };
        let mut cells = vec![kind.name().to_owned()];
        if columns == CHANGES {
            cells.push(kept["servers"][kind.name()]["rate"].as_f64().map(|rate| rate.to_string()).unwrap_or_default());
        }
        let cell = |(_, figure, unit): &Column| figures[*figure].as_f64().map(|v| number(v / unit)).unwrap_or_default();
        cells.extend(columns.iter().map(cell));
        if let (Some(ours), Some(own)) = (ours.and_then(Value::as_f64), figures[compared].as_f64()) {
            cells.push(number(own / ours));
        }
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

const BEGIN: &str = "<!-- figures: written by the load test -->";
const END: &str = "<!-- end of figures -->";

/// Writes the figures into README.md, and the chart.
pub(crate) fn write() -> Result<()> {
    let results = read();
    let mut figures = String::new();
    let machine = &results["machine"];
    let said = |name: &str| machine[name].as_str().unwrap_or("?").to_owned();
    let _ = writeln!(
        figures,
        "{} cores of {}, {}; {}; {}; {}.\n",
        machine["cores"],
        said("cpu"),
        said("kernel"),
        said("rust"),
        said("go"),
        said("java"),
    );
    for section in SECTIONS.iter().filter(|section| results["sections"].get(section.name).is_some()) {
        let _ = writeln!(figures, "{}", table(&results, section));
    }
    let readme = folder().join("README.md");
    let text = fs::read_to_string(&readme)?;
    let (head, rest) = text.split_once(BEGIN).ok_or("README.md has no place for the figures")?;
    let (_, tail) = rest.split_once(END).ok_or("README.md has no end of the figures")?;
    fs::write(readme, format!("{head}{BEGIN}\n\n{figures}{END}{tail}"))?;
    fs::write(folder().join("chart.svg"), chart(&results))?;
    Ok(())
}

/// A panel of the chart: its title, and the figures at which a bar begins and ends.
struct Panel {
    title: &'static str,
    from: Option<&'static str>,
    to: &'static str,
    unit: f64,
}

const PANELS: [Panel; 3] = [
    Panel { title: "change → decoded, p50 to p99, ms", from: Some("p50_ms"), to: "p99_ms", unit: 1.0 },
    Panel { title: "server CPU a change, ms", from: None, to: "cpu_ms_per_change", unit: 1.0 },
    Panel { title: "memory, MB", from: None, to: "rss_live", unit: MB },
];

/// Bars on logarithmic scales, of section `w2`.
fn chart(results: &Value) -> String {
    const LEFT: f64 = 260.0;
    const WIDTH: f64 = 250.0;
    const GAP: f64 = 40.0;
    const TOP: f64 = 64.0;
    const ROW: f64 = 26.0;
    let rows: Vec<(Kind, &Value)> =
        Kind::ALL.into_iter().filter_map(|kind| Some((kind, median(results, "w2", kind.name())?))).collect();
    let (width, height) = (LEFT + 3.0 * (WIDTH + GAP), TOP + rows.len() as f64 * ROW + 30.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\">10,000 services × 10 endpoints, one client: a state of the world is \
         {} MB (logarithmic scales)</text>\n",
        median(results, "w2", Kind::Ours(Ours::Whole).name())
            .and_then(|median| median["bytes_per_push"].as_f64())
            .map(|bytes| number(bytes / MB))
            .unwrap_or_default()
    );
    for (n, (kind, _)) in rows.iter().enumerate() {
        let y = TOP + n as f64 * ROW + 16.0;
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>", LEFT - 10.0, kind.name());
    }
    for (n, panel) in PANELS.iter().enumerate() {
        let left = LEFT + n as f64 * (WIDTH + GAP);
        let figure = |median: &Value, name: &str| median[name].as_f64().map(|value| value / panel.unit);
        let all = rows.iter().flat_map(|(_, m)| [panel.from.and_then(|name| figure(m, name)), figure(m, panel.to)]);
        let all: Vec<f64> = all.flatten().filter(|value| *value > 0.0).collect();
        let low = all.iter().copied().fold(f64::INFINITY, f64::min).log10().floor();
        let high = all.iter().copied().fold(0.0, f64::max).log10().ceil().max(low + 1.0);
        let x = |value: f64| left + (value.log10() - low) / (high - low) * WIDTH;
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"46\" font-weight=\"bold\">{}</text>", panel.title);
        for power in low as i32..=high as i32 {
            let (at, bottom) = (x(10f64.powi(power)), TOP + rows.len() as f64 * ROW);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\" fill=\"#555\">{}</text>",
                bottom + 14.0,
                10f64.powi(power)
            );
        }
        for (n, (kind, median)) in rows.iter().enumerate() {
            let Some(to) = figure(median, panel.to) else { continue };
            let from = panel.from.and_then(|name| figure(median, name));
            let (begin, end) = (from.map_or(left, x), x(to));
            let y = TOP + n as f64 * ROW + 5.0;
            let color = if kind.takes_lines() { "#0a7d5a" } else { "#8a93a5" };
            let shown = from.map_or(number(to), |from| format!("{} – {}", number(from), number(to)));
            // Beside the bar, on the side where there is room.
            let (text, anchor) =
                if end > left + WIDTH * 0.6 { (begin.max(left + 4.0), "start") } else { (end + 5.0, "start") };
            let inside = end > left + WIDTH * 0.6 && from.is_none();
            let (text, anchor, fill) = match (inside, from.is_some() && end > left + WIDTH * 0.6) {
                (true, _) => (end - 5.0, "end", "#fff"),
                (_, true) => (begin - 5.0, "end", "#222"),
                _ => (text, anchor, "#222"),
            };
            let _ = writeln!(
                svg,
                "<rect x=\"{begin:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"15\" fill=\"{color}\"/>\
                 <text x=\"{text:.1}\" y=\"{}\" text-anchor=\"{anchor}\" font-size=\"11\" fill=\"{fill}\">{shown}</text>",
                (end - begin).max(2.0),
                y + 11.5
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

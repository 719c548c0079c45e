//! The load test: one client program, and under the same workloads ours, a naive server, go-control-plane, slime's istio-mcp
//! and nacos-istio.
//!
//! `cargo bench --bench load -- [SECTION]… [--server PART-OF-A-NAME]… [--rounds N] [--add]` measures and writes
//! `tests/bench/results.json`, the figures in `tests/bench/README.md` and the chart. `cargo test --bench load [-- PART-OF-A-NAME]`
//! runs every server there is on a small workload for a moment, so that all this keeps working. `--before PROGRAM` compares
//! another build of `examples/serve` with the present one in turn and writes nothing. README.md says how it is measured.
#![allow(missing_docs)]

mod before;
mod client;
mod naive;
mod report;
mod run;
mod sections;
mod server;
mod walk;
mod workload;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use harness::trials::{self, Failed, Shared, trial_unless};
use run::{Feed, Happening, Plan, run};
use sections::{SECTIONS, Section};
use server::Kind;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// The argument that `cargo bench` gives a bench, and `cargo test` does not.
const MEASURE: &str = "--bench";
/// Set: a peer that is not installed is a failure of the small run, too.
const ALL_PEERS: &str = "MOX_BENCH_PEERS";

#[derive(Debug, Default)]
struct Arguments {
    /// Sections to measure.
    names: Vec<String>,
    servers: Vec<String>,
    rounds: Option<usize>,
    /// Adds to the rounds that are kept from before, where they would be replaced.
    add: bool,
    /// Another build of `examples/serve`, to be compared with.
    before: Option<PathBuf>,
}

impl Arguments {
    fn wants(&self, section: &Section) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| name.as_str() == section.name)
    }

    fn chooses(&self, kind: Kind) -> bool {
        self.servers.is_empty() || self.servers.iter().any(|part| kind.name().contains(part.as_str()))
    }
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments::default();
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            MEASURE => {}
            "--add" => arguments.add = true,
            "--server" => arguments.servers.extend(given.next()),
            "--before" => arguments.before = Some(given.next().ok_or("--before needs a program")?.into()),
            "--rounds" => arguments.rounds = Some(given.next().ok_or("--rounds needs a number")?.parse()?),
            option if option.starts_with('-') => return Err(format!("no option {option}").into()),
            name => arguments.names.push(name.to_owned()),
        }
    }
    let unknown = arguments.names.iter().find(|name| SECTIONS.iter().all(|section| section.name != name.as_str()));
    if let Some(unknown) = unknown {
        let known: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
        return Err(format!("no section {unknown}; there are {}", known.join(" ")).into());
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let done = match &given[..] {
        [naive, file] if naive == "naive" => naive::main(Path::new(file)),
        _ if given.iter().any(|argument| argument == MEASURE) => {
            arguments().and_then(|arguments| match &arguments.before {
                Some(program) => before::compare(&arguments, program),
                None => measure(&arguments),
            })
        }
        _ => return smoke(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Every server and every happening for a moment.
fn smoke() -> ExitCode {
    let feed =
        Shared::new(|| Feed::new(&server::out().join("smoke"), workload::SMOKE, 40).expect("what servers are fed"));
    let mut trials = Vec::new();
    for kind in Kind::ALL {
        for (name, clients, happening) in
            [("changes", 3, Happening::Changes { count: 40, rate: 100.0 }), ("reconnect", 5, Happening::Reconnect)]
        {
            let left_out = move || {
                let is_needed = kind.takes_lines() || std::env::var_os(ALL_PEERS).is_some();
                kind.program().err().filter(|_| !is_needed).map(|missing| missing.to_string())
            };
            let (feed, plan) = (Arc::clone(&feed), Plan { workload: workload::SMOKE, clients, happening });
            trials.push(trial_unless(&format!("{}: {name}", kind.name()), left_out, move || {
                feed.with(|feed| run(kind, plan, feed, None)).map(|_| ()).map_err(Failed::from)
            }));
        }
    }
    trials::run(trials)
}

/// Runs the sections: all servers in turn, as many rounds as the section says, and writes what was found.
fn measure(arguments: &Arguments) -> Result<()> {
    let mut kept: Option<Feed> = None;
    for section in SECTIONS.iter().filter(|section| arguments.wants(section)) {
        let rounds = arguments.rounds.unwrap_or(section.rounds);
        if rounds == 0 {
            continue; // what is known is written anew
        }
        let kinds: Vec<Kind> = section.servers().into_iter().filter(|kind| arguments.chooses(*kind)).collect();
        for kind in &kinds {
            kind.program()?;
        }
        let most = kinds.iter().filter(|kind| !kind.takes_lines()).map(|kind| section.changes(*kind)).max();
        let feed = match kept.take().filter(|feed| feed.is_for(&section.workload, most.unwrap_or_default())) {
            Some(feed) => feed,
            None => Feed::new(&server::out(), section.workload, most.unwrap_or_default())?,
        };
        for round in 1..=rounds {
            let mut rows = report::Rows::default();
            for kind in &kinds {
                let begin = Instant::now();
                let outcome = run(*kind, section.plan(*kind), &feed, None);
                let shown = match &outcome {
                    Ok(figures) => report::line(figures),
                    Err(error) => format!("FAILED: {error}"),
                };
                println!(
                    "{} {round} {:36} {:5.1} s  {shown}",
                    section.name,
                    kind.name(),
                    begin.elapsed().as_secs_f64()
                );
                rows.add(*kind, outcome);
            }
            report::keep(section, rows, arguments.add || round > 1)?;
        }
        kept = Some(feed);
    }
    report::write()
}

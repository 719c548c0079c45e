//! Two builds of ours in turn: what a change of the code costs or saves, on a machine that is never the same twice.

use std::{collections::BTreeMap, path::Path};

use harness::figures::median;

use crate::{
    Arguments, Result,
    run::{Feed, Figures, run},
    sections::SECTIONS,
    server::{Kind, Ours, out},
};

/// The figures that are compared.
const COMPARED: [&str; 6] = ["cpu_ms_per_change", "p50_ms", "p99_ms", "first_ms", "rss_live", "rss_peak"];
const ROUNDS: usize = 5;

/// Runs the sections with `before`, another build of `examples/serve`, and with the present one, in turn; the build that begins
/// changes from round to round. Prints the median of each figure of both and the median of the rounds' ratios.
pub(crate) fn compare(arguments: &Arguments, before: &Path) -> Result<()> {
    let now = Kind::Ours(Ours::Whole).program()?;
    let builds = [("before", before), ("now", now.as_path())];
    println!("| section | server | figure | before | now | ratio |\n| --- | --- | --- | ---: | ---: | ---: |");
    for section in SECTIONS.iter().filter(|section| arguments.wants(section)) {
        let feed = Feed::new(&out(), section.workload, 0)?;
        for kind in section.servers().into_iter().filter(|kind| kind.takes_lines() && arguments.chooses(*kind)) {
            let mut found: BTreeMap<&str, Vec<Figures>> = BTreeMap::new();
            for round in 0..arguments.rounds.unwrap_or(ROUNDS) {
                for turn in 0..builds.len() {
                    let (name, program) = builds[(round + turn) % builds.len()];
                    found.entry(name).or_default().push(run(kind, section.plan(kind), &feed, Some(program))?);
                }
            }
            for figure in COMPARED {
                let of = |name: &str| -> Vec<f64> {
                    found[name].iter().filter_map(|run| run.get(figure).copied()).collect()
                };
                let (old, new) = (of("before"), of("now"));
                if !old.is_empty() {
                    let ratios: Vec<f64> = old.iter().zip(&new).map(|(old, new)| new / old).collect();
                    let scale = if figure.starts_with("rss") { 1e-6 } else { 1.0 };
                    let (old, new, ratio) = (median(old) * scale, median(new) * scale, median(ratios));
                    println!("| {} | {} | {figure} | {old:.2} | {new:.2} | {ratio:.3} |", section.name, kind.name());
                }
            }
        }
    }
    Ok(())
}

//! Small charts of the last hour, drawn here so that they need no script.

use maud::{Markup, html};

use crate::host::hour::{EVERY, KEPT, Sample};

/// Height of a chart in its own unit; its width is a unit a sample.
const HEIGHT: u64 = 40;
/// Samples that a chart has room for at least: five minutes of them, so that something shows soon after the start.
const LEAST: usize = 20;

/// Samples that a chart has room for.
fn room(samples: usize) -> usize {
    samples.clamp(LEAST, KEPT)
}

/// The time that charts of so many samples are of.
pub fn span(samples: usize) -> String {
    match room(samples) {
        KEPT => "The last hour".to_owned(),
        room => format!("The last {} minutes", (EVERY * room as u32).as_secs().div_ceil(60)),
    }
}

/// What a chart shows of a sample.
type Value = fn(&Sample) -> u64;

const CHARTS: [(&str, Value); 4] = [
    ("Services", |sample| sample.services),
    ("Endpoints", |sample| sample.endpoints),
    ("Pushes in 15 s", |sample| sample.pushes),
    ("Slowest ACK, ms", |sample| sample.ack_millis),
];

/// The charts of these samples, the newest of which are at the right.
pub fn charts(samples: &[Sample]) -> Markup {
    html! {
        div.charts {
            @for (name, of) in CHARTS {
                @let values: Vec<u64> = samples.iter().map(of).collect();
                @let (last, most) = (values.last().copied().unwrap_or_default(), values.iter().copied().max().unwrap_or_default());
                @let says = format!("{name}: {last}, peak {most}");
                figure {
                    figcaption { (says) }
                    svg viewBox=(format!("0 0 {} {HEIGHT}", room(samples.len()) - 1)) preserveAspectRatio="none" role="img" aria-label=(says) {
                        polyline points=(points(&values, most)) {}
                    }
                }
            }
        }
    }
}

/// The line of these values, of which the greatest is at the top.
fn points(values: &[u64], most: u64) -> String {
    let left = room(values.len()).saturating_sub(values.len());
    let y = |value: u64| HEIGHT - (u128::from(value) * u128::from(HEIGHT) / u128::from(most.max(1))) as u64;
    let mut points: Vec<String> =
        values.iter().enumerate().map(|(at, value)| format!("{},{}", left + at, y(*value))).collect();
    // A line of one point alone is none.
    if let [only] = &points[..] {
        points.push(only.clone());
    }
    points.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_say_of_what_time_they_are() {
        for (samples, says) in [(0, "5 minutes"), (20, "5 minutes"), (21, "6 minutes"), (KEPT - 1, "60 minutes")] {
            assert_eq!(span(samples), format!("The last {says}"), "{samples}");
        }
        assert_eq!([span(KEPT), span(KEPT + 1)], ["The last hour", "The last hour"]);
    }

    #[test]
    fn a_line_stays_in_its_chart_and_ends_at_the_right() {
        for values in [vec![], vec![0], vec![7], vec![u64::MAX, 0, 1], (0..KEPT as u64).collect()] {
            let most = values.iter().copied().max().unwrap_or_default();
            let line = points(&values, most);
            let all: Vec<(usize, u64)> = line
                .split_whitespace()
                .map(|point| point.split_once(',').unwrap())
                .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
                .collect();
            assert_eq!(all.len(), if values.len() == 1 { 2 } else { values.len() }, "{line}");
            let room = room(values.len());
            assert!(all.iter().all(|(x, y)| *x < room && *y <= HEIGHT), "{line}");
            assert!(all.last().is_none_or(|(x, _)| *x == room - 1), "{line}");
            let top = all.iter().map(|(_, y)| *y).min();
            assert!(most == 0 || top == Some(0), "the greatest is at the top: {line}");
        }
    }
}

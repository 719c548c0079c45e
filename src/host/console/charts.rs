//! Small charts of the last hour, drawn here so that they need no script.

use maud::{Markup, html};

use crate::host::hour::{KEPT, Sample};

/// Height of a chart in its own unit; its width is a unit a sample.
const HEIGHT: u64 = 40;

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
                    svg viewBox=(format!("0 0 {} {HEIGHT}", KEPT - 1)) preserveAspectRatio="none" role="img" aria-label=(says) {
                        polyline points=(points(&values, most)) {}
                    }
                }
            }
        }
    }
}

/// The line of these values, of which the greatest is at the top.
fn points(values: &[u64], most: u64) -> String {
    let left = KEPT.saturating_sub(values.len());
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
            assert!(all.iter().all(|(x, y)| *x < KEPT && *y <= HEIGHT), "{line}");
            assert!(all.last().is_none_or(|(x, _)| *x == KEPT - 1), "{line}");
            let top = all.iter().map(|(_, y)| *y).min();
            assert!(most == 0 || top == Some(0), "the greatest is at the top: {line}");
        }
    }
}

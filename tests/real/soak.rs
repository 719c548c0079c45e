//! Churn, reconnects and faults at random from a seed, for as long as is wanted; then what became of memory and descriptors.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
    time::{Duration, Instant, SystemTime},
};

use harness::{random::Random, trials::Trial};

use crate::{cell::Cell, faults, network, recorder::now};

/// `REGISTRY_SOAK_MINUTES` (10), `REGISTRY_SEED` (of the clock).
pub(crate) fn trial() -> Trial {
    // A registry of its own: what it takes is followed from the start.
    network::trial(&faults::cell(), "soak").with_ignored_flag(true)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

pub(crate) fn soak(cell: &mut Cell) {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let (minutes, seed) = (number("REGISTRY_SOAK_MINUTES", 10), number("REGISTRY_SEED", clock));
    println!("seed {seed}, {minutes} minutes");
    let mut samples = Vec::new();
    let begin = Instant::now();
    let soaked = catch_unwind(AssertUnwindSafe(|| {
        let mut random = Random::new(seed);
        while begin.elapsed() < Duration::from_secs(60 * minutes) {
            samples.push(Sample::of(cell, begin));
            step(cell, &mut random);
        }
    }));
    samples.push(Sample::of(cell, begin));
    report(&samples);
    println!("soak of {:.0?} with seed {seed}: {}", begin.elapsed(), if soaked.is_ok() { "ok" } else { "FAILED" });
    if let Err(failure) = soaked {
        resume_unwind(failure);
    }
}

/// The first session server is never killed, so that its memory can be followed.
fn step(cell: &mut Cell, random: &mut Random) {
    let since = now();
    let rate = random.below(100) as u32;
    cell.churn(rate);
    thread::sleep(Duration::from_secs(2 + random.below(10) as u64)); // churn without a fault
    let which = random.below(2);
    let fault = match random.below(8) {
        0 => "none",
        1 | 2 => {
            faults::restart(cell, 1);
            "a session server is killed and restarted"
        }
        3 => {
            let time = Duration::from_secs(1 + random.below(44) as u64);
            faults::pause(cell, which, time);
            "a session server is paused for up to 45 s"
        }
        4 => {
            cell.cut(which, true);
            thread::sleep(Duration::from_secs(1 + random.below(44) as u64)); // how long it is cut off
            cell.cut(which, false);
            "a session server is cut off for up to 45 s"
        }
        5 => return faults::data_killed(cell),
        6 => return faults::clients_killed(cell),
        _ => return faults::stop_push(cell),
    };
    cell.settle(fault, since, now());
}

/// The resources that a session server takes at a moment.
struct Sample {
    minutes: f64,
    /// Resident memory in KiB.
    memory: f64,
    descriptors: usize,
}

impl Sample {
    fn of(cell: &Cell, begin: Instant) -> Self {
        let process = format!("/proc/{}", cell.sessions[0].pid());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Self {
            minutes: begin.elapsed().as_secs_f64() / 60.0,
            memory: memory.and_then(|kib| kib.parse().ok()).expect("resident memory"),
            descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count(),
        }
    }
}

/// The slope by least squares over the second half: the first is for the JVM to warm up.
fn report(samples: &[Sample]) {
    let half = &samples[samples.len() / 2..];
    let count = half.len() as f64;
    let mean = |of: fn(&Sample) -> f64| half.iter().map(of).sum::<f64>() / count;
    let (time, memory) = (mean(|s| s.minutes), mean(|s| s.memory));
    let covariance: f64 = half.iter().map(|s| (s.minutes - time) * (s.memory - memory)).sum();
    let variance: f64 = half.iter().map(|s| (s.minutes - time).powi(2)).sum();
    let (first, last) = (&samples[0], &samples[samples.len() - 1]);
    println!(
        "session server, JVM and all: resident {:.0} MiB at first, {:.0} MiB at last, slope {:.0} KiB/min over the second half; \
         descriptors {} at first, {} at last, {} at most",
        first.memory / 1024.0,
        last.memory / 1024.0,
        if variance > 0.0 { covariance / variance } else { 0.0 },
        first.descriptors,
        last.descriptors,
        samples.iter().map(|sample| sample.descriptors).max().unwrap_or_default(),
    );
}

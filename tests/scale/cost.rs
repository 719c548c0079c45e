//! CPU and memory that a process has taken so far.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use harness::{figures::Cpu, process::START};

/// Over which it is looked at whether a process rests.
const LOOK: Duration = Duration::from_millis(300);
/// CPU that a process at rest takes at most meanwhile, in milliseconds.
const REST: f64 = 15.0;

/// The processor time that a process has used so far.
pub(crate) fn cpu(pid: u32) -> Cpu {
    Cpu::of(pid).unwrap_or_else(|e| panic!("process {pid} has ended: {e}"))
}

/// Milliseconds of processor time between two looks.
pub(crate) fn millis(before: &Cpu, now: &Cpu) -> f64 {
    now.since(before).as_secs_f64() * 1e3
}

/// Resident memory in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Waits until all of these take next to nothing.
pub(crate) fn settle(pids: &[u32]) {
    let deadline = Instant::now() + START;
    loop {
        let before: Vec<Cpu> = pids.iter().map(|pid| cpu(*pid)).collect();
        thread::sleep(LOOK); // over which it is looked at
        if pids.iter().zip(&before).all(|(pid, before)| millis(before, &cpu(*pid)) < REST) {
            return;
        }
        assert!(Instant::now() < deadline, "processes {pids:?} do not come to rest within {START:?}");
    }
}

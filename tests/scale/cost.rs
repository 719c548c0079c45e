//! CPU and memory that a process has taken so far.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use harness::process::START;

/// Over which it is looked at whether a process rests.
const LOOK: Duration = Duration::from_millis(300);
/// CPU that a process at rest takes at most meanwhile, in milliseconds.
const REST: f64 = 15.0;

/// Milliseconds of processor time of all threads that there are, by the kernel's account, which is exact to the nanosecond; that in
/// `/proc/PID/stat` has steps of 10 ms.
pub(crate) fn cpu(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap_or_else(|e| panic!("process {pid} has ended: {e}"));
    let time = |task: std::io::Result<fs::DirEntry>| -> Option<f64> {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.filter_map(time).sum::<f64>() / 1e6
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
        let before: Vec<f64> = pids.iter().map(|pid| cpu(*pid)).collect();
        thread::sleep(LOOK); // over which it is looked at
        if pids.iter().zip(&before).all(|(pid, before)| cpu(*pid) - before < REST) {
            return;
        }
        assert!(Instant::now() < deadline, "processes {pids:?} do not come to rest within {START:?}");
    }
}

/// The middle one.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

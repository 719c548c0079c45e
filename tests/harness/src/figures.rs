//! Measurements: the middle of several figures, the processor time of a process, and the machine that they are of.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, time::Duration};

use crate::client::Result;

/// The middle one; of an even number, what lies in the middle of two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// The processor time of a process: exact by thread, coarse for all that ever were. By default that of a process before its start.
#[derive(Debug, Default)]
pub struct Cpu {
    ticks: u64,
    threads: BTreeMap<PathBuf, u64>,
}

impl Cpu {
    /// The processor time that a process has used so far.
    pub fn of(id: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        // Behind the name, which may hold anything: fields 14 and 15, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no stat")?.1.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{id}/task"))? {
            let path = task?.path();
            // A thread may end while we look.
            let Ok(schedstat) = fs::read_to_string(path.join("schedstat")) else { continue };
            let nanos = schedstat.split_whitespace().next().and_then(|text| text.parse().ok()).ok_or("no schedstat")?;
            threads.insert(path, nanos);
        }
        Ok(Self { ticks, threads })
    }

    /// The time used since `before`: by threads, to the nanosecond, unless one has ended; else utime and stime, in
    /// steps of 10 ms.
    pub fn since(&self, before: &Self) -> Duration {
        let ticks = Duration::from_millis((self.ticks - before.ticks) * 10);
        if before.threads.keys().any(|thread| !self.threads.contains_key(thread)) {
            return ticks;
        }
        let used = |(thread, nanos): (&PathBuf, &u64)| nanos - before.threads.get(thread).copied().unwrap_or_default();
        Duration::from_nanos(self.threads.iter().map(used).sum())
    }
}

/// The machine that figures are of.
pub struct Machine {
    pub cores: usize,
    /// The name of its processor.
    pub cpu: String,
    pub kernel: String,
}

pub fn machine() -> Machine {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    Machine {
        cores: std::thread::available_parallelism().map(usize::from).unwrap_or_default(),
        cpu: cpu.trim_start_matches(['\t', ' ', ':']).to_owned(),
        kernel: first_line("uname", &["-sr"]),
    }
}

/// The first line that a program says, such as its version.
pub fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("not there").to_owned()
}

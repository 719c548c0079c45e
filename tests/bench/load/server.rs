//! The servers: how each is started and fed, and what it costs.

use std::{
    fs,
    io::{BufWriter, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ChildStdin, Command},
};

use harness::{figures::Cpu, process::Driven, serve};
use serde_json::{Value, json};

use crate::{
    Result,
    client::{CLUSTER, Dialect, SERVICE_ENTRY},
    workload::{self, Workload},
};

/// The servers that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `examples/serve`.
    Ours(Ours),
    /// This program's own, see `naive.rs`.
    Naive,
    /// `peers/go-control-plane pass`.
    Pass,
    /// `peers/go-control-plane linear`.
    Linear,
    /// The same, asked for delta.
    LinearDelta,
    /// `peers/slime`.
    Slime,
    /// `peers/nacos`.
    Nacos,
}

/// The ways to use ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ours {
    /// A single source, with everything.
    Whole,
    /// 64 sources of a 64th each.
    Partitions,
    /// Incremental.
    Delta,
    /// A single source at the default `push.duty`; the others push as fast as clients acknowledge.
    Paced,
    /// The same with 64 sources.
    PacedPartitions,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Ours(Ours::Whole),
        Self::Ours(Ours::Partitions),
        Self::Ours(Ours::Delta),
        Self::Ours(Ours::Paced),
        Self::Ours(Ours::PacedPartitions),
        Self::Pass,
        Self::Linear,
        Self::LinearDelta,
        Self::Naive,
        Self::Slime,
        Self::Nacos,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours(Ours::Whole) => "registry-mox",
            Self::Ours(Ours::Partitions) => "registry-mox, 64 partitions",
            Self::Ours(Ours::Delta) => "registry-mox, delta",
            Self::Ours(Ours::Paced) => "registry-mox, paced",
            Self::Ours(Ours::PacedPartitions) => "registry-mox, 64 partitions, paced",
            Self::Naive => "naive tonic",
            Self::Pass => "go-control-plane, pass-through",
            Self::Linear => "go-control-plane, LinearCache",
            Self::LinearDelta => "go-control-plane, LinearCache, delta",
            Self::Slime => "slime istio-mcp",
            Self::Nacos => "nacos-istio 2.x",
        }
    }

    pub(crate) fn is_delta(self) -> bool {
        matches!(self, Self::Ours(Ours::Delta) | Self::LinearDelta)
    }

    pub(crate) fn is_partitioned(self) -> bool {
        matches!(self, Self::Ours(Ours::Partitions | Ours::PacedPartitions))
    }

    /// Whether it keeps to the default `push.duty`.
    pub(crate) fn is_paced(self) -> bool {
        matches!(self, Self::Ours(Ours::Paced | Ours::PacedPartitions))
    }

    /// Whether a change costs it what changed, and not everything.
    pub(crate) fn is_incremental(self) -> bool {
        self.is_delta() || self.is_partitioned()
    }

    pub(crate) fn dialect(self) -> Dialect {
        let type_url = if matches!(self, Self::Linear | Self::LinearDelta) { CLUSTER } else { SERVICE_ENTRY };
        Dialect { type_url, delta: self.is_delta() }
    }

    /// Fed with events, not with resources that are encoded already.
    pub(crate) fn takes_lines(self) -> bool {
        matches!(self, Self::Ours(_))
    }

    fn command(self, base: &Path, program: Option<&Path>) -> Result<Command> {
        let mut command = Command::new(program.map_or_else(|| self.program(), |program| Ok(program.to_owned()))?);
        match self {
            Self::Ours(ours) => {
                let config = base.with_extension("json");
                fs::write(&config, ours.config().to_string())?;
                command.arg("--config").arg(config)
            }
            Self::Naive => command.arg("naive").arg(base),
            Self::Pass => command.arg("pass").arg(base),
            Self::Linear | Self::LinearDelta => command.arg("linear").arg(base),
            Self::Slime => command.arg(base),
            Self::Nacos => {
                let class_path = fs::read_to_string(out().join("nacos.cp"))?;
                command.args(["-Xmx4g", "-cp", &class_path, "Nacos"]).arg(base)
            }
        };
        Ok(command)
    }

    /// The program to execute; an error if it is not there.
    pub(crate) fn program(self) -> Result<PathBuf> {
        let (program, make) = match self {
            Self::Ours(_) => return Ok(serve::program()),
            Self::Naive => return Ok(std::env::current_exe()?),
            Self::Pass | Self::Linear | Self::LinearDelta => (out().join("go-control-plane"), INSTALL),
            Self::Slime => (out().join("slime"), INSTALL),
            Self::Nacos if out().join("nacos.cp").exists() => return Ok("java".into()),
            Self::Nacos => (out().join("nacos.cp"), INSTALL),
        };
        if program.exists() {
            Ok(program)
        } else {
            Err(format!("no {}; make it with {make}", program.display()).into())
        }
    }
}

impl Ours {
    fn config(self) -> Value {
        let mut config = json!({ "policy": workload::policy() });
        if self != Self::Paced && self != Self::PacedPartitions {
            config["push"] = json!({ "duty": 1.0 });
        }
        if matches!(self, Self::Partitions | Self::PacedPartitions) {
            config["partitions"] = json!([64]);
        }
        config
    }
}

const INSTALL: &str = "tests/bench/peers/install.sh";

/// Where everything that is made for the benchmarks is.
pub(crate) fn out() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench")
}

/// A running server with the base loaded, killed when dropped.
pub(crate) struct Server {
    driven: Driven,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Server {
    /// Starts a server with `base` as its resources, or with the same content as events. Returns it with what it is fed through.
    pub(crate) fn start(
        kind: Kind,
        workload: &Workload,
        base: &Path,
        program: Option<&Path>,
    ) -> Result<(Self, ChildStdin)> {
        let mut driven = Driven::start(&mut kind.command(base, program)?);
        let mut input = driven.take_input().ok_or("no standard input")?;
        let mut answer = || -> Result<Value> {
            let line = driven.next_line().ok_or_else(|| format!("{} has ended", kind.name()))?;
            serde_json::from_str(&line).map_err(|error| format!("{}: answer {line:?}: {error}", kind.name()).into())
        };
        let bound = answer()?;
        let address = |text: &Value| -> Result<SocketAddr> { Ok(text.as_str().ok_or("no address")?.parse()?) };
        let addresses = if kind.is_partitioned() {
            let slices = bound["slices"]["64"].as_array().ok_or("no 64 partitions in the first line")?;
            slices.iter().map(address).collect::<Result<_>>()?
        } else {
            vec![address(&bound["mox"])?]
        };
        if kind.takes_lines() {
            let mut lines = BufWriter::with_capacity(1 << 16, &mut input);
            workload.base_lines(&mut lines)?;
            lines.write_all(b"{\"op\":\"loaded\"}\n{\"op\":\"flush\",\"id\":1}\n")?;
            lines.flush()?;
            drop(lines);
            let flushed = answer()?;
            if flushed["endpoints"] != (workload.services * workload.endpoints) {
                return Err(format!("{} has {flushed} after the base", kind.name()).into());
            }
        }
        Ok((Self { driven, addresses }, input))
    }

    /// Time on a processor so far.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        Cpu::of(self.driven.process.pid())
    }

    /// Resident memory now and at its peak, in bytes.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.driven.process.pid()))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no memory in status")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }
}

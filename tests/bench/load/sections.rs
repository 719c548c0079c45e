//! The sections of the report: which servers run, with how many clients, and what happens.

use std::time::Duration;

use crate::{
    run::{Happening, Plan},
    server::Kind,
    workload::{W1, W2, W4, Workload},
};

/// A table of the report.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) workload: Workload,
    pub(crate) clients: usize,
    /// In turn, so that what else the machine does hits all alike.
    pub(crate) rounds: usize,
    happening: Happening,
    /// Instead, for servers to which a change costs what changed: enough to be measured.
    incremental: Happening,
    who: Who,
}

/// Which servers are in a section.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    /// All that push as fast as clients acknowledge.
    Unpaced,
    /// Of the unpaced servers those to which a change costs what changed, not what there is.
    Incremental,
    /// Ours at the default `push.duty`.
    Paced,
}

const fn changes(count: usize, rate: f64) -> Happening {
    Happening::Changes { count, rate }
}

const DENSE: Happening = changes(5_000, 1_000.0);
const IDLE: Happening = Happening::Idle(Duration::from_secs(10));

#[rustfmt::skip]
pub(crate) const SECTIONS: [Section; 9] = [
    Section { name: "w1", workload: W1, clients: 1, rounds: 3, happening: changes(100, 20.0), incremental: changes(500, 100.0), who: Who::Unpaced },
    Section { name: "w2", workload: W2, clients: 1, rounds: 3, happening: changes(200, 20.0), incremental: changes(1_000, 100.0), who: Who::Unpaced },
    Section { name: "dense", workload: W2, clients: 1, rounds: 3, happening: DENSE, incremental: DENSE, who: Who::Incremental },
    Section { name: "w4", workload: W4, clients: 1, rounds: 2, happening: changes(20, 2.0), incremental: changes(500, 100.0), who: Who::Unpaced },
    Section { name: "clients10", workload: W2, clients: 10, rounds: 2, happening: changes(20, 2.0), incremental: changes(100, 20.0), who: Who::Unpaced },
    Section { name: "clients50", workload: W2, clients: 50, rounds: 2, happening: changes(6, 0.5), incremental: changes(50, 5.0), who: Who::Unpaced },
    Section { name: "reconnect", workload: W2, clients: 50, rounds: 3, happening: Happening::Reconnect, incremental: Happening::Reconnect, who: Who::Unpaced },
    Section { name: "idle", workload: W2, clients: 10, rounds: 1, happening: IDLE, incremental: IDLE, who: Who::Unpaced },
    Section { name: "paced", workload: W2, clients: 1, rounds: 3, happening: changes(200, 20.0), incremental: changes(1_000, 100.0), who: Who::Paced },
];

impl Section {
    /// Which servers are in it.
    pub(crate) fn servers(&self) -> Vec<Kind> {
        let takes_part = |kind: &Kind| match self.who {
            Who::Unpaced => !kind.is_paced(),
            Who::Incremental => !kind.is_paced() && kind.is_incremental(),
            Who::Paced => kind.is_paced(),
        };
        Kind::ALL.into_iter().filter(takes_part).collect()
    }

    pub(crate) fn happening(&self, kind: Kind) -> Happening {
        if kind.is_incremental() { self.incremental } else { self.happening }
    }

    /// How many changes a server is to take.
    pub(crate) fn changes(&self, kind: Kind) -> usize {
        match self.happening(kind) {
            Happening::Changes { count, .. } => count,
            Happening::Reconnect | Happening::Idle(_) => 0,
        }
    }

    pub(crate) fn plan(&self, kind: Kind) -> Plan {
        Plan { workload: self.workload, clients: self.clients, happening: self.happening(kind) }
    }
}

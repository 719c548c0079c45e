//! Tests in networks of their own, which `hosts.sh` and `mesh.sh` make: this program runs itself inside, and tells itself what to
//! run by lines.

use std::{
    io::stdin,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::Arc,
};

use harness::{
    process::{Driven, START, is_root, mortal, root},
    trials::{Shared, Trial, trial_unless},
};

/// The first argument of this program inside of a network.
pub(crate) const INSIDE: &str = "--inside";
/// The lines that the program inside writes after a scenario.
const PASSED: &str = "=> passed";
const FAILED: &str = "=> failed";

/// This program inside of a network, until it is dropped; what it says is passed on.
pub(crate) struct Network {
    program: Driven,
}

impl Network {
    /// Inside of the network of a script, with these arguments.
    pub(crate) fn start(script: &str, arguments: &[&str]) -> Self {
        let mut command = mortal(root().join("tests/real").join(script));
        let program = command.arg(std::env::current_exe().unwrap()).arg(INSIDE).args(arguments);
        Self { program: Driven::start(program) }
    }

    /// Whether a scenario passes. Why it does not is on standard error.
    pub(crate) fn passes(&mut self, scenario: &str) -> bool {
        self.program.tell(scenario);
        loop {
            match self.program.next_line().as_deref() {
                Some(PASSED) => return true,
                Some(FAILED) => return false,
                Some(line) => println!("{line}"),
                None => panic!("the program inside of the network has ended"),
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.program.take_input());
        while let Some(line) = self.program.next_line() {
            println!("{line}");
        }
        self.program.process.wait(START);
    }
}

/// A trial inside of a network that it shares with others.
pub(crate) fn trial(network: &Arc<Shared<Network>>, scenario: &'static str) -> Trial {
    let network = Arc::clone(network);
    trial_unless(scenario, needs_root, move || match network.with(|network| network.passes(scenario)) {
        true => Ok(()),
        false => Err("it failed inside of its network".into()),
    })
}

pub(crate) fn needs_root() -> Option<String> {
    (!is_root()).then(|| "it needs root, for networks of its own".to_owned())
}

/// The program inside of a [`Network`]: starts what the scenarios share, runs those that it is told, and ends.
pub(crate) fn inside<T>(
    start: impl FnOnce() -> T,
    mut scenario: impl FnMut(&mut T, &str),
    end: impl FnOnce(T),
) -> ExitCode {
    // Why it did not start is on standard error already.
    let mut shared = catch_unwind(AssertUnwindSafe(start)).ok();
    for name in stdin().lines().map_while(Result::ok) {
        let run = || scenario(shared.as_mut().expect("what it needs did not start"), &name);
        println!("{}", if catch_unwind(AssertUnwindSafe(run)).is_ok() { PASSED } else { FAILED });
    }
    if let Some(shared) = shared {
        end(shared);
    }
    ExitCode::SUCCESS
}

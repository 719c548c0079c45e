//! Test programs of their own, in place of libtest where tests share what takes long to start and has fixed ports.
//!
//! Trials run one after the other in the order of their list, in the main thread: a process that [`mortal`] starts ends with its
//! thread. The arguments are those of libtest: a part of a name, `--exact`, `--ignored`, `--list` and so on.
//!
//! [`mortal`]: crate::process::mortal

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use libtest_mimic::{Arguments, Completion};
pub use libtest_mimic::{Failed, Measurement, Trial};

/// Runs those that the arguments of the program name.
pub fn run(trials: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A trial that passes unless it panics.
pub fn trial(name: &str, scenario: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, || {
        timed(scenario);
        Ok(())
    })
}

/// Shows how long it took, as libtest-mimic does not.
pub fn timed<T>(scenario: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let value = scenario();
    print!("({:.1?}) ", begin.elapsed());
    value
}

/// A trial that is left out for a reason that is known when its turn comes.
pub fn trial_unless(
    name: &str,
    left_out: impl FnOnce() -> Option<String> + Send + 'static,
    scenario: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, || match left_out() {
        Some(why) => Ok(Completion::ignored_with(why)),
        None => timed(scenario).map(|()| Completion::Completed),
    })
}

/// A value that several trials share: started by the first that runs, ended after the last.
pub struct Shared<T> {
    start: Box<dyn Fn() -> T + Send + Sync>,
    state: Mutex<State<T>>,
}

enum State<T> {
    NotStarted,
    Runs(T),
    /// Why it did not start is on standard error already.
    Broken,
}

impl<T> Shared<T> {
    pub fn new(start: impl Fn() -> T + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { start: Box::new(start), state: Mutex::new(State::NotStarted) })
    }

    /// Does something with it. A scenario that panicked before leaves it as it is.
    pub fn with<R>(&self, scenario: impl FnOnce(&mut T) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::NotStarted = *state {
            *state = State::Broken;
            *state = State::Runs((self.start)());
        }
        match &mut *state {
            State::Runs(shared) => scenario(shared),
            _ => panic!("what it needs did not start"),
        }
    }
}

/// A trial with what it shares with others.
pub fn sharing<T: Send + 'static>(
    shared: &Arc<Shared<T>>,
    name: &str,
    scenario: impl FnOnce(&mut T) + Send + 'static,
) -> Trial {
    let shared = Arc::clone(shared);
    trial(name, move || shared.with(scenario))
}

//! From what the registry and the policy say to the next snapshot.
//!
//! Takes the store's dirty services, the policy, the operator's orders and the last good state; gives the view that streams
//! and sinks follow, the report, lines for the log and the file of the last good state. The decisions are values without IO:
//! [`round`] puts them together, [`rounds`] is the thread that drives it.
//!
//! Imports the ground, `registry`, `policy`, `translate`, `istio` and `snapshot`. Only `host`, which steers and shows it,
//! imports this room; `kubernetes` has the breaker from here.

pub mod additions;
pub mod assignment;
pub mod backlog;
pub mod breaker;
pub mod changes;
pub mod direct;
#[cfg(test)]
mod driver;
pub mod dry_run;
pub mod gate;
#[cfg(test)]
mod histories;
pub mod key;
pub mod last_good;
pub mod narrowing;
pub mod notices;
pub mod orders;
pub mod others;
#[cfg(test)]
mod reference;
pub mod report;
pub mod round;
pub mod rounds;
pub mod services;
pub mod shared;
pub mod unknown;
pub mod vips;

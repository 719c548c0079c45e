//! From what the registry and the policy say to the next snapshot.
//!
//! Takes the store's dirty services, the policy, the operator's orders and the last good state; gives the view that streams
//! and sinks follow, the report and the file of the last good state. Only `host`, which steers and shows it, imports this
//! room; `kubernetes` has the breaker from here.

pub mod assignment;
pub mod breaker;
pub mod direct;
pub mod gate;
pub mod last_good;
pub mod rounds;
pub mod services;
pub mod unknown;

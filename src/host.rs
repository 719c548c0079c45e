//! The engine as a program, or a JVM, holds it: started, steered, asked, stopped.
//!
//! Takes configuration, frames, commands and requests for pages; gives answers, metrics and log lines to whoever pulls
//! them. Puts the other rooms together, so it imports them all, and only the natives of `jni` import it.

pub mod admin;
mod allowance;
pub mod command;
mod console;
mod desk;
pub mod diff;
pub mod documents;
pub mod engine;
pub mod explain;
pub mod feed;
pub mod hour;
pub mod log;
pub mod metrics;
mod page;
pub mod peers;
pub mod policies;
mod policy;
mod server;
pub mod status;
mod threads;
mod unmatched;
mod visibility;
mod watching;

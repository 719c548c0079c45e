//! The parts that tests, benches and the example `watch` have in common.
//!
//! In process: [`Mox`], an engine that is fed by the test, [`store`], which is what
//! several of them share, [`refusing`], an API server that takes nothing, and [`client`], which speaks to it as istiod or Envoy does. As
//! processes: [`serve`], and [`parts`], which are real. [`trials`] runs tests that share what takes long to start.

pub mod api_server;
pub mod client;
mod engine;
pub mod figures;
pub mod golden;
pub mod http;
pub mod http2;
pub mod judge;
pub mod parts;
pub mod process;
pub mod random;
pub mod refusing;
pub mod serve;
pub mod store;
pub mod trials;

use std::{fmt::Display, time::Duration};

pub use engine::Mox;

/// Enough for whatever is awaited from something that runs, on a busy machine; what takes longer will not come.
pub const SOON: Duration = Duration::from_secs(60);

/// The dataInfoId of a service with a name such as real ones have.
pub const DEMO: &str = "com.example.DemoService:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";

/// The dataInfoId of an interface below `com.example`.
pub fn id(interface: impl Display) -> String {
    format!("com.example.{interface}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA")
}

/// The dataInfoId of the nth of many services.
pub fn nth(n: usize) -> String {
    id(format_args!("S{n}"))
}

/// The name of its resource.
pub fn nth_name(n: usize) -> String {
    format!("sofa-registry/com.example.s{n}")
}

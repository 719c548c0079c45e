//! Istio's side of the contract: its grammar of names, labels and addresses, its rules for resources, and the keys under which this
//! project writes.
//!
//! Stands on the messages of `proto` alone; whoever makes or checks something for Istio imports it.

pub mod grammar;
pub mod names;
pub mod rule;
pub mod validate;

//! The xDS server that istiod connects to, as a source of its configuration (MCP-over-xDS).
//!
//! The core knows no type of resource: a [`Catalog`](crate::snapshot::view::Catalog) says what types there are and which of them rest on which.
//!
//! The floors, from the ground up; a file imports from lower floors only, and this file from none:
//!
//! 1. [`limits`] bounds a client, [`frames`] a connection, [`budget`] what all may make us keep, [`drain`] ends streams, [`pace`] divides a client's time, [`quiet`]
//!    bounds what clients can log, [`tls`] keeps certificates,
//!    [`workers`] divides connections among threads;
//! 2. [`subscription`] is one type on one stream, in either variant of the protocol, [`streams`] lists who is connected;
//! 3. [`order`] decides what a stream is told and when, [`requests`] reads what a client says, [`codec`] puts responses on the
//!    wire, [`listener`] lets connections in;
//! 4. [`stream`] serves one stream;
//! 5. [`server`] is the gRPC service that makes streams of connections.

pub mod budget;
pub mod codec;
pub mod drain;
mod frames;
pub mod limits;
pub mod listener;
pub mod order;
pub mod pace;
pub mod quiet;
pub mod requests;
pub mod server;
pub mod stream;
pub mod streams;
pub mod subscription;
pub mod times;
pub mod tls;
pub mod workers;

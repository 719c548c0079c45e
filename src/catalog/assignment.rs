//! Which service has which host, and which host which virtual address.

pub mod claims;

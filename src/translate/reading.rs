//! The fate of each payload of a publisher, for operators; the mesh gets what [`payload::parse_publisher`] makes of all.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    policy::Rules,
    registry::frame::Body,
    translate::payload::{self, Address, Client, Endpoint, Found, Reject},
};

/// How much of a payload is shown, in characters.
const SHOWN: usize = 200;

/// A payload and what was made of it; an instance of several protocols has a reading for each.
#[derive(Debug)]
pub struct Reading {
    /// Its start, fit for one line.
    pub text: String,
    /// The endpoint, with the protocol by which it is called if that is another than the dataInfoId's; or why there is none.
    pub made: Result<Found, Reject>,
}

impl Reading {
    /// Whether it makes an endpoint at an address, or names that where it makes none.
    pub fn is_at(&self, address: IpAddr, port: Option<u16>) -> bool {
        match &self.made {
            Ok((_, Endpoint { address: Address::Ip(own), port: own_port, .. })) => {
                *own == address && port.is_none_or(|port| port == *own_port)
            }
            Ok(_) => false,
            Err(_) => names(&self.text, &address.to_string()),
        }
    }
}

/// Whether an address stands in a text by itself, and not as a part of a longer one.
fn names(text: &str, address: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '.';
    text.match_indices(address).any(|(at, found)| {
        let (before, after) = (&text[..at], &text[at + found.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part)
    })
}

/// The first `most` readings of a publisher that are `wanted`, and how many payloads it has beside.
pub fn readings(
    body: &Body<'_>,
    client: Client,
    rules: &Rules<'_>,
    most: usize,
    wanted: impl Fn(&Reading) -> bool,
) -> (Vec<Reading>, usize) {
    let Ok(details) = body.details() else { return (Vec::new(), 0) };
    let of_payload = |(n, payload): (usize, &&[u8])| {
        let (text, made) = payload::read(payload, &details, client, rules);
        let text = payload::start(&text, SHOWN);
        made.into_iter().map(move |made| (n, Reading { text: text.clone(), made }))
    };
    let all = details.payloads.iter().enumerate().flat_map(of_payload);
    let (read, readings): (BTreeSet<usize>, Vec<Reading>) = all.filter(|(_, it)| wanted(it)).take(most).unzip();
    (readings, details.payloads.len().saturating_sub(read.len()))
}

//! Entries of services with many endpoints: what did not change is copied as it was encoded.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use prost::{Message, encoding};

use crate::{
    istio::validate,
    proto::istio::networking::v1alpha3::ServiceEntry,
    translate::service_entry::{self, Member, Weights},
};

/// From so many endpoints on; of fewer an encoding is not worth its memory. In tests most services have as many.
pub(super) const LARGE: usize = if cfg!(test) { 2 } else { 256 };

/// The field of a ServiceEntry that has an endpoint; fields are written in the order of their numbers.
const ENDPOINTS_FIELD: u32 = 6;

/// An entry as it is served.
#[derive(Debug)]
pub(super) struct Encoded {
    /// All that the encoding of an endpoint depends on beside itself.
    port_name: String,
    dns: bool,
    weights: Weights,
    /// The whole entry.
    pub(super) body: Bytes,
    /// Where the first endpoint begins, and where each ends.
    ends: Vec<usize>,
    /// How many endpoints were not copied.
    #[cfg(test)]
    made: usize,
}

/// Encodes an entry, `entry`, with the endpoints that are added to it; those that were there before are copied. `None` if Istio
/// would refuse one.
pub(super) fn encode(
    entry: &ServiceEntry,
    members: &[Member],
    dns: bool,
    before: Option<(&Encoded, &[Member])>,
) -> Option<Encoded> {
    let (port_name, weights) = (&*entry.ports[0].name, Weights::of(members));
    let alike = |known: &Encoded| (&*known.port_name, known.dns, known.weights) == (port_name, dns, weights);
    let before = before.filter(|(known, _)| alike(known));
    let head = ServiceEntry { export_to: Vec::new(), subject_alt_names: Vec::new(), ..entry.clone() };
    let tail = ServiceEntry {
        export_to: entry.export_to.clone(),
        subject_alt_names: entry.subject_alt_names.clone(),
        ..ServiceEntry::default()
    };
    let mut body = BytesMut::with_capacity(before.map_or(0, |(known, _)| known.body.len() + 4_096));
    body.put_slice(&head.encode_to_vec());
    let mut ends = Vec::with_capacity(members.len() + 1);
    ends.push(body.len());
    let mut known = before.map(|(known, members)| Known { encoded: known, members, at: 0 });
    // Endpoints that follow one another are copied at once.
    let mut run = 0..0;
    #[cfg(test)]
    let mut made = 0;
    for member in members {
        match known.as_mut().and_then(|known| known.find(member)) {
            Some(found) => {
                if found.start != run.end {
                    copy(&mut body, &known, &run);
                    run.start = found.start;
                }
                run.end = found.end;
            }
            None => {
                copy(&mut body, &known, &run);
                run.start = run.end;
                let endpoint = service_entry::inline_endpoint(member, port_name, weights);
                validate::endpoint(&endpoint, entry).ok()?;
                encoding::message::encode(ENDPOINTS_FIELD, &endpoint, &mut body);
                #[cfg(test)]
                {
                    made += 1;
                }
            }
        }
        ends.push(body.len() + run.len());
    }
    copy(&mut body, &known, &run);
    body.put_slice(&tail.encode_to_vec());
    Some(Encoded {
        port_name: port_name.to_owned(),
        dns,
        weights,
        body: body.freeze(),
        ends,
        #[cfg(test)]
        made,
    })
}

fn copy(body: &mut BytesMut, known: &Option<Known<'_>>, run: &Range<usize>) {
    if let Some(known) = known {
        body.put_slice(&known.encoded.body[run.clone()]);
    }
}

/// An entry whose endpoints are looked for in their order.
struct Known<'a> {
    encoded: &'a Encoded,
    members: &'a [Member],
    at: usize,
}

impl Known<'_> {
    /// Where an endpoint lies, if it is there as it is.
    fn find(&mut self, member: &Member) -> Option<Range<usize>> {
        // Most are the very same, which is seen without a look at them.
        while let Some(known) = self.members.get(self.at)
            && !known.is_shared(member)
            && known.key() < member.key()
        {
            self.at += 1;
        }
        if self.members.get(self.at) != Some(member) {
            return None;
        }
        self.at += 1;
        Some(self.encoded.ends[self.at - 1]..self.encoded.ends[self.at])
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        net::{IpAddr, Ipv4Addr},
        sync::Arc,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{
        policy::{Policy, PolicyConfig},
        translate::{
            Parsed, payload,
            service_entry::{EndpointMode, Shape},
        },
    };

    const VIPS: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::new(248, 0, 0, 1))];
    const ID: &str = "com.example.DemoService:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";

    fn shape<'a>(members: &'a [Member], host: &'a str) -> Shape<'a> {
        Shape { host, vips: &VIPS, id: ID, other: None, members, mode: EndpointMode::Inline }
    }

    /// Endpoints by the last number of their address: weight, and whether they are known from before.
    type Chosen = BTreeMap<u8, (u32, bool)>;

    fn chosen() -> impl Strategy<Value = Chosen> {
        prop_oneof![
            proptest::collection::btree_map(0u8..12, (1u32..3, any::<bool>()), 0..12),
            proptest::collection::btree_map(0u8..12, (Just(7), any::<bool>()), 0..12),
            proptest::collection::btree_map(0u8..12, (Just(u32::MAX), any::<bool>()), 0..12),
        ]
    }

    proptest! {
        #[test]
        fn an_entry_that_is_copied_in_part_is_the_entry_encoded_as_a_whole(
            history in proptest::collection::vec((chosen(), any::<bool>(), any::<bool>()), 1..8),
        ) {
            let policy = |export: bool| {
                let document = serde_json::json!({ "exportTo": [if export { "~" } else { "*" }] });
                Policy::new(serde_json::from_value::<PolicyConfig>(document).unwrap(), &[], "ns").unwrap()
            };
            let mut before: Option<(Encoded, Vec<Member>)> = None;
            for (chosen, export, renamed) in history {
                let (policy, host) = (policy(export), if renamed { "b.sofa.mesh" } else { "a.sofa.mesh" });
                let rules = policy.rules(ID);
                let members: Vec<Member> = chosen.iter().map(|(n, (weight, known))| {
                    let endpoint = payload::parse(&format!("10.0.0.{n}:80?app_name=a{n}"), "", payload::Client::Sofarpc, &rules).unwrap();
                    let mut endpoint = endpoint;
                    endpoint.weight = *weight;
                    let same = before.iter().flat_map(|(_, members)| members).find(|member| *member.endpoint() == endpoint);
                    match same.filter(|_| *known) {
                        Some(member) => member.clone(),
                        None => Member::all(&Arc::new(Parsed { endpoints: [endpoint].into(), ..Parsed::default() })).next().unwrap(),
                    }
                }).collect();
                let entry = service_entry::build_without_endpoints(&shape(&members, host), &rules);
                let last = before.as_ref().map(|(known, members)| (known, &members[..]));
                let encoded = encode(&entry, &members, false, last).unwrap();
                let whole = service_entry::build(&shape(&members, host), &rules).encode_to_vec();
                prop_assert_eq!(&encoded.body[..], &whole[..]);
                before = Some((encoded, members));
            }
        }
    }

    #[test]
    fn only_what_changed_is_encoded() {
        let policy = Policy::new(PolicyConfig::default(), &[], "ns").unwrap();
        let rules = policy.rules(ID);
        let member = |n: usize, parameters: &str| {
            let text = format!("10.0.{}.{}:80{parameters}", n >> 8, n & 255);
            let endpoints = vec![payload::parse(&text, "", payload::Client::Sofarpc, &rules).unwrap()];
            Member::all(&Arc::new(Parsed { endpoints: endpoints.into(), ..Parsed::default() })).next().unwrap()
        };
        let mut members: Vec<Member> = (0..1_000).map(|n| member(2 * n, "")).collect();
        let encoded = |members: &[Member], known| {
            let entry = service_entry::build_without_endpoints(&shape(members, "a.sofa.mesh"), &rules);
            encode(&entry, members, false, known).unwrap()
        };
        let first = encoded(&members, None);
        let before = members.clone();
        // Of the endpoints one changes, one goes, one comes, and one is said again as it was.
        members[10] = member(20, "?zone=z");
        members.remove(500);
        members.insert(700, member(1_401, ""));
        members[900] = member(1_800, "");
        assert_eq!((first.made, encoded(&members, Some((&first, &before))).made), (1_000, 2));
        // Weights that are no longer equal stand in every endpoint.
        members[0] = member(0, "?weight=7");
        assert_eq!(encoded(&members, Some((&first, &before))).made, 1_000);
    }

    #[test]
    fn what_istio_would_refuse_is_not_encoded() {
        let policy = Policy::new(PolicyConfig::default(), &[], "ns").unwrap();
        let rules = policy.rules(ID);
        let endpoint = payload::parse("10.0.0.1:80", "", payload::Client::Sofarpc, &rules).unwrap();
        let mut wrong = endpoint.clone();
        wrong.address = payload::Address::Name("no address".into());
        let parsed = Arc::new(Parsed { endpoints: [endpoint, wrong].into(), ..Parsed::default() });
        let members: Vec<Member> = Member::all(&parsed).collect();
        let entry = service_entry::build_without_endpoints(&shape(&members, "a.sofa.mesh"), &rules);
        assert!(encode(&entry, &members[..1], false, None).is_some());
        assert!(encode(&entry, &members, false, None).is_none());
    }
}

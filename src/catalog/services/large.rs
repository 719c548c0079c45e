//! Entries of services with many endpoints: what did not change is copied as it was encoded.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use prost::{Message, encoding};

use crate::{
    istio::validate,
    proto::istio::networking::v1alpha3::ServiceEntry,
    snapshot::{Draft, Resource},
    translate::service_entry::{self, Common, Known, Member},
};

/// From so many endpoints on; of fewer an encoding is not worth its memory. In tests most services have as many.
pub(super) const LARGE: usize = if cfg!(test) { 2 } else { 128 };

/// The field of a ServiceEntry that has an endpoint; fields are written in the order of their numbers.
const ENDPOINTS_FIELD: u32 = 6;

/// An entry as it is served.
#[derive(Debug)]
pub(super) struct Encoded {
    /// All that the encoding of an endpoint depends on beside itself.
    port_name: String,
    dns: bool,
    /// What is written of all endpoints together.
    pub(super) common: Common,
    /// The whole entry, where it lies in the resource.
    body: Bytes,
    /// Where the first endpoint begins in it, and where each ends.
    ends: Vec<usize>,
    /// How many endpoints were not copied.
    #[cfg(test)]
    made: usize,
}

/// Encodes an entry, `entry`, with the endpoints that are added to it, into the resource that `draft` becomes; those that were
/// there before are copied. `None` if Istio would refuse one.
pub(super) fn encode(
    entry: &ServiceEntry,
    members: &[Member],
    common: Common,
    dns: bool,
    before: Option<(&Encoded, &[Member])>,
    draft: impl FnOnce(usize) -> Draft,
) -> Option<(Resource, Encoded)> {
    let (port_name, weights) = (&*entry.ports[0].name, common.weights);
    let alike = |known: &Encoded| (&*known.port_name, known.dns, known.common.weights) == (port_name, dns, weights);
    let before = before.filter(|(known, _)| alike(known));
    let head = ServiceEntry { export_to: Vec::new(), subject_alt_names: Vec::new(), ..entry.clone() };
    let tail = ServiceEntry {
        export_to: entry.export_to.clone(),
        subject_alt_names: entry.subject_alt_names.clone(),
        ..ServiceEntry::default()
    };
    let mut draft = draft(before.map_or(64 * members.len(), |(known, _)| known.body.len() + 1_024));
    let body = draft.body();
    let start = body.len();
    body.put_slice(&head.encode_to_vec());
    let mut ends = Vec::with_capacity(members.len() + 1);
    ends.push(body.len() - start);
    let mut known = before.map(|(known, members)| (known, Known::new(members)));
    // Endpoints that follow one another are copied at once.
    let mut run = 0..0;
    #[cfg(test)]
    let mut made = 0;
    for member in members {
        let found = known.as_mut().and_then(|(known, members)| Some((known, members.find(member)?)));
        match found.map(|(known, at)| known.ends[at]..known.ends[at + 1]) {
            Some(found) => {
                if found.start != run.end {
                    copy(body, &known, &run);
                    run.start = found.start;
                }
                run.end = found.end;
            }
            None => {
                copy(body, &known, &run);
                run.start = run.end;
                let endpoint = service_entry::inline_endpoint(member, port_name, weights);
                validate::endpoint(&endpoint, entry).ok()?;
                encoding::message::encode(ENDPOINTS_FIELD, &endpoint, body);
                #[cfg(test)]
                {
                    made += 1;
                }
            }
        }
        ends.push(body.len() - start + run.len());
    }
    copy(body, &known, &run);
    body.put_slice(&tail.encode_to_vec());
    let (resource, body) = draft.finish(members.len());
    let encoded = Encoded {
        port_name: port_name.to_owned(),
        dns,
        common,
        body,
        ends,
        #[cfg(test)]
        made,
    };
    Some((resource, encoded))
}

fn copy(body: &mut BytesMut, known: &Option<(&Encoded, Known<'_>)>, run: &Range<usize>) {
    if let Some((known, _)) = known {
        body.put_slice(&known.body[run.clone()]);
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

    fn draft(bytes: usize) -> Draft {
        Draft::service_entry("ns/a".into(), BTreeMap::new(), BTreeMap::new(), bytes)
    }

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
                let mtls = |n: usize| serde_json::json!({ "applications": [format!("a{n}")], "identities": [format!("spiffe://a/ns/b/sa/c{n}")] });
                let document = serde_json::json!({ "exportTo": [if export { "~" } else { "*" }], "mtls": [mtls(3), mtls(4)] });
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
                let last = before.as_ref().map(|(known, members)| (known, &members[..]));
                let common = last.map_or_else(|| Common::of(&members), |(known, last)| known.common.after(last, &members));
                prop_assert_eq!(&common, &Common::of(&members));
                let entry = service_entry::build_without_endpoints(&shape(&members, host), &rules, &common);
                let encoded = encode(&entry, &members, common, false, last, draft).unwrap().1;
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
        let encoded = |members: &[Member], known: Option<(&Encoded, &[Member])>| {
            let common =
                known.map_or_else(|| Common::of(members), |(known, before)| known.common.after(before, members));
            let entry = service_entry::build_without_endpoints(&shape(members, "a.sofa.mesh"), &rules, &common);
            encode(&entry, members, common, false, known, draft).unwrap().1
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
        let common = Common::of(&members);
        let entry = service_entry::build_without_endpoints(&shape(&members, "a.sofa.mesh"), &rules, &common);
        assert!(encode(&entry, &members[..1], common.clone(), false, None, draft).is_some());
        assert!(encode(&entry, &members, common, false, None, draft).is_none());
    }
}

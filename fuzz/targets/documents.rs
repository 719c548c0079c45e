//! Rows of the store that session servers share, as whoever reaches the database can write them: tampered, replayed under any
//! name, huge, unsigned, signed with keys that this release does not know. Whatever they are, a document that counts was signed with
//! the token, its revision never goes back, one revision has one document (of two pins, the one whose text is smaller: session
//! servers settle that by themselves), and what counts survives a restart byte for byte.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, write::GzEncoder};
use libfuzzer_sys::fuzz_target;
use registry_mox::testing::documents::{Documents, Freeze, Kept, Name, OrdersContent, Row, Stamp, Taken, Write};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const NAMESPACE: &str = "sofa-registry";
const TOKEN: &[u8] = b"open sesame 1234";
const OTHER: &[u8] = b"another token 12";
const NOW: i64 = 1_700_000_000_000;
/// The most bytes of a row.
const MOST_ROW: usize = 64 << 10;
const MOST_STEPS: usize = 256;
/// Rows that may be replayed.
const MOST_ROWS: usize = 64;

/// Contents of documents, and of which of them each is one.
const CONTENTS: [(&str, Option<Name>); 12] = [
    (r#"{"policy":null,"history":[]}"#, Some(Name::Policy)),
    (r#"{"policy":{"exclude":["com.a*"]},"history":[]}"#, Some(Name::Policy)),
    (r#"{ "history" : [], "policy" : {"exportTo": ["."]} }"#, Some(Name::Policy)),
    (r#"{"policy":{"fromNextYear":true},"history":[]}"#, None),
    (r#"{"policy":{"exclude":["com.b*"]},"history":[],"more":1}"#, None),
    (r#"{"policy":{"exclude":"\u0000"}}"#, None),
    (r#"{"freeze":null}"#, Some(Name::Orders)),
    (r#"{"freeze":{"until":9223372036854775807}}"#, Some(Name::Orders)),
    (r#"{"freeze":{"until":null,"until":1}}"#, None),
    (r#"{"places":{}}"#, Some(Name::Pins)),
    (r#"{"places":{"a.sofa.mesh":"x","248.0.0.1":"é"}}"#, Some(Name::Pins)),
    (r#"[]"#, None),
];

/// HMAC-SHA256 as RFC 2104 defines it, for keys of up to 64 bytes.
fn hmac(key: &[u8], message: &[u8]) -> String {
    let padded = |with: u8| -> Vec<u8> { (0..64).map(|n| key.get(n).copied().unwrap_or_default() ^ with).collect() };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    let tag = Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize();
    tag.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A row that is signed, in an envelope of the form that is documented.
fn sealed(token: &[u8], name: Name, revision: u64, why: &str, content: &str, more: &str) -> String {
    let mut message = format!("registry-mox document 1\n{}\n{revision}\n{NOW}\n", name.as_str()).into_bytes();
    for part in ["fuzz", why, content] {
        message.extend_from_slice(&Sha256::digest(part));
    }
    let (why, mac) = (json!(why), hmac(token, &message));
    format!(
        r#"{{"schema":1,{more}"name":"{}","revision":{revision},"by":"fuzz","when":{NOW},"why":{why},"content":{content},"mac":"{mac}"}}"#,
        name.as_str()
    )
}

fn packed(text: &str, times: usize) -> String {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    (0..times).for_each(|_| encoder.write_all(text.as_bytes()).expect("memory takes all"));
    format!("gzip:{}", STANDARD.encode(encoder.finish().expect("memory takes all")))
}

/// The documents of operators and pins; those of visibility are written by the engine, and their rows are read by the same code.
const ALL: [Name; 3] = [Name::Policy, Name::Orders, Name::Pins];

/// What a document says, as far as it does anything.
type Said = (u64, Value);

fn said(of: &Documents, name: Name) -> Said {
    let content = match name {
        Name::Policy => json!(of.policy()),
        Name::Orders => json!(of.freeze().map(|(Freeze { until }, _)| json!({ "until": until }))),
        Name::Pins => json!(of.pins().map(|pins| &pins.places)),
        Name::Visibility | Name::VisibilityPage(_) => unreachable!("it is none of ALL"),
    };
    (of.shown()[&name].revision, content)
}

/// The same of a content that is one of the document.
fn meant(name: Name, revision: u64, content: &str) -> Said {
    let content: Value = serde_json::from_str(content).expect("it is JSON");
    let field = ALL.into_iter().zip(["policy", "freeze", "places"]).find(|(known, _)| *known == name);
    (revision, content[field.expect("it is one of ALL").1].clone())
}

struct World {
    /// The last one has another token.
    servers: Vec<Documents>,
    seen: Vec<BTreeMap<Name, i64>>,
    /// What each server said before the last step, and the highest revision since it began.
    before: Vec<BTreeMap<Name, (Said, Option<String>)>>,
    /// Everything that was signed with each token.
    signed: BTreeMap<&'static [u8], BTreeMap<Name, Vec<Said>>>,
    rows: Vec<(Name, String)>,
    version: i64,
    /// A row that unpacks to megabytes takes its time, so there is one.
    bombed: bool,
}

fn documents(token: &[u8]) -> Documents {
    Documents::new(token, NAMESPACE).expect("it is long enough")
}

impl World {
    const TOKENS: [&'static [u8]; 3] = [TOKEN, TOKEN, OTHER];

    fn new() -> Self {
        Self {
            servers: Self::TOKENS.map(documents).into(),
            seen: vec![BTreeMap::new(); 3],
            before: vec![BTreeMap::new(); 3],
            signed: BTreeMap::new(),
            rows: Vec::new(),
            version: NOW,
            bombed: false,
        }
    }

    fn sign(&mut self, token: &'static [u8], name: Name, said: Said) {
        let all = self.signed.entry(token).or_default().entry(name).or_default();
        if !all.contains(&said) {
            all.push(said);
        }
    }

    fn keep(&mut self, name: Name, row: &str) {
        if self.rows.len() < MOST_ROWS {
            self.rows.push((name, row.to_owned()));
        }
    }

    /// A server reads a row.
    fn take(&mut self, server: usize, name: Name, row: String) {
        self.version += 1;
        let row = Row { version: self.version, value: row };
        self.seen[server].insert(name, self.version);
        let before = said(&self.servers[server], name);
        let Taken { changed, refused } = self.servers[server].take(name, Some(&row));
        let after = said(&self.servers[server], name);
        assert!(before == after || changed == [name], "{name:?} changed and nobody was told");
        assert!(refused.iter().all(|(of, why)| *of == name && !why.detail.is_empty()));
        if row.value.len() > MOST_ROW {
            assert_eq!(before, after, "a row of {} bytes counts", row.value.len());
        }
    }

    fn write(&mut self, server: usize, name: Name, number: usize, fate: u8) {
        let stamp = Stamp { by: "ann".to_owned(), when: NOW, why: "x".repeat(number % 8) };
        let of = &self.servers[server];
        let (write, content) = match name {
            Name::Policy => {
                let policy = (number > 0).then(|| json!({ "exclude": [format!("com.N{number}*")] }));
                (of.set_policy(policy.clone(), &stamp, None), json!(policy))
            }
            Name::Orders => {
                let until = (number > 0).then_some(number as i64);
                let freeze = (number % 3 > 0).then_some(Freeze { until });
                let content = json!(freeze.map(|Freeze { until }| json!({ "until": until })));
                (of.set_orders(OrdersContent { freeze }, &stamp, None), content)
            }
            Name::Pins => {
                let (place, holder) = (format!("p{}", number % 5).into(), format!("s{number}").into());
                let Some(write) = of.repin([(&place, &holder)], &BTreeSet::new(), &stamp) else { return };
                let mut places = json!(of.pins().map(|pins| &pins.places));
                if places.is_null() {
                    places = json!({});
                }
                places[&*place] = json!(&*holder);
                (write, places)
            }
            Name::Visibility | Name::VisibilityPage(_) => unreachable!("it is none of ALL"),
        };
        let Ok(write) = write else { return };
        let Write { expect, version, value, .. } = &write;
        assert_eq!(Some(expect), self.seen[server].get(&name), "written over what was not read");
        assert!(version > expect && value.len() <= MOST_ROW);
        let mut reader = documents(Self::TOKENS[server]);
        reader.take(name, Some(&Row { version: 1, value: value.clone() }));
        let written = said(&reader, name);
        assert!(written.0 > said(of, name).0 && written.1 == content, "{written:?} of {content}");
        self.sign(Self::TOKENS[server], name, written);
        self.keep(name, value);
        let (stored, read) = (fate % 2 == 0, fate % 4 < 2);
        let row = Row { version: *version, value: value.clone() };
        let now = read.then_some(stored.then_some(&row));
        match now {
            None if !stored => _ = self.seen[server].remove(&name),
            Some(None) => _ = self.seen[server].insert(name, 0),
            _ => _ = self.seen[server].insert(name, *version),
        }
        self.version = self.version.max(*version);
        self.servers[server].written(&write, stored, now);
    }

    /// A start that finds what another one kept, after somebody changed it or not.
    fn restart(&mut self, server: usize, number: u64, how: u8) {
        let kept = self.servers[server].kept();
        let text = serde_json::to_string(&kept).expect("it is JSON");
        let mut kept: Kept = serde_json::from_str(&text).expect("what was kept is read");
        let token = Self::TOKENS[server];
        let mut again = documents(token);
        again.restore(&kept);
        for name in ALL {
            assert_eq!(said(&again, name), said(&self.servers[server], name), "{name:?} after a restart");
        }
        assert_eq!(again.kept().rows, self.servers[server].kept().rows, "byte for byte");
        match how % 3 {
            0 => {}
            1 => _ = kept.highest.insert(ALL[number as usize % 3], number),
            _ => {
                let Some((name, row)) = self.rows.get(number as usize % MOST_ROWS) else { return };
                kept.rows.insert(*name, row.clone());
            }
        }
        let mut tampered = documents(token);
        tampered.restore(&kept);
        if how % 3 > 0 {
            // It knows nothing of before but this.
            self.before[server].clear();
        }
        self.seen[server].clear();
        self.servers[server] = tampered;
    }

    fn check(&mut self) {
        for (server, token) in Self::TOKENS.into_iter().enumerate() {
            let kept = self.servers[server].kept();
            for name in ALL {
                let now = said(&self.servers[server], name);
                let text = kept.rows.get(&name).cloned();
                if now.0 > 0 {
                    let signed = self.signed.get(token).and_then(|all| all.get(&name));
                    let is_signed = signed.is_some_and(|all| all.contains(&now));
                    assert!(is_signed, "nobody with the token of {server} wrote {now:?} as {name:?}");
                }
                if let Some((before, of_before)) = self.before[server].insert(name, (now.clone(), text.clone())) {
                    assert!(now.0 >= before.0, "{name:?} went back from {before:?} to {now:?}");
                    let settled = name == Name::Pins && text < of_before;
                    assert!(now.0 > before.0 || now == before || settled, "{before:?} and {now:?} are of one revision");
                }
            }
            for write in self.servers[server].put_back(NOW) {
                let Write { name, expect, version, value } = write;
                assert_eq!(Some(&value), kept.rows.get(&name), "it puts back what counts");
                assert!(Some(&expect) == self.seen[server].get(&name) && version > expect);
            }
        }
    }

    fn run(mut self, mut data: &[u8]) {
        let mut take = |count: usize| {
            let (taken, rest) = data.split_at(count.min(data.len()));
            data = rest;
            taken
        };
        for _ in 0..MOST_STEPS {
            let [op] = take(1) else { return };
            let [who, which, number, more] = [0; 4].map(|_: u8| take(1).first().copied().unwrap_or_default());
            let (server, name) = (usize::from(who) % 3, ALL[usize::from(who / 3) % 3]);
            let known = self.rows.get(usize::from(which) % self.rows.len().max(1)).cloned();
            match op % 10 {
                0 => {
                    let length = usize::from(which) << 8 | usize::from(number);
                    let row = String::from_utf8_lossy(take(length)).into_owned();
                    self.keep(name, &row);
                    self.take(server, name, row);
                }
                1 | 2 => {
                    if let Some((of, row)) = known {
                        self.take(server, if number % 4 == 0 { name } else { of }, row);
                    }
                }
                3 => {
                    if let Some((of, row)) = known {
                        let mut bytes = row.into_bytes();
                        let at = (usize::from(number) << 8 | usize::from(more)) % bytes.len().max(1);
                        let with = take(1 + at % 3);
                        let until = (at + with.len()).min(bytes.len());
                        bytes.splice(at.min(until)..until, with.iter().copied());
                        self.take(server, of, String::from_utf8_lossy(&bytes).into_owned());
                    }
                }
                4 | 5 => self.write(server, name, usize::from(number), more),
                6 | 7 => {
                    let (content, is_one_of) = CONTENTS[usize::from(which) % CONTENTS.len()];
                    let revision = match number % 8 {
                        0 => u64::MAX - 1_000,
                        1 => 1 << 48,
                        2 => i64::MAX as u64,
                        _ => u64::from(number),
                    };
                    let token = if more % 8 == 7 { OTHER } else { TOKEN };
                    let why = String::from_utf8_lossy(take(usize::from(more) % 16)).into_owned();
                    let extra = if more % 16 == 3 { r#""fromNextYear":1,"# } else { "" };
                    let row = sealed(token, name, revision, &why, content, extra);
                    let row = if more & 16 > 0 { packed(&row, 1) } else { row };
                    if is_one_of == Some(name) && extra.is_empty() {
                        let meant = meant(name, revision, content);
                        // Whoever knows nothing takes it.
                        let mut fresh = documents(token);
                        fresh.take(name, Some(&Row { version: 1, value: row.clone() }));
                        assert_eq!(said(&fresh, name), meant, "{row}");
                        self.sign(token, name, meant);
                    }
                    self.keep(name, &row);
                    self.take(server, name, row);
                }
                8 => match number % 4 {
                    0 => {
                        self.servers[server].lose();
                        self.seen[server].clear();
                    }
                    1 => {
                        self.seen[server].insert(name, 0);
                        self.servers[server].take(name, None);
                    }
                    2 => {
                        let row = known.map(|(_, row)| row).unwrap_or_default() + &" ".repeat(MOST_ROW);
                        self.take(server, name, row);
                    }
                    _ if more == 0 && !self.bombed => {
                        self.bombed = true;
                        self.take(server, name, packed(&" ".repeat(64 << 10), 80));
                    }
                    _ => {
                        let version = [i64::MIN, -1, 0, i64::MAX][usize::from(more) % 4];
                        if let Some((of, value)) = known {
                            self.seen[server].insert(of, version);
                            let before = said(&self.servers[server], of);
                            self.servers[server].take(of, Some(&Row { version, value }));
                            assert_eq!(
                                said(&self.servers[server], of),
                                before,
                                "nothing can be written over {version}"
                            );
                        }
                    }
                },
                _ => self.restart(server, u64::from(which) << (number % 64), more),
            }
            self.check();
        }
    }
}

fuzz_target!(|data: &[u8]| World::new().run(data));

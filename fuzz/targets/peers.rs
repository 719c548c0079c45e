//! Answers of what meta lists as session servers: any bytes, answers to other questions, answers of a server with another token,
//! and good ones that somebody changed. Where there is a token an answer counts only if it is a server's own to this question;
//! where there is none it counts only if it is whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use registry_mox::testing::host::{
    admin::Page,
    peers::{About, Answer, Heard, Peers},
};

const TOKEN: &[u8] = b"open sesame 1234";
const OTHER: &[u8] = b"another token 12";

/// A page as the engine makes it.
fn page(about: About, services: u32, endpoints: u32) -> Page {
    let body = match about {
        About::Fresh => "fresh\n".to_owned(),
        About::Serving => format!("{{\n  \"services\": {services},\n  \"endpoints\": {endpoints}\n}}\n"),
    };
    Page { status: 200, content_type: "application/json", retry_after: None, etag: None, body, forward: None }
}

fn said(by: &Peers, target: &str, page: Page) -> String {
    let (path, query) = target.split_once('?').expect("a question has a number");
    by.sign(path, query, page).body
}

/// How much an answer without a signature says, read as plainly as it can be; `None`: it says nothing.
fn plain(about: About, body: &str) -> Option<(usize, usize)> {
    if about == About::Fresh {
        return (body == "fresh\n").then_some((0, 0));
    }
    let value: serde_json::Value = serde_json::from_str(body).ok()?;
    let object = value.as_object().filter(|object| object.len() == 2)?;
    let number = |name: &str| object.get(name)?.as_u64().filter(|number| *number <= u64::from(u32::MAX));
    Some((number("services")? as usize, number("endpoints")? as usize))
}

fuzz_target!(|data: &[u8]| {
    let [how, many, changes @ ..] = data else { return };
    let about = if how % 2 == 0 { About::Fresh } else { About::Serving };
    let (peers, other) = (Peers::new(if how & 2 > 0 { TOKEN } else { b"" }), Peers::new(OTHER));
    let honest = Peers::new(TOKEN);
    let target = peers.question(about).expect("there are random bytes");
    let before = peers.question(about).expect("there are random bytes");
    let good = said(&honest, &target, page(about, u32::from(*many), 7));
    let mut answers = Vec::new();
    let mut rest = changes;
    while let [op, length, behind @ ..] = rest {
        let (own, later) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = later;
        let text = String::from_utf8_lossy(own).into_owned();
        let body = match op % 6 {
            0 => text,
            1 => said(&other, &target, page(about, 9, 9)),
            2 => said(&honest, &before, page(about, 9, 9)),
            3 => format!("{}{text}", good.trim_end()),
            4 => format!("{text}{good}"),
            _ => {
                let at = own.first().map_or(0, |at| usize::from(*at) % good.len());
                let mut bytes = good.clone().into_bytes();
                bytes.splice(at..(at + own.len()).min(good.len()).max(at), own.iter().copied());
                String::from_utf8_lossy(&bytes).into_owned()
            }
        };
        answers.push(Answer { status: if op & 64 > 0 { 503 } else { 200 }, body });
    }
    let words = good.rfind("signed ").expect("it is signed");
    let is_good = |answer: &&Answer| {
        // Digits of a signature in capitals say the same.
        let is_same = answer.body.get(words..).is_some_and(|tag| tag.eq_ignore_ascii_case(&good[words..]));
        answer.status == 200 && is_same && answer.body.starts_with(&good[..words + "signed ".len()])
    };
    let Heard { fresh, serving, unsigned } = peers.hear(about, &target, &answers);
    let told = serving.map(|serving| (serving.services, serving.endpoints));
    if how & 2 > 0 {
        let count = answers.iter().filter(is_good).count();
        assert!(fresh == if about == About::Fresh { count } else { 0 }, "{fresh} of {answers:?}");
        let whole = (about == About::Serving && count > 0).then_some((usize::from(*many), 7));
        assert_eq!(told, whole, "{answers:?}");
        assert!(count + unsigned <= answers.len());
    } else {
        assert_eq!(unsigned, 0);
        let whole = answers.iter().filter(|answer| answer.status == 200).map(|answer| &*answer.body);
        let meant: Vec<_> = whole.clone().filter_map(|body| plain(about, body)).collect();
        let with_signature = |body: &str| body.rsplit_once("signed ").and_then(|(said, _)| plain(about, said));
        let signed: Vec<_> = whole.filter_map(with_signature).collect();
        match about {
            About::Fresh => assert!((meant.len()..=meant.len() + signed.len()).contains(&fresh)),
            About::Serving => {
                assert!(
                    told.is_none_or(|told| meant.contains(&told) || signed.contains(&told)),
                    "{told:?} of {answers:?}"
                );
                let most = meant.iter().map(|(services, _)| *services).max();
                assert!(most.is_none_or(|most| told.is_some_and(|told| told.0 >= most)), "{told:?} of {answers:?}");
            }
        }
    }
    let alone = [Answer { status: 200, body: good }];
    let heard = peers.hear(about, &target, &alone);
    assert!(heard.unsigned == 0 && (heard.fresh == 1 || heard.serving.is_some_and(|it| it.endpoints == 7)));
});

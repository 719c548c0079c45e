//! The pages in a real browser, as people use them, with a keyboard or a screen reader too: Chromium, driven by WebDriver, and axe.
//!
//! A package of its own: `tests/run browser`, or one trial alone by `cargo test --manifest-path tests/browser/Cargo.toml
//! --target-dir target/browser -- PART-OF-A-NAME` after `tests/real/install.sh browser`. `UPDATE=1` takes the pictures of the
//! documentation anew.
#![allow(clippy::unwrap_used, missing_docs)]

mod chromium;
mod picture;
mod world;

use std::{collections::BTreeSet, fs, process::ExitCode};

use chromium::Chromium;
use harness::{
    SOON, id, nth,
    process::{eventually, root},
    trials::{Shared, run, sharing},
};
use serde_json::{Value, json};
use thirtyfour::Key;
use world::{HOSTILE, MARK, Subscribed, TOKEN, World, encoded, shown};

/// A name, and what happens.
type Scenario = (&'static str, fn(&mut Chromium));

const SCENARIOS: [Scenario; 13] = [
    ("what_is_looked_for_would_be_seen", what_is_looked_for_would_be_seen),
    ("everybody_can_use_every_page", everybody_can_use_every_page),
    ("nothing_that_others_write_runs_or_breaks_a_page", nothing_that_others_write_runs_or_breaks_a_page),
    ("nothing_that_consumers_call_themselves_runs", nothing_that_consumers_call_themselves_runs),
    ("nothing_that_an_api_server_says_runs", nothing_that_an_api_server_says_runs),
    ("freeze_thaw_and_release_are_buttons", freeze_thaw_and_release_are_buttons),
    ("a_policy_is_tried_set_and_taken_back", a_policy_is_tried_set_and_taken_back),
    ("a_policy_that_somebody_else_changed_is_not_overwritten", a_policy_that_somebody_else_changed_is_not_overwritten),
    ("links_and_searches_lead_to_what_they_name", links_and_searches_lead_to_what_they_name),
    ("the_overview_keeps_itself_fresh", the_overview_keeps_itself_fresh),
    ("pages_are_read_and_searched_without_script", pages_are_read_and_searched_without_script),
    ("the_keyboard_reaches_everything_and_it_shows", the_keyboard_reaches_everything_and_it_shows),
    ("ten_thousand_services_are_there_at_once", ten_thousand_services_are_there_at_once),
];

fn main() -> ExitCode {
    let browser = Shared::new(Chromium::start);
    let mut trials: Vec<_> = SCENARIOS.into_iter().map(|(name, scenario)| sharing(&browser, name, scenario)).collect();
    trials.push(sharing(&browser, "the_pictures_of_the_documentation_are_there", pictures));
    drop(browser);
    run(trials)
}

/// A page of each kind of the shop.
fn pages() -> Vec<String> {
    let service = |id: String| format!("/mox/services/{}", encoded(&id));
    let mut all: Vec<String> =
        ["/mox", "/mox/services", "/mox/explain", "/mox/diff", "/mox/streams", "/mox/policy"].map(str::to_owned).into();
    all.extend([
        "/mox/services?q=order&app=order&state=served".to_owned(),
        "/mox/services?page=2".to_owned(),
        "/mox/services?q=nothing".to_owned(),
        service(id("order.PriceService")),
        service(id("stock.Legacy")),
        service(id("order.QueryService")),
        "/mox/explain?q=order".to_owned(),
        "/mox/explain?q=Same".to_owned(),
        format!("/mox/explain?q={}", encoded(&id("Unknown"))),
        "/mox/explain?q=nothing+such".to_owned(),
        "/mox/diff?server=10.0.0.2".to_owned(),
        "/mox/diff?document=policy&revision=1".to_owned(),
    ]);
    all
}

/// What no page may have, whatever stands in it.
fn faults(browser: &Chromium) -> Vec<String> {
    let script = "const bad = [];
        if (window.ran !== undefined) bad.push('a script of others ran');
        if (/[\\u{61c}\\u{200e}\\u{200f}\\u{202a}-\\u{202e}\\u{2066}-\\u{2069}]/u.test(document.documentElement.textContent))
          bad.push('text may run backwards');
        if (document.scripts.length !== 1) bad.push(`${document.scripts.length} scripts`);
        const foreign = document.querySelector('iframe, object, embed, base, img, math, body svg [onload]');
        if (foreign) bad.push(`an element that is none of ours: ${foreign.outerHTML.slice(0, 200)}`);
        for (const element of document.querySelectorAll('*'))
          for (const { name, value } of element.attributes)
            if (name.startsWith('on') || name === 'style' || name !== 'value' && /^\\s*(javascript|https?):/i.test(value)) bad.push(`${name}=${value}`);
        const wide = document.documentElement.scrollWidth;
        if (wide > innerWidth) {
          const widest = [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, textarea')).sort(
            (a, b) => b.getBoundingClientRect().right - a.getBoundingClientRect().right)[0];
          bad.push(`${wide} px of ${innerWidth}: ${widest?.outerHTML.slice(0, 200)}`);
        }
        return bad;";
    serde_json::from_value(browser.run(script, &Value::Null)).unwrap()
}

/// Opens a page at the width of a phone and of a desk, and adds what is wrong with it.
fn look(browser: &Chromium, path: &str, found: &mut Vec<String>) {
    for width in [360, 1_200] {
        browser.size(width, 900);
        browser.open(path);
        found.extend(faults(browser).into_iter().map(|what| format!("{path} at {width} px: {what}")));
    }
    found.extend(browser.complaints().into_iter().map(|what| format!("{path}: {what}")));
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{} faults:\n{}", found.len(), found.join("\n"));
}

/// Shows that a page with such faults would not pass the other trials.
fn what_is_looked_for_would_be_seen(browser: &mut Chromium) {
    let wide = "<div style='width: 2000px'>x</div>";
    let page =
        encoded(&format!("<title>x</title>{wide}<input><img onload='' src='data:,'>{}{}", HOSTILE[0], HOSTILE[11]));
    browser.size(1_200, 900);
    browser.open_address(&format!("data:text/html;charset=utf-8,{page}"));
    assert_eq!(browser.is(MARK), 1);
    let found = faults(browser).join("\n");
    for fault in ["a script of others ran", "text may run backwards", "none of ours: <img", "onload=", "px of 1200"] {
        assert!(found.contains(fault), "{fault:?} is not in {found}");
    }
    let found = browser.axe().join("\n");
    for rule in ["html-has-lang", "image-alt", "label"] {
        assert!(found.contains(rule), "{rule:?} is not in {found}");
    }
    browser.run("console.error('of a script')", &Value::Null);
    assert!(browser.complaints().iter().any(|what| what.contains("of a script")));
}

fn everybody_can_use_every_page(browser: &mut Chromium) {
    let world = World::shop_that_lost_much();
    browser.look_at(&world.pages());
    let mut found = Vec::new();
    for path in pages() {
        look(browser, &path, &mut found);
        for (scheme, width) in [("light", 1_200), ("dark", 1_200), ("light", 360)] {
            browser.size(width, 900);
            browser.scheme(scheme);
            browser.open(&path);
            found.extend(browser.axe().into_iter().map(|what| format!("{path}, {scheme}, {width} px: {what}")));
        }
        browser.scheme("light");
    }
    assert_none(&found);
    // A page that says what was wrong with the request is one for people, too.
    for path in ["/mox/services/no.such.host", "/mox/services?state=none"] {
        look(browser, path, &mut found);
        found.retain(|what| !what.contains("the server responded with a status of 40"));
        found.extend(browser.axe());
        assert_none(&found);
    }
}

fn nothing_that_others_write_runs_or_breaks_a_page(browser: &mut Chromium) {
    let world = World::hostile();
    browser.look_at(&world.pages());
    let mut found = Vec::new();
    let mut paths: Vec<String> = ["/mox", "/mox/services", "/mox/streams", "/mox/policy"].map(str::to_owned).into();
    for text in HOSTILE {
        paths.push(format!("/mox/explain?q={}", encoded(text)));
        paths.push(format!("/mox/services?q={0}&app={0}", encoded(text)));
        paths.push(format!("/mox/diff?server={}", encoded(text)));
    }
    browser.open("/mox/services");
    let links = "return [...document.querySelectorAll('td a')].map(a => [a.getAttribute('href'), a.textContent])";
    let links: Vec<(String, String)> = serde_json::from_value(browser.run(links, &Value::Null)).unwrap();
    assert_eq!(links.len(), 2 * HOSTILE.len());
    for (path, name) in &links {
        paths.push(path.clone());
        browser.open(path);
        assert_eq!(browser.is("document.querySelector('h1').textContent"), **name, "where {path} leads");
    }
    for path in &paths {
        look(browser, path, &mut found);
    }
    assert_none(&found);
    // The texts are there: what is looked at is not an empty page.
    browser.open("/mox/streams");
    let text = browser.is("document.body.textContent");
    assert!(text.as_str().unwrap().contains(HOSTILE[0]), "{text}");
    browser.open("/mox/policy");
    let text = browser.is("document.body.textContent");
    assert!(text.as_str().unwrap().contains(HOSTILE[13].trim()), "{text}");
    // What stands in the page is the policy in force still, in whatever way it is written.
    let document = browser.is("document.querySelector('#document').value");
    let hash = world.mox.engine.status().policy;
    world.policy("by=carl", "{}");
    world.policy("by=carl", document.as_str().unwrap());
    assert_eq!(world.mox.engine.status().policy, hash);
    for path in ["/mox", "/mox/services", "/mox/streams", "/mox/policy"].map(str::to_owned).iter().chain(&paths[4..8]) {
        browser.open(path);
        found.extend(browser.axe().into_iter().map(|what| format!("{path}: {what}")));
    }
    assert_none(&found);
}

fn nothing_that_consumers_call_themselves_runs(browser: &mut Chromium) {
    let mut world = Subscribed::new();
    browser.look_at(&world.pages());
    let mut found = Vec::new();
    let service = format!("/mox/services/{}", encoded(&nth(0)));
    for path in ["/mox", &service, "/mox/services"] {
        world.turn();
        look(browser, path, &mut found);
    }
    assert_none(&found);
    world.turn();
    browser.open(&service);
    let names =
        "[...document.querySelectorAll('[aria-label=Consumers] tbody td:first-child')].map(it => it.textContent)";
    let names: Vec<String> = serde_json::from_value(browser.is(names)).unwrap();
    for text in HOSTILE {
        let text = shown(text);
        assert!(names.iter().any(|name| shown(name).starts_with(&text)), "{text:?} is not in {names:#?}");
    }
    assert_none(&browser.axe());
}

fn nothing_that_an_api_server_says_runs(browser: &mut Chromium) {
    let world = World::refused();
    browser.look_at(&world.pages());
    let mut found = Vec::new();
    look(browser, "/mox", &mut found);
    for (n, text) in HOSTILE.into_iter().enumerate() {
        for path in [format!("/mox/services/{}", encoded(&nth(n))), format!("/mox/explain?q={}", encoded(&nth(n)))] {
            look(browser, &path, &mut found);
            let all = browser.is("document.querySelector('.ladder').textContent");
            let all = shown(all.as_str().unwrap());
            assert!(all.contains(&shown(text)), "{path}: {text:?} is not in {all}");
        }
    }
    assert_none(&found);
    assert_none(&browser.axe());
}

/// Presses a button, and waits for the answer's status.
fn press(browser: &Chromium, button: &str, status: u16) -> String {
    browser.run("document.querySelector('#answer').textContent = ''", &Value::Null);
    browser.click(button);
    browser.until("/^\\d{3}\\n/.test(document.querySelector('#answer').textContent)");
    let answer = browser.is("document.querySelector('#answer').textContent").as_str().unwrap().to_owned();
    assert!(answer.starts_with(&status.to_string()), "{button}: {answer}");
    // Chromium tells of every answer that is no 2xx.
    let told = format!("the server responded with a status of {status}");
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|what| status >= 400 && what.contains(&told)), "{complaints:?}");
    answer
}

fn button(path: &str) -> String {
    format!("button[data-post=\"{path}\"]")
}

fn freeze_thaw_and_release_are_buttons(browser: &mut Chromium) {
    let world = World::shop_that_lost_much();
    browser.look_at(&world.pages());
    browser.open("/mox");
    browser.fill("#token", "żółw");
    browser.click(&button("/mox/freeze"));
    browser.until("document.querySelector('#answer').textContent.includes('no header can carry')");
    for token in ["", "wrong"] {
        browser.fill("#token", token);
        for path in ["/mox/freeze", "/mox/thaw", "/mox/release"] {
            let refused = press(browser, &button(path), 403);
            assert!(refused.contains("mox.admin.token"), "{refused}");
        }
    }
    assert_eq!(world.flush().as_deref(), Some("mass-delete"), "nothing changed");
    browser.fill("#token", TOKEN);
    press(browser, &button("/mox/release"), 200);
    assert_eq!(world.flush(), None);
    browser.until("document.querySelector('.cards').textContent.includes('nothing')");
    // By the keyboard alone.
    browser.run("document.querySelector('button[data-post=\"/mox/freeze\"]').focus()", &Value::Null);
    browser.press(Key::Enter);
    browser.until("document.querySelector('.cards').textContent.includes('frozen')");
    assert_eq!(world.flush().as_deref(), Some("frozen"));
    assert_eq!(browser.is("document.activeElement.id"), "answer", "who cannot see is told");
    press(browser, &button("/mox/thaw"), 200);
    assert_eq!(world.flush(), None);
    let released = press(browser, &button("/mox/release"), 200);
    assert!(released.contains("false"), "nothing is held: {released}");
    // The token is nowhere but in the page.
    let kept = browser.is("document.cookie + JSON.stringify({ ...localStorage, ...sessionStorage }) + location.href");
    assert!(!kept.as_str().unwrap().contains(TOKEN), "{kept}");
    browser.open("/mox");
    assert_eq!(browser.is("document.querySelector('#token').value"), "");
}

/// Writes a document into the page.
fn write(browser: &Chromium, document: &Value) {
    let script = "document.querySelector('#document').value = arguments[0]";
    browser.run(script, &document.to_string().into());
}

fn a_policy_is_tried_set_and_taken_back(browser: &mut Chromium) {
    let world = World::shop();
    browser.look_at(&world.pages());
    browser.open("/mox/policy");
    let (tries, sets) = (button("/mox/policy?dryRun"), button("/mox/policy"));
    let services = || world.mox.engine.status().served.services;
    let served = services();
    let before = world.mox.engine.status().policy;
    let none = json!({ "exclude": ["com.example.order.*"] });
    write(browser, &none);
    browser.fill("#token", "wrong");
    for wrong in [&tries, &sets, &button("/mox/policy?dryRun&rollback=1"), &button("/mox/policy?rollback=1")] {
        press(browser, wrong, 403);
    }
    browser.fill("#token", TOKEN);
    let tried = press(browser, &tries, 200);
    assert!(tried.contains("OrderService") || tried.contains("com.example.order."), "{tried}");
    assert_eq!((world.mox.engine.status().policy, services()), (before.clone(), served), "nothing is set");
    write(browser, &json!({ "exclud": [] }));
    for wrong in [&tries, &sets] {
        assert!(press(browser, wrong, 400).contains("did you mean exclude?"));
    }
    write(browser, &none);
    press(browser, &sets, 200);
    world.flush();
    assert_eq!(services(), served - 10);
    // The page follows, so that the next change does not fail for what this one did.
    browser.until("document.querySelector('h1').textContent.includes('revision 3')");
    browser.until("document.querySelector('#document').value.includes('com.example.order.*')");
    write(browser, &json!({ "exclude": ["com.example.s*"] }));
    press(browser, &sets, 200);
    browser.until("document.querySelector('h1').textContent.includes('revision 4')");
    press(browser, &button("/mox/policy?dryRun&rollback=2"), 200);
    press(browser, &button("/mox/policy?rollback=2"), 200);
    browser.until("document.querySelector('h1').textContent.includes('revision 5')");
    world.flush();
    assert_eq!((world.mox.engine.status().policy, services()), (before, served));
    browser.until("document.querySelector('#document').value.includes('stock')");
}

fn a_policy_that_somebody_else_changed_is_not_overwritten(browser: &mut Chromium) {
    let world = World::shop();
    browser.look_at(&world.pages());
    browser.open("/mox/policy");
    browser.fill("#token", TOKEN);
    write(browser, &json!({ "exclude": ["com.example.order.*"] }));
    world.policy("by=carl", "{}");
    let theirs = world.mox.engine.status().policy;
    let refused = press(browser, &button("/mox/policy"), 409);
    assert!(refused.contains("carl"), "{refused}");
    assert_eq!(world.mox.engine.status().policy, theirs);
    assert!(browser.is("document.querySelector('#document').value").as_str().unwrap().contains("order"), "it stays");
}

fn links_and_searches_lead_to_what_they_name(browser: &mut Chromium) {
    let world = World::shop_that_lost_much();
    browser.look_at(&world.pages());
    let mut seen = BTreeSet::new();
    let mut waiting = vec!["/mox".to_owned()];
    while let Some(path) = waiting.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        browser.open(&path);
        let links =
            browser.is("[...document.querySelectorAll('a[href]')].map(a => a.href.replace(location.origin, ''))");
        let links: Vec<String> = serde_json::from_value(links).unwrap();
        waiting.extend(links.into_iter().filter(|link| !link.contains('#')));
    }
    assert!(seen.len() > 70 && seen.contains("/mox/services?page=2"), "{seen:?}");
    // Pages that are not HTML say nothing of an icon, so Chromium looks for one.
    assert_none(&browser.complaints().into_iter().filter(|what| !what.contains("/favicon.ico")).collect::<Vec<_>>());
    browser.open("/mox/services");
    browser.fill("input[name=q]", "PRICE");
    browser.fill("input[name=app]", "stock");
    browser.press(Key::Enter);
    browser.until("document.querySelector('h1').textContent === '1 service'");
    assert_eq!(browser.is("document.querySelector('input[name=app]').value"), "stock");
    browser.click("td a");
    browser.until("document.querySelector('pre').textContent.includes('kind: \"ServiceEntry\"')");
    browser.open("/mox/diff");
    browser.fill("input[name=revision]", "1");
    browser.press(Key::Enter);
    browser.until("document.querySelector('pre').textContent.includes('stock')");
    browser.open("/mox/explain");
    browser.fill("input[name=q]", "10.0.9.1:12200");
    browser.click("form button");
    browser.until("document.querySelectorAll('.ladder').length === 2");
    assert_none(&browser.complaints());
}

fn the_overview_keeps_itself_fresh(browser: &mut Chromium) {
    let world = World::shop();
    browser.look_at(&world.pages());
    browser.open("/mox");
    browser.run("window.same = 1", &Value::Null);
    browser.until("document.querySelectorAll('figure polyline[points]:not([points=\"\"])').length === 4");
    let served = world.mox.engine.status().served.services;
    world.mox.publish(&nth(1), "a", 1, &["10.9.0.1:80"]);
    world.flush();
    browser.until(&format!("document.querySelector('.cards b').textContent === '{}'", served + 1));
    assert_eq!(browser.is("window.same"), 1, "without loading it anew");
    // A server that goes away leaves what was there, and no error of ours; the network's own is Chromium's to tell.
    drop(world);
    let complaints = eventually(SOON, "the page asks once more", || {
        let complaints = browser.complaints();
        (!complaints.is_empty()).then_some(complaints)
    });
    assert_eq!(browser.is("document.querySelector('.cards b').textContent"), (served + 1).to_string());
    assert!(complaints.iter().all(|what| what.contains("net::ERR_")), "{complaints:?}");
    browser.until("document.querySelector('#stale').textContent.startsWith('No answer')");
}

/// The text of the page as the tree has it, which needs no script.
fn text(browser: &Chromium) -> String {
    fn walk(node: &Value, all: &mut Vec<String>) {
        if node["nodeName"] == "#text" {
            all.extend(node["nodeValue"].as_str().unwrap().split_whitespace().map(str::to_owned));
        }
        // What a chart says changes by itself.
        let children = node["children"].as_array().into_iter().flatten();
        children.filter(|child| child["nodeName"] != "FIGURE").for_each(|child| walk(child, all));
    }
    let mut all = Vec::new();
    walk(&browser.tell("DOM.getDocument", json!({ "depth": -1 }))["root"], &mut all);
    all.join(" ")
}

fn pages_are_read_and_searched_without_script(browser: &mut Chromium) {
    let world = World::shop_that_lost_much();
    browser.look_at(&world.pages());
    let read = |browser: &Chromium| -> Vec<String> {
        let one = |path: &String| {
            browser.open(path);
            text(browser)
        };
        pages().iter().map(one).collect()
    };
    let with = read(browser);
    browser.scripts(false);
    let without = read(browser);
    for (path, (with, without)) in pages().iter().zip(with.iter().zip(&without)) {
        assert_eq!(without, with, "{path}");
        assert!(without.len() > 200, "{path}: {without}");
    }
    browser.open("/mox/services");
    let root = &browser.tell("DOM.getDocument", json!({}))["root"]["nodeId"];
    let field = browser.tell("DOM.querySelector", json!({ "nodeId": root, "selector": "input[name=q]" }));
    browser.tell("DOM.focus", json!({ "nodeId": field["nodeId"] }));
    browser.tell("Input.insertText", json!({ "text": "Legacy" }));
    for kind in ["keyDown", "keyUp"] {
        let key = json!({ "type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r" });
        browser.tell("Input.dispatchKeyEvent", key);
    }
    eventually(SOON, "the form is sent", || text(browser).contains("1 service").then_some(()));
    browser.scripts(true);
    browser.complaints();
}

fn the_keyboard_reaches_everything_and_it_shows(browser: &mut Chromium) {
    let world = World::shop();
    browser.look_at(&world.pages());
    browser.size(1_200, 900);
    let service = format!("/mox/services/{}", encoded(&id("order.PriceService")));
    for path in
        ["/mox", "/mox/services?q=order", "/mox/explain?q=Same", "/mox/diff", &service, "/mox/streams", "/mox/policy"]
    {
        browser.open(path);
        let number = "let n = 0; for (const e of document.querySelectorAll('a[href], button, input:not([type=hidden]), select, textarea'))
            e.dataset.n = n++; return n;";
        let count = browser.run(number, &Value::Null).as_u64().unwrap();
        let mut reached = BTreeSet::new();
        // Beside them there are the parts that scroll, and the document itself at the end.
        for _ in 0..count + 20 {
            browser.press(Key::Tab);
            let at = "const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
                if (e === document.body) return null;
                return { n: e.dataset.n ?? null, what: e.outerHTML.slice(0, 120),
                  shows: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
                  inside: box.left >= 0 && box.right <= innerWidth && box.bottom > 0 && box.top < innerHeight };";
            let at = browser.run(at, &Value::Null);
            if at.is_null() {
                break;
            }
            assert!(at["shows"] == true && at["inside"] == true, "{path}: {at}");
            reached.extend(at["n"].as_str().map(|n| n.parse::<u64>().unwrap()));
        }
        assert_eq!(reached, (0..count).collect(), "{path}");
    }
    // The first of them saves the way through the menu.
    browser.open("/mox/services");
    browser.press(Key::Tab);
    browser.press(Key::Enter);
    browser.press(Key::Tab);
    assert_eq!(browser.is("document.activeElement.name"), "q");
    assert_none(&browser.complaints());
}

fn ten_thousand_services_are_there_at_once(browser: &mut Chromium) {
    let world = World::large();
    browser.look_at(&world.pages());
    browser.size(1_200, 900);
    let measured = "performance.getEntriesByName('first-contentful-paint').length === 1";
    let kind = if cfg!(debug_assertions) { "debug" } else { "release" };
    println!("milliseconds to the end of the answer and to the first paint, with an engine built for {kind}:");
    for (path, total) in [
        ("/mox", "What is served"),
        ("/mox/services", "10000 services"),
        ("/mox/services?page=200", "10000 services"),
        ("/mox/services?q=s99", "111 services"),
        ("/mox/services?app=app7", "200 services"),
        ("/mox/services?state=not-served", "0 services"),
        ("/mox/explain?q=app7", "Why is it, or is it not, in the mesh?"),
        ("/mox/explain?q=10.7.3.1", "Why is it, or is it not, in the mesh?"),
    ] {
        let mut times = Vec::new();
        for _ in 0..5 {
            browser.open(path);
            assert_eq!(browser.is("document.querySelector('h1').textContent"), total, "{path}");
            browser.until(measured);
            let time = "[performance.getEntriesByType('navigation')[0].responseEnd,
                performance.getEntriesByName('first-contentful-paint')[0].startTime].map(Math.round)";
            times.push(serde_json::from_value::<(u64, u64)>(browser.is(time)).unwrap());
        }
        times.sort_by_key(|(_, paint)| *paint);
        println!("  {path:32} {:5} {:5}", times[2].0, times[2].1);
    }
    let size = browser.is("document.documentElement.outerHTML.length").as_u64().unwrap();
    assert!(size < 200_000, "{size}");
    assert_none(&browser.complaints());
}

/// Width of the pictures.
const WIDTH: u32 = 1_100;
/// Most bytes of one.
const MOST: usize = 80_000;

/// The four main pages as the documentation shows them.
fn pictures(browser: &mut Chromium) {
    let world = World::shop_that_lost_much();
    world.hour();
    browser.look_at(&world.pages());
    browser.scheme("light");
    let service = format!("/mox/services/{}", encoded(&id("stock.Legacy")));
    for (name, path, height) in [
        ("overview", "/mox", 1_020),
        ("services", "/mox/services?app=stock", 760),
        ("service", &*service, 900),
        ("policy", "/mox/policy", 860),
    ] {
        let file = root().join(format!("docs/images/{name}.png"));
        if std::env::var_os("UPDATE").is_some() {
            browser.size(WIDTH, height);
            browser.open(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, picture::take(browser)).unwrap();
        }
        let there = fs::read(&file).unwrap_or_default();
        let take = "UPDATE=1 cargo test --manifest-path tests/browser/Cargo.toml --target-dir target/browser -- pictures takes it";
        assert!(there.starts_with(b"\x89PNG\r\n\x1a\n"), "{}: {take}", file.display());
        let width = u32::from_be_bytes(there[16..20].try_into().unwrap());
        assert!(width == WIDTH && there.len() <= MOST, "{name}: {width} px, {} bytes; {take}", there.len());
    }
}

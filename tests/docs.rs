//! The reference in the documentation is made of the code: settings of their doc comments, metrics of their help texts.
//! `UPDATE=1` writes it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

use harness::{Mox, refusing};
use registry_mox::testing::{
    documents::{Name, Shown, Stamp},
    host::metrics::{self, Metric},
    istio::rule::Rule,
    translate::payload::Reject,
};
use serde_json::{Value, json};
use syn::{Attribute, Expr, ExprLit, Field, Fields, Item, ItemEnum, ItemStruct, Lit, Meta, Type};

/// Where the structs are that the settings are fields of, and the enums of which they have a value.
const FILES: [&str; 5] = [
    "src/config.rs",
    "src/config/kubernetes.rs",
    "src/policy/document.rs",
    "src/policy/visibility.rs",
    "src/translate/service_entry.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a page of the reference with what it has to be, or writes it.
fn keep(page: &str, text: &str) {
    let file = root().join("docs/reference").join(page);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, text).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        there, text,
        "docs/reference/{page} is not what the code says; UPDATE=1 cargo test --test docs writes it"
    );
}

/// `startupHold` or `startup_hold` as `startup-hold`.
fn kebab(name: &str) -> String {
    name.replace('_', "-")
}

/// A doc comment as one paragraph.
fn docs(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ")
}

/// A name of the code in the words of the configuration, `[Protect::max_staleness]` as `mox.protect.max-staleness`.
fn linked(text: &str, keys: &BTreeMap<(String, String), String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[`") {
        let (name, tail) = after.split_once("`]").expect("a link ends");
        let (of, field) = name.rsplit_once("::").unwrap_or(("", name));
        let key = keys.get(&(of.to_owned(), field.to_owned()));
        let shown = key.cloned().unwrap_or_else(|| field.to_ascii_lowercase());
        let _ = write!(out, "{before}`{shown}`");
        rest = tail;
    }
    out + rest
}

/// The struct that a field's settings are in, with what stands between the field's key and theirs.
fn inner(kind: &Type, structs: &BTreeMap<String, ItemStruct>) -> Option<(String, &'static str)> {
    let Type::Path(path) = kind else { return None };
    let last = path.path.segments.last()?;
    let name = last.ident.to_string();
    if structs.contains_key(&name) {
        return Some((name, ""));
    }
    let syn::PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    let between = match name.as_str() {
        "BTreeMap" => "[<glob>]",
        "Vec" => "[<n>]",
        _ => "",
    };
    let syn::GenericArgument::Type(argument) = arguments.args.last()? else { return None };
    inner(argument, structs).map(|(name, _)| (name, between))
}

struct Setting {
    key: String,
    of: String,
    field: String,
    text: String,
}

/// The values that a field of such a type may have, each with what it means.
fn values(kind: &Type, enums: &BTreeMap<String, ItemEnum>) -> Option<String> {
    let Type::Path(path) = kind else { return None };
    let variants = &enums.get(&path.path.segments.last()?.ident.to_string())?.variants;
    let all = variants.iter().map(|variant| {
        let name = variant.ident.to_string();
        let mut spelled = String::new();
        for (at, letter) in name.char_indices() {
            if at > 0 && letter.is_uppercase() {
                spelled.push('-');
            }
            spelled.push(letter.to_ascii_lowercase());
        }
        let meaning = docs(&variant.attrs);
        format!("`{spelled}`: {}{}", meaning[..1].to_lowercase(), meaning[1..].trim_end_matches('.'))
    });
    Some(format!(" {}.", all.collect::<Vec<_>>().join("; ")))
}

fn settings(
    name: &str,
    key: &str,
    structs: &BTreeMap<String, ItemStruct>,
    enums: &BTreeMap<String, ItemEnum>,
    all: &mut Vec<Setting>,
) {
    for Field { ident, ty, attrs, .. } in &structs[name].fields {
        let field = ident.as_ref().unwrap().to_string();
        let own = format!("{key}.{}", kebab(&field));
        match inner(ty, structs) {
            Some((inner, between)) => {
                if !between.is_empty() {
                    all.push(Setting { key: own.clone(), of: name.to_owned(), field, text: docs(attrs) });
                }
                settings(&inner, &format!("{own}{between}"), structs, enums, all);
            }
            None => {
                let text = docs(attrs) + &values(ty, enums).unwrap_or_default();
                all.push(Setting { key: own, of: name.to_owned(), field, text });
            }
        }
    }
}

/// The default that a doc comment tells, apart from the rest.
fn with_default(text: &str) -> (String, String) {
    let (meaning, default) = text.split_once("Default:").unwrap_or((text, ""));
    // Behind the default's own sentence the comment is about the setting again.
    let (default, more) = default.split_once(". ").unwrap_or((default.trim_end_matches('.'), ""));
    let meaning = format!("{} {more}", meaning.trim());
    (meaning.trim().to_owned(), default.trim().to_owned())
}

#[test]
fn configuration_is_what_the_code_says() {
    let (mut structs, mut enums) = (BTreeMap::new(), BTreeMap::new());
    for file in FILES {
        let code = syn::parse_file(&fs::read_to_string(root().join(file)).unwrap()).unwrap();
        for item in code.items {
            match item {
                Item::Struct(item) if matches!(item.fields, Fields::Named(_)) => {
                    structs.insert(item.ident.to_string(), item);
                }
                Item::Enum(item) => {
                    enums.insert(item.ident.to_string(), item);
                }
                _ => {}
            }
        }
    }
    let mut all = Vec::new();
    settings("Config", "mox", &structs, &enums, &mut all);
    let mut keys: BTreeMap<(String, String), String> =
        all.iter().map(|one| ((one.of.clone(), one.field.clone()), one.key.clone())).collect();
    keys.insert((String::new(), "Scope::Cluster".to_owned()), "cluster".to_owned());

    let mut shown = None;
    let mut page = String::from(
        "# Configuration\n\nMade of the doc comments of `src/config.rs` and `src/policy/document.rs` by `UPDATE=1 cargo test --test docs`.\n\n\
         These are Spring properties of the session server. In environment variables `.` is `_` and dashes are left out:\n\
         `MOX_STATEDIR` is `mox.state-dir`, and every variable `MOX_…` is taken for a setting. An unknown key or a bad value leaves\n\
         MoX off, with an error that names it and what is allowed. In JSON, as in a policy document or `MoxConfig`, keys are in camelCase:\n\
         `exportTo` for `export-to`. Beside the settings of this page there is `mox.enabled` (default `false`), which switches MoX on.\n",
    );
    let group = |key: &str| key.matches('.').nth(1).and_then(|_| key.split('.').nth(1).map(str::to_owned));
    let groups: Vec<Option<String>> = all.iter().map(|one| group(&one.key)).collect();
    // First what is in none, then each in the order of the code.
    let mut order: Vec<&Option<String>> = vec![&None];
    groups.iter().for_each(|group| {
        if !order.contains(&group) {
            order.push(group)
        }
    });
    for (section, Setting { key, text, .. }) in order
        .iter()
        .flat_map(|section| all.iter().filter(|one| group(&one.key) == **section).map(move |one| (*section, one)))
    {
        if shown != Some(section) {
            shown = Some(section);
            let name = section.as_ref().map_or("mox".to_owned(), |group| format!("mox.{group}"));
            let _ = write!(page, "\n## {name}\n\n| property | meaning | default |\n| --- | --- | --- |\n");
        }
        let (meaning, default) = with_default(&linked(text, &keys));
        assert!(!meaning.is_empty(), "{key} has no doc comment");
        let default = if default.is_empty() { "none".to_owned() } else { default };
        let _ = writeln!(page, "| `{key}` | {} | {} |", meaning.replace('|', "\\|"), default.replace('|', "\\|"));
    }
    keep("configuration.md", &page);
}

/// The metrics of an engine that has every part, a document, and something to say of each reason.
fn metrics() -> Vec<Metric> {
    let mut status = Mox::closed(json!({})).engine.status();
    let ages = json!({ "reconciledMillisAgo": 1, "bootstrapMillis": 1, "oldestContactMillis": 1, "freshPeers": 1 });
    let mut feed = json!({ "refusedPublishers": { "a": 1 }, "refusedEvents": { "a": 1 } });
    feed.as_object_mut().unwrap().extend(ages.as_object().unwrap().clone());
    status.feed = serde_json::from_value(feed).unwrap();
    status.kubernetes = Some(Default::default());
    status.visibility.asks = true;
    status.visibility.counts = Some(Default::default());
    status.visibility.kubernetes = Some(Default::default());
    status.documents.read_millis_ago = Some(1);
    let stamp = Stamp { by: String::new(), when: 0, why: String::new() };
    let shown = Shown { revision: 1, stamp: Some(stamp), refused: None, refusals: BTreeMap::new() };
    status.documents.documents.insert(Name::Policy, shown);
    status.dropped.insert("services", Default::default());
    status.rounds.rejects = [(Reject::BadPort, 1), (Reject::ZeroWeight, 1)].into();
    status.rounds.invalid_endpoints.insert(Rule::ALL[0], 1);
    status.rounds.quarantined_by.insert("panic", 1);
    metrics::of(&status)
}

/// The names of metrics in a text, or the starts of some.
fn named(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    let names =
        text.match_indices("mox_").filter(|(at, _)| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
    names.map(|(at, _)| text[at..].chars().take_while(|c| is_part(*c)).collect()).collect()
}

#[test]
fn metrics_are_what_the_code_says() {
    let mut page = String::from(
        "# Metrics\n\nMade of the help texts of `src/host/metrics.rs` by `UPDATE=1 cargo test --test docs`.\n\n\
         At `/mox/metrics` in the text format of Prometheus, and among the session server's own at `/metrics`. A name and its labels\n\
         keep their meaning within a major version; new ones may come with any. Counters end with `_total` and begin at 0 with the\n\
         process, times are in seconds and sizes in bytes. A histogram has the series `_bucket`, `_sum` and `_count`, and its buckets end at\n\
         the same bounds, from 1 ms to 60 s, in every release of a major version.\n\n\
         | metric | type | labels | meaning |\n| --- | --- | --- | --- |\n",
    );
    let all = metrics();
    for Metric { name, help, kind, samples } in &all {
        let labels: BTreeSet<&str> = samples
            .iter()
            .flat_map(|sample| &sample.labels)
            .map(|(label, _)| *label)
            .filter(|label| *label != "le")
            .collect();
        let labels: Vec<String> = labels.iter().map(|name| format!("`{name}`")).collect();
        let kind = format!("{kind:?}").to_lowercase();
        let _ = writeln!(page, "| `{name}` | {kind} | {} | {} |", labels.join(", "), help.replace('|', "\\|"));
        assert!(!samples.is_empty(), "{name} has no sample, so its labels are not known");
    }
    let known: BTreeSet<String> = all.iter().map(|metric| metric.name.to_owned()).collect();
    let code = fs::read_to_string(root().join("src/host/metrics.rs")).unwrap();
    let in_code: BTreeSet<String> =
        code.split('"').filter(|text| named(text).contains(*text)).map(str::to_owned).collect();
    assert_eq!(
        in_code.difference(&known).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "a status with these metrics is to be made above"
    );
    keep("metrics.md", &page);

    let mut pages_of_docs = Vec::new();
    pages(&root().join("docs"), &mut pages_of_docs);
    let mut unknown = Vec::new();
    for file in &pages_of_docs {
        let text = fs::read_to_string(file).unwrap();
        let of = |name: String| (!known.contains(&name)).then(|| format!("{}: {name}", file.display()));
        unknown.extend(named(&text).into_iter().filter_map(of));
    }
    assert!(unknown.is_empty(), "no metrics: {}", unknown.join(", "));
}

/// Anchors of a page, as GitHub and mdBook make them of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    // A line of a block of code is no heading.
    let mut in_code = false;
    let is_heading = |line: &&str| {
        in_code ^= line.trim_start().starts_with("```");
        !in_code && line.starts_with('#')
    };
    let headings = text.lines().filter(is_heading).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept =
            heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        kept.replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// The pages of the repository, but for what was built or fetched.
fn pages(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "build", "node_modules", ".git", ".gradle"].contains(&name.as_str()) {
            pages(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

#[test]
fn headings_have_anchors_and_code_has_none() {
    let text = "# One `thing`\n```sh\n# a comment\n```\n## And another\n  ```\n# more\n  ```\n";
    assert_eq!(anchors(text).into_iter().collect::<Vec<_>>(), ["and-another", "one-thing"]);
}

#[test]
fn links_lead_somewhere() {
    let mut all = Vec::new();
    pages(root(), &mut all);
    assert!(all.len() > 20, "{}", all.len());
    let mut broken = Vec::new();
    for page in &all {
        let text = fs::read_to_string(page).unwrap();
        for link in text.split("](").skip(1).filter_map(|after| after.split_once(')')).map(|(link, _)| link) {
            if link.contains("://") || link.starts_with("mailto:") || link.contains(' ') {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let there = target.exists()
                && (anchor.is_empty() || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !there {
                broken.push(format!("{}: {link}", page.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The book has every page, and the README is short enough to be read.
#[test]
fn the_book_has_every_page() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let mut all = Vec::new();
    pages(&root().join("docs"), &mut all);
    for page in all.iter().filter(|page| !page.ends_with("SUMMARY.md")) {
        let name = page.strip_prefix(root().join("docs")).unwrap().display().to_string();
        assert!(summary.contains(&format!("({name})")), "docs/SUMMARY.md has no {name}");
    }
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= 150, "the README has {lines} lines; 150 are what a user reads in five minutes");
}

/// The links of a cell, each as its text and its target.
fn links(cell: &str) -> Vec<(&str, &str)> {
    let link = |(at, _): (usize, &str)| {
        let (text, rest) = cell[at + 2..].split_once("`](")?;
        Some((text, rest.split_once(')')?.0))
    };
    cell.match_indices("[`").filter_map(link).collect()
}

/// Whether a cell says why it has no links.
fn is_excused(cell: &str) -> bool {
    cell.strip_prefix("none: ").is_some_and(|why| why.len() > 10)
}

/// Each row of what may happen names the page of the console that shows it, which is there, and the alert that tells of it, with
/// its runbook; where no page can show it, or no alert is needed, the row says why. And no alert is without a row.
#[test]
fn every_failure_has_its_page_and_its_alert() {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let table = page.split("| what happens |").nth(1).unwrap();
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 25, "{}", rows.len());
    let rules: Value =
        serde_saphyr::from_str(&fs::read_to_string(root().join("docs/operations/alerts.yaml")).unwrap()).unwrap();
    let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let mut runbooks: BTreeMap<&str, &str> =
        rules.map(|rule| (rule["alert"].as_str().unwrap(), rule["annotations"]["runbook"].as_str().unwrap())).collect();
    let of_pages = fs::read_to_string(root().join("docs/pages.md")).unwrap();
    let file = refusing::start("docs-pages", |name| format!("{name} is not wanted here"));
    let mox = Mox::closed(json!({ "kubernetes": { "enabled": true, "kubeconfig": file } }));
    let mut told = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [what, sees, until, metrics, page, alert] = cells[..] else { panic!("{} cells: {row}", cells.len()) };
        assert!([what, sees, until, metrics].iter().all(|cell| !cell.is_empty()), "{row}");
        let pages = links(page);
        assert_eq!(pages.is_empty(), is_excused(page), "a page, or why there is none: {row}");
        for (address, target) in pages {
            let (path, query) = address.split_once('?').unwrap_or((address, ""));
            let (status, shown) = mox.page(path, &format!("{query}&as=html"));
            assert_eq!(status, 200, "{address}: {shown}");
            assert!(target.starts_with("pages.md") && of_pages.contains(&format!("`{path}")), "{address}: {target}");
        }
        let alerts = links(alert);
        assert_eq!(alerts.is_empty(), is_excused(alert), "an alert, or why there is none: {row}");
        for (name, target) in alerts {
            let runbook = runbooks.get(name).unwrap_or_else(|| panic!("no alert is called {name}"));
            assert_eq!(format!("docs/operations.md{target}"), *runbook, "{name}");
            told.insert(name.to_owned());
        }
    }
    runbooks.retain(|name, _| !told.contains(*name));
    assert!(runbooks.is_empty(), "no row leads to {:?}", runbooks.keys());
}

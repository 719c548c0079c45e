//! Who may import whom: the arrows between the rooms of `src/`, and no circle between files.
//!
//! `docs/architecture.md` says why each arrow is there. Code of tests may import what it likes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, UseTree,
    visit::{self, Visit},
};

/// Each room with those that it may import, in the order of the data's way: a room imports only rooms that stand before it.
const ARROWS: [(&str, &[&str]); 20] = [
    ("proto", &[]),
    ("error", &[]),
    ("model", &[]),
    ("digest", &[]),
    ("disk", &[]),
    ("duration", &[]),
    ("histogram", &[]),
    ("istio", &["proto"]),
    ("registry", &["error", "model"]),
    ("snapshot", &["digest", "proto"]),
    ("policy", &["digest", "duration", "error", "istio", "model"]),
    ("translate", &["digest", "istio", "model", "policy", "proto", "registry"]),
    ("config", &["duration", "error", "istio", "policy", "registry", "snapshot", "translate"]),
    ("visibility", &["digest", "model", "policy"]),
    ("documents", &["config", "digest", "error", "model", "visibility"]),
    (
        "catalog",
        &[
            "config",
            "digest",
            "disk",
            "error",
            "histogram",
            "istio",
            "model",
            "policy",
            "proto",
            "registry",
            "snapshot",
            "translate",
            "visibility",
        ],
    ),
    ("xds", &["config", "error", "histogram", "proto", "snapshot"]),
    ("kubernetes", &["catalog", "config", "digest", "error", "istio", "model", "proto", "snapshot", "translate"]),
    (
        "host",
        &[
            "catalog",
            "config",
            "digest",
            "disk",
            "documents",
            "error",
            "histogram",
            "istio",
            "kubernetes",
            "model",
            "policy",
            "registry",
            "snapshot",
            "translate",
            "visibility",
            "xds",
        ],
    ),
    ("jni", &["config", "error", "host", "registry"]),
];

/// A file of `src/` and the paths within the crate that it names outside its tests.
struct File {
    module: Vec<String>,
    paths: BTreeSet<Vec<String>>,
}

#[test]
fn rooms_import_only_what_stands_before_them() {
    let order: Vec<&str> = ARROWS.iter().map(|(room, _)| *room).collect();
    let mut unused: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (index, (room, allowed)) in ARROWS.iter().enumerate() {
        for import in *allowed {
            assert!(order[..index].contains(import), "the table lets {room} import {import}, which stands behind it");
            unused.insert((room, import));
        }
    }
    let mut wrong = Vec::new();
    for file in files() {
        let Some(room) = file.module.first() else { continue };
        let row = ARROWS.iter().find(|(known, _)| known == room);
        let (room, allowed) = row.unwrap_or_else(|| panic!("{room} is in no row of the table"));
        for path in &file.paths {
            let import = path[0].as_str();
            match allowed.iter().find(|known| **known == import) {
                Some(known) => drop(unused.remove(&(*room, *known))),
                None if import != *room => wrong.push(format!("{} imports {}", name(&file.module), name(path))),
                None => {}
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that the table does not have:\n{}", wrong.join("\n"));
    assert!(unused.is_empty(), "arrows of the table that nobody needs: {unused:?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let files = files();
    let known: BTreeSet<&[String]> = files.iter().map(|file| &*file.module).collect();
    let mut arrows: BTreeMap<&[String], BTreeSet<&[String]>> = BTreeMap::new();
    for file in &files {
        for path in &file.paths {
            // The file of a path is the longest module that it begins with.
            let found = (1..=path.len()).rev().find_map(|length| known.get(&path[..length]));
            if let Some(found) = found.filter(|found| ***found != *file.module) {
                arrows.entry(&file.module).or_default().insert(found);
            }
        }
    }
    let mut done = BTreeSet::new();
    for file in &known {
        if let Some(circle) = circle(file, &arrows, &mut Vec::new(), &mut done) {
            panic!("a circle: {}", circle.iter().map(|module| name(module)).collect::<Vec<_>>().join(" -> "));
        }
    }
}

#[test]
fn a_forbidden_import_is_seen_in_every_form() {
    let source = "
        use crate::{a::B, c::{self, d::E as F}};
        use super::g;
        pub(super) fn h() { crate::i::j(); }
        #[cfg(test)] mod tests { use crate::tested; }
        pub mod k { use super::l; }
    ";
    let paths = paths(source, &["x".to_owned(), "y".to_owned()]);
    let found: Vec<String> = paths.iter().map(|path| name(path)).collect();
    assert_eq!(found, ["a::B", "c", "c::d::E", "i::j", "x::g", "x::y::l"]);
}

/// The first circle that `from` leads into; files in `done` lead into none.
fn circle<'a>(
    from: &'a [String],
    arrows: &BTreeMap<&'a [String], BTreeSet<&'a [String]>>,
    way: &mut Vec<&'a [String]>,
    done: &mut BTreeSet<&'a [String]>,
) -> Option<Vec<&'a [String]>> {
    if let Some(start) = way.iter().position(|module| *module == from) {
        return Some(way[start..].iter().copied().chain([from]).collect());
    }
    if done.contains(from) {
        return None;
    }
    way.push(from);
    let found = arrows.get(from).into_iter().flatten().find_map(|next| circle(next, arrows, way, done));
    way.pop();
    done.insert(from);
    found
}

fn name(path: &[String]) -> String {
    path.join("::")
}

/// Every file below `src/` but `lib.rs` and `testing.rs`, which name all rooms, and files of tests.
fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut tests = BTreeSet::new();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut files = Vec::new();
    for path in found {
        let source = fs::read_to_string(&path).unwrap();
        let module = module_of(&root, &path);
        for item in syn::parse_file(&source).unwrap().items {
            if let Item::Mod(item) = item
                && item.content.is_none()
                && is_test(&item.attrs)
            {
                tests.insert([module.clone(), vec![item.ident.to_string()]].concat());
            }
        }
        files.push(File { paths: paths(&source, &module), module });
    }
    files.retain(|file| !file.module.is_empty() && file.module != ["testing"] && !tests.contains(&file.module));
    files
}

/// `src/xds/stream.rs` is `xds::stream`; `src/lib.rs` is the crate itself.
fn module_of(root: &Path, path: &Path) -> Vec<String> {
    let path: PathBuf = path.strip_prefix(root).unwrap().with_extension("");
    let parts = path.iter().map(|part| part.to_str().unwrap().to_owned());
    parts.filter(|part| part != "lib").collect()
}

fn paths(source: &str, module: &[String]) -> BTreeSet<Vec<String>> {
    let mut imports = Imports { module: module.to_vec(), paths: BTreeSet::new() };
    imports.visit_file(&syn::parse_file(source).unwrap());
    imports.paths
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|argument| argument.is_ident("test"))
    })
}

struct Imports {
    module: Vec<String>,
    paths: BTreeSet<Vec<String>>,
}

impl Imports {
    /// Takes a path that begins with `crate` or `super`; any other names another crate or what was imported.
    fn take(&mut self, path: &[String]) {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let from = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("super") => self.module[..self.module.len().saturating_sub(supers)].to_vec(),
            _ => return,
        };
        let rest = &path[supers.max(1)..];
        let rest = rest.strip_suffix(&["self".to_owned()]).unwrap_or(rest);
        let path = [&from, rest].concat();
        if !path.is_empty() {
            self.paths.insert(path);
        }
    }

    fn tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |last: String| [before, &[last]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(name) => self.take(&with(name.ident.to_string())),
            UseTree::Rename(name) => self.take(&with(name.ident.to_string())),
            UseTree::Glob(_) => self.take(before),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(before, item)),
        }
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    /// `pub(super)` names who may see an item, and imports nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.take(&path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>());
        visit::visit_path(self, path);
    }
}

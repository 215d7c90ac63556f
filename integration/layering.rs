//! Keeps the import rule of `ARCHITECTURE.md`: who may use which crate and which module.

use std::fs;
use std::path::{Path, PathBuf};

/// (module, our modules it may import, guarded crates it may import).
const RULES: &[(&str, &[&str], &[&str])] = &[
    ("domain", &["domain"], &["sha2"]),
    ("wire", &["wire", "domain"], &["rmp_serde", "ed25519_dalek", "sha2"]),
    ("store", &["store", "wire", "domain"], &["redb", "rustix", "sha2"]),
    ("bus", &["bus", "wire", "domain"], &["async_nats", "tokio"]),
    ("ipc", &["ipc", "wire", "domain"], &["rustix", "libc", "tokio"]),
    ("keeper", &["keeper", "ipc", "wire", "domain"], &["rustix", "libc"]),
    // What the two heads have in common; both ask servers over HTTP whether they are well. Who goes first with a release
    // follows from what its spec says about rollouts.
    ("head", &["head", "domain", "wire", "store", "ipc", "config"], &["rustix", "tokio"]),
    (
        "agent",
        &["agent", "head", "domain", "wire", "store", "ipc", "config"],
        &["rustix", "libc", "tokio", "sha2"],
    ),
    // What a release says about its rollouts stands in its spec.
    (
        "controller",
        &["controller", "head", "domain", "wire", "store", "bus", "web", "config"],
        &["rustix", "tokio"],
    ),
    // Nodes without a process around them, for measuring a fleet: the gate and the core of an agent on a bus of their own.
    (
        "emulate",
        &["emulate", "head", "domain", "wire", "store", "bus", "config"],
        &["rustix", "tokio"],
    ),
    // The client of web servers; what it hears is judged elsewhere.
    ("web", &["web"], &["tokio", "tokio_rustls", "hyper"]),
    ("uplink", &["uplink", "ipc", "wire", "bus", "web", "domain"], &["rustix", "tokio"]),
    // A file of somebody else is opened without waiting for it.
    ("config", &["config", "domain"], &["toml_edit", "sha2", "rustix"]),
    // The other face: it shows the documents of the first, and asks the controller whose process it is part of.
    (
        "http",
        &["http", "cli", "config", "controller", "head", "domain", "wire"],
        &["rustix", "tokio", "axum", "hyper"],
    ),
    (
        "cli",
        &[
            "cli",
            "domain",
            "wire",
            "bus",
            "ipc",
            "store",
            "config",
            "head",
            "agent",
            "controller",
            "emulate",
            "keeper",
            "uplink",
            "web",
            "http",
        ],
        &["rustix", "libc", "tokio", "toml_edit", "sha2", "rcgen"],
    ),
];

const GUARDED: &[&str] = &[
    "axum",
    "hyper",
    "redb",
    "async_nats",
    "rustix",
    "libc",
    "tokio",
    "tokio_rustls",
    "toml_edit",
    "rmp_serde",
    "ed25519_dalek",
    "sha2",
    "rcgen",
];

const MODULES: &[&str] = &[
    "domain",
    "wire",
    "store",
    "bus",
    "ipc",
    "keeper",
    "head",
    "agent",
    "controller",
    "emulate",
    "uplink",
    "web",
    "config",
    "cli",
    "http",
];

#[test]
fn every_module_imports_only_what_it_may() {
    let mut broken = Vec::new();
    for (module, ours, crates) in RULES {
        for file in rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(module)) {
            let text = fs::read_to_string(&file).unwrap();
            broken.extend(
                violations(&text, ours, crates).map(|what| format!("{}: {what}", file.display())),
            );
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_forbidden_import_would_be_found() {
    let text = "use crate::store::Log;\nuse redb::Database;\n    let x = tokio::spawn(f);\n";
    let found: Vec<_> = violations(text, &["domain"], &[]).collect();
    assert_eq!(found, ["line 1: crate::store", "line 2: redb", "line 3: tokio"]);
}

#[test]
fn every_folder_has_a_rule() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(src).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir()) {
        let name = entry.file_name().into_string().unwrap();
        assert!(RULES.iter().any(|(module, ..)| *module == name), "no import rule for src/{name}");
    }
}

fn violations<'a>(
    text: &'a str,
    ours: &'a [&str],
    crates: &'a [&str],
) -> impl Iterator<Item = String> + 'a {
    text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).flat_map(
        move |(at, line)| {
            let module = MODULES
                .iter()
                .filter(|module| !ours.contains(module))
                .filter(|module| names(line, &format!("crate::{module}")))
                .map(|module| format!("crate::{module}"));
            let foreign = GUARDED
                .iter()
                .filter(|guarded| !crates.contains(guarded))
                .filter(|guarded| names(line, &format!("{guarded}::")))
                .map(|guarded| (*guarded).to_owned());
            module
                .chain(foreign)
                .map(move |what| format!("line {}: {what}", at + 1))
                .collect::<Vec<_>>()
        },
    )
}

/// Says whether `path` stands in `line` as a path of its own, not as the end of a longer name.
fn names(line: &str, path: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    line.match_indices(path).any(|(at, _)| {
        let after = &line[at + path.len()..];
        !line[..at].ends_with(is_word)
            && (path.ends_with(':')
                || !after.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => files.extend(rust_files(&path)),
            path if path.extension().is_some_and(|ext| ext == "rs") => files.push(path),
            _ => {}
        }
    }
    files
}

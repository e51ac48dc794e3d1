//! Checks that the compiler does not make: the direction of dependencies, module documentation, and the
//! wording of prose and names.

mod imports;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use imports::Crate;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
}

/// The root modules of all crates.
const CRATES: [&str; 6] = [
    "rebalancer-common/src/lib.rs",
    "rebalancer-ebpf/src/main.rs",
    "rebalancer-user/core/src/lib.rs",
    "rebalancer-user/src/lib.rs",
    "xtask/src/lib.rs",
    "xtask/src/main.rs",
];

/// The top-level modules of the agent's crate, lowest first. Each imports only from those before it.
const LAYERS: [&str; 16] = [
    "folder",
    "host",
    "bpf",
    "lost_closes",
    "observe",
    "walking",
    "moves",
    "counting",
    "abilities",
    "kubernetes",
    "api",
    "render",
    "http",
    "coordinator",
    "agent",
    "cli",
];

/// Words that earlier versions of this project used in senses of their own, and replacements.
const WORDS: [(&str, &str); 12] = [
    ("anew", "again, from the start"),
    ("futile", "fill test"),
    ("heard", "sniffed, received, detected"),
    ("hears", "sniffs, receives, detects"),
    ("in vain", "without success"),
    ("of which none", "none of which"),
    ("spared", "skipped"),
    ("tells of", "reports"),
    ("told", "reported, logged, printed"),
    ("whereabouts", "the pod's name"),
    ("whom", "which process, which client"),
    ("wherefrom", "from where"),
];

fn crates() -> Vec<Crate> {
    let read = |root: &&str| Crate::read(&top().join(root));
    CRATES.iter().map(read).collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles: Vec<_> = crates().iter().flat_map(Crate::circles).collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn no_folders_import_each_other_in_a_circle() {
    let circles: Vec<_> = crates()
        .iter()
        .flat_map(Crate::circles_of_folders)
        .collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn parts_import_only_from_those_below_them() {
    let root = top().join("rebalancer-user/src");
    let all = Crate::read(&root.join("lib.rs"));
    let layer = |path: &Path| {
        let part = path.strip_prefix(&root).ok()?.with_extension("");
        let part = part.iter().next()?.to_str()?;
        let place = LAYERS.iter().position(|layer| *layer == part);
        assert!(
            place.is_some() || ["lib", "fuzzing"].contains(&part),
            "{part} has no place among the layers of this test"
        );
        place
    };
    let mut upwards = Vec::new();
    for (from, to) in all.imports() {
        if let (Some(above), Some(below)) = (layer(from), layer(to))
            && above < below
        {
            upwards.push((from, to));
        }
    }
    assert!(upwards.is_empty(), "{upwards:#?}");
}

/// The tracked files with these endings, with their contents.
fn texts(endings: &[&str]) -> Vec<(PathBuf, String)> {
    let list = Command::new("git")
        .arg("ls-files")
        .current_dir(top())
        .output();
    let list = String::from_utf8(list.expect("git").stdout).expect("paths are UTF-8");
    list.lines()
        .filter(|path| endings.iter().any(|ending| path.ends_with(ending)))
        // A file that is deleted but not committed is still in the index.
        .filter_map(|path| Some((path.into(), fs::read_to_string(top().join(path)).ok()?)))
        .collect()
}

#[test]
fn every_file_says_what_it_is_for() {
    let without = texts(&[".rs"])
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "));
    let without: Vec<_> = without.map(|(path, _)| path).collect();
    assert!(without.is_empty(), "no `//!` at the top of {without:#?}");
}

#[test]
fn prose_and_names_are_in_standard_terms() {
    let mut found = Vec::new();
    for (path, text) in texts(&[".rs", ".md", ".sh", ".yaml"]) {
        // It names them, and the changelog names what was renamed.
        if path.ends_with("tidy/main.rs") || path.ends_with("CHANGELOG.md") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            // Names too: `was_told`.
            let words = line.to_lowercase().replace('_', " ");
            let is_in = |word: &str| {
                words.match_indices(word).any(|(at, _)| {
                    let letter = |it: Option<char>| it.is_some_and(char::is_alphabetic);
                    !letter(words[..at].chars().next_back())
                        && !letter(words[at + word.len()..].chars().next())
                })
            };
            let used = WORDS.iter().filter(|(word, _)| is_in(word));
            found.extend(used.map(|(word, better)| {
                format!("{}:{}: {word} (write {better})", path.display(), number + 1)
            }));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Each dependency that a package asks for has its reason on a page, and nothing else has.
#[test]
fn each_direct_dependency_has_its_reason_and_is_used() {
    const PAGE: &str = ".github/DEPENDENCIES.md";
    let files = texts(&["Cargo.toml", ".rs", PAGE]);
    let is_page = |(path, _): &&(PathBuf, String)| path.ends_with(PAGE);
    let (_, page) = files.iter().find(is_page).expect(PAGE);
    let rows = page
        .lines()
        .filter_map(|row| row.strip_prefix("| `")?.split_once("` | "));
    let reasons: BTreeMap<&str, &str> = rows
        .flat_map(|(crates, reason)| crates.split("`, `").map(move |name| (name, reason)))
        .collect();
    let mut direct = BTreeSet::new();
    for (manifest, text) in files
        .iter()
        .filter(|(path, _)| path.ends_with("Cargo.toml"))
    {
        let package = manifest.parent().expect("a folder");
        // The agent's own folder has two other packages in it.
        let others = ["core", "fuzz"].map(|folder| package.join(folder));
        let of_package = |path: &Path| {
            path.starts_with(package) && !others.iter().any(|other| path.starts_with(other))
        };
        let sections = text.split("\n[").filter(|section| {
            let head = section.lines().next().unwrap_or_default();
            head.ends_with("dependencies]") && !head.starts_with("workspace")
        });
        for line in sections.flat_map(str::lines) {
            let Some((name, _)) = line.split_once(" = {").or(line.split_once(" = \"")) else {
                continue;
            };
            if name.starts_with("rebalancer") || name == "xtask" {
                continue;
            }
            direct.insert(name);
            let reason = reasons.get(name);
            let reason = reason.unwrap_or_else(|| panic!("{name} has no row in {PAGE}"));
            let module = name.replace('-', "_");
            let mut sources = files.iter().filter(|(path, _)| of_package(path));
            let is_used = sources.any(|(path, text)| {
                let is_name = |c: char| c.is_alphanumeric() || c == '_';
                path.extension().is_some_and(|of| of == "rs")
                    && text.split(|c| !is_name(c)).any(|word| word == module)
            });
            assert_eq!(
                is_used,
                !reason.starts_with("not used"),
                "{name}: {}",
                manifest.display()
            );
        }
    }
    assert_eq!(direct, reasons.into_keys().collect());
}

/// A long file is not an error, only listed.
#[test]
fn long_files_are_listed() {
    const LONG: usize = 700;
    for (path, text) in texts(&[".rs"]) {
        let lines = text.lines().count();
        if lines > LONG {
            println!("{}: {lines} lines", path.display());
        }
    }
}

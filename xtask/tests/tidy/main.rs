//! What no compiler holds of the tree: which way its parts depend on each other, and how it reads.

mod imports;

use std::path::Path;

use imports::Crate;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
}

/// The root modules of the crates that ship, and of xtask.
const CRATES: [&str; 6] = [
    "rebalancer-common/src/lib.rs",
    "rebalancer-ebpf/src/main.rs",
    "rebalancer-user/core/src/lib.rs",
    "rebalancer-user/src/lib.rs",
    "xtask/src/lib.rs",
    "xtask/src/main.rs",
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

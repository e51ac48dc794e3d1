//! Runs what must hold on the seeds of a target, for the unit tests of each crate that has some.

use std::{fs, path::Path};

/// Runs it on each seed in `folder`, which is relative to the crate: among them is what was once a
/// mistake.
pub(super) fn on_its_seeds(folder: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut seeds = 0;
    for file in fs::read_dir(&folder).expect("a folder of seeds") {
        let file = file.expect("a seed").path();
        run(&fs::read(&file).expect("a seed can be read"));
        seeds += 1;
    }
    assert!(seeds > 0, "no seeds in {}", folder.display());
}

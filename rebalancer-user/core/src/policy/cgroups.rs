//! Globs over the paths of cgroups.

use std::fmt;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::snapshot::CgroupPath;

/// Globs over cgroup paths. Each matches a cgroup and its descendants.
///
/// `*` also matches `/`; a backslash is a literal character, as systemd writes it into names.
#[derive(Clone, Default)]
pub struct CgroupGlobs {
    globs: Vec<Box<str>>,
    set: GlobSet,
}

impl CgroupGlobs {
    /// From the text of each glob.
    pub(super) fn new<'a>(
        globs: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, globset::Error> {
        let globs: Vec<Box<str>> = globs.into_iter().map(Box::from).collect();
        let mut set = GlobSetBuilder::new();
        for text in &globs {
            set.add(glob(text)?);
            set.add(glob(&format!("{text}/*"))?);
        }
        let set = set.build()?;
        Ok(Self { globs, set })
    }

    /// The globs, as they are written.
    pub fn as_strs(&self) -> impl Iterator<Item = &str> {
        self.globs.iter().map(AsRef::as_ref)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.globs.is_empty()
    }

    /// Whether one of them matches the cgroup or one of its ancestors.
    pub fn matches(&self, path: &CgroupPath) -> bool {
        self.set.is_match(path.as_str())
    }
}

/// One glob.
fn glob(text: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(text)
        .literal_separator(false)
        .backslash_escape(false)
        .build()
}

// What they compile to follows from their text.
impl PartialEq for CgroupGlobs {
    fn eq(&self, other: &Self) -> bool {
        self.globs == other.globs
    }
}

impl Eq for CgroupGlobs {}

impl fmt::Debug for CgroupGlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.globs).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(glob: &str, path: &str) -> bool {
        CgroupGlobs::new([glob])
            .unwrap()
            .matches(&CgroupPath::new(path).unwrap())
    }

    #[test]
    fn a_glob_matches_a_cgroup_and_its_descendants() {
        let below_machine = "*/machine.slice/*";
        let nginx = "/system.slice/nginx.service";
        let apache = "/system.slice/apache.service";
        let escaped = r"/machine.slice/machine-qemu\x2d1.scope";
        for (glob, path, expected) in [
            (below_machine, "/machine.slice/vm.scope", true),
            (below_machine, "/a/machine.slice/vm.scope/libvirt", true),
            (below_machine, "/machine.slice", false),
            ("*/machine.slice", "/machine.slice/vm.scope", true),
            (nginx, nginx, true),
            (nginx, "/system.slice/nginx.service/worker", true),
            (nginx, "/system.slice/nginx.service2", false),
            (nginx, "/x/system.slice/nginx.service", false),
            ("/system.slice/{nginx,apache}.service", apache, true),
            ("/a/?", "/a/b", true),
            ("/a/[bc]", "/a/d", false),
            (escaped, escaped, true),
            ("*", "/", true),
            ("/a", "/", false),
        ] {
            assert_eq!(matches(glob, path), expected, "{glob} {path}");
        }
    }
}

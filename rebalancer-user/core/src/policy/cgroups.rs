//! Globs over the paths of cgroups.

use std::fmt;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::snapshot::CgroupPath;

/// Globs over cgroup paths. Each names the cgroups whose path it matches, and all below them.
///
/// `*` also stands for `/`; a backslash stands for itself, as systemd writes it into names.
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

    /// Whether one of them names the cgroup, or one that it is in.
    pub fn name(&self, path: &CgroupPath) -> bool {
        self.set.is_match(path.as_str())
    }
}

/// One glob, as this policy understands it.
fn glob(text: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(text)
        .literal_separator(false)
        .backslash_escape(false)
        .build()
}

// Globs are equal if they are written alike: what they compile to follows from that.
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

    fn names(glob: &str, path: &str) -> bool {
        CgroupGlobs::new([glob])
            .unwrap()
            .name(&CgroupPath::new(path).unwrap())
    }

    #[test]
    fn a_glob_names_a_cgroup_and_all_below_it() {
        for (glob, path, named) in [
            ("*/machine.slice/*", "/machine.slice/vm.scope", true),
            (
                "*/machine.slice/*",
                "/a/machine.slice/vm.scope/libvirt",
                true,
            ),
            ("*/machine.slice/*", "/machine.slice", false),
            ("*/machine.slice", "/machine.slice/vm.scope", true),
            (
                "/system.slice/nginx.service",
                "/system.slice/nginx.service",
                true,
            ),
            (
                "/system.slice/nginx.service",
                "/system.slice/nginx.service/worker",
                true,
            ),
            (
                "/system.slice/nginx.service",
                "/system.slice/nginx.service2",
                false,
            ),
            (
                "/system.slice/nginx.service",
                "/x/system.slice/nginx.service",
                false,
            ),
            (
                "/system.slice/{nginx,apache}.service",
                "/system.slice/apache.service",
                true,
            ),
            ("/a/?", "/a/b", true),
            ("/a/[bc]", "/a/d", false),
            (
                r"/machine.slice/machine-qemu\x2d1.scope",
                r"/machine.slice/machine-qemu\x2d1.scope",
                true,
            ),
            ("*", "/", true),
            ("/a", "/", false),
        ] {
            assert_eq!(names(glob, path), named, "{glob} {path}");
        }
    }
}

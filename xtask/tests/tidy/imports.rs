//! The imports between the files of a crate, with names resolved as the compiler does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, ItemMod, ItemUse, UseTree, Visibility, punctuated::Punctuated, visit::Visit,
};

/// Names of files whose module has the modules of the same folder as children.
const FACES: [&str; 3] = ["lib", "main", "mod"];

/// A crate's modules.
pub(crate) struct Crate {
    files: Vec<File>,
    modules: Vec<Module>,
}

/// A file, and the files that it imports, by index.
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) imports: BTreeSet<usize>,
}

/// A module: a whole file, or an inline module within one.
struct Module {
    file: usize,
    parent: usize,
    children: BTreeMap<String, usize>,
    /// Names brought into scope by `use`, with their paths.
    names: BTreeMap<String, Vec<String>>,
    /// Paths used in its code and imports.
    paths: Vec<Vec<String>>,
}

impl Crate {
    /// Reads a crate, given the file of its root module. Test modules are left out, as they may import
    /// anything.
    pub(crate) fn read(root: &Path) -> Self {
        let mut all = Self {
            files: Vec::new(),
            modules: Vec::new(),
        };
        let folder = root.parent().expect("a file has a folder");
        all.read_file(root, folder, 0);
        all.resolve();
        all
    }

    /// Every import, as the importing and the imported file.
    pub(crate) fn imports(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.files.iter().flat_map(|file| {
            let of = |to: &usize| (file.path.as_path(), self.files[*to].path.as_path());
            file.imports.iter().map(of)
        })
    }

    /// Circles of files that import each other.
    pub(crate) fn circles(&self) -> Vec<Vec<PathBuf>> {
        let edges: Vec<_> = self.files.iter().map(|file| file.imports.clone()).collect();
        let names: Vec<_> = self.files.iter().map(|file| file.path.clone()).collect();
        circles(&edges, &names)
    }

    /// Circles of files and folders in the same folder that import each other.
    pub(crate) fn circles_of_folders(&self) -> Vec<Vec<PathBuf>> {
        let folders: BTreeSet<PathBuf> = (self.files.iter())
            .flat_map(|file| file.path.ancestors().skip(1).map(Path::to_owned))
            .collect();
        folders
            .iter()
            .flat_map(|folder| {
                // `x.rs` and what is below `x/` are one.
                let of =
                    |path: &Path| Some(folder.join(path.strip_prefix(folder).ok()?.iter().next()?));
                let names: BTreeSet<PathBuf> = (self.files.iter())
                    .filter_map(|file| of(&file.path.with_extension("")))
                    .filter(|name| !FACES.iter().any(|face| name.ends_with(face)))
                    .collect();
                let names: Vec<PathBuf> = names.into_iter().collect();
                let place = |path: &Path| {
                    let name = of(&path.with_extension(""))?;
                    names.iter().position(|it| *it == name)
                };
                let mut edges = vec![BTreeSet::new(); names.len()];
                for file in &self.files {
                    let Some(from) = place(&file.path) else {
                        continue;
                    };
                    let to = file
                        .imports
                        .iter()
                        .filter_map(|&to| place(&self.files[to].path));
                    edges[from].extend(to.filter(|&to| to != from));
                }
                circles(&edges, &names)
            })
            .collect()
    }

    fn read_file(&mut self, path: &Path, folder: &Path, parent: usize) -> usize {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tree = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        self.files.push(File {
            path: path.to_owned(),
            imports: BTreeSet::new(),
        });
        let file = self.files.len() - 1;
        self.read_module(&tree.items, file, folder, parent)
    }

    fn read_module(&mut self, items: &[Item], file: usize, folder: &Path, parent: usize) -> usize {
        let own = self.modules.len();
        let mut module = Module {
            file,
            parent,
            children: BTreeMap::new(),
            names: BTreeMap::new(),
            paths: Vec::new(),
        };
        let mut below = Vec::new();
        let mut paths = Paths::default();
        for item in items {
            match item {
                Item::Mod(item) if is_for_tests(&item.attrs) => {}
                Item::Mod(item) => below.push(item),
                Item::Use(item) if is_for_tests(&item.attrs) => {}
                Item::Use(item) => module.add_use(item),
                item => paths.visit_item(item),
            }
        }
        module.paths.extend(paths.found);
        self.modules.push(module);
        for item in below {
            let name = item.ident.to_string();
            let child = self.read_child(item, file, folder, own);
            self.modules[own].children.insert(name, child);
        }
        own
    }

    fn read_child(&mut self, item: &ItemMod, file: usize, folder: &Path, parent: usize) -> usize {
        let name = item.ident.to_string();
        let below = folder.join(&name);
        if let Some((_, items)) = &item.content {
            return self.read_module(items, file, &below, parent);
        }
        let beside = folder.join(format!("{name}.rs"));
        let path = if beside.exists() {
            beside
        } else {
            below.join("mod.rs")
        };
        self.read_file(&path, &below, parent)
    }

    fn resolve(&mut self) {
        let mut edges = Vec::new();
        for (at, module) in self.modules.iter().enumerate() {
            for path in &module.paths {
                if let Some(file) = self.file_of(at, path, 0)
                    && file != module.file
                {
                    edges.push((module.file, file));
                }
            }
        }
        for (from, to) in edges {
            // A module may use what its parent module defines for all of its children.
            if !self.is_above(to, from) {
                self.files[from].imports.insert(to);
            }
        }
    }

    /// Whether the module of `file` is an ancestor of the module of `below`.
    fn is_above(&self, file: usize, below: usize) -> bool {
        let root = self.modules.iter().position(|it| it.file == below);
        let mut at = root.expect("a file is a module");
        while at != 0 {
            at = self.modules[at].parent;
            if self.modules[at].file == file {
                return true;
            }
        }
        false
    }

    /// The file that defines the item of a path in a module; `None` for items of other crates.
    fn file_of(&self, at: usize, path: &[String], depth: usize) -> Option<usize> {
        const DEEPEST: usize = 16;
        let (mut at, mut rest, mut is_first) = (at, path, true);
        while let Some((name, others)) = rest.split_first() {
            let module = &self.modules[at];
            match name.as_str() {
                "crate" => at = 0,
                "self" => {}
                "super" => at = module.parent,
                name => {
                    if let Some(child) = module.children.get(name) {
                        at = *child;
                    } else if let Some(stands_for) = module.names.get(name) {
                        let whole = [&stands_for[..], others].concat();
                        if depth == DEEPEST || whole == path {
                            return None;
                        }
                        return self.file_of(at, &whole, depth + 1);
                    } else {
                        // An item of this module; a bare name is one of a crate or the prelude too.
                        return (!is_first).then_some(module.file);
                    }
                }
            }
            (rest, is_first) = (others, false);
        }
        Some(self.modules[at].file)
    }
}

impl Module {
    fn add_use(&mut self, item: &ItemUse) {
        // A re-export of a child's names is not counted as an import.
        let hands_on = !matches!(item.vis, Visibility::Inherited);
        let mut leaves = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut leaves);
        for (name, path) in leaves {
            if !hands_on || path[0] == "crate" || path[0] == "super" {
                self.paths.push(path.clone());
            }
            if name != "*" && name != "_" {
                self.names.insert(name, path);
            }
        }
    }
}

/// The names that a `use` brings into scope, and their paths.
fn flatten(tree: &UseTree, path: &mut Vec<String>, leaves: &mut Vec<(String, Vec<String>)>) {
    let with = |path: &[String], name: String| [path, &[name]].concat();
    match tree {
        UseTree::Path(step) => {
            path.push(step.ident.to_string());
            flatten(&step.tree, path, leaves);
            path.pop();
        }
        UseTree::Name(name) if name.ident == "self" => {
            leaves.push((path.last().cloned().unwrap_or_default(), path.clone()));
        }
        UseTree::Name(name) => {
            leaves.push((name.ident.to_string(), with(path, name.ident.to_string())))
        }
        UseTree::Rename(name) if name.ident == "self" => {
            leaves.push((name.rename.to_string(), path.clone()));
        }
        UseTree::Rename(name) => {
            leaves.push((name.rename.to_string(), with(path, name.ident.to_string())))
        }
        UseTree::Glob(_) => leaves.push(("*".to_owned(), path.clone())),
        UseTree::Group(group) => group.items.iter().for_each(|it| flatten(it, path, leaves)),
    }
}

/// Whether an item with these attributes is compiled only for tests.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args_with(Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated)
                .is_ok_and(|of| of.iter().any(|it| it.path().is_ident("test")))
    })
}

/// Collects paths of more than one segment.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 && path.leading_colon.is_none() {
            let steps = path.segments.iter().map(|step| step.ident.to_string());
            self.found.push(steps.collect());
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let mut leaves = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut leaves);
        self.found.extend(leaves.into_iter().map(|(_, path)| path));
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_for_tests(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_for_tests(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }
}

/// For each node of a circle of a graph, a shortest one.
fn circles(edges: &[BTreeSet<usize>], names: &[PathBuf]) -> Vec<Vec<PathBuf>> {
    let circles = (0..edges.len()).filter_map(|at| way_back(edges, at));
    let named = |circle: Vec<usize>| circle.into_iter().map(|at| names[at].clone()).collect();
    circles.map(named).collect()
}

/// A shortest path from a node back to itself.
fn way_back(edges: &[BTreeSet<usize>], start: usize) -> Option<Vec<usize>> {
    let mut from = BTreeMap::new();
    let mut next = std::collections::VecDeque::from([start]);
    while let Some(at) = next.pop_front() {
        for &to in &edges[at] {
            if to == start {
                let mut way = vec![at];
                while way[way.len() - 1] != start {
                    way.push(from[&way[way.len() - 1]]);
                }
                way.reverse();
                return Some(way);
            }
            if let std::collections::btree_map::Entry::Vacant(free) = from.entry(to) {
                free.insert(at);
                next.push_back(to);
            }
        }
    }
    None
}

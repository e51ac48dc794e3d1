//! Reading single values, and gathering what is wrong with them.

use std::{
    num::NonZeroU32,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use serde_saphyr::Spanned;

use crate::policy::{
    CgroupGlobs, Mode,
    error::{Fault, Problem},
    file::{Field, List, Scalar},
    syntax,
    values::{self, Value},
};

/// Globs in one list: a connection's cgroup is held against all of them.
const MOST_GLOBS: usize = 64;

const MODES: [(&str, Mode); 3] = [
    ("Disabled", Mode::Disabled),
    ("DryRun", Mode::DryRun),
    ("Enforce", Mode::Enforce),
];

/// Builds the parts and gathers what is wrong with them. Where something is wrong a default
/// takes its place, so that the rest is judged too; the policy is then thrown away.
pub(super) struct Reader<'a> {
    pub(super) text: &'a str,
    pub(super) problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn mode(&mut self, field: &Field<Scalar>) -> Option<Mode> {
        self.word(field, &MODES, &[])
    }

    pub(super) fn duration(
        &mut self,
        field: &Field<Scalar>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.value(field, |value| values::duration(value, range))
    }

    pub(super) fn count(&mut self, field: &Field<Scalar>, most: u32, default: u32) -> NonZeroU32 {
        let count = self.value(field, |value| values::count(value, most));
        count
            .or(NonZeroU32::new(default))
            .unwrap_or(NonZeroU32::MIN)
    }

    pub(super) fn word<T: Copy>(
        &mut self,
        field: &Field<Scalar>,
        known: &[(&str, T)],
        later: &[&str],
    ) -> Option<T> {
        self.value(field, |value| values::word(value, known, later))
    }

    /// A field's value; `None` where it is left out, or wrong and reported.
    pub(super) fn value<T>(
        &mut self,
        field: &Field<Scalar>,
        read: impl FnOnce(Value<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        self.item(field.0.as_ref()?, read)
    }

    pub(super) fn item<T>(
        &mut self,
        item: &Spanned<Scalar>,
        read: impl FnOnce(Value<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        let at = self.place(item);
        let raw = self.text.get(at.clone()).unwrap_or_default();
        read(Value {
            scalar: &item.value,
            raw,
        })
        .map_err(|fault| self.report(at, fault))
        .ok()
    }

    /// The first `most` of a list, which should be all.
    pub(super) fn list<'f, T>(&mut self, field: &'f List<T>, most: usize) -> &'f [Spanned<T>] {
        let Some(Spanned { value: items, .. }) = &field.0 else {
            return &[];
        };
        if let Some(surplus) = items.get(most) {
            let label = format!("item {} of {}", most + 1, items.len());
            let remedy = format!("write at most {most}");
            self.report(
                self.place(surplus),
                Fault::new("a list too long", label, remedy),
            );
        }
        &items[..items.len().min(most)]
    }

    /// Globs over cgroups; those that are wrong are reported and left out.
    pub(super) fn cgroups(&mut self, field: &List<Scalar>) -> CgroupGlobs {
        let items = self.list(field, MOST_GLOBS);
        let globs: Vec<Box<str>> = items
            .iter()
            .filter_map(|item| self.item(item, |value| values::cgroup_glob(value).map(Box::from)))
            .collect();
        CgroupGlobs::new(globs.iter().map(AsRef::as_ref)).unwrap_or_else(|error| {
            // Each is right by itself: together they are too much.
            let label = error.kind().to_string();
            let remedy = "write fewer or shorter ones";
            let fault = Fault::new("globs that are too large", label, remedy);
            self.report(self.place_of(field), fault);
            CgroupGlobs::default()
        })
    }

    pub(super) fn not_empty<T>(&mut self, field: &List<T>, name: &str) {
        if field.0.as_ref().is_some_and(|list| list.value.is_empty()) {
            let fault = Fault::new(
                "an empty list",
                "nothing in it",
                format!("fill or remove `{name}`"),
            );
            self.report(self.place_of(field), fault);
        }
    }

    pub(super) fn required<T>(
        &mut self,
        field: &Field<T>,
        name: &str,
        at: &Range<usize>,
        write: &str,
    ) {
        if field.0.is_none() {
            let message = format!("missing field `{name}`");
            let fault = Fault::new(
                message,
                format!("has no `{name}`"),
                format!("write {write}"),
            );
            self.report(at.clone(), fault);
        }
    }

    pub(super) fn report(&mut self, at: Range<usize>, fault: Fault) {
        self.problems.push(fault.at(at));
    }

    pub(super) fn place<T>(&self, spanned: &Spanned<T>) -> Range<usize> {
        syntax::place(self.text, &spanned.referenced)
    }

    pub(super) fn place_of<T>(&self, field: &Field<T>) -> Range<usize> {
        field.0.as_ref().map_or(0..0, |value| self.place(value))
    }
}

/// A part's fields, or those of an empty one where it is left out.
pub(super) fn inner<'f, T>(field: &'f Field<T>, default: &'f T) -> &'f T {
    field.0.as_ref().map_or(default, |part| &part.value)
}

//! Mappings of the policy file, each declared once by [`section!`]: a field is a row with its
//! documentation, name, type and default. Reading, [`super::explain`], the JSON Schema and the
//! reference all go by the rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
    ops::Range,
    sync::Arc,
};

use serde_json::{Value as Json, json};

use super::{
    cgroups::CgroupGlobs,
    error::{Fault, Problem},
    lines::Lines,
    node::{Given, Node, place},
    notation::{Glob, LabelValue, Scalar, Value, label_key_text, plain_or_quoted},
    shape::{Absent, Field, Mapping, Shape, one_line},
    suggest::{nearest, renamed},
};
use crate::text::quoted;

/// The source, and what is wrong with it so far.
pub(super) struct Reader<'t> {
    pub(super) text: &'t str,
    pub(super) problems: Vec<Problem>,
}

impl<'t> Reader<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        Self {
            text,
            problems: Vec::new(),
        }
    }

    pub(super) fn report(&mut self, at: Range<usize>, fault: Fault) {
        self.problems.push(fault.at(at));
    }

    pub(super) fn place(&self, given: &Given) -> Range<usize> {
        place(self.text, &given.referenced)
    }

    pub(super) fn place_of(&self, given: Option<&Given>) -> Range<usize> {
        given.map_or(0..0, |given| self.place(given))
    }

    fn raw(&self, given: &Given) -> &str {
        self.text.get(self.place(given)).unwrap_or_default()
    }

    fn wrong_type<T>(&mut self, given: &Given, label: &str, remedy: &str) -> Option<T> {
        let at = self.place(given);
        self.report(at, Fault::new("wrong type", label, remedy));
        None
    }

    /// The entries of a mapping, each with the text of its key.
    fn mapping<'g>(
        &mut self,
        given: &'g Given,
        example: &str,
    ) -> Option<Vec<(String, &'g Given, &'g Given)>> {
        let Node::Map(entries) = &given.value else {
            let remedy = format!("write fields with their values, e.g. `{{{example}: …}}`");
            return self.wrong_type(given, "a mapping is expected here", &remedy);
        };
        let mut named = Vec::new();
        for (key, value) in entries {
            match &key.value {
                Node::Text(name) => named.push((name.clone(), key, value)),
                Node::Number | Node::Bool(_) => named.push((self.raw(key).into(), key, value)),
                Node::Null | Node::List(_) | Node::Map(_) => {
                    let remedy = "a field's name is plain text";
                    return self.wrong_type(key, "not a field's name", remedy);
                }
            }
        }
        Some(named)
    }

    pub(super) fn missing(&mut self, name: &str, at: Range<usize>, write: &str) {
        let (message, label) = (
            format!("missing field `{name}`"),
            format!("has no `{name}`"),
        );
        self.report(at, Fault::new(message, label, format!("write {write}")));
    }
}

/// What the file gives of one mapping.
pub(super) struct Fields<'g> {
    given: Vec<(String, &'g Given)>,
    pub(super) at: Range<usize>,
    has_unknown: bool,
}

impl<'g> Fields<'g> {
    /// Those of a mapping that is left out.
    fn none() -> Self {
        Self {
            given: Vec::new(),
            at: 0..0,
            has_unknown: false,
        }
    }

    fn read(given: &'g Given, known: &[&str], reader: &mut Reader<'_>) -> Option<Self> {
        let mut fields = Self {
            at: reader.place(given),
            ..Self::none()
        };
        let example = known.first().copied().unwrap_or("field");
        for (name, key, value) in reader.mapping(given, example)? {
            if !known.contains(&name.as_str()) {
                fields.has_unknown = true;
                let at = reader.place(key);
                reader.report(at, unknown_field(&name, known));
            }
            fields.given.push((name, value));
        }
        Some(fields)
    }

    pub(super) fn get(&self, name: &str) -> Option<&'g Given> {
        let field = self.given.iter().find(|(given, _)| given == name);
        field.map(|(_, value)| *value)
    }

    /// Whether the file gives this word.
    pub(super) fn is(&self, name: &str, word: &str) -> bool {
        self.get(name).is_some_and(|given| given.value.is(word))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// Reports a field that must be given. One that is unknown may be meant for it: then that is
    /// enough.
    pub(super) fn require(&self, name: &str, write: &str, reader: &mut Reader<'_>) {
        if self.get(name).is_none() && !self.has_unknown {
            reader.missing(name, self.at.clone(), write);
        }
    }
}

/// The items of a list; empty if it is none.
pub(super) fn items(given: Option<&Given>) -> &[Given] {
    match given.map(|given| &given.value) {
        Some(Node::List(items)) => items,
        _ => &[],
    }
}

fn unknown_field(field: &str, known: &[&str]) -> Fault {
    let message = format!("unknown field {}", quoted(field));
    if let Some(new) = renamed(field, known) {
        let remedy = format!("it is called `{new}` now");
        return Fault::new(message, "a former name", remedy);
    }
    let remedy = match nearest(field, known) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("the fields here are {}", known.join(", ")),
    };
    Fault::new(message, "not a field of this mapping", remedy)
}

/// A mapping of the policy file; implemented by [`section!`].
pub(super) trait Section: Sized {
    const NAMES: &'static [&'static str];

    fn mapping() -> Mapping;

    /// Reads every field, so that all that is wrong is reported; `None` if anything is.
    fn read(fields: &Fields<'_>, reader: &mut Reader<'_>) -> Option<Self>;

    fn show(&self, fields: &Fields<'_>, lines: &mut Lines);
}

/// What the fields of a [`Section`] mean for each other.
pub(super) trait Constraints: Sized {
    /// Reports what contradicts; `section` is `None` if a field by itself is wrong.
    fn check(_section: Option<&Self>, _fields: &Fields<'_>, _reader: &mut Reader<'_>) {}

    /// Sets what other fields imply.
    fn completed(self) -> Self {
        self
    }

    /// Whether a field has no meaning beside the others.
    fn hides(&self, _name: &str) -> bool {
        false
    }

    /// What the JSON Schema says of it.
    fn schema() -> Json {
        json!({})
    }
}

/// Declares a [`Section`]: its struct with an accessor for each field, and how it is read, shown
/// and documented. A row is `field "name": Type = row;`, where `row` makes a [`Row`]; `as` gives
/// the accessor's type where it is not the field's.
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        $(#[derive($($derive:ident),+)])?
        pub struct $Section:ident $title:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident $name:literal: $type:ty $(as &$by_ref:ty)? $(as Option<&$inner:ty>)? =
                    $row:expr;
            )+
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Clone, Debug, PartialEq, Eq $($(, $derive)+)?)]
        pub struct $Section {
            $(pub(super) $field: $type,)+
        }

        impl $Section {
            $($crate::policy::section::accessor! {
                $(#[doc = $doc])+ $field: $type $(as &$by_ref)? $(as Option<&$inner>)?
            })+
        }

        impl $crate::policy::section::Section for $Section {
            const NAMES: &'static [&'static str] = &[$($name),+];

            fn mapping() -> $crate::policy::shape::Mapping {
                use $crate::policy::{section::Constraints, shape};
                shape::Mapping {
                    title: $title,
                    doc: shape::one_line(concat!($($section_doc),+)),
                    fields: vec![$(
                        $crate::policy::section::of::<$type, _>($row)
                            .field($name, concat!($($doc),+))
                    ),+],
                    constraint: <Self as Constraints>::schema(),
                }
            }

            fn read(
                fields: &$crate::policy::section::Fields<'_>,
                reader: &mut $crate::policy::section::Reader<'_>,
            ) -> Option<Self> {
                use $crate::policy::section::Constraints;
                $(let $field =
                    $crate::policy::section::of::<$type, _>($row).read($name, fields, reader);)+
                let read = || Some(Self { $($field: $field?),+ });
                let section = read().map(Constraints::completed);
                Constraints::check(section.as_ref(), fields, reader);
                section
            }

            fn show(
                &self,
                fields: &$crate::policy::section::Fields<'_>,
                lines: &mut $crate::policy::lines::Lines,
            ) {
                use $crate::policy::section::Constraints;
                $(if !self.hides($name) {
                    $crate::policy::section::of::<$type, _>($row)
                        .show($name, &self.$field, fields, lines);
                })+
            }
        }
    };
}
pub(super) use section;

macro_rules! accessor {
    ($(#[doc = $doc:literal])+ $field:ident: $type:ty) => {
        $(#[doc = $doc])+
        pub fn $field(&self) -> $type {
            self.$field
        }
    };
    ($(#[doc = $doc:literal])+ $field:ident: $type:ty as &$by_ref:ty) => {
        $(#[doc = $doc])+
        pub fn $field(&self) -> &$by_ref {
            &self.$field
        }
    };
    ($(#[doc = $doc:literal])+ $field:ident: $type:ty as Option<&$inner:ty>) => {
        $(#[doc = $doc])+
        pub fn $field(&self) -> Option<&$inner> {
            self.$field.as_ref()
        }
    };
}
pub(super) use accessor;

/// How a field is given: the [`Notation`] of its value, and what it means that it is left out.
pub(super) struct Row<N: Notation> {
    notation: N,
    /// None of a field that must be given.
    default: Option<N::Value>,
    /// What to write, or what the default means where no value says it. `None`: the default is
    /// shown as a value.
    words: Option<&'static str>,
}

/// `row`, whose value is a `T`.
pub(super) fn of<T, N: Notation<Value = T>>(row: Row<N>) -> Row<N> {
    row
}

/// It must be given; `write` says what to write.
pub(super) fn required<N: Notation>(notation: N, write: &'static str) -> Row<N> {
    Row {
        notation,
        default: None,
        words: Some(write),
    }
}

/// Its default is a value like any other.
pub(super) fn or<N: Notation>(notation: N, default: N::Value) -> Row<N> {
    Row {
        notation,
        default: Some(default),
        words: None,
    }
}

/// Left out, it is empty, and not shown.
pub(super) fn or_empty<N: Notation<Value: Default>>(notation: N) -> Row<N> {
    Row {
        notation,
        default: Some(N::Value::default()),
        words: Some(""),
    }
}

/// Left out, it has no value, and is not shown.
pub(super) fn optional<N: Notation>(notation: N) -> Row<Maybe<N>> {
    Row {
        notation: Maybe(notation),
        default: Some(None),
        words: Some(""),
    }
}

/// A mapping of which each field has a default.
pub(super) fn always<S: Section>() -> Row<Part<S>> {
    let mut reader = Reader::of("");
    Row {
        notation: part(),
        default: S::read(&Fields::none(), &mut reader),
        words: None,
    }
}

impl<N: Notation<Value: Clone + PartialEq>> Row<N> {
    /// What no value says, and the field means if it is left out.
    pub(super) fn means(self, words: &'static str) -> Self {
        Self {
            words: Some(words),
            ..self
        }
    }

    pub(super) fn read(
        &self,
        name: &str,
        fields: &Fields<'_>,
        reader: &mut Reader<'_>,
    ) -> Option<N::Value> {
        if let Some(given) = fields.get(name) {
            return self.notation.read(given, reader);
        }
        if self.default.is_none() {
            fields.require(name, self.words.unwrap_or_default(), reader);
        }
        self.default.clone()
    }

    pub(super) fn show(
        &self,
        name: &str,
        value: &N::Value,
        fields: &Fields<'_>,
        lines: &mut Lines,
    ) {
        let given = fields.get(name);
        let is_default = given.is_none() && self.default.as_ref() == Some(value);
        match self.words {
            Some("") if is_default => {}
            Some(means) if is_default => {
                let means = means.replace('`', "");
                lines.line(format_args!("# {name}: {means} (default)"));
            }
            _ => self.notation.show(name, value, given, lines),
        }
    }

    pub(super) fn field(&self, name: &'static str, doc: &str) -> Field {
        let absent = match (&self.default, self.words) {
            (None, _) => Absent::Required,
            (Some(_), Some(means)) => Absent::Means(means),
            (Some(default), None) => Absent::Default(self.notation.text(default)),
        };
        Field {
            name,
            doc: one_line(doc),
            shape: self.notation.shape(),
            absent,
        }
    }
}

/// How a value is written: a [`Scalar`], a list or a mapping.
pub(super) trait Notation {
    type Value;

    /// The value; `None` if it is wrong, which is then reported.
    fn read(&self, given: &Given, reader: &mut Reader<'_>) -> Option<Self::Value>;

    /// The value if it fits into a line.
    fn text(&self, value: &Self::Value) -> Option<String>;

    /// Writes the value in lines of its own. `given`: what the file says.
    fn body(&self, _value: &Self::Value, _given: Option<&Given>, _lines: &mut Lines) {}

    fn shape(&self) -> Shape;

    fn show(&self, name: &str, value: &Self::Value, given: Option<&Given>, lines: &mut Lines) {
        match self.text(value) {
            Some(text) => lines.field(name, &text, given.is_some()),
            None => lines.block(name, |lines| self.body(value, given, lines)),
        }
    }
}

impl<N: Scalar> Notation for N {
    type Value = N::Value;

    fn read(&self, given: &Given, reader: &mut Reader<'_>) -> Option<N::Value> {
        let raw = reader.raw(given);
        let read = Scalar::read(self, Value::new(&given.value, raw));
        let at = reader.place(given);
        read.map_err(|fault| reader.report(at, fault)).ok()
    }

    fn text(&self, value: &N::Value) -> Option<String> {
        Some(Scalar::show(self, value))
    }

    fn shape(&self) -> Shape {
        Scalar::shape(self)
    }
}

/// A value that may be absent.
pub(super) struct Maybe<N>(N);

impl<N: Notation> Notation for Maybe<N> {
    type Value = Option<N::Value>;

    fn read(&self, given: &Given, reader: &mut Reader<'_>) -> Option<Self::Value> {
        self.0.read(given, reader).map(Some)
    }

    fn text(&self, value: &Self::Value) -> Option<String> {
        value.as_ref().and_then(|value| self.0.text(value))
    }

    fn body(&self, value: &Self::Value, given: Option<&Given>, lines: &mut Lines) {
        if let Some(value) = value {
            self.0.body(value, given, lines);
        }
    }

    fn shape(&self) -> Shape {
        self.0.shape()
    }
}

/// A mapping with fields of its own.
pub(super) struct Part<S>(PhantomData<S>);

/// The mapping that `S` is.
pub(super) fn part<S>() -> Part<S> {
    Part(PhantomData)
}

impl<S: Section> Notation for Part<S> {
    type Value = S;

    fn read(&self, given: &Given, reader: &mut Reader<'_>) -> Option<S> {
        let before = reader.problems.len();
        let fields = Fields::read(given, S::NAMES, reader)?;
        let section = S::read(&fields, reader)?;
        (reader.problems.len() == before).then_some(section)
    }

    fn text(&self, value: &S) -> Option<String> {
        let mut lines = Lines::default();
        self.body(value, None, &mut lines);
        lines.is_empty().then(|| "{}".to_owned())
    }

    fn body(&self, value: &S, given: Option<&Given>, lines: &mut Lines) {
        // What the file says has been read before, without a fault.
        let mut reader = Reader::of("");
        let fields = given.and_then(|given| Fields::read(given, S::NAMES, &mut reader));
        value.show(&fields.unwrap_or_else(Fields::none), lines);
    }

    fn shape(&self) -> Shape {
        Shape::Mapping(S::mapping)
    }
}

/// A list of at most `most` items.
pub(super) struct List<N, C> {
    item: N,
    most: usize,
    may_be_empty: bool,
    collection: PhantomData<C>,
}

/// A list of at most `most` items, or of none.
pub(super) fn list<N: Notation, C: Collection<N::Value>>(item: N, most: usize) -> List<N, C> {
    List {
        item,
        most,
        may_be_empty: true,
        collection: PhantomData,
    }
}

impl<N, C> List<N, C> {
    /// Of at least one item.
    pub(super) fn not_empty(self) -> Self {
        Self {
            may_be_empty: false,
            ..self
        }
    }
}

impl<N: Notation, C: Collection<N::Value>> Notation for List<N, C> {
    type Value = C;

    fn read(&self, given: &Given, reader: &mut Reader<'_>) -> Option<C> {
        let Node::List(items) = &given.value else {
            let remedy = "write a list, e.g. `[…]`, or lines that begin with `- `; empty is `[]`";
            return reader.wrong_type(given, "a list is expected here", remedy);
        };
        if items.is_empty() && !self.may_be_empty {
            let at = reader.place(given);
            let remedy = "write an item into it, or remove the field";
            reader.report(at, Fault::new("an empty list", "nothing in it", remedy));
            return None;
        }
        if let Some(surplus) = items.get(self.most) {
            let label = format!("item {} of {}", self.most + 1, items.len());
            let remedy = format!("write at most {}", self.most);
            let at = reader.place(surplus);
            reader.report(at, Fault::new("a list too long", label, remedy));
            return None;
        }
        // All are read before any of them counts as wrong.
        let items: Vec<_> = items
            .iter()
            .map(|item| self.item.read(item, reader))
            .collect();
        items.into_iter().collect()
    }

    fn text(&self, value: &C) -> Option<String> {
        let items: Option<Vec<_>> = value
            .items()
            .into_iter()
            .map(|item| self.item.text(item))
            .collect();
        Some(format!("[{}]", items?.join(", ")))
    }

    fn body(&self, value: &C, given: Option<&Given>, lines: &mut Lines) {
        let mut given = items(given).iter();
        for item in value.items() {
            lines.item(|lines| self.item.body(item, given.next(), lines));
        }
    }

    fn shape(&self) -> Shape {
        Shape::List(Box::new(self.item.shape()))
    }
}

/// What a [`List`] is kept in.
pub(super) trait Collection<T>: FromIterator<T> {
    fn items(&self) -> Vec<&T>;
}

impl<T> Collection<T> for Vec<T> {
    fn items(&self) -> Vec<&T> {
        self.iter().collect()
    }
}

impl<T: Ord> Collection<T> for BTreeSet<T> {
    fn items(&self) -> Vec<&T> {
        self.iter().collect()
    }
}

impl<T> Collection<T> for Arc<[T]> {
    fn items(&self) -> Vec<&T> {
        self.iter().collect()
    }
}

/// Globs over cgroup paths.
pub(super) struct Globs(List<Glob, Vec<String>>);

/// At most 64 of them: a connection's cgroup is compared with each.
pub(super) fn globs() -> Globs {
    Globs(list(Glob, 64))
}

impl Globs {
    /// At least one.
    pub(super) fn not_empty(self) -> Self {
        Self(self.0.not_empty())
    }
}

impl Notation for Globs {
    type Value = CgroupGlobs;

    fn read(&self, given: &Given, reader: &mut Reader<'_>) -> Option<CgroupGlobs> {
        let globs = self.0.read(given, reader)?;
        let globs = CgroupGlobs::new(globs.iter().map(AsRef::as_ref));
        // Each is right by itself: together they are too much.
        globs
            .map_err(|error| {
                let (label, remedy) = (error.kind().to_string(), "write fewer or shorter ones");
                let fault = Fault::new("globs that are too large", label, remedy);
                reader.report(reader.place(given), fault);
            })
            .ok()
    }

    fn text(&self, value: &CgroupGlobs) -> Option<String> {
        self.0.text(&value.as_strs().map(str::to_owned).collect())
    }

    fn shape(&self) -> Shape {
        self.0.shape()
    }
}

/// Labels with their values.
pub(super) struct LabelMap;

impl Notation for LabelMap {
    type Value = BTreeMap<String, String>;

    fn read(&self, given: &Given, reader: &mut Reader<'_>) -> Option<Self::Value> {
        let mut labels = BTreeMap::new();
        let before = reader.problems.len();
        for (name, key, value) in reader.mapping(given, "app")? {
            if let Err(fault) = label_key_text(&name) {
                reader.report(reader.place(key), fault);
            }
            if let Some(value) = Notation::read(&LabelValue, value, reader) {
                labels.insert(name, value);
            }
        }
        (reader.problems.len() == before).then_some(labels)
    }

    fn text(&self, value: &Self::Value) -> Option<String> {
        value.is_empty().then(|| "{}".to_owned())
    }

    fn body(&self, value: &Self::Value, _: Option<&Given>, lines: &mut Lines) {
        for (key, value) in value {
            lines.field(&plain_or_quoted(key), &plain_or_quoted(value), true);
        }
    }

    fn shape(&self) -> Shape {
        Shape::Labels(Box::new(Scalar::shape(&LabelValue)))
    }
}

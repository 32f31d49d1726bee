//! A small typed reader over marked YAML nodes: every getter reports what is wrong and where, and
//! goes on.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Display,
    fs,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use saphyr::{AnnotatedMappingOwned, MarkedYamlOwned, Marker, ScalarOwned, YamlDataOwned};

use super::{Beside, ConfigError, Position};

/// Longest name of an object or label value: what Kubernetes allows for a DNS subdomain.
const MAX_NAME: usize = 253;

/// Where something stands and what it is called, such as `Frontend/api spec.ports[1]`.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub at: Position,
    pub field: String,
}

/// Collects problems; shared by all values of one file.
#[derive(Debug, Default)]
pub struct Report {
    errors: RefCell<Vec<ConfigError>>,
    beside: RefCell<Beside>,
}

impl Report {
    pub fn error(&self, place: &Place, message: impl Into<String>) {
        let Place { at, field } = place.clone();
        self.errors.borrow_mut().push(ConfigError { at, field, message: message.into() });
    }

    /// Problems so far; an object is whole if the count is the same before and after it was read.
    pub fn count(&self) -> usize {
        self.errors.borrow().len()
    }

    pub fn into_parts(self) -> (Vec<ConfigError>, Beside) {
        (self.errors.into_inner(), self.beside.into_inner())
    }
}

pub fn position(marker: &Marker) -> Position {
    Position { line: marker.line(), column: marker.col() + 1 }
}

/// A document or field without content.
pub fn is_empty(node: &MarkedYamlOwned) -> bool {
    matches!(&node.data, YamlDataOwned::Value(ScalarOwned::Null))
        || matches!(&node.data, YamlDataOwned::BadValue) && node.span.is_empty()
}

/// A node, where it stands and what it is called.
#[derive(Clone, Debug)]
pub struct Value<'n> {
    node: &'n MarkedYamlOwned,
    pub place: Place,
    report: &'n Report,
}

/// The fields of a mapping whose names are all known.
#[derive(Debug)]
pub struct Fields<'n> {
    map: &'n AnnotatedMappingOwned<MarkedYamlOwned>,
    pub place: Place,
    report: &'n Report,
}

impl<'n> Value<'n> {
    pub fn new(node: &'n MarkedYamlOwned, field: String, report: &'n Report) -> Self {
        Self { node, place: Place { at: position(&node.span.start), field }, report }
    }

    pub fn error(&self, message: impl Into<String>) {
        self.report.error(&self.place, message);
    }

    fn wrong<T>(&self, wanted: impl Display) -> Option<T> {
        self.error(format!("{} is not allowed here; allowed: {wanted}", describe(self.node)));
        None
    }

    /// A mapping with these fields; others are reported.
    pub fn fields(&self, allowed: &[&str]) -> Option<Fields<'n>> {
        let fields = self.mapping(&format!("a mapping with {}", allowed.join(", ")))?;
        for key in fields.map.keys() {
            let name = key.data.as_str();
            if name.is_some_and(|name| allowed.contains(&name)) {
                continue;
            }
            let name = name.map_or_else(|| describe(key), str::to_owned);
            let hint = nearest(&name, allowed);
            let message = format!("unknown field `{name}`{hint}; allowed: {}", allowed.join(", "));
            let at = position(&key.span.start);
            self.report.error(&Place { at, ..self.place.clone() }, message);
        }
        Some(fields)
    }

    fn mapping(&self, wanted: &str) -> Option<Fields<'n>> {
        match &self.node.data {
            YamlDataOwned::Mapping(map) => {
                Some(Fields { map, place: self.place.clone(), report: self.report })
            }
            _ => self.wrong(wanted),
        }
    }

    /// A field's string, without a word about what else may be wrong.
    pub fn peek(&self, path: &[&str]) -> Option<&'n str> {
        let node = path.iter().try_fold(self.node, |node, name| node.data.as_mapping_get(name))?;
        node.data.as_str()
    }

    /// A list; `None` where it is something else.
    pub fn list(&self) -> Option<Vec<Value<'n>>> {
        let YamlDataOwned::Sequence(nodes) = &self.node.data else { return self.wrong("a list") };
        let value =
            |(index, node)| Value::new(node, format!("{}[{index}]", self.place.field), self.report);
        Some(nodes.iter().enumerate().map(value).collect())
    }

    /// A list with at least one element.
    pub fn filled_list(&self) -> Option<Vec<Value<'n>>> {
        let list = self.list()?;
        if list.is_empty() {
            self.error("the list is empty; allowed: at least one element");
        }
        Some(list)
    }

    /// A mapping of strings to strings.
    pub fn string_map(&self) -> Option<BTreeMap<String, String>> {
        let fields = self.mapping("a mapping of strings to strings")?;
        let mut strings = BTreeMap::new();
        for (key, node) in fields.map {
            let key = Value::new(key, self.place.field.clone(), self.report);
            let Some(name) = key.string() else { continue };
            let value = Value::new(node, join(&self.place.field, name), self.report);
            if let Some(text) = value.string() {
                strings.insert(name.to_owned(), text.to_owned());
            }
        }
        Some(strings)
    }

    pub fn string(&self) -> Option<&'n str> {
        match &self.node.data {
            YamlDataOwned::Value(ScalarOwned::String(text)) => Some(text),
            YamlDataOwned::Value(ScalarOwned::Null) => self.wrong("a string"),
            YamlDataOwned::Value(_) => self.wrong("a string (put it in quotes)"),
            _ => self.wrong("a string"),
        }
    }

    /// Whether it is written as a number.
    pub fn is_integer(&self) -> bool {
        self.node.data.is_integer()
    }

    pub fn boolean(&self) -> Option<bool> {
        self.node.data.as_bool().or_else(|| self.wrong("true, false"))
    }

    /// An integer of this range, which must fit the type.
    pub fn integer<T: TryFrom<i64>>(&self, range: RangeInclusive<i64>) -> Option<T> {
        let (low, high) = (range.start(), range.end());
        let Some(number) = self.node.data.as_integer() else {
            return self.wrong(format!("a number from {low} to {high}"));
        };
        if !range.contains(&number) {
            self.error(format!("{number} is out of range; allowed: {low} to {high}"));
            return None;
        }
        T::try_from(number).ok()
    }

    pub fn port(&self) -> Option<u16> {
        self.integer(1..=65_535)
    }

    pub fn address(&self) -> Option<IpAddr> {
        let text = self.string()?;
        text.parse().ok().or_else(|| {
            self.error(format!("`{text}` is not an IPv4 or IPv6 address"));
            None
        })
    }

    /// A whole number with a unit.
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let (low, high) = (range.start(), range.end());
        let wanted = format!("{low:?} to {high:?}, as a whole number with ms, s, m or h");
        let YamlDataOwned::Value(ScalarOwned::String(text)) = &self.node.data else {
            return self.wrong(wanted);
        };
        match parse_duration(text) {
            Some(duration) if range.contains(&duration) => Some(duration),
            _ => {
                self.error(format!("`{text}` is not such a duration; allowed: {wanted}"));
                None
            }
        }
    }

    /// One of these words. A word with `None` is known, but not built yet.
    pub fn word<T: Copy>(&self, words: &[(&str, Option<T>)]) -> Option<T> {
        let text = self.string()?;
        let built: Vec<&str> =
            words.iter().filter(|(_, value)| value.is_some()).map(|(word, _)| *word).collect();
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, Some(value))) => return Some(*value),
            Some((_, None)) => {
                self.error(format!("`{text}` is not built yet; allowed: {}", built.join(", ")));
            }
            None => {
                let hint = nearest(text, &built);
                self.error(format!("unknown `{text}`{hint}; allowed: {}", built.join(", ")));
            }
        }
        None
    }

    /// A name of an object, as Kubernetes has it (a DNS subdomain, RFC 1123).
    pub fn name(&self) -> Option<String> {
        let text = self.string()?;
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = (1..=MAX_NAME).contains(&text.len())
            && text.chars().all(inner)
            && text.starts_with(edge)
            && text.ends_with(edge);
        if !good {
            self.error(format!(
                "`{text}` is not a name; allowed: 1 to {MAX_NAME} of a-z, 0-9, `-` and `.`, with a \
                 letter or digit at both ends"
            ));
            return None;
        }
        Some(text.to_owned())
    }

    /// A network interface's name, as the kernel has it.
    pub fn interface(&self) -> Option<String> {
        let text = self.string()?;
        let good = (1..libc::IFNAMSIZ).contains(&text.len())
            && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
            && text != "."
            && text != "..";
        if !good {
            self.error(format!(
                "`{text}` is not an interface's name; allowed: 1 to {} bytes without `/`, `:` or \
                 blanks",
                libc::IFNAMSIZ - 1
            ));
            return None;
        }
        Some(text.to_owned())
    }

    /// The text of the file that it names; relative to the folder of the file at `path`.
    pub fn text_beside(&self, path: &Path) -> Option<String> {
        let file = path.parent().unwrap_or(Path::new("")).join(self.string()?);
        let text = fs::read_to_string(&file);
        self.report.beside.borrow_mut().insert(file.clone(), text.as_ref().ok().cloned());
        text.map_err(|error| self.error(format!("{} cannot be read: {error}", file.display()))).ok()
    }

    pub fn absolute_path(&self) -> Option<PathBuf> {
        let path = PathBuf::from(self.string()?);
        if !path.is_absolute() {
            self.error(format!("`{}` is not an absolute path", path.display()));
            return None;
        }
        Some(path)
    }
}

impl<'n> Fields<'n> {
    /// The field; `None` where it is absent or empty.
    pub fn get(&self, name: &str) -> Option<Value<'n>> {
        let (_, node) = self.map.iter().find(|(key, _)| key.data.as_str() == Some(name))?;
        (!is_empty(node)).then(|| Value::new(node, join(&self.place.field, name), self.report))
    }

    /// The field, reported where it is missing.
    pub fn required(&self, name: &str) -> Option<Value<'n>> {
        let value = self.get(name);
        if value.is_none() {
            self.error(format!("`{name}` is missing"));
        }
        value
    }

    /// The field's value, or the default where it is absent or wrong (which is reported).
    pub fn read_or<T>(
        &self,
        name: &str,
        default: T,
        read: impl FnOnce(&Value<'n>) -> Option<T>,
    ) -> T {
        self.get(name).and_then(|value| read(&value)).unwrap_or(default)
    }

    /// A problem of the mapping as a whole.
    pub fn error(&self, message: impl Into<String>) {
        self.report.error(&self.place, message);
    }
}

/// A path's next step. An object's name is set apart from the path in it by a blank.
fn join(field: &str, name: &str) -> String {
    match field {
        "" => name.to_owned(),
        object if !object.contains(' ') => format!("{object} {name}"),
        path => format!("{path}.{name}"),
    }
}

fn describe(node: &MarkedYamlOwned) -> String {
    match &node.data {
        YamlDataOwned::Value(ScalarOwned::Null) => "nothing".into(),
        YamlDataOwned::Value(ScalarOwned::Boolean(value)) => format!("the boolean {value}"),
        YamlDataOwned::Value(ScalarOwned::Integer(value)) => format!("the number {value}"),
        YamlDataOwned::Value(ScalarOwned::FloatingPoint(value)) => format!("the number {value}"),
        YamlDataOwned::Value(ScalarOwned::String(text)) => format!("the string `{text}`"),
        YamlDataOwned::Sequence(_) => "a list".into(),
        YamlDataOwned::Mapping(_) => "a mapping".into(),
        _ => "a value of a YAML tag".into(),
    }
}

/// A whole number with a unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

/// `, did you mean …?` where an allowed word is near.
fn nearest(word: &str, allowed: &[&str]) -> String {
    let distance = |other: &&str| edit_distance(&word.to_lowercase(), &other.to_lowercase());
    match allowed.iter().map(|other| (distance(other), *other)).min() {
        Some((steps, other)) if steps <= word.chars().count().div_ceil(3).min(3) => {
            format!(", did you mean `{other}`?")
        }
        _ => String::new(),
    }
}

/// Levenshtein distance, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_whole_numbers_with_a_unit() {
        for (text, milliseconds) in
            [("500ms", 500), ("2s", 2000), ("3m", 180_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "s", "1.5s", "-1s", "1 s", "1d", "18446744073709551615h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn only_near_words_are_suggested() {
        assert_eq!(nearest("adresses", &["addresses", "ports"]), ", did you mean `addresses`?");
        assert_eq!(nearest("Ports", &["addresses", "ports"]), ", did you mean `ports`?");
        assert_eq!(nearest("colour", &["addresses", "ports"]), "");
    }
}

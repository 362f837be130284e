//! TOML as a tree of JSON's values: what is configured and what is sent are read by the same code from there on.

use serde_json::Value;
use toml_span::{ErrorKind, value::ValueInner};

/// A table, by key.
pub type Table = serde_json::Map<String, Value>;

/// A text that is no TOML, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is no TOML: {what}")]
pub struct TomlError {
    line: usize,
    what: String,
}

pub fn parse(text: &str) -> Result<Table, TomlError> {
    let error = |error: toml_span::Error| TomlError {
        line: 1 + text.get(..error.span.start).unwrap_or(text).matches('\n').count(),
        what: describe(&error.kind),
    };
    match toml_span::parse(text).map_err(error).map(convert)? {
        Value::Object(table) => Ok(table),
        _ => Ok(Table::new()), // a document is a table
    }
}

/// One value, as it stands behind a `=`.
pub fn parse_value(text: &str) -> Result<Value, TomlError> {
    parse(&format!("value = {text}")).map(|mut table| table.remove("value").unwrap_or_default())
}

fn describe(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::UnexpectedEof => "the file ends in the middle of it".to_owned(),
        ErrorKind::Unexpected(found) => format!("{found:?} is not expected here"),
        ErrorKind::UnterminatedString => "a text has no end".to_owned(),
        ErrorKind::UnquotedString => "a text needs quotes".to_owned(),
        ErrorKind::Wanted { expected, found: "eof" } => format!("{expected} is expected, not the end"),
        ErrorKind::Wanted { expected, found } => format!("{expected} is expected, not {found}"),
        ErrorKind::DuplicateKey { key, .. } => format!("the key {key} is there twice"),
        ErrorKind::DuplicateTable { name, .. } => format!("the table {name} is there twice"),
        ErrorKind::InvalidNumber => "a number is wrong".to_owned(),
        other => other.to_string(),
    }
}

fn convert(mut value: toml_span::Value<'_>) -> Value {
    match value.take() {
        ValueInner::String(text) => Value::String(text.into_owned()),
        ValueInner::Integer(number) => number.into(),
        ValueInner::Float(number) => number.into(),
        ValueInner::Boolean(flag) => flag.into(),
        ValueInner::Array(items) => Value::Array(items.into_iter().map(convert).collect()),
        ValueInner::Table(table) => Value::Object(
            table.into_iter().map(|(key, value)| (key.name.into_owned(), convert(value))).collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_of_value_comes_through() {
        let text = "a = 'x'\nb = -3\nc = true\n[d]\ne = [1, 2]\n\"f g\" = { h = 1.5 }\n[[i]]\nj = 0x10\n";
        let wanted =
            json!({"a": "x", "b": -3, "c": true, "d": {"e": [1, 2], "f g": {"h": 1.5}}, "i": [{"j": 16}]});
        assert_eq!(Value::Object(parse(text).unwrap()), wanted);
        assert_eq!(parse("").unwrap(), Table::new());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let said = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(said("a = 1\nb = \n"), "line 2 is no TOML: a value is expected, not a newline");
        assert_eq!(said("a = 1\na = 2"), "line 2 is no TOML: the key a is there twice");
        assert_eq!(said("[[sandbox"), "line 1 is no TOML: a right bracket is expected, not the end");
        assert!(said("\u{7f}ELF").starts_with("line 1 is no TOML: "));
        assert!(said("[[[[").starts_with("line 1 is no TOML: "));
    }

    #[test]
    fn depth_is_bounded_and_so_is_the_stack() {
        for text in [format!("a = {}", "[".repeat(100_000)), format!("a = {}", "{b = ".repeat(100_000))] {
            assert!(parse(&text).is_err());
        }
    }

    #[test]
    fn a_value_of_the_command_line() {
        assert_eq!(parse_value("1400"), Ok(json!(1400)));
        assert_eq!(parse_value("['1.1.1.1']"), Ok(json!(["1.1.1.1"])));
        assert!(parse_value("eth0").is_err() && parse_value("").is_err());
    }
}

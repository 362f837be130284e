//! Tables of the documents beside what the code has: a page that says something else fails a test.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::{lenient, toml::Table};

/// A pipe in a cell is written `\\|`; this stands for it while rows are cut.
const PIPE: &str = "\u{1}";

/// Keys and default cells of every table of `| key | type | default | meaning |`, a row of several keys once for each.
pub(crate) fn keys(page: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut in_table = false;
    for line in page.lines() {
        in_table = (in_table || line.starts_with("| key |")) && line.starts_with('|');
        let row = line.replace("\\|", PIPE);
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, names, _, defaults, ..] = cells[..] else { continue };
        if !in_table || !names.starts_with('`') {
            continue;
        }
        let names: Vec<&str> = names.split(", ").map(|name| name.trim_matches('`')).collect();
        let mut each: Vec<&str> = defaults.split(", ").collect();
        if each.len() != names.len() {
            each = vec![defaults; names.len()];
        }
        found.extend(
            names.into_iter().zip(each).map(|(name, cell)| (name.to_owned(), cell.replace(PIPE, "|"))),
        );
    }
    found
}

/// Every key of a default value, with its own.
pub(crate) fn defaults(value: &impl Serialize) -> BTreeMap<String, Value> {
    let table: Table = serde_json::from_value(serde_json::to_value(value).unwrap()).unwrap();
    lenient::leaves(&table).into_iter().map(|(path, leaf)| (path.join("."), leaf)).collect()
}

/// Whether a cell says this default. Where there is none the page says so in words of its own, and not in code.
pub(crate) fn is_default(cell: &str, default: &Value) -> bool {
    let code =
        cell.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')).map(|code| code.trim_matches('"'));
    match default {
        Value::Null => code.is_none(),
        Value::Array(items) => items.is_empty() && code.is_none(),
        Value::Object(table) => table.is_empty() && code.is_none(),
        Value::String(text) if text.is_empty() => code.is_none(),
        Value::String(text) => code.unwrap_or(cell) == text,
        other => code == Some(other.to_string().as_str()),
    }
}

//! TOML that is read by two rules: when an image is baked each mistake is an error; when it boots, the key with the
//! mistake is passed over, named, and all the others count.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::toml::{self, Table};

/// What was read, and what was passed over, in words that name the key.
#[derive(Debug, Clone, PartialEq)]
pub struct Read<T> {
    pub value: T,
    pub problems: Vec<String>,
}

/// Reads `text` into `T`, of which every field must have a default. Never fails: at worst all is at its default.
pub fn read<T: DeserializeOwned + Default>(text: &str) -> Read<T> {
    match toml::parse(text) {
        Ok(table) => from_table(&table),
        Err(error) => Read { value: T::default(), problems: vec![error.to_string()] },
    }
}

/// Reads a table into `T`: leaf by leaf, where the whole does not fit.
pub fn from_table<T: DeserializeOwned + Default>(table: &Table) -> Read<T> {
    let Read { value, problems } = good_part::<T>(table);
    Read { value: typed(value).unwrap_or_default(), problems }
}

/// The part of a table that `T` can be read from.
pub fn good_part<T: DeserializeOwned>(table: &Table) -> Read<Table> {
    if typed::<T>(table.clone()).is_ok() {
        return Read { value: table.clone(), problems: Vec::new() };
    }
    let mut good = Table::new();
    let mut problems = Vec::new();
    for (path, leaf) in leaves(table) {
        if let Err(error) = accept::<T>(&mut good, &path, leaf) {
            problems.push(format!("{}: {error}", path.join(".")));
        }
    }
    Read { value: good, problems }
}

/// Adds one key to `table` when `T` can be read with it; else the table stays as it was and the reason comes back.
pub fn accept<T: DeserializeOwned>(table: &mut Table, path: &[String], leaf: Value) -> Result<(), String> {
    let mut candidate = table.clone();
    if !insert(&mut candidate, path, leaf) {
        return Err("a key of this name is no table".to_owned());
    }
    typed::<T>(candidate.clone()).map_err(|error| error.to_string())?;
    *table = candidate;
    Ok(())
}

pub(crate) fn typed<T: DeserializeOwned>(table: Table) -> Result<T, serde_json::Error> {
    serde_json::from_value(Value::Object(table))
}

/// Every key that holds no table, or an empty one, with the way to it.
pub(crate) fn leaves(table: &Table) -> Vec<(Vec<String>, Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                for (path, leaf) in leaves(inner) {
                    found.push((std::iter::once(key.clone()).chain(path).collect(), leaf));
                }
            }
            leaf => found.push((vec![key.clone()], leaf.clone())),
        }
    }
    found
}

fn insert(table: &mut Table, path: &[String], leaf: Value) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let mut at = table;
    for key in parents {
        let inner = at.entry(key.as_str()).or_insert_with(|| Value::Object(Table::new()));
        let Value::Object(inner) = inner else { return false };
        at = inner;
    }
    at.insert(last.clone(), leaf);
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        number: u32,
        inner: Inner,
        words: BTreeMap<String, String>,
        choice: Option<Choice>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        name: String,
        flag: bool,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Choice {
        One(u32),
        Two(u32),
    }

    #[test]
    fn one_wrong_key_does_not_take_its_neighbours_with_it() {
        let read =
            read::<Sample>("number = 'x'\nother = 1\n[inner]\nname = 'n'\nflag = 3\n[words]\na = 'b'\n");
        assert_eq!((read.value.number, read.value.inner.name.as_str()), (0, "n"));
        assert_eq!(read.value.words["a"], "b");
        assert_eq!(read.problems.len(), 3, "{:?}", read.problems);
        assert!(
            read.problems.iter().any(|problem| problem.starts_with("inner.flag: ")),
            "{:?}",
            read.problems
        );
        assert!(read.problems.iter().any(|problem| problem.starts_with("other: unknown field")));
    }

    #[test]
    fn of_two_choices_the_second_is_refused() {
        let read = read::<Sample>("[choice]\none = 1\ntwo = 2\n");
        assert_eq!(read.value.choice, Some(Choice::One(1)));
        assert_eq!(read.problems.len(), 1);
    }

    #[test]
    fn text_that_is_no_toml_leaves_the_defaults() {
        for text in ["\u{0}\u{1}garbage", "[[[[", "a = ", "[inner\nname"] {
            let read = read::<Sample>(text);
            assert_eq!((read.value, read.problems.len()), (Sample::default(), 1));
        }
    }
}

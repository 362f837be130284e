//! One line of a sysusers.d file.

use crate::{
    specifier,
    words::{self, Words},
};

/// The id a line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Id {
    Any,
    Number(u32),
    /// The owner of a file.
    OwnerOf(String),
    /// `UID:GROUP`: the group exists on its own; without a number the uid is free.
    WithGroup(Option<u32>, String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    User { name: String, id: Id, gecos: String, home: Option<String>, shell: Option<String> },
    Group { name: String, id: Id },
    Member { user: String, group: String },
    Range { from: u32, to: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("there is no type `{0}`")]
    Type(String),
    #[error("`{0}` is no name for a user or group")]
    Name(String),
    #[error("`{0}` is no id")]
    Id(String),
    #[error("`{0}` cannot stand in /etc/passwd")]
    Field(String),
    #[error("it has too many fields")]
    TooLong,
    #[error(transparent)]
    Words(#[from] words::Error),
    #[error(transparent)]
    Specifier(#[from] specifier::Error),
}

/// Reads one line; `None` for empty ones and comments.
pub(super) fn parse(
    line: &str,
    lookup: &dyn Fn(char) -> Result<String, specifier::Error>,
) -> Result<Option<Line>, Error> {
    let trimmed = line.trim();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return Ok(None);
    }
    let mut words = Words::new(trimmed);
    let mut field = || -> Result<Option<String>, Error> {
        let word = words.next_word()?.map(|word| specifier::expand(&word, lookup)).transpose()?;
        Ok(word.filter(|word| !word.is_empty() && word != "-"))
    };
    let kind = field()?.unwrap_or_default();
    let (first, second) = (field()?, field()?);
    let parsed = match kind.as_str() {
        // A `!` locks the account for good; ours never have a password.
        "u" | "u!" => {
            let (gecos, home, shell) = (field()?, field()?, field()?);
            for text in [&gecos, &home, &shell].into_iter().flatten() {
                plain(text)?;
            }
            Line::User { name: name(first)?, id: id(second)?, gecos: gecos.unwrap_or_default(), home, shell }
        }
        "g" => Line::Group { name: name(first)?, id: group_id(second)? },
        "m" => Line::Member { user: name(first)?, group: name(second)? },
        "r" => range(&second.unwrap_or_default())?,
        _ => return Err(Error::Type(kind)),
    };
    let more_than_its_own = matches!(parsed, Line::User { .. }) && field()?.is_some();
    if more_than_its_own { Err(Error::TooLong) } else { Ok(Some(parsed)) }
}

fn name(word: Option<String>) -> Result<String, Error> {
    let word = word.unwrap_or_default();
    let first = word.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_');
    let rest = word.chars().all(|char| char.is_ascii_alphanumeric() || char == '_' || char == '-');
    if first && rest && word.len() <= 31 { Ok(word) } else { Err(Error::Name(word)) }
}

fn number(word: &str) -> Result<u32, Error> {
    // These two stand for "none" in the kernel and in old interfaces.
    let number = word.parse().ok().filter(|id| *id != 65535 && *id != u32::MAX);
    number.ok_or_else(|| Error::Id(word.to_owned()))
}

fn group_id(word: Option<String>) -> Result<Id, Error> {
    match id(word.clone())? {
        Id::WithGroup(..) => Err(Error::Id(word.unwrap_or_default())),
        id => Ok(id),
    }
}

fn id(word: Option<String>) -> Result<Id, Error> {
    let Some(word) = word else { return Ok(Id::Any) };
    if word.starts_with('/') {
        return Ok(Id::OwnerOf(word));
    }
    let Some((uid, group)) = word.split_once(':') else { return Ok(Id::Number(number(&word)?)) };
    let uid = if uid == "-" { None } else { Some(number(uid)?) };
    let group = if group.parse::<u32>().is_ok() { group.to_owned() } else { name(Some(group.to_owned()))? };
    Ok(Id::WithGroup(uid, group))
}

fn range(word: &str) -> Result<Line, Error> {
    let (from, to) = word.split_once('-').unwrap_or((word, word));
    let (from, to) = (number(from)?, number(to)?);
    if from <= to { Ok(Line::Range { from, to }) } else { Err(Error::Id(word.to_owned())) }
}

fn plain(text: &str) -> Result<(), Error> {
    if text.contains([':', '\n']) || text.chars().any(char::is_control) {
        Err(Error::Field(text.to_owned()))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, Error> {
        parse(text, &specifier::fixed).map(|line| line.expect("a line"))
    }

    #[test]
    fn the_forms_of_the_manual_are_understood() {
        let user = |id| Line::User { name: "x".into(), id, gecos: String::new(), home: None, shell: None };
        assert_eq!(line("u x"), Ok(user(Id::Any)));
        assert_eq!(line("u x 404"), Ok(user(Id::Number(404))));
        assert_eq!(line("u x 4:65534"), Ok(user(Id::WithGroup(Some(4), "65534".into()))));
        assert_eq!(line("u x -:adm"), Ok(user(Id::WithGroup(None, "adm".into()))));
        assert_eq!(line("u x /usr/bin/x"), Ok(user(Id::OwnerOf("/usr/bin/x".into()))));
        let full = line("u pg - \"Data Base\" %S/pg /bin/sh").unwrap();
        let Line::User { gecos, home, shell, .. } = full else { panic!() };
        assert_eq!(
            (gecos.as_str(), home.as_deref(), shell.as_deref()),
            ("Data Base", Some("/var/lib/pg"), Some("/bin/sh"))
        );
        assert_eq!(line("g x 5"), Ok(Line::Group { name: "x".into(), id: Id::Number(5) }));
        assert_eq!(line("m x adm"), Ok(Line::Member { user: "x".into(), group: "adm".into() }));
        assert_eq!(line("r - 500-900"), Ok(Line::Range { from: 500, to: 900 }));
    }

    #[test]
    fn what_would_damage_the_files_is_refused() {
        assert_eq!(line("u a:b"), Err(Error::Name("a:b".into())));
        assert_eq!(line("u x - \"a:b\""), Err(Error::Field("a:b".into())));
        assert_eq!(line("u x - \"a\\nroot::0:0::/:/x\""), Err(Error::Field("a\nroot::0:0::/:/x".into())));
        assert_eq!(line("u x 65535"), Err(Error::Id("65535".into())));
        assert_eq!(line("g x 1:2"), Err(Error::Id("1:2".into())));
        assert_eq!(line("q x"), Err(Error::Type("q".into())));
        assert_eq!(line("m x"), Err(Error::Name(String::new())));
        assert_eq!(line("r - 9-5"), Err(Error::Id("9-5".into())));
    }
}

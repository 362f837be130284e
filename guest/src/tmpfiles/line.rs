//! One line of a tmpfiles.d file: `TYPE PATH MODE USER GROUP AGE ARGUMENT`.

use crate::{
    specifier,
    words::{self, Words},
};

/// What a line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `f`; with `+` an existing file is emptied first.
    File { truncate: bool },
    /// `w`; with `+` it appends.
    Write { append: bool },
    /// `d`, and `v`, `q`, `Q`, which differ on btrfs alone; `D` is emptied at boot.
    Dir { empty: bool },
    /// `e`.
    AdjustDir,
    /// `p`; with `+` it replaces what is there.
    Fifo { replace: bool },
    /// `L`; with `+` it replaces what is there.
    Link { replace: bool },
    /// `r` and `R`.
    Remove { recursive: bool },
    /// `z` and `Z`.
    Adjust { recursive: bool },
    /// `x` and `X`: kept when old files are cleaned away, which is never done here.
    Ignore,
    /// Types that are not done here, by their letter.
    Other(char),
}

impl Kind {
    /// Takes shell patterns for a path.
    pub fn globs(self) -> bool {
        match self {
            Self::Write { .. }
            | Self::AdjustDir
            | Self::Remove { .. }
            | Self::Adjust { .. }
            | Self::Ignore => true,
            Self::Other(letter) => "tThHaA".contains(letter),
            _ => false,
        }
    }

    /// Says what a path is; two such lines for one path contradict each other, while adjustments add up, and what is
    /// kept from a cleaning concerns nobody where nothing is cleaned.
    pub fn owns(self) -> bool {
        !matches!(
            self,
            Self::Adjust { .. }
                | Self::Write { .. }
                | Self::Ignore
                | Self::Other('t' | 'T' | 'h' | 'H' | 'a' | 'A')
        )
    }
}

/// Permission bits as a line gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    pub bits: u32,
    /// `~`: kinds of access that the existing file does not give to anybody are not given.
    pub masked: bool,
    /// `:`: for what is made anew only.
    pub only_new: bool,
}

/// A user or group as a line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub name: String,
    /// `:`: for what is made anew only.
    pub only_new: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The letter, for messages.
    pub letter: char,
    pub kind: Kind,
    /// `!`: at boot only.
    pub boot: bool,
    /// `-`: its failure is no failure of the whole.
    pub may_fail: bool,
    /// `=`: something of another type in its place goes first.
    pub replace_type: bool,
    /// Without a slash at the end; `/` itself stays.
    pub path: String,
    pub mode: Option<Mode>,
    pub user: Option<Owner>,
    pub group: Option<Owner>,
    pub argument: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("it has no path")]
    NoPath,
    #[error("there is no type `{0}`")]
    Type(String),
    #[error("`{0}` is not an absolute path without `..`")]
    Path(String),
    #[error("`{0}` is not a mode")]
    Mode(String),
    #[error(transparent)]
    Words(#[from] words::Error),
    #[error(transparent)]
    Specifier(#[from] specifier::Error),
    /// `^`: nothing passes credentials here, and such a line does nothing without its own.
    #[error("it asks for a credential")]
    Credential,
}

/// How specifiers are looked up.
pub(super) type Lookup<'a> = &'a dyn Fn(char) -> Result<String, specifier::Error>;

/// Reads one line; `None` for empty ones and comments.
pub(super) fn parse(line: &str, lookup: Lookup<'_>) -> Result<Option<Line>, Error> {
    let trimmed = line.trim();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return Ok(None);
    }
    let mut words = Words::new(trimmed);
    let word = words.next_word()?.unwrap_or_default();
    let mut parsed = typed(&word)?;
    let path = words.next_word()?.ok_or(Error::NoPath)?;
    parsed.path = clean_path(&specifier::expand(&path, lookup)?)?;
    let mut field = || Ok::<_, Error>(words.next_word()?.filter(|word| !word.is_empty() && word != "-"));
    parsed.mode = field()?.map(|word| mode(&word)).transpose()?;
    parsed.user = field()?.map(|word| owner(&word));
    parsed.group = field()?.map(|word| owner(&word));
    field()?; // the age: old files are not cleaned away here
    parsed.argument = argument(words.rest(), &parsed, lookup)?;
    Ok(Some(parsed))
}

/// The first field: a letter and its modifiers.
fn typed(word: &str) -> Result<Line, Error> {
    let unknown = || Error::Type(word.to_owned());
    let mut chars = word.chars();
    let letter = chars.next().ok_or_else(unknown)?;
    let modifiers = chars.as_str();
    if !modifiers.chars().all(|modifier| "+!-=~^$".contains(modifier)) {
        return Err(unknown());
    }
    if modifiers.contains('^') {
        return Err(Error::Credential);
    }
    let plus = modifiers.contains('+');
    let kind = match letter {
        // `$` marks what a purge takes away; at boot it is a line like any other.
        _ if modifiers.contains('~') => Kind::Other(letter),
        'f' => Kind::File { truncate: plus },
        'F' => Kind::File { truncate: true },
        'w' => Kind::Write { append: plus },
        'd' | 'v' | 'q' | 'Q' => Kind::Dir { empty: false },
        'D' => Kind::Dir { empty: true },
        'e' => Kind::AdjustDir,
        'p' => Kind::Fifo { replace: plus },
        'L' => Kind::Link { replace: plus },
        'r' => Kind::Remove { recursive: false },
        'R' => Kind::Remove { recursive: true },
        'z' | 'm' => Kind::Adjust { recursive: false },
        'Z' => Kind::Adjust { recursive: true },
        'x' | 'X' => Kind::Ignore,
        'c' | 'b' | 'C' | 't' | 'T' | 'h' | 'H' | 'a' | 'A' => Kind::Other(letter),
        _ => return Err(unknown()),
    };
    Ok(Line {
        letter,
        kind,
        boot: modifiers.contains('!'),
        may_fail: modifiers.contains('-'),
        replace_type: modifiers.contains('='),
        path: String::new(),
        mode: None,
        user: None,
        group: None,
        argument: None,
    })
}

/// One slash between names, none at the end, no `.`; `..` is refused.
fn clean_path(path: &str) -> Result<String, Error> {
    let names = || path.split('/').filter(|name| !name.is_empty() && *name != ".");
    if !path.starts_with('/') || names().any(|name| name == "..") {
        return Err(Error::Path(path.to_owned()));
    }
    let mut clean = String::new();
    for name in names() {
        clean.push('/');
        clean.push_str(name);
    }
    Ok(if clean.is_empty() { "/".to_owned() } else { clean })
}

fn mode(word: &str) -> Result<Mode, Error> {
    let digits = word.trim_start_matches([':', '~']);
    let prefixes = &word[..word.len() - digits.len()];
    let bits = u32::from_str_radix(digits, 8).ok().filter(|bits| *bits <= 0o7777);
    let bits = bits.ok_or_else(|| Error::Mode(word.to_owned()))?;
    Ok(Mode { bits, masked: prefixes.contains('~'), only_new: prefixes.contains(':') })
}

fn owner(word: &str) -> Owner {
    let name = word.strip_prefix(':').unwrap_or(word);
    Owner { name: name.to_owned(), only_new: name.len() < word.len() }
}

fn argument(rest: &str, line: &Line, lookup: Lookup<'_>) -> Result<Option<String>, Error> {
    let used =
        matches!(line.kind, Kind::File { .. } | Kind::Write { .. } | Kind::Link { .. } | Kind::Other(_));
    if !used || rest.is_empty() || rest == "-" {
        return Ok(None);
    }
    Ok(Some(specifier::expand(&words::unescape(rest)?, lookup)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, Error> {
        parse(text, &specifier::fixed).map(|line| line.expect("a line"))
    }

    #[test]
    fn the_forms_that_debian_ships_are_understood() {
        let tmp = line("D /tmp 1777 root root -").unwrap();
        assert_eq!((tmp.kind, tmp.path.as_str()), (Kind::Dir { empty: true }, "/tmp"));
        assert_eq!(tmp.mode, Some(Mode { bits: 0o1777, masked: false, only_new: false }));
        assert_eq!(tmp.user.unwrap().name, "root");
        let lock = line("L /var/lock - - - - ../run/lock").unwrap();
        assert_eq!(
            (lock.kind, lock.argument.as_deref()),
            (Kind::Link { replace: false }, Some("../run/lock"))
        );
        let x11 = line("r! /tmp/.X[0-9]*-lock").unwrap();
        assert!(x11.boot && x11.kind.globs());
        let root = line("d- /root :0700 root :root -").unwrap();
        assert!(root.may_fail && root.mode.unwrap().only_new && root.group.unwrap().only_new);
        assert!(!root.user.unwrap().only_new);
        assert_eq!(line("Z %t/log ~2750 root adm").unwrap().mode.unwrap().bits, 0o2750);
    }

    /// Debian 13 marks folders of systemd's so: left undone, each boot ended with a failed `tmpfiles` and eight lines of it.
    #[test]
    fn what_a_purge_would_take_is_made_at_boot_all_the_same() {
        assert_eq!(line("d$ /run/systemd/seats 0755 root root -").unwrap().kind, Kind::Dir { empty: false });
        assert_eq!(line("L$ /var/log/README - - - - ../x").unwrap().kind, Kind::Link { replace: false });
        assert_eq!(line("f~ /run/x - - - - eAo=").unwrap().kind, Kind::Other('f'));
    }

    #[test]
    fn comments_and_empty_lines_are_none() {
        for text in ["", "  ", "# d /run/x", "\t# x"] {
            assert_eq!(parse(text, &specifier::fixed), Ok(None));
        }
    }

    #[test]
    fn the_argument_is_the_rest_of_the_line_with_its_escapes() {
        let file = line(r#"f "/run/a b" 0644 - - - two  words\n100%%"#).unwrap();
        assert_eq!((file.path.as_str(), file.argument.as_deref()), ("/run/a b", Some("two  words\n100%")));
        assert_eq!(line("d /run/x - - - - ignored").unwrap().argument, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(line("k /run/x"), Err(Error::Type("k".into())));
        assert_eq!(line("d? /run/x"), Err(Error::Type("d?".into())));
        assert_eq!(line("d"), Err(Error::NoPath));
        assert_eq!(line("d run/x"), Err(Error::Path("run/x".into())));
        assert_eq!(line("d /run/../etc"), Err(Error::Path("/run/../etc".into())));
        assert_eq!(line("d /run/x 0999"), Err(Error::Mode("0999".into())));
        assert_eq!(line("d /run/%q"), Err(Error::Specifier(specifier::Error::Unknown('q'))));
        assert_eq!(line("f^ /etc/motd - - - - login.motd"), Err(Error::Credential));
    }

    #[test]
    fn a_path_is_cleaned() {
        assert_eq!(line("d //run/./x//").unwrap().path, "/run/x");
        assert_eq!(line("d /").unwrap().path, "/");
    }
}

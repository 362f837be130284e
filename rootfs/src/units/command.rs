//! Commands of units (systemd.service(5), "Command lines"): prefixes, words, specifiers.

use guest::{
    specifier::{self, Error as SpecifierError},
    words,
};

use crate::{ext4::Error, keep::files::Files};

/// One `ExecStart=` or `ExecStartPre=`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Exec {
    /// `-`
    pub(super) may_fail: bool,
    /// `+`
    pub(super) as_root: bool,
    /// `@`
    pub(super) name: Option<String>,
    /// The program by its whole path, and its arguments; variables are still in them.
    pub(super) words: Vec<String>,
}

impl Exec {
    pub(super) fn uses_variables(&self) -> bool {
        self.words.iter().skip(1).any(|word| word.contains('$'))
    }

    /// As `init launch --before` takes it.
    pub(super) fn as_before(&self) -> String {
        let prefixes = [("-", self.may_fail), ("+", self.as_root), ("@", self.name.is_some())];
        let prefix: String = prefixes.iter().filter(|(_, set)| *set).map(|(prefix, _)| *prefix).collect();
        let (program, arguments) = self.words.split_at(self.words.len().min(1));
        let words = program.iter().chain(&self.name).chain(arguments);
        let quoted: Vec<String> = words.map(|word| quote(word)).collect();
        prefix + &quoted.join(" ")
    }
}

fn quote(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_./:=@%+,${}".contains(char);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!(
        "\"{}\"",
        word.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t")
    )
}

/// Where programs without a path are looked for.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Reads a command; the inner error is why it cannot be turned.
pub(super) fn parse(files: &impl Files, unit: &str, value: &str) -> Result<Result<Exec, String>, Error> {
    let mut exec = Exec::default();
    let mut named = false;
    let mut rest = value;
    while let Some(prefix) = rest.chars().next().filter(|char| "-@:+!|".contains(*char)) {
        match prefix {
            '-' => exec.may_fail = true,
            '+' => exec.as_root = true,
            '@' => named = true,
            other => return Ok(Err(format!("the prefix `{other}` has no counterpart"))),
        }
        rest = &rest[1..];
    }
    let split = match words::split(rest) {
        Ok(words) => words,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if split.iter().any(|word| word == ";") {
        return Ok(Err("several commands in one line".into()));
    }
    let expanded: Result<Vec<String>, SpecifierError> = split.iter().map(|word| expand(unit, word)).collect();
    exec.words = match expanded {
        Ok(words) if !words.is_empty() => words,
        Ok(_) => return Ok(Err("it is empty".into())),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let Some(program) = resolve(files, &exec.words[0])? else {
        return Ok(Err(format!("there is no program {} in the image", exec.words[0])));
    };
    exec.words[0] = program;
    if named {
        if exec.words.len() < 2 {
            return Ok(Err("`@` without a name".into()));
        }
        exec.name = Some(exec.words.remove(1));
    }
    Ok(Ok(exec))
}

fn resolve(files: &impl Files, program: &str) -> Result<Option<String>, Error> {
    if program.starts_with('/') {
        return Ok(files.exists(program)?.then(|| program.to_owned()));
    }
    for folder in FOLDERS {
        let path = format!("{folder}/{program}");
        if files.exists(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Specifiers that are known when an image is baked.
pub(super) fn expand(unit: &str, text: &str) -> Result<String, SpecifierError> {
    let stem = unit.rsplit_once('.').map_or(unit, |(stem, _)| stem);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    specifier::expand(text, &|name| match name {
        'n' => Ok(unit.to_owned()),
        'N' => Ok(stem.to_owned()),
        'p' => Ok(prefix.to_owned()),
        'P' => Ok(unescape(prefix)),
        'i' => Ok(instance.to_owned()),
        'I' => Ok(unescape(instance)),
        'j' => Ok(prefix.rsplit('-').next().unwrap_or_default().to_owned()),
        other => specifier::fixed(other),
    })
}

/// A unit name's escapes (systemd.unit(5)): `-` for `/`, `\x2d` for a byte.
fn unescape(text: &str) -> String {
    let slashes = text.replace('-', "/");
    let mut plain = String::new();
    let mut rest = slashes.as_str();
    while let Some(at) = rest.find("\\x") {
        plain.push_str(&rest[..at]);
        let digits = rest.get(at + 2..at + 4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match digits {
            Some(byte) if byte.is_ascii() => plain.push(char::from(byte)),
            _ => plain.push_str(rest.get(at..at + 4).unwrap_or_default()),
        }
        rest = rest.get(at + 4..).unwrap_or_default();
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifiers_of_an_instance_are_those_of_the_manual() {
        let unit = "postgresql@15-main.service";
        assert_eq!(
            expand(unit, "%i %I %n %N %p %t %%").unwrap(),
            format!("15-main 15/main {unit} postgresql@15-main postgresql /run %")
        );
        assert_eq!(expand("a-b.service", "%j"), Ok("b".into()));
        assert_eq!(expand("x@a\\x2db.service", "%I"), Ok("a-b".into()));
        assert!(expand(unit, "%H").is_err(), "a host name is known when the machine runs");
    }

    #[test]
    fn a_command_before_keeps_its_words() {
        let words = ["/bin/sh", "-c", "a \"b\" $X"].map(str::to_owned).to_vec();
        let exec = Exec { may_fail: true, as_root: true, words: words.clone(), ..Exec::default() };
        assert_eq!(exec.as_before(), "-+/bin/sh -c \"a \\\"b\\\" $X\"");
        assert_eq!(words::split(exec.as_before().trim_start_matches(['-', '+'])).unwrap(), words);
        let named = Exec { name: Some("other".into()), words, ..Exec::default() };
        assert_eq!(named.as_before(), "@/bin/sh other -c \"a \\\"b\\\" $X\"", "it lost its name");
    }
}

//! Files of variables (systemd.exec(5), `EnvironmentFile=`), and variables in a command (systemd.service(5), "Command lines").

use std::collections::BTreeMap;

use crate::words;

pub(super) type Environment = BTreeMap<String, String>;

/// The assignments of a file. Lines that are none are passed over, as are comments with `#` and `;`.
pub(super) fn parse(text: &str) -> Vec<(String, String)> {
    let mut assignments = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let line = rest.trim_start();
        if line.starts_with(['#', ';']) || line.is_empty() {
            rest = line.split_once('\n').map_or("", |(_, rest)| rest);
            continue;
        }
        let end = line.find(['=', '\n']).unwrap_or(line.len());
        if line[end..].starts_with('=') {
            let (value, after) = value(&line[end + 1..]);
            let name = line[..end].trim();
            if is_name(name) {
                assignments.push((name.to_owned(), value));
            }
            rest = after;
        } else {
            rest = line.split_once('\n').map_or("", |(_, rest)| rest);
        }
    }
    assignments
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|char: char| char.is_ascii_digit())
        && name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')
}

/// A value and the text behind its line. Quotes of both kinds may span lines; within single ones nothing is special.
fn value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut blanks = String::new();
    let mut quote: Option<char> = None;
    // Quotes count at the beginning and behind other quotes; within plain text they are text.
    let mut plain = false;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (None, '\n') => break,
            (Some(open), _) if char == open => quote = None,
            (None, '"' | '\'') if !plain => {
                value.push_str(&std::mem::take(&mut blanks));
                quote = Some(char);
            }
            (None | Some('"'), '\\') => {
                value.push_str(&std::mem::take(&mut blanks));
                match chars.next() {
                    Some('\n') | None => (),
                    Some(plain) if quote.is_none() || "\"\\`$".contains(plain) => value.push(plain),
                    Some(other) => value.extend(['\\', other]),
                }
            }
            // Blanks at the end do not count, those in the middle do.
            (None, ' ' | '\t' | '\r') if value.is_empty() => (),
            (None, ' ' | '\t' | '\r') => blanks.push(char),
            _ => {
                plain |= quote.is_none();
                value.push_str(&std::mem::take(&mut blanks));
                value.push(char);
            }
        }
    }
    (value, chars.as_str())
}

/// `$NAME` as a word of its own becomes as many words as its value has; `${NAME}` anywhere becomes the value as it is; `$$`
/// is a dollar sign. A variable that is not set is empty.
pub(super) fn expand(arguments: &[String], environment: &Environment) -> Vec<String> {
    let mut expanded = Vec::new();
    for argument in arguments {
        match argument.strip_prefix('$').filter(|name| is_name(name)) {
            Some(name) => {
                let value = environment.get(name).map(String::as_str).unwrap_or_default();
                let split = words::split(value);
                expanded
                    .extend(split.unwrap_or_else(|_| value.split_whitespace().map(str::to_owned).collect()));
            }
            None => expanded.push(braces(argument, environment)),
        }
    }
    expanded
}

fn braces(argument: &str, environment: &Environment) -> String {
    let mut plain = String::new();
    let mut rest = argument;
    while let Some(at) = rest.find('$') {
        plain.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let name = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        match (after.strip_prefix('$'), name) {
            (Some(behind), _) => {
                plain.push('$');
                rest = behind;
            }
            (None, Some((name, behind))) if is_name(name) => {
                plain.push_str(environment.get(name).map(String::as_str).unwrap_or_default());
                rest = behind;
            }
            _ => {
                plain.push('$');
                rest = after;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_as_the_manual_says() {
        let text = "# c\n; c\nA=plain \n B = \"two words\"  \nC='a\\b $x'\nD=\"x\\\"y\\n\"\nno assignment\n2=x\nE=a\\\nb\nF=\"l1\nl2\"\nG=\nH=a  b\nI='x'y\"z\"\n";
        let expected = [
            ("A", "plain"),
            ("B", "two words"),
            ("C", "a\\b $x"),
            ("D", "x\"y\\n"),
            ("E", "ab"),
            ("F", "l1\nl2"),
            ("G", ""),
            ("H", "a  b"),
            ("I", "xy\"z\""),
        ];
        assert_eq!(parse(text), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn variables_become_words_or_text() {
        let environment = parse("OPTS=-a 'b c'\nDIR=/x y\nNONE=").into_iter().collect();
        let arguments =
            ["$OPTS", "--dir=${DIR}", "$NONE", "${NONE}", "$UNSET", "a$OPTS", "$$HOME", "${open", "$"];
        let expanded = expand(&arguments.map(str::to_owned), &environment);
        assert_eq!(expanded, ["-a", "b c", "--dir=/x y", "", "a$OPTS", "$HOME", "${open", "$"]);
        let quoted = [("OPTS".to_owned(), "-a 'b c'".to_owned())].into();
        assert_eq!(expand(&["$OPTS".to_owned()], &quoted), ["-a", "b c"]);
    }
}

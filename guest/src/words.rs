//! Words of a line as systemd's formats split them: at blanks, with quotes of both kinds and C-style escapes.

/// Why a line cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("a backslash is followed by nothing that is an escape")]
    Escape,
}

/// Reads words off the front of a line.
#[derive(Debug, Clone)]
pub struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    pub fn new(line: &'a str) -> Self {
        Self { rest: line }
    }

    /// What was not read yet, without the blanks before it.
    pub fn rest(&self) -> &'a str {
        self.rest.trim_start()
    }

    /// The next word; `None` at the end of the line.
    pub fn next_word(&mut self) -> Result<Option<String>, Error> {
        let mut word: Option<String> = None;
        let mut quote: Option<char> = None;
        let mut chars = self.rest().chars();
        loop {
            let before = chars.as_str();
            match (quote, chars.next()) {
                (Some(_), None) => return Err(Error::OpenQuote),
                (None, None) => break,
                (None, Some(char)) if char.is_whitespace() => {
                    chars = before.chars();
                    break;
                }
                (_, Some('\\')) => word.get_or_insert_default().push(escape(&mut chars)?),
                (Some(open), Some(char)) if char == open => quote = None,
                (None, Some(open @ ('"' | '\''))) => {
                    quote = Some(open);
                    word.get_or_insert_default();
                }
                (_, Some(char)) => word.get_or_insert_default().push(char),
            }
        }
        self.rest = chars.as_str();
        Ok(word)
    }
}

/// All words of a line.
pub fn split(line: &str) -> Result<Vec<String>, Error> {
    let mut words = Words::new(line);
    let mut all = Vec::new();
    while let Some(word) = words.next_word()? {
        all.push(word);
    }
    Ok(all)
}

/// Replaces the escapes of a text that is not split.
pub fn unescape(text: &str) -> Result<String, Error> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        plain.push(if char == '\\' { escape(&mut chars)? } else { char });
    }
    Ok(plain)
}

/// What stands for a backslash and the characters after it.
fn escape(chars: &mut std::str::Chars<'_>) -> Result<char, Error> {
    let char = match chars.next().ok_or(Error::Escape)? {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        's' => ' ',
        same @ ('\\' | '"' | '\'') => same,
        // A byte beyond ASCII would be part of a character only; nothing that is read here holds any.
        'x' => Some(digits(chars, 2, 16, None)?).filter(char::is_ascii).ok_or(Error::Escape)?,
        'u' => digits(chars, 4, 16, None)?,
        'U' => digits(chars, 8, 16, None)?,
        octal @ '0'..='1' => digits(chars, 2, 8, Some(octal))?,
        _ => return Err(Error::Escape),
    };
    if char == '\0' { Err(Error::Escape) } else { Ok(char) }
}

fn digits(
    chars: &mut std::str::Chars<'_>,
    count: usize,
    radix: u32,
    first: Option<char>,
) -> Result<char, Error> {
    let digits: String = first.into_iter().chain(chars.by_ref().take(count)).collect();
    let complete = digits.chars().count() == count + usize::from(first.is_some());
    let value = u32::from_str_radix(&digits, radix).ok().filter(|_| complete).ok_or(Error::Escape)?;
    char::from_u32(value).ok_or(Error::Escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_escapes_make_words() {
        assert_eq!(split(r#"a "b c" d'e f'g \x41\040B """#).unwrap(), ["a", "b c", "de fg", "A B", ""]);
        assert_eq!(split("  \t ").unwrap(), Vec::<String>::new());
        assert_eq!(split("\"open"), Err(Error::OpenQuote));
        assert_eq!(split(r"\q"), Err(Error::Escape));
        assert_eq!(split(r"\x4"), Err(Error::Escape));
        assert_eq!(split("end\\"), Err(Error::Escape));
    }

    #[test]
    fn the_rest_of_a_line_stays_as_it_is() {
        let mut words = Words::new("f /x   \"two words\" and more ");
        assert_eq!(words.next_word().unwrap().unwrap(), "f");
        assert_eq!(words.next_word().unwrap().unwrap(), "/x");
        assert_eq!(words.rest(), "\"two words\" and more ");
    }
}

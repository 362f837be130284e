//! Turns the command of a unit's `ExecStart=` into one that runs the wrapper instead of envd.

/// The wrapper, as a unit calls it.
pub(super) const WRAPPER: &str = "/usr/lib/envd-init/envd-wrapper";
/// Where the wrapper looks by itself.
const FOUND_ALONE: [&str; 4] =
    ["/usr/bin/envd", "/usr/local/bin/envd", "/usr/bin/envd.real", "/usr/local/bin/envd.real"];
/// With one of these in it, a shell's script is more than one command.
const SHELL_SYNTAX: &[char] = &[';', '|', '&', '<', '>', '(', ')', '`', '\n'];

/// The command with the wrapper in envd's place; `None` when envd cannot be told in it.
pub(super) fn wrap(command: &str) -> Option<String> {
    let command = command.trim_start_matches(['@', '-', ':', '+', '!', '|']);
    let words = split(command)?;
    let (program, arguments) = words.split_first()?;
    if is_envd(program) {
        return Some(wrapped(program, arguments));
    }
    if is_shell(program) {
        return wrap_shell(program, arguments);
    }
    None
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn is_envd(path: &str) -> bool {
    path.starts_with('/') && matches!(base(path), "envd" | "envd.real")
}

fn is_shell(path: &str) -> bool {
    matches!(base(path), "sh" | "bash" | "dash" | "ash")
}

fn wrapped(program: &str, arguments: &[String]) -> String {
    let mut words = vec![WRAPPER.to_owned()];
    if !FOUND_ALONE.contains(&program) {
        words.extend(["--program".to_owned(), program.to_owned()]);
    }
    if !arguments.is_empty() {
        words.push("--".to_owned());
        words.extend_from_slice(arguments);
    }
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// `bash -l -c "/usr/bin/envd"`: the login shell stays, because of what it reads for envd's environment.
fn wrap_shell(shell: &str, arguments: &[String]) -> Option<String> {
    let (script, flags) = arguments.split_last()?;
    let takes_script = flags.last().is_some_and(|flag| flag.starts_with('-') && flag.ends_with('c'));
    if !takes_script || script.contains(SHELL_SYNTAX) || flags.iter().any(|flag| !flag.starts_with('-')) {
        return None;
    }
    let words = split(script.trim().trim_start_matches("exec "))?;
    let (program, rest) = words.split_first()?;
    if !is_envd(program) {
        return None;
    }
    let script = format!("exec {}", wrapped(program, rest));
    let words: Vec<String> = std::iter::once(shell)
        .chain(flags.iter().map(String::as_str))
        .chain([script.as_str()])
        .map(quote)
        .collect();
    Some(words.join(" "))
}

/// Words as systemd splits them: blanks, and quotes of both kinds around whole words or parts.
fn split(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = command.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (_, '\\') => word.get_or_insert_default().push(chars.next()?),
            (Some(open), _) if char == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(char),
            (None, '"' | '\'') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None, _) if char.is_whitespace() => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

fn quote(word: &str) -> String {
    if !word.is_empty() && !word.contains([' ', '\t', '"', '\'', '\\', ';']) {
        return word.to_owned();
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platforms_forms_become_the_wrapper() {
        assert_eq!(wrap("/usr/bin/envd").unwrap(), WRAPPER);
        assert_eq!(wrap("-/usr/local/bin/envd").unwrap(), WRAPPER);
        let login = wrap("/bin/bash -l -c \"/usr/bin/envd\"").unwrap();
        assert_eq!(login, format!("/bin/bash -l -c \"exec {WRAPPER}\""));
    }

    #[test]
    fn another_program_and_its_arguments_go_through() {
        let command = wrap("/opt/e2b/envd -verbose \"-name=a b\" $EXTRA").unwrap();
        assert_eq!(command, format!("{WRAPPER} --program /opt/e2b/envd -- -verbose \"-name=a b\" $EXTRA"));
        let shell = wrap("/bin/sh -c 'exec /usr/bin/envd -port 5'").unwrap();
        assert_eq!(shell, format!("/bin/sh -c \"exec {WRAPPER} -- -port 5\""));
    }

    #[test]
    fn a_command_in_which_envd_cannot_be_told_is_not_guessed() {
        for command in [
            "/usr/local/bin/start-envd.sh",
            "/bin/bash -c \"sleep 1; /usr/bin/envd\"",
            "/bin/bash -c \"/usr/bin/envd | logger\"",
            "/bin/bash /opt/run.sh",
            "/usr/bin/env FOO=1 /usr/bin/envd",
            "/usr/bin/envd \"unclosed",
            "",
        ] {
            assert_eq!(wrap(command), None, "{command}");
        }
    }
}

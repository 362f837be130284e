//! Shell patterns in names and paths: `*`, `?` and `[…]` within one name, as glob(7) says.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Whether a path holds any pattern at all.
pub fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// Existing paths that a pattern matches, sorted. Links in the middle are followed, the last name never.
pub fn matches(root: &Path, pattern: &str) -> Vec<String> {
    let mut paths = vec![String::new()];
    for name in pattern.split('/').filter(|name| !name.is_empty()) {
        let literal = !is_pattern(name);
        paths = paths
            .iter()
            .flat_map(
                |base| if literal { vec![format!("{base}/{name}")] } else { matching(root, base, name) },
            )
            .collect();
    }
    paths.retain(|path| !path.is_empty() && inside(root, path).symlink_metadata().is_ok());
    paths
}

/// An absolute path as seen from the root.
fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn matching(root: &Path, base: &str, pattern: &str) -> Vec<String> {
    let entries = fs::read_dir(inside(root, base)).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name_matches(pattern, name))
        .map(|name| format!("{base}/{name}"))
        .collect();
    found.sort();
    found
}

/// A dot at the beginning is matched by a dot only.
pub fn name_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    (name.first() != Some(&'.') || pattern.first() == Some(&'.')) && wild(&pattern, &name)
}

/// Linear in practice: of all stars only the last one that was met is ever tried again.
fn wild(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut place) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while place < name.len() {
        match step(&pattern[at..], name[place]) {
            Step::Star => {
                at += 1;
                star = Some((at, place));
            }
            Step::Taken(len) => {
                at += len;
                place += 1;
            }
            Step::Differs => {
                let Some((after, begin)) = star else { return false };
                star = Some((after, begin + 1));
                (at, place) = (after, begin + 1);
            }
        }
    }
    pattern[at..].iter().all(|char| *char == '*')
}

enum Step {
    Star,
    /// One character was matched by so many of the pattern.
    Taken(usize),
    Differs,
}

fn step(pattern: &[char], char: char) -> Step {
    match pattern {
        ['*', ..] => Step::Star,
        ['?', ..] => Step::Taken(1),
        ['[', rest @ ..] => match set(rest, char) {
            Some((true, len)) => Step::Taken(len + 1),
            None if char == '[' => Step::Taken(1),
            Some((false, _)) | None => Step::Differs,
        },
        [same, ..] if *same == char => Step::Taken(1),
        _ => Step::Differs,
    }
}

/// Whether a bracket's set holds `char`, and how long it is with its end; `None` when it has no end.
fn set(pattern: &[char], char: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some('!' | '^'));
    let begin = usize::from(negated);
    let end = begin + 1 + pattern.get(begin + 1..)?.iter().position(|char| *char == ']')?;
    let members = &pattern[begin..end];
    let mut at = 0;
    let mut held = false;
    while at < members.len() {
        if let [low, '-', high, ..] = members[at..] {
            held |= (low..=high).contains(&char);
            at += 3;
        } else {
            held |= members[at] == char;
            at += 1;
        }
    }
    Some((held != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            (".X[0-9]*-lock", ".X11-lock", true),
            (".X[0-9]*-lock", ".Xa-lock", false),
            ("*", ".hidden", false),
            (".*", ".hidden", true),
            ("a*b*c", "aXbbYc", true),
            ("a*b*c", "aXbbY", false),
            ("[!a]?", "ba", true),
            ("[!a]?", "aa", false),
            ("[]x]", "]", true),
            ("[open", "[open", true),
            ("a[-z]", "a-", true),
            ("", "", true),
        ] {
            assert_eq!(name_matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_hostile_pattern_costs_no_more_than_its_length() {
        let pattern = "*a".repeat(60);
        assert!(!name_matches(&pattern, &"a".repeat(59)));
        assert!(name_matches(&pattern, &"a".repeat(200)));
    }

    #[test]
    fn existing_paths_are_found_in_order() {
        assert!(
            matches(Path::new("/"), "/proc/self/stat*")
                .starts_with(&["/proc/self/stat".into(), "/proc/self/statm".into()])
        );
        assert_eq!(matches(Path::new("/"), "/proc/self/none*"), Vec::<String>::new());
        assert_eq!(matches(Path::new("/"), "/proc"), ["/proc"]);
    }
}

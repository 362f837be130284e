//! Which lines count, and in which order they are done.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    Problem,
    line::{self, Line, Lookup},
};
use crate::specifier;

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub file: PathBuf,
    pub number: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub origin: Origin,
    pub line: Line,
}

/// Reads files, the one that wins first, and sorts their lines for creation: paths before patterns, folders before
/// what is in them, otherwise as they are listed.
pub(super) fn read(files: &[PathBuf], boot: bool, lookup: Lookup<'_>) -> (Vec<Entry>, Vec<Problem>) {
    let mut reader =
        Reader { boot, lookup, entries: Vec::new(), owned: HashMap::new(), problems: Vec::new() };
    for file in files {
        reader.file(file);
    }
    (sorted(reader.entries), reader.problems)
}

struct Reader<'a> {
    boot: bool,
    lookup: Lookup<'a>,
    entries: Vec<Entry>,
    /// Paths that a line has already said what they are.
    owned: HashMap<String, usize>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn file(&mut self, file: &Path) {
        let origin = |number| Origin { file: file.to_owned(), number };
        let text = match fs::read(file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                return self.problems.push(Problem {
                    origin: origin(0),
                    text: format!("cannot be read: {error}"),
                    harmless: false,
                });
            }
        };
        for (index, text) in text.lines().enumerate() {
            match line::parse(text, self.lookup) {
                Ok(Some(line)) => self.line(Entry { origin: origin(index + 1), line }),
                // Without the thing that the path is named for there is nothing at the path.
                Ok(None)
                | Err(line::Error::Credential | line::Error::Specifier(specifier::Error::Unset(_))) => (),
                Err(error) => {
                    self.problems.push(Problem {
                        origin: origin(index + 1),
                        text: format!("not understood: {error}"),
                        harmless: false,
                    });
                }
            }
        }
    }

    /// A line that only counts at boot stands in nobody's way at other times.
    fn line(&mut self, entry: Entry) {
        if entry.line.boot && !self.boot {
            return;
        }
        if entry.line.kind.owns() {
            if let Some(index) = self.owned.get(&entry.line.path) {
                self.conflict(&entry, *index);
                return;
            }
            self.owned.insert(entry.line.path.clone(), self.entries.len());
        }
        self.entries.push(entry);
    }

    fn conflict(&mut self, entry: &Entry, first: usize) {
        let first = &self.entries[first];
        if first.line == entry.line {
            return;
        }
        let Origin { file, number } = &first.origin;
        let text =
            format!("passed over: {}:{number} has already said what {} is", file.display(), entry.line.path);
        self.problems.push(Problem { origin: entry.origin.clone(), text, harmless: true });
    }
}

/// Stable: each path goes right before the first one below it that was listed earlier.
fn sorted(entries: Vec<Entry>) -> Vec<Entry> {
    let (patterns, paths): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.line.kind.globs());
    let mut ordered: Vec<Entry> = Vec::with_capacity(paths.len() + patterns.len());
    for entry in paths {
        let inside = |other: &Entry| {
            super::is_below(&entry.line.path, &other.line.path) && other.line.path != entry.line.path
        };
        let inside = |other: &Entry| entry.line.path == "/" || inside(other);
        let place = ordered.iter().position(inside).unwrap_or(ordered.len());
        ordered.insert(place, entry);
    }
    ordered.extend(patterns);
    ordered
}

/// The order for removal: what is in a folder before the folder.
pub(super) fn for_removal(entries: &[Entry]) -> Vec<&Entry> {
    let (patterns, paths): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.line.kind.globs());
    paths.into_iter().rev().chain(patterns).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(name: &str, files: &[(&str, &str)]) -> (PathBuf, Vec<PathBuf>) {
        let folder = std::env::temp_dir().join(format!("order-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let paths = files.iter().map(|(name, _)| folder.join(name)).collect::<Vec<_>>();
        for (path, (_, text)) in paths.iter().zip(files) {
            fs::write(path, text).unwrap();
        }
        (folder, paths)
    }

    fn listed(entries: &[Entry]) -> Vec<String> {
        entries.iter().map(|entry| format!("{} {}", entry.line.letter, entry.line.path)).collect()
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_patterns_last() {
        let text = "d /run/a/b\nz /run/a/*\nd /run/c\nd /run/a\nz /run/c 0700\n";
        let (folder, files) = write("sort", &[("a.conf", text)]);
        let (entries, problems) = read(&files, true, &specifier::fixed);
        assert_eq!(listed(&entries), ["d /run/a", "d /run/a/b", "d /run/c", "z /run/a/*", "z /run/c"]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(for_removal(&entries)[0].line.path, "/run/c");
        fs::remove_dir_all(folder).unwrap();
    }

    /// systemd 260 says in two lines of one file that X's locks are removed at boot and kept later.
    #[test]
    fn what_is_kept_from_being_cleaned_away_contradicts_nothing() {
        let (folder, files) = write("kept", &[("x11.conf", "r! /tmp/.X[0-9]*-lock\nx /tmp/.X[0-9]*-lock\n")]);
        let (entries, problems) = read(&files, true, &specifier::fixed);
        assert_eq!(listed(&entries)[0], "r /tmp/.X[0-9]*-lock");
        assert!(problems.is_empty(), "{problems:?}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_first_line_for_a_path_counts_and_others_are_said_unless_they_are_the_same() {
        let first = "d /run/lock 1777\nd! /run/x 0700\nbogus\n";
        let second = "d /run/lock 0755\nd /run/lock 1777\nd /run/x 0755\nz /run/lock 0700\n";
        let (folder, files) = write("twice", &[("a.conf", first), ("b.conf", second)]);
        let (entries, problems) = read(&files, true, &specifier::fixed);
        assert_eq!(listed(&entries), ["d /run/lock", "d /run/x", "z /run/lock"]);
        let said: Vec<_> =
            problems.iter().map(|problem| (problem.origin.number, problem.text.as_str())).collect();
        assert_eq!(said[0], (3, "not understood: there is no type `bogus`"));
        assert!(
            said[1].0 == 1 && said[1].1.contains("a.conf:1 has already said what /run/lock is"),
            "{said:?}"
        );
        assert_eq!(said.len(), 3);
        // Debian 13 does so itself (/run/lock): it is said, and the boot's `tmpfiles` has not failed for it.
        assert_eq!(problems.iter().map(|problem| problem.harmless).collect::<Vec<_>>(), [false, true, true]);
        let (later, _) = read(&files, false, &specifier::fixed);
        assert_eq!(later[1].line.mode.unwrap().bits, 0o755, "a line for boot alone is out of the way later");
        fs::remove_dir_all(folder).unwrap();
    }
}

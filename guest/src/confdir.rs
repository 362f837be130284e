//! Which files of a set of `NAME.d` folders count: the rule that tmpfiles.d(5) and sysusers.d(5) share.
//!
//! Of files with one name the folder that comes first wins, so a link to /dev/null in /etc turns a package's file off; all that
//! are left are taken in the order of their names, whatever folder they lie in.

use std::{collections::BTreeMap, ffi::OsString, fs, path::PathBuf};

/// Folders of `name`, for example `tmpfiles.d`, the one that wins first. /usr/local is left out on purpose: the
/// platform makes it writable to everybody, and what is read here is done as root.
pub fn folders(name: &str) -> Vec<PathBuf> {
    ["/etc", "/run", "/usr/lib"].iter().map(|base| PathBuf::from(base).join(name)).collect()
}

/// The `*.conf` files that count, in order.
pub fn files(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for folder in folders {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "conf") {
                found.entry(entry.file_name()).or_insert(path);
            }
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_wins_and_order_is_by_name_alone() {
        let base = std::env::temp_dir().join(format!("confdir-{}", std::process::id()));
        let folders = ["etc", "run", "usr"].map(|name| base.join(name));
        for folder in &folders {
            fs::create_dir_all(folder).unwrap();
        }
        for (folder, name) in
            [(2, "b.conf"), (2, "a.conf"), (2, "c.conf"), (0, "c.conf"), (1, "z.conf"), (0, "a.txt")]
        {
            fs::write(folders[folder].join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/dev/null", folders[0].join("b.conf")).unwrap();
        let expected = [(2, "a.conf"), (0, "b.conf"), (0, "c.conf"), (1, "z.conf")];
        assert_eq!(files(&folders), expected.map(|(folder, name)| folders[folder].join(name)));
        fs::remove_dir_all(&base).unwrap();
    }
}

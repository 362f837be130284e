//! Keeps package upgrades inside a guest from putting systemd back: local diversions in dpkg's own file.
//!
//! `/var/lib/dpkg/diversions` holds three lines for each diversion: the path as a package knows it, where its file goes
//! instead, and the package that diverts (`:` for the machine's owner). dpkg compares names, not files, so with a merged /usr
//! both names of a file are diverted; two diversions must not lead to one place. The name that the installed package uses leads to the
//! saved file, so that an upgrade lands there and a revert brings back the upgraded one.

use crate::{ext4::Error, keep::files::Files, manifest::SAVED};

/// dpkg's list of diversions.
pub const PATH: &str = "/var/lib/dpkg/diversions";
/// Packages whose lists tell which name of a file they use.
const PACKAGES: [&str; 4] = ["systemd-sysv", "systemd", "sysvinit-core", "finit-sysv"];
/// Owner of a diversion that no package made.
const LOCAL: &str = ":";

/// The new contents of [`PATH`] that divert each of `paths` (real paths below /usr, or unmerged ones).
pub fn divert(files: &impl Files, old: &str, paths: &[String], merged: bool) -> Result<String, Error> {
    let owned = owned_paths(files)?;
    let mut text = without_ours(old);
    for path in paths {
        let alias = path.strip_prefix("/usr").filter(|_| merged).map(str::to_owned);
        let (first, second) = match alias {
            Some(alias) if owned.contains(&alias) => (alias, Some(path.clone())),
            other => (path.clone(), other),
        };
        for (from, suffix) in [(Some(first), ""), (second, ".usr-is-merged")] {
            let Some(from) = from.filter(|from| !is_diverted(&text, from)) else { continue };
            text.push_str(&format!("{from}\n{SAVED}{path}{suffix}\n{LOCAL}\n"));
        }
    }
    Ok(text)
}

/// The list without our diversions.
pub fn without_ours(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let others = lines.chunks(3).filter(|three| three.get(1).is_none_or(|to| !to.starts_with(SAVED)));
    others.flatten().map(|line| format!("{line}\n")).collect()
}

fn is_diverted(text: &str, path: &str) -> bool {
    text.lines().step_by(3).any(|from| from == path)
}

fn owned_paths(files: &impl Files) -> Result<Vec<String>, Error> {
    let mut owned = Vec::new();
    for package in PACKAGES {
        let list = files.text(&format!("/var/lib/dpkg/info/{package}.list"))?.unwrap_or_default();
        owned.extend(list.lines().map(str::to_owned));
    }
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keep::files::fake::FakeFiles;

    #[test]
    fn both_names_of_a_file_are_diverted_and_the_packages_one_leads_to_the_saved_file() {
        let files =
            FakeFiles::default().file("/var/lib/dpkg/info/systemd-sysv.list", "/.\n/sbin\n/sbin/init\n");
        let text = divert(&files, "/a\n/b\npkg\n", &["/usr/sbin/init".into()], true).unwrap();
        assert_eq!(
            text,
            "/a\n/b\npkg\n/sbin/init\n/usr/lib/envd-init/saved/usr/sbin/init\n:\n\
             /usr/sbin/init\n/usr/lib/envd-init/saved/usr/sbin/init.usr-is-merged\n:\n"
        );
        assert_eq!(without_ours(&text), "/a\n/b\npkg\n");
    }

    #[test]
    fn an_unmerged_image_has_one_name_and_a_foreign_diversion_stays() {
        let old = "/sbin/init\n/sbin/init.theirs\ntheirs\n";
        let paths = ["/sbin/init".to_owned(), "/sbin/halt".to_owned()];
        let text = divert(&FakeFiles::default(), old, &paths, false).unwrap();
        assert_eq!(text, format!("{old}/sbin/halt\n/usr/lib/envd-init/saved/sbin/halt\n:\n"));
    }
}

//! The image's own systemctl, which was kept aside when ours took its place.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where it is kept, and the folder that it was in.
const SAVED: &str = "/usr/lib/envd-init/saved/usr/bin/systemctl";
const FOLDER: &str = "/usr/bin";

/// The program to hand over to. None where a link leads nowhere, or back to us: we would execute ourselves for ever.
pub(super) fn program() -> Option<PathBuf> {
    find(Path::new(SAVED), Path::new(FOLDER), Path::new("/proc/self/exe"))
}

/// A link was moved as it is, and means what it meant in its old folder.
fn find(saved: &Path, folder: &Path, ours: &Path) -> Option<PathBuf> {
    let path = fs::read_link(saved).map_or_else(|_| saved.to_owned(), |target| folder.join(target));
    let real = fs::canonicalize(&path).ok()?;
    (fs::canonicalize(ours).ok().as_ref() != Some(&real)).then_some(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A link to our own program was handed to for ever, and a relative one looked for in the wrong folder.
    #[test]
    fn a_saved_link_is_followed_from_its_old_place_and_never_to_ourselves() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["saved", "bin", "lib"] {
            fs::create_dir(path(name)).unwrap();
        }
        for file in ["init", "lib/systemctl3", "saved/plain"] {
            fs::write(path(file), "").unwrap();
        }
        let find = |name: &str| find(&path("saved").join(name), &path("bin"), &path("init"));
        assert_eq!(find("plain"), Some(path("saved/plain")));
        assert_eq!(find("missing"), None);
        let linked = |name: &str, target: &Path| {
            symlink(target, path("saved").join(name)).unwrap();
            find(name)
        };
        assert_eq!(linked("relative", Path::new("../lib/systemctl3")), Some(path("bin/../lib/systemctl3")));
        assert_eq!(linked("dangling", &path("gone")), None);
        assert_eq!(linked("ours", &path("init")), None);
        symlink(path("init"), path("bin/systemctl")).unwrap();
        assert_eq!(linked("by-way-of-our-link", Path::new("systemctl")), None);
    }
}

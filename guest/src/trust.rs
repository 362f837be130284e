//! Which envd runs as root without being pinned: one rule for the wrapper, which runs it, and the image tool, which pins it.
//!
//! In `/usr/bin`, where only root can put a file, a file is root's doing whoever owns it; where others can write that folder or one on
//! its way the machine is theirs anyway, and envd runs with a word. A link out of it is worth what it leads to. Elsewhere
//! nobody but root may be able to change the program or a folder on its way.

use std::path::{Path, PathBuf};

/// Folders in which envd is looked for, in this order. What lies in the first one is judged by the folder.
pub const FOLDERS: [&str; 2] = ["/usr/bin", "/usr/local/bin"];

const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_OTHERS: u32 = 0o002;

/// Whose a file or folder is.
#[derive(Debug, Clone, Copy)]
pub struct Owned {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

impl Owned {
    /// In root's own group nobody is but root: images that run as any user have all of it writable to that group.
    pub fn is_roots_alone(self) -> bool {
        let others = if self.gid == 0 { WRITABLE_BY_OTHERS } else { WRITABLE_BY_OTHERS | WRITABLE_BY_GROUP };
        self.uid == 0 && self.mode & others == 0
    }
}

/// What a path without links is to its reader; `None` where it cannot be seen.
pub trait Look {
    type Error;
    fn look(&self, path: &Path) -> Result<Option<Owned>, Self::Error>;
}

/// The file or the last folder on its way that somebody else than root can write. The path holds no links.
pub fn changeable_by_others<L: Look>(files: &L, real: &Path) -> Result<Option<PathBuf>, L::Error> {
    for part in real.ancestors() {
        if !files.look(part)?.is_some_and(Owned::is_roots_alone) {
            return Ok(Some(part.to_owned()));
        }
    }
    Ok(None)
}

/// What is found in the first of [`FOLDERS`]: `folder` and `file` are where it and the folder really are.
pub fn by_folder<L: Look>(files: &L, folder: &Path, file: &Path) -> Result<ByFolder, L::Error> {
    let is_link = file.parent() != Some(folder);
    Ok(match changeable_by_others(files, if is_link { file } else { folder })? {
        None => ByFolder::Runs,
        Some(path) if folder.starts_with(&path) => ByFolder::RunsAlthough(path),
        Some(path) => ByFolder::Refused(path),
    })
}

/// The verdict of [`by_folder`], with what others than root can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ByFolder {
    Runs,
    RunsAlthough(PathBuf),
    Refused(PathBuf),
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible};

    use super::*;

    struct Tree(BTreeMap<&'static str, Owned>);

    impl Look for Tree {
        type Error = Infallible;
        fn look(&self, path: &Path) -> Result<Option<Owned>, Infallible> {
            let roots = Owned { uid: 0, gid: 0, mode: 0o755 };
            Ok(Some(path.to_str().and_then(|path| self.0.get(path)).copied().unwrap_or(roots)))
        }
    }

    fn tree(path: &'static str, (uid, gid): (u32, u32), mode: u32) -> Tree {
        Tree([(path, Owned { uid, gid, mode })].into())
    }

    fn judge(tree: &Tree, file: &str) -> ByFolder {
        by_folder(tree, Path::new("/usr/bin"), Path::new(file)).unwrap()
    }

    #[test]
    fn roots_own_group_may_write_and_another_may_not() {
        for (ids, mode, roots) in
            [((0, 0), 0o775, true), ((0, 5), 0o775, false), ((0, 0), 0o777, false), ((5, 0), 0o755, false)]
        {
            let found = changeable_by_others(&tree("/a/b", ids, mode), Path::new("/a/b/c")).unwrap();
            assert_eq!(found.is_none(), roots, "{ids:?} {mode:o}");
        }
    }

    #[test]
    fn in_usr_bin_the_folder_counts_and_a_link_out_of_it_is_worth_its_end() {
        let theirs = tree("/usr/bin/envd", (1000, 1000), 0o777);
        assert_eq!(judge(&theirs, "/usr/bin/envd"), ByFolder::Runs);
        assert_eq!(judge(&tree("/", (0, 0), 0o777), "/usr/bin/envd"), ByFolder::RunsAlthough("/".into()));
        let elsewhere = tree("/opt", (0, 0), 0o777);
        assert_eq!(judge(&elsewhere, "/opt/envd"), ByFolder::Refused("/opt".into()));
        assert_eq!(judge(&elsewhere, "/srv/envd"), ByFolder::Runs);
    }
}

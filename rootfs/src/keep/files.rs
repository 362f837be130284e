//! What keep mode asks of an image. Behind a trait, so that recognition is tested on trees of a few lines.

use crate::ext4::{Error, Image, Kind};

/// A file tree in which links are followed as the kernel would.
pub trait Files {
    /// Contents of the file that `path` leads to; `None` where there is none.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error>;
    /// The path without any link in it; `None` where it leads nowhere.
    fn real(&self, path: &str) -> Result<Option<String>, Error>;
    /// Target of `path` when its last component is a link, wherever that leads.
    fn link(&self, path: &str) -> Result<Option<String>, Error>;
    /// Names in a directory, sorted; none where there is no such directory.
    fn names(&self, directory: &str) -> Result<Vec<String>, Error>;

    /// [`Files::read`] for files that are text; what is not UTF-8 in them is shown as such.
    fn text(&self, path: &str) -> Result<Option<String>, Error> {
        Ok(self.read(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn exists(&self, path: &str) -> Result<bool, Error> {
        Ok(self.real(path)?.is_some())
    }

    /// Bytes of the regular file that `path` leads to; `None` where that is none.
    fn size(&self, path: &str) -> Result<Option<u64>, Error> {
        Ok(self.read(path)?.map(|bytes| bytes.len() as u64))
    }

    /// Whether somebody may execute the file that `path` leads to.
    fn is_executable(&self, path: &str) -> Result<bool, Error>;
}

impl Files for Image {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.find(path.as_bytes())? {
            Some(found) if found.inode.kind == Kind::File => Ok(Some(self.contents(&found.inode)?)),
            _ => Ok(None),
        }
    }

    fn real(&self, path: &str) -> Result<Option<String>, Error> {
        Ok(self.find(path.as_bytes())?.map(|found| String::from_utf8_lossy(&found.real).into_owned()))
    }

    fn link(&self, path: &str) -> Result<Option<String>, Error> {
        match self.find_link(path.as_bytes())? {
            Some(found) if found.inode.kind == Kind::Link => {
                Ok(Some(String::from_utf8_lossy(&self.contents(&found.inode)?).into_owned()))
            }
            _ => Ok(None),
        }
    }

    fn is_executable(&self, path: &str) -> Result<bool, Error> {
        let found = self.find(path.as_bytes())?;
        Ok(found.is_some_and(|found| found.inode.kind == Kind::File && found.inode.mode & 0o111 != 0))
    }

    fn size(&self, path: &str) -> Result<Option<u64>, Error> {
        let found = self.find(path.as_bytes())?;
        Ok(found.filter(|found| found.inode.kind == Kind::File).map(|found| found.inode.size))
    }

    fn names(&self, directory: &str) -> Result<Vec<String>, Error> {
        let Some(found) = self.find(directory.as_bytes())? else { return Ok(Vec::new()) };
        if found.inode.kind != Kind::Dir {
            return Ok(Vec::new());
        }
        let mut names: Vec<String> = self
            .read_dir(&found.inode)?
            .into_iter()
            .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
            .filter(|name| name != "." && name != "..")
            .collect();
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use std::collections::BTreeMap;

    use super::{Error, Files};

    /// Files and links by path. Links are followed as a whole only, which is enough for the trees of these tests.
    #[derive(Debug, Default)]
    pub(crate) struct FakeFiles {
        files: BTreeMap<String, Vec<u8>>,
        links: BTreeMap<String, String>,
    }

    impl FakeFiles {
        pub(crate) fn file(mut self, path: &str, contents: &str) -> Self {
            self.files.insert(path.into(), contents.into());
            self
        }

        pub(crate) fn to(mut self, path: &str, target: &str) -> Self {
            self.links.insert(path.into(), target.into());
            self
        }
    }

    impl Files for FakeFiles {
        fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
            Ok(self.real(path)?.and_then(|real| self.files.get(&real).cloned()))
        }

        fn real(&self, path: &str) -> Result<Option<String>, Error> {
            let end = self.links.get(path).map_or(path, String::as_str);
            let is_directory = || self.files.keys().any(|file| file.starts_with(&format!("{end}/")));
            Ok((self.files.contains_key(end) || is_directory()).then(|| end.to_owned()))
        }

        fn link(&self, path: &str) -> Result<Option<String>, Error> {
            Ok(self.links.get(path).cloned())
        }

        /// What begins as a script does is meant to be one.
        fn is_executable(&self, path: &str) -> Result<bool, Error> {
            Ok(self.read(path)?.is_some_and(|bytes| bytes.starts_with(b"#!")))
        }

        fn names(&self, directory: &str) -> Result<Vec<String>, Error> {
            let first = |path: &String| {
                let inside = path.strip_prefix(directory)?.strip_prefix('/')?;
                inside.split('/').next().map(str::to_owned)
            };
            let mut names: Vec<String> =
                self.files.keys().chain(self.links.keys()).filter_map(first).collect();
            names.sort();
            names.dedup();
            Ok(names)
        }
    }
}

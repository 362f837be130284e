//! Scripts for `debugfs`: one process for any number of changes.
//!
//! Rules that keep it from corrupting an image: paths are absolute and hold no link (the caller resolved them), nothing is made
//! that exists, nothing is removed that does not, modes carry their type bits, and there is no `cd` but by inode number.

use crate::ext4::{Ino, show};

#[derive(Debug, thiserror::Error)]
#[error("{}: a name with a line break cannot be written by debugfs", show(.0))]
pub struct BadName(pub Vec<u8>);

type Result<T> = std::result::Result<T, BadName>;

/// What a command works on: a path without links, or an inode.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    Path(&'a [u8]),
    Inode(Ino),
}

#[derive(Debug, Default)]
pub struct Script {
    text: Vec<u8>,
}

impl Script {
    pub fn bytes(&self) -> &[u8] {
        &self.text
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub fn mkdir(&mut self, path: &[u8]) -> Result<()> {
        self.line(&["mkdir"], &[Target::Path(path)], &[])
    }

    pub fn rmdir(&mut self, path: &[u8]) -> Result<()> {
        self.line(&["rmdir"], &[Target::Path(path)], &[])
    }

    /// Copies a file of the host, named relative to the folder in which debugfs runs.
    pub fn write(&mut self, source: &str, path: &[u8]) -> Result<()> {
        self.line(&["write", source], &[Target::Path(path)], &[])
    }

    pub fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        self.line(&["symlink"], &[Target::Path(path), Target::Path(target)], &[])
    }

    /// Removes a file or link and frees it when that was its last name.
    pub fn remove(&mut self, path: &[u8]) -> Result<()> {
        self.line(&["rm"], &[Target::Path(path)], &[])
    }

    /// Moves a name; the inode, with all that belongs to it, is not touched.
    pub fn rename(&mut self, ino: Ino, from: &[u8], to: &[u8]) -> Result<()> {
        self.line(&["ln"], &[Target::Inode(ino), Target::Path(to)], &[])?;
        self.line(&["unlink"], &[Target::Path(from)], &[])
    }

    /// Gives a file one more name, the `count`th: debugfs itself does not count them.
    pub fn link(&mut self, first: &[u8], path: &[u8], count: usize) -> Result<()> {
        self.line(&["ln"], &[Target::Path(first), Target::Path(path)], &[])?;
        self.set(Target::Path(first), "links_count", count)
    }

    /// Gives a directory one more block. `ln` needs that where a directory is full; the other commands see to it themselves.
    pub fn expand(&mut self, path: &[u8]) -> Result<()> {
        self.line(&["expand_dir"], &[Target::Path(path)], &[])
    }

    /// Makes a device node called `name` in a directory.
    pub fn mknod(&mut self, dir: Ino, name: &[u8], kind: char, device: (u32, u32)) -> Result<()> {
        self.line(&["cd"], &[Target::Inode(dir)], &[])?;
        let (major, minor) = (device.0.to_string(), device.1.to_string());
        self.line(&["mknod"], &[Target::Path(name)], &[&kind.to_string(), &major, &minor])?;
        self.line(&["cd"], &[Target::Inode(crate::ext4::ROOT)], &[])
    }

    pub fn set(&mut self, target: Target<'_>, field: &str, value: impl std::fmt::Display) -> Result<()> {
        self.line(&["sif"], &[target], &[field, &value.to_string()])
    }

    /// Sets an extended attribute from a file of the host.
    pub fn set_xattr(&mut self, target: Target<'_>, name: &[u8], source: &str) -> Result<()> {
        self.line(&["ea_set", "-f", source], &[target, Target::Path(name)], &[])
    }

    pub fn remove_xattr(&mut self, target: Target<'_>, name: &[u8]) -> Result<()> {
        self.line(&["ea_rm"], &[target, Target::Path(name)], &[])
    }

    fn line(&mut self, before: &[&str], targets: &[Target<'_>], after: &[&str]) -> Result<()> {
        self.text.extend_from_slice(before.join(" ").as_bytes());
        for target in targets {
            self.text.push(b' ');
            match target {
                Target::Path(path) => self.text.extend(quote(path)?),
                Target::Inode(ino) => self.text.extend(format!("<{ino}>").bytes()),
            }
        }
        for word in after {
            self.text.extend(format!(" {word}").bytes());
        }
        self.text.push(b'\n');
        Ok(())
    }
}

/// Quoted as debugfs wants it: an inner quote is doubled.
fn quote(path: &[u8]) -> Result<Vec<u8>> {
    if path.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        return Err(BadName(path.to_vec()));
    }
    let mut quoted = vec![b'"'];
    for byte in path {
        quoted.extend(std::iter::repeat_n(*byte, if *byte == b'"' { 2 } else { 1 }));
    }
    quoted.push(b'"');
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_line_breaks_refused() {
        let mut script = Script::default();
        script.mkdir(b"/a b\"c").expect("a good name");
        assert_eq!(script.bytes(), b"mkdir \"/a b\"\"c\"\n");
        assert!(script.mkdir(b"/a\nrm /sbin").is_err());
    }
}

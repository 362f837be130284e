//! Names to inodes, following links as the kernel would: e2fsprogs' own tools write through links wrongly.

use super::{Error, Image, Ino, Inode, Kind, ROOT, Result};

/// As many links as the kernel follows.
const MAX_LINKS: u32 = 40;
/// Names to walk in all; every link of a walk may be 4096 bytes of them.
const MAX_NAMES: usize = 4096;

/// Where a path leads.
#[derive(Debug, Clone)]
pub struct Located {
    /// The path without any link in it (but for the last component, when that was not to be followed).
    pub real: Vec<u8>,
    pub inode: Inode,
}

/// A path that need not exist: its longest existing part, resolved, and the names that are missing below it.
#[derive(Debug, Clone)]
pub struct Missing {
    pub real_parent: Vec<u8>,
    pub parent: Inode,
    /// Empty when the whole path exists.
    pub names: Vec<Vec<u8>>,
}

/// How a path is printed: lossy, but unambiguous enough for a person.
pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().collect()
}

/// The link (and its target) that a name to look up came from.
type Origin = Option<(String, String)>;

struct Walk<'a> {
    image: &'a Image,
    asked: &'a [u8],
    /// Names and inodes from the root down.
    stack: Vec<(Vec<u8>, Inode)>,
    /// Names still to go, the next one last; with the link it came from.
    todo: Vec<(Vec<u8>, Origin)>,
    links: u32,
}

impl Image {
    /// Follows every link, the last component's too.
    pub fn locate(&self, path: &[u8]) -> Result<Located> {
        self.walk(path, true)?.found()
    }

    /// Follows links in the parents only.
    pub fn locate_link(&self, path: &[u8]) -> Result<Located> {
        self.walk(path, false)?.found()
    }

    /// Like [`Image::locate_link`], with `None` when a component is missing (but not for loops or files in the way).
    pub fn find_link(&self, path: &[u8]) -> Result<Option<Located>> {
        optional(self.locate_link(path))
    }

    /// Like [`Image::locate`], with `None` when a component is missing or a link dangles.
    pub fn find(&self, path: &[u8]) -> Result<Option<Located>> {
        optional(self.locate(path))
    }

    /// Resolves a directory that may not exist yet.
    pub fn resolve_dir(&self, path: &[u8]) -> Result<Missing> {
        let mut walk = self.start(path)?;
        walk.run(true)?;
        let names: Vec<Vec<u8>> = walk.todo.iter().rev().map(|(name, _)| name.clone()).collect();
        if let Some((_, Some((link, target)))) = walk.todo.last() {
            return Err(Error::Dangling { path: show(path), link: link.clone(), target: target.clone() });
        }
        let parent = walk.top().clone();
        if parent.kind != Kind::Dir {
            return Err(walk.not_directory());
        }
        Ok(Missing { real_parent: walk.real(), parent, names })
    }

    fn start<'a>(&'a self, path: &'a [u8]) -> Result<Walk<'a>> {
        let root = self.inode(ROOT)?;
        let todo = components(path).rev().map(|name| (name.to_vec(), None)).collect();
        Ok(Walk { image: self, asked: path, stack: vec![(Vec::new(), root)], todo, links: 0 })
    }

    fn walk<'a>(&'a self, path: &'a [u8], follow_last: bool) -> Result<Walk<'a>> {
        let mut walk = self.start(path)?;
        walk.run(follow_last)?;
        Ok(walk)
    }

    /// The inode of one name in a directory given by number.
    pub fn child(&self, dir: Ino, name: &[u8]) -> Result<Option<Inode>> {
        self.lookup(&self.inode(dir)?, name)?.map(|ino| self.inode(ino)).transpose()
    }
}

fn optional(found: Result<Located>) -> Result<Option<Located>> {
    match found {
        Ok(located) => Ok(Some(located)),
        Err(Error::NotFound { .. } | Error::Dangling { .. } | Error::NotDirectory { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

impl Walk<'_> {
    fn top(&self) -> &Inode {
        &self.stack.last().expect("the root is never popped").1
    }

    fn real(&self) -> Vec<u8> {
        if self.stack.len() == 1 {
            return b"/".to_vec();
        }
        self.stack.iter().skip(1).flat_map(|(name, _)| [b"/", name.as_slice()].concat()).collect()
    }

    fn not_directory(&self) -> Error {
        Error::NotDirectory { path: show(self.asked), component: show(&self.real()) }
    }

    /// Goes on until everything is resolved or a name is missing; that name then is the last of `todo`.
    fn run(&mut self, follow_last: bool) -> Result<()> {
        while let Some((name, origin)) = self.todo.pop() {
            if self.top().kind != Kind::Dir {
                return Err(self.not_directory());
            }
            if name == b".." {
                if self.stack.len() > 1 {
                    self.stack.pop();
                }
                continue;
            }
            let Some(ino) = self.image.lookup(self.top(), &name)? else {
                self.todo.push((name, origin));
                return Ok(());
            };
            let inode = self.image.inode(ino)?;
            if inode.kind == Kind::Link && (follow_last || !self.todo.is_empty()) {
                self.follow(&name, &inode)?;
            } else {
                self.stack.push((name, inode));
            }
        }
        Ok(())
    }

    fn follow(&mut self, name: &[u8], link: &Inode) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS || self.todo.len() > MAX_NAMES {
            return Err(Error::Loop { path: show(self.asked) });
        }
        let target = self.image.contents(link)?;
        let shown = (show(&[&self.real(), b"/".as_slice(), name].concat()).replace("//", "/"), show(&target));
        if target.first() == Some(&b'/') {
            self.stack.truncate(1);
        }
        self.todo.extend(components(&target).rev().map(|name| (name.to_vec(), Some(shown.clone()))));
        Ok(())
    }

    fn found(self) -> Result<Located> {
        match self.todo.last() {
            None => Ok(Located { real: self.real(), inode: self.top().clone() }),
            Some((_, Some((link, target)))) => {
                Err(Error::Dangling { path: show(self.asked), link: link.clone(), target: target.clone() })
            }
            Some((_, None)) => Err(Error::NotFound { path: show(self.asked) }),
        }
    }
}

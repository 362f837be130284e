//! What changed between two images: names, types, modes, owners, times, attributes, contents, hard links.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    ext4::{self, Image, Kind, show},
    tree::{self, Node, Tree},
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub path: String,
    pub change: Change,
    /// What kind of file it is (in the second image, if it is there).
    pub kind: Kind,
    /// What differs, in words: `mode 0755 → 0644`.
    pub what: Vec<String>,
}

/// Compares the trees. Times count only when asked for: they change without anybody noticing.
pub fn diff(a: &Image, b: &Image, times: bool) -> Result<Vec<Difference>, ext4::Error> {
    let (left, right) = (tree::read(a)?, tree::read(b)?);
    let paths: BTreeSet<&Vec<u8>> = left.keys().chain(right.keys()).collect();
    let links = (link_sets(&left), link_sets(&right));
    let mut differences = Vec::new();
    for path in paths {
        let (change, node, what) = match (left.get(path), right.get(path)) {
            (Some(old), None) => (Change::Removed, old, Vec::new()),
            (None, Some(new)) => (Change::Added, new, Vec::new()),
            (Some(old), Some(new)) => {
                let mut what = attributes(old, new, times);
                if old.kind == Kind::File && new.kind == Kind::File && !same_contents(a, b, old, new)? {
                    what.push(format!("contents ({} → {} bytes)", old.size, new.size));
                }
                if links.0.get(path.as_slice()) != links.1.get(path.as_slice()) {
                    what.push("other hard links".into());
                }
                if what.is_empty() {
                    continue;
                }
                (Change::Changed, new, what)
            }
            (None, None) => continue,
        };
        differences.push(Difference { path: show(path), change, kind: node.kind, what });
    }
    Ok(differences)
}

/// Every name of a file with several, with all of its names.
fn link_sets(tree: &Tree) -> std::collections::HashMap<&[u8], Vec<&[u8]>> {
    let sets = tree::hard_links(tree);
    sets.into_iter().flat_map(|set| set.clone().into_iter().map(move |name| (name, set.clone()))).collect()
}

fn attributes(old: &Node, new: &Node, times: bool) -> Vec<String> {
    let mut what = Vec::new();
    let mut note = |differs: bool, text: String| {
        if differs {
            what.push(text);
        }
    };
    note(old.kind != new.kind, format!("{} → {}", old.kind.name(), new.kind.name()));
    note(old.mode != new.mode, format!("mode {:04o} → {:04o}", old.mode, new.mode));
    note(
        (old.uid, old.gid) != (new.uid, new.gid),
        format!("owner {}:{} → {}:{}", old.uid, old.gid, new.uid, new.gid),
    );
    note(old.device != new.device, format!("device {:?} → {:?}", old.device, new.device));
    if let (Some(from), Some(to)) = (&old.target, &new.target) {
        note(from != to, format!("points to {} → {}", show(from), show(to)));
    }
    for name in old.xattrs.keys().chain(new.xattrs.keys()).collect::<BTreeSet<_>>() {
        note(old.xattrs.get(name) != new.xattrs.get(name), format!("attribute {}", show(name)));
    }
    note(times && old.mtime != new.mtime, format!("time {} → {}", old.mtime.seconds, new.mtime.seconds));
    what
}

fn same_contents(a: &Image, b: &Image, old: &Node, new: &Node) -> Result<bool, ext4::Error> {
    if old.size != new.size {
        return Ok(false);
    }
    Ok(tree::sha256(a, &a.inode(old.inode.ino)?)? == tree::sha256(b, &b.inode(new.inode.ino)?)?)
}

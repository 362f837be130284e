//! A directory of this host as the source: `mke2fs -d` reads it as it is.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::Path,
};

use guest::trust::Owned;

use super::{Contents, Error, Source, Wanted};
use crate::{ext4::Kind, hash, tree};
use sha2::{Digest, Sha256};

type Result<T> = std::result::Result<T, Error>;

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Unreadable { what, path, source }
}

/// Lists a directory. Its digest covers names, contents and everything else that goes into the image, but not where it lies.
pub fn scan(folder: &Path, latest: Option<i64>) -> Result<Source> {
    let mut source = Source {
        folder: folder.canonicalize().map_err(io_error("open", folder))?,
        contents: Contents::new(),
        links: Vec::new(),
        sha256: String::new(),
        notes: Vec::new(),
    };
    let mut shared: HashMap<(u64, u64), Vec<Vec<u8>>> = HashMap::new();
    let mut todo = vec![b"/".to_vec()];
    while let Some(path) = todo.pop() {
        let host = source.folder.join(OsStr::from_bytes(&path[1..]));
        let meta = fs::symlink_metadata(&host).map_err(io_error("look at", &host))?;
        if meta.is_dir() {
            for entry in fs::read_dir(&host).map_err(io_error("read", &host))? {
                let name = entry.map_err(io_error("read", &host))?.file_name().into_vec();
                todo.push(tree::join(&path, &name));
            }
        } else if meta.nlink() > 1 {
            shared.entry((meta.dev(), meta.ino())).or_default().push(path.clone());
        }
        source.contents.insert(path, wanted(&host, &meta, latest)?);
    }
    own_root(&mut source);
    source.links = groups(shared);
    source.sha256 = digest(&source)?;
    Ok(source)
}

/// The folder itself is somebody's of this host. As the root of a machine that would give the machine to him, or keep all but
/// root out.
fn own_root(source: &mut Source) {
    let folder = source.folder.display().to_string();
    if let Some(root) = source.contents.get_mut(b"/".as_slice()) {
        let owned = Owned { uid: root.uid, gid: root.gid, mode: u32::from(root.mode) };
        if !owned.is_roots_alone() || root.gid != 0 || root.mode & 0o555 != 0o555 {
            source.notes.push(format!(
                "{folder} is {}:{}'s, with mode {:04o}: in the image / is root's, with mode 0755",
                root.uid, root.gid, root.mode
            ));
            (root.uid, root.gid, root.mode) = (0, 0, 0o755);
            root.xattrs.clear();
        }
    }
    if let Some(usr) = source.contents.get(b"/usr".as_slice()).filter(|usr| usr.uid != 0) {
        source.notes.push(format!(
            "{folder}/usr belongs to {}, and in the image too: a folder is taken as it is; a tar keeps the owners that it was made with",
            usr.uid
        ));
    }
}

fn groups(shared: HashMap<(u64, u64), Vec<Vec<u8>>>) -> Vec<Vec<Vec<u8>>> {
    let mut groups: Vec<_> = shared.into_values().filter(|group| group.len() > 1).collect();
    for group in &mut groups {
        group.sort();
    }
    groups.sort();
    groups
}

fn wanted(host: &Path, meta: &fs::Metadata, latest: Option<i64>) -> Result<Wanted> {
    let kind = Kind::from_mode(meta.mode() as u16).unwrap_or(Kind::File);
    let target = match kind {
        Kind::Link => {
            Some(fs::read_link(host).map_err(io_error("read the link", host))?.into_os_string().into_vec())
        }
        _ => None,
    };
    let device = matches!(kind, Kind::Char | Kind::Block)
        .then(|| (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
    Ok(Wanted {
        kind,
        mode: if kind == Kind::Link { 0o777 } else { meta.mode() as u16 & 0o7777 },
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: latest.map_or(meta.mtime(), |latest| meta.mtime().min(latest)),
        device,
        size: if matches!(kind, Kind::File | Kind::Link) { meta.size() } else { 0 },
        target,
        xattrs: xattrs(host)?,
    })
}

fn xattrs(host: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 65536];
    let len = match rustix::fs::llistxattr(host, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => 0,
        Err(error) => return Err(io_error("read the attributes of", host)(error.into())),
    };
    let mut all = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(host, OsStr::from_bytes(name), &mut value)
            .map_err(|error| io_error("read the attributes of", host)(error.into()))?;
        value.truncate(len);
        all.insert(name.to_vec(), value);
    }
    Ok(all)
}

fn digest(source: &Source) -> Result<String> {
    let mut digest = Sha256::new();
    for (path, wanted) in &source.contents {
        let contents = match wanted.kind {
            Kind::File => {
                let host = source.folder.join(OsStr::from_bytes(&path[1..]));
                hash::sha256_file(&host).map_err(io_error("read", &host))?
            }
            _ => String::new(),
        };
        digest.update(format!("{}\n{path:?}\n{wanted:?}\n{contents}\n", path.len()));
    }
    digest.update(format!("{:?}", source.links));
    Ok(hash::hex(&digest.finalize()))
}

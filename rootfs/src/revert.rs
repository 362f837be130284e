//! Takes everything of ours out of an image and puts the image's own files back.
//!
//! What went in is known from the manifest inside. A file of ours that was changed since is removed all the same, and said; a file
//! that somebody else put into a folder of ours stays, with its folder, and is said.

use std::collections::HashSet;

use crate::{
    diversions,
    ext4::{self, Image, Kind, show},
    manifest::{self, Installed, InstalledKind, Manifest},
    plan::{self, run_script, set_times},
    progress,
    script::{BadName, Script, Target},
    tools::{self, Tools},
    tree,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Image(#[from] ext4::Error),
    #[error(transparent)]
    Tool(#[from] tools::Error),
    #[error(transparent)]
    Plan(#[from] plan::Error),
    #[error(transparent)]
    Name(#[from] BadName),
    #[error("there is nothing of envd-init in the image: {} is missing", manifest::PATH)]
    NotInjected,
    #[error("{} in the image cannot be understood: {reason}", manifest::PATH)]
    BadManifest { reason: String },
    #[error(
        "the image was baked by a newer version of this tool (manifest format {0}); revert it with that one"
    )]
    Newer(u32),
    #[error("after the revert {0} is still there")]
    Left(String),
}

type Result<T> = std::result::Result<T, Error>;

/// The manifest in an image, if it has one.
pub fn manifest(image: &Image) -> Result<Option<Manifest>> {
    let Some(found) = image.find_link(manifest::PATH.as_bytes())? else { return Ok(None) };
    let text = image.contents(&found.inode)?;
    let bad = |error: serde_json::Error| Error::BadManifest { reason: error.to_string() };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(bad)?;
    let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0) as u32;
    if format > manifest::FORMAT {
        return Err(Error::Newer(format));
    }
    serde_json::from_value(value).map(Some).map_err(bad)
}

/// What a revert did that its caller should say.
#[derive(Debug)]
pub struct Reverted {
    pub manifest: Manifest,
    pub warnings: Vec<String>,
}

/// Reverts an image that nobody else uses. The caller has checked it, and checks it afterwards.
pub fn revert_in_place(tools: &Tools, path: &std::path::Path) -> Result<Reverted> {
    let image = Image::open(path)?;
    let manifest = manifest(&image)?.ok_or(Error::NotInjected)?;
    let mut revert = Revert::new(&image, &manifest, tools.folder());
    revert.remove_installed()?;
    revert.restore_saved()?;
    revert.remove_directories()?;
    revert.restore_times()?;
    let (script, warnings) = (revert.script, revert.warnings);
    {
        let _step = progress::step("revert", "taking the payload out", None);
        run_script(tools, path, &script)?;
    }
    let after = Image::open(path)?;
    match after.find_link(manifest::PATH.as_bytes())? {
        Some(found) => Err(Error::Left(show(&found.real))),
        None => Ok(Reverted { manifest, warnings }),
    }
}

struct Revert<'a> {
    image: &'a Image,
    manifest: &'a Manifest,
    /// For files of the host that a script reads.
    folder: &'a std::path::Path,
    script: Script,
    /// Names that are gone when the script has run.
    gone: HashSet<Vec<u8>>,
    warnings: Vec<String>,
}

impl<'a> Revert<'a> {
    fn new(image: &'a Image, manifest: &'a Manifest, folder: &'a std::path::Path) -> Self {
        let (script, gone, warnings) = (Script::default(), HashSet::new(), Vec::new());
        Self { image, manifest, folder, script, gone, warnings }
    }

    fn remove_installed(&mut self) -> Result<()> {
        for installed in &self.manifest.installed {
            let path = installed.path.as_bytes();
            let Some(found) = self.image.find_link(path)? else {
                self.warnings.push(format!("{} was not there any more", installed.path));
                continue;
            };
            if found.inode.kind == Kind::Dir {
                self.warnings.push(format!("{} has become a directory and stays", installed.path));
                continue;
            }
            if installed.path != diversions::PATH && !is_unchanged(self.image, installed, &found.inode)? {
                self.warnings
                    .push(format!("{} was changed since it was baked; the change is lost", installed.path));
            }
            self.script.remove(&found.real)?;
            self.gone.insert(found.real);
        }
        let found = self.image.locate_link(manifest::PATH.as_bytes())?;
        self.script.remove(&found.real)?;
        self.gone.insert(found.real);
        Ok(())
    }

    fn restore_saved(&mut self) -> Result<()> {
        for saved in &self.manifest.saved {
            let Some(found) = self.image.find_link(saved.at.as_bytes())? else {
                self.warnings
                    .push(format!("the image's own {} was not among the saved files any more", saved.path));
                continue;
            };
            let parent = self.image.locate(tree::parent(saved.path.as_bytes()))?;
            let home = tree::join(&parent.real, tree::name(saved.path.as_bytes()));
            if self.image.find_link(&home)?.is_some() && !self.gone.contains(&home) {
                self.warnings.push(format!("{} is taken; the image's own stays at {}", saved.path, saved.at));
                continue;
            }
            if saved.path == diversions::PATH && self.diversions_changed()? {
                self.merge_diversions(&found)?;
                continue;
            }
            self.script.rename(found.inode.ino, &found.real, &home)?;
            self.gone.insert(found.real);
        }
        Ok(())
    }

    /// Whether packages were diverted in the guest since.
    fn diversions_changed(&self) -> Result<bool> {
        let Some(found) = self.image.find_link(diversions::PATH.as_bytes())? else { return Ok(false) };
        let ours = self.manifest.installed.iter().find(|installed| installed.path == diversions::PATH);
        ours.map_or(Ok(false), |ours| Ok(!is_unchanged(self.image, ours, &found.inode)?))
    }

    /// Then the present list without our entries is what is wanted, not the old one.
    fn merge_diversions(&mut self, saved: &ext4::Located) -> Result<()> {
        let now = self.image.locate(diversions::PATH.as_bytes())?;
        let text = String::from_utf8_lossy(&self.image.contents(&now.inode)?).into_owned();
        let host = self.folder.join("diversions");
        std::fs::write(&host, diversions::without_ours(&text)).map_err(|source| plan::Error::Host {
            what: "write",
            path: host.clone(),
            source,
        })?;
        self.script.write("diversions", &now.real)?;
        let target = Target::Path(&now.real);
        self.script.set(target, "mode", "0100644")?;
        self.script.set(target, "uid", 0)?;
        self.script.set(target, "gid", 0)?;
        set_times(&mut self.script, target, [now.inode.atime, now.inode.ctime, now.inode.mtime])?;
        self.script.remove(&saved.real)?;
        self.gone.insert(saved.real.clone());
        Ok(())
    }

    fn remove_directories(&mut self) -> Result<()> {
        for directory in self.manifest.directories.iter().rev() {
            let Some(found) = self.image.find_link(directory.as_bytes())? else { continue };
            if found.inode.kind != Kind::Dir {
                continue;
            }
            let entries = self.image.read_dir(&found.inode)?;
            let names = entries.iter().map(|entry| tree::join(&found.real, &entry.name));
            let foreign: Vec<Vec<u8>> = names.filter(|name| !self.gone.contains(name)).collect();
            if let Some(first) = foreign.first() {
                let more = if foreign.len() > 1 {
                    format!(" and {} more", foreign.len() - 1)
                } else {
                    String::new()
                };
                self.warnings.push(format!("{directory} stays: {}{more} came after the bake", show(first)));
                continue;
            }
            self.script.rmdir(&found.real)?;
            self.gone.insert(found.real);
        }
        Ok(())
    }

    fn restore_times(&mut self) -> Result<()> {
        for touched in &self.manifest.touched {
            if let Some(found) = self.image.find_link(touched.path.as_bytes())? {
                let times = [touched.atime, touched.ctime, touched.mtime];
                set_times(&mut self.script, Target::Inode(found.inode.ino), times)?;
            }
        }
        Ok(())
    }
}

/// Whether a file of ours is as it was baked.
pub fn is_unchanged(
    image: &Image,
    installed: &Installed,
    inode: &ext4::Inode,
) -> std::result::Result<bool, ext4::Error> {
    Ok(match &installed.what {
        InstalledKind::File { sha256, size, .. } => {
            inode.kind == Kind::File && inode.size == *size && tree::sha256(image, inode)? == *sha256
        }
        InstalledKind::Link { target } => {
            inode.kind == Kind::Link && image.contents(inode)? == target.as_bytes()
        }
    })
}

//! The payload: our programs, links and services, as a plan.

use std::path::{Path, PathBuf};

use crate::{
    diversions,
    elf::{self, Elf, Machine},
    ext4::{self, Image, Kind},
    keep::files::Files,
    manifest::{HOME, SAVED},
    plan::{self, Content, Existing, Item, Plan, What},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} is missing; build the guest programs first (make guest)", .0.display())]
    NoProgram(PathBuf),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} {source}", path.display())]
    Unfit { path: PathBuf, source: elf::Error },
    #[error(transparent)]
    Image(#[from] ext4::Error),
    #[error(transparent)]
    Plan(#[from] plan::Error),
}

type Result<T> = std::result::Result<T, Error>;

/// The names of the guest's program, the first of which is the file.
pub const PROGRAMS: [&str; 3] = ["init", "envd-wrapper", "vsock-relay"];
/// Names under which our init is called.
const INIT_NAMES: [&str; 5] = ["init", "reboot", "poweroff", "halt", "shutdown"];
/// The program behind those names.
pub const INIT: &str = "/usr/lib/envd-init/init";
/// Where an image's own `systemctl` is kept, whatever folder it was in: our shim hands on what it does not know.
const SAVED_SYSTEMCTL: &str = "/usr/bin/systemctl";

/// Has dpkg put what it unpacks over our links somewhere else.
pub fn diversions(plan: &mut Plan, image: &Image, merged: bool) -> Result<()> {
    let mut paths: Vec<String> = INIT_NAMES.iter().map(|name| format!("/sbin/{name}")).collect();
    paths.push(if merged { SAVED_SYSTEMCTL.into() } else { "/bin/systemctl".into() });
    if merged {
        for path in paths.iter_mut().filter(|path| path.starts_with("/sbin/")) {
            path.insert_str(0, "/usr");
        }
    }
    let old = image.text(diversions::PATH)?.unwrap_or_default();
    let text = diversions::divert(image, &old, &paths, merged)?;
    // dpkg makes no folders on the way to a diverted file.
    for folder in ["sbin", "usr/sbin", "bin", "usr/bin"] {
        if paths.iter().any(|path| path.starts_with(&format!("/{folder}/"))) {
            plan.dir(&format!("{SAVED}/{folder}"));
        }
    }
    plan.file(diversions::PATH, Content::Bytes(text.into_bytes()), 0o644);
    Ok(())
}

/// Reads a program and requires that it can run in a guest.
pub fn program(path: &Path, machine: Machine) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let unfit = |source| Error::Unfit { path: path.to_owned(), source };
    Elf::parse(&bytes).map_err(unfit)?.require_static(machine).map_err(unfit)?;
    Ok(bytes)
}

/// Our program under its three names. What is one file is installed as one, so that its roles share their pages in memory.
pub fn programs(plan: &mut Plan, folder: &Path, machine: Machine) -> Result<()> {
    let [first, others @ ..] = PROGRAMS;
    let ours = |name: &str| {
        let path = folder.join(name);
        if path.exists() { program(&path, machine) } else { Err(Error::NoProgram(path)) }
    };
    let main = ours(first)?;
    for name in others {
        let path = format!("{HOME}/{name}");
        match ours(name)? {
            same if same == main => plan.link(&path, first),
            other => plan.file(&path, Content::Bytes(other), 0o755),
        }
    }
    plan.file(&format!("{HOME}/{first}"), Content::Bytes(main), 0o755);
    Ok(())
}

/// The names by which PID 1 and its tools are called.
pub fn native_links(plan: &mut Plan, image: &Image) -> Result<()> {
    for name in INIT_NAMES {
        plan.link(&format!("/sbin/{name}"), INIT);
        // With an unmerged /usr a second one may lie there.
        let second = format!("/usr/sbin/{name}");
        if name != "init" && image.find_link(second.as_bytes())?.is_some() {
            plan.link(&second, INIT);
        }
    }
    let mut found = Vec::new();
    for path in [SAVED_SYSTEMCTL, "/bin/systemctl"] {
        if let Some(there) = image.find_link(path.as_bytes())? {
            found.push((there.inode.kind == Kind::Link, path));
        }
    }
    // Where one is a link to the other, it is the program that has to be found.
    found.sort_by_key(|(is_link, _)| *is_link);
    // In an image with none the shim still serves the platform's builder.
    if found.is_empty() {
        found.push((false, SAVED_SYSTEMCTL));
    }
    // The first one is kept under the name the shim knows.
    for ((_, path), name) in found.into_iter().zip([SAVED_SYSTEMCTL, "/bin/systemctl"]) {
        let save_as = Some(name.to_owned());
        let what = What::Link { target: INIT.into() };
        plan.push(Item { path: path.into(), what, existing: Existing::Save, save_as });
    }
    Ok(())
}

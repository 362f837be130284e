//! /etc/passwd, group, shadow and gshadow: lines are added, nothing that is there is touched.
//!
//! Each file is written whole under another name and renamed, with the owner and mode of the one it replaces. The lock is
//! the one that shadow's tools and systemd take: /etc/.pwd.lock.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, fcntl};

use super::Error;
use crate::accounts::Accounts;

#[derive(Debug, Clone, Copy)]
pub(super) struct NewUser<'a> {
    pub(super) name: &'a str,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) gecos: &'a str,
    pub(super) home: &'a str,
    pub(super) shell: &'a str,
}

#[derive(Debug)]
pub(super) struct Database {
    root: PathBuf,
    accounts: Accounts,
    passwd: Text,
    group: Text,
    shadow: Text,
    gshadow: Text,
    _lock: File,
}

/// A file's text, and whether it was changed.
#[derive(Debug)]
struct Text {
    path: PathBuf,
    mode: u32,
    exists: bool,
    contents: String,
    changed: bool,
}

impl Text {
    fn read(root: &Path, name: &str, mode: u32) -> Self {
        let path = root.join("etc").join(name);
        let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let exists = text.is_ok();
        let mut text = text.unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        Self { path, mode, exists, contents: text, changed: false }
    }

    /// Adds a line, before one that begins with `+`: what is from the network comes last.
    fn add(&mut self, line: &str) {
        let place =
            self.contents.match_indices("\n+").map(|(at, _)| at + 1).next().unwrap_or(self.contents.len());
        self.contents.insert_str(place, &format!("{line}\n"));
        self.changed = true;
    }

    fn save(&self) -> io::Result<()> {
        let new = self.path.with_extension("envd-init-new");
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(self.contents.as_bytes())?;
        match self.path.metadata() {
            Ok(old) => {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
                file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
            }
            Err(_) => file.set_permissions(fs::Permissions::from_mode(self.mode))?,
        }
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}

impl Database {
    /// Takes the lock and reads the files.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let lock = lock(root)?;
        Ok(Self {
            root: root.to_owned(),
            accounts: Accounts::read(root),
            passwd: Text::read(root, "passwd", 0o644),
            group: Text::read(root, "group", 0o644),
            shadow: Text::read(root, "shadow", 0o600),
            gshadow: Text::read(root, "gshadow", 0o600),
            _lock: lock,
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// With no way to log in by password.
    pub(super) fn add_user(&mut self, user: &NewUser<'_>) {
        let NewUser { name, uid, gid, gecos, home, shell } = user;
        self.passwd.add(&format!("{name}:x:{uid}:{gid}:{gecos}:{home}:{shell}"));
        if self.shadow.exists {
            self.shadow.add(&format!("{name}:!*:::::::"));
        }
        self.reparse();
    }

    pub(super) fn add_group(&mut self, name: &str, gid: u32) {
        self.group.add(&format!("{name}:x:{gid}:"));
        if self.gshadow.exists {
            self.gshadow.add(&format!("{name}:!*::"));
        }
        self.reparse();
    }

    pub(super) fn add_member(&mut self, user: &str, group: &str) {
        for file in [&mut self.group, &mut self.gshadow] {
            let lines = file.contents.lines().map(|line| {
                let is_group = line.split(':').next() == Some(group);
                let separator = if line.ends_with(':') { "" } else { "," };
                if is_group { format!("{line}{separator}{user}\n") } else { format!("{line}\n") }
            });
            let text: String = lines.collect();
            file.changed |= text != file.contents;
            file.contents = text;
        }
        self.reparse();
    }

    fn reparse(&mut self) {
        self.accounts = Accounts::parse(&self.passwd.contents, &self.group.contents);
    }

    /// Groups before the users who name them.
    pub(super) fn save(&self) -> Result<(), Error> {
        for file in [&self.group, &self.gshadow, &self.passwd, &self.shadow] {
            if file.changed {
                file.save().map_err(|source| Error::Write { path: file.path.clone(), source })?;
            }
        }
        Ok(())
    }
}

fn lock(root: &Path) -> Result<File, Error> {
    let path = root.join("etc/.pwd.lock");
    let failed = |source| Error::Lock { path: path.clone(), source };
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLK(&whole)).map_err(|error| failed(error.into()))?;
    Ok(file)
}

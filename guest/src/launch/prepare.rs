//! What comes before the program: whom it runs as, its folders, its variables, and the commands before it.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown},
    path::Path,
    process::Command,
};

use nix::sys::stat::{Mode, umask};

use super::{
    Error,
    arguments::{Folder, Options},
    environment::{self, Environment},
    output::Outputs,
};
use crate::{accounts::Accounts, sys, words};

/// Where programs are searched, as for PID 1's own services.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, Clone)]
pub(super) struct Identity {
    name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) environment: Environment,
    pub(super) outputs: Outputs,
    identity: Option<Identity>,
}

impl Prepared {
    /// For good: launch itself is the user afterwards.
    pub(super) fn become_user(&self) -> Result<(), Error> {
        let Some(identity) = &self.identity else { return Ok(()) };
        let Identity { name, uid, gid, groups } = identity;
        sys::become_user(*uid, *gid, groups).map_err(|source| Error::Become { user: name.clone(), source })
    }
}

pub(super) fn prepare(options: &Options) -> Result<Prepared, Error> {
    let accounts = Accounts::read(Path::new("/"));
    let identity = identity(options, &accounts)?;
    let text = |text: std::ffi::OsString| text.into_string().ok();
    let mut environment: Environment =
        std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
    environment.entry("PATH".to_owned()).or_insert_with(|| PATH.to_owned());
    if let Some(name) = &options.user {
        describe_user(&mut environment, name, &accounts);
    }
    for file in &options.environment_files {
        environment.extend(read_file(file)?);
    }
    let ids = identity.as_ref().map(|identity| (identity.uid, identity.gid));
    for folder in &options.folders {
        make(folder, ids).map_err(|source| Error::Directory { path: folder.path.clone(), source })?;
        add_folder(&mut environment, folder);
    }
    if let Some(bits) = options.umask {
        umask(Mode::from_bits_truncate(bits));
    }
    let prepared = Prepared { environment, outputs: Outputs::open(options)?, identity };
    for command in &options.before {
        before(command, options, &prepared)?;
    }
    Ok(prepared)
}

fn identity(options: &Options, accounts: &Accounts) -> Result<Option<Identity>, Error> {
    if options.user.is_none() && options.group.is_none() && options.supplementary.is_empty() {
        return Ok(None);
    }
    let name = options.user.as_deref().unwrap_or("root");
    let missing = |kind, name: &str| Error::NoAccount { kind, name: name.to_owned() };
    let gid_of = |name: &str| accounts.gid(name).ok_or_else(|| missing("group", name));
    let uid = accounts.uid(name).ok_or_else(|| missing("user", name))?;
    let own = accounts.users.iter().find(|user| user.uid == uid);
    let gid = match &options.group {
        Some(group) => gid_of(group)?,
        None => own.map(|user| user.gid).ok_or_else(|| missing("user", name))?,
    };
    let member = |members: &[String]| own.is_some_and(|user| members.contains(&user.name));
    let mut groups: Vec<u32> =
        accounts.groups.iter().filter(|group| member(&group.members)).map(|group| group.gid).collect();
    groups.push(gid);
    for group in &options.supplementary {
        groups.push(gid_of(group)?);
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Some(Identity { name: name.to_owned(), uid, gid, groups }))
}

/// What a login would set.
fn describe_user(environment: &mut Environment, name: &str, accounts: &Accounts) {
    let Some(user) = accounts.users.iter().find(|user| Some(user.uid) == accounts.uid(name)) else { return };
    for (variable, value) in
        [("HOME", &user.home), ("SHELL", &user.shell), ("USER", &user.name), ("LOGNAME", &user.name)]
    {
        environment.insert(variable.to_owned(), value.clone());
    }
}

fn read_file(file: &str) -> Result<Vec<(String, String)>, Error> {
    let (path, may_miss) = file.strip_prefix('-').map_or((file, false), |path| (path, true));
    match fs::read(path) {
        Ok(bytes) => Ok(environment::parse(&String::from_utf8_lossy(&bytes))),
        Err(_) if may_miss => Ok(Vec::new()),
        Err(source) => Err(Error::EnvironmentFile { path: path.into(), source }),
    }
}

/// Makes a folder for the user, or gives an existing one to him when it is another's.
fn make(folder: &Folder, ids: Option<(u32, u32)>) -> io::Result<()> {
    if let Some(parent) = folder.path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(folder.mode).create(&folder.path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        other => other?,
    }
    let about = folder.path.symlink_metadata()?;
    if !about.is_dir() {
        return Err(io::Error::other("it is there and is no folder"));
    }
    let (uid, gid) = ids.filter(|_| folder.owned).unwrap_or((about.uid(), about.gid()));
    if (about.uid(), about.gid()) != (uid, gid) {
        lchown(&folder.path, Some(uid), Some(gid))?;
    }
    fs::set_permissions(&folder.path, fs::Permissions::from_mode(folder.mode))
}

fn add_folder(environment: &mut Environment, folder: &Folder) {
    let path = folder.path.to_string_lossy();
    let value = environment.entry(folder.variable.to_owned()).or_default();
    if !value.is_empty() {
        value.push(':');
    }
    value.push_str(&path);
}

/// One command before the start. `-`: it may fail; `+`: as root; `@`: the word behind it is the name it is told.
fn before(text: &str, options: &Options, prepared: &Prepared) -> Result<(), Error> {
    let line = text.trim_start_matches(['-', '+', '@']);
    let prefixes = &text[..text.len() - line.len()];
    let words = words::split(line).map_err(|source| Error::Words { text: text.to_owned(), source })?;
    let (program, arguments) =
        words.split_first().ok_or_else(|| Error::Usage(format!("--before `{text}` is no command")))?;
    let mut command = as_launched(prefixes.contains('+'), options)?;
    let arguments = match arguments.split_first().filter(|_| prefixes.contains('@')) {
        Some((name, arguments)) => {
            command.args(["--name", name]);
            arguments
        }
        None => arguments,
    };
    command.arg("--").arg(program).args(arguments);
    command.env_clear().envs(&prepared.environment).env_remove(crate::notify::VARIABLE);
    prepared.outputs.give(&mut command)?;
    let how = match command.status() {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    if prefixes.contains('-') {
        eprintln!("<5>before the start: {line}: {how}, which its unit allows");
        return Ok(());
    }
    Err(Error::Before { command: line.to_owned(), how })
}

/// Launch itself, which becomes the user and replaces variables once more.
pub(super) fn as_launched(as_root: bool, options: &Options) -> Result<Command, Error> {
    let own =
        std::env::current_exe().map_err(|source| Error::Execute { program: "launch".into(), source })?;
    let mut command = Command::new(own);
    command.arg("launch");
    if !as_root {
        let named = [("--user", options.user.clone()), ("--group", options.group.clone())];
        let supplementary = Some(options.supplementary.join(",")).filter(|names| !names.is_empty());
        for (flag, value) in named.into_iter().chain([("--supplementary", supplementary)]) {
            if let Some(value) = value {
                command.args([flag, &value]);
            }
        }
    }
    Ok(command)
}

//! Where the program's output goes, when its unit names a file for it.

use std::{fs::File, os::unix::fs::OpenOptionsExt as _, process::Command};

use nix::libc::O_NOCTTY;

use super::{Error, arguments::Options};

/// The files, opened once for the commands before and the program.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    out: Option<File>,
    err: Option<File>,
}

impl Outputs {
    /// As whoever calls, who is root: the service's user need not be able to.
    pub(super) fn open(options: &Options) -> Result<Self, Error> {
        let out = options.stdout.as_deref().map(open).transpose()?;
        let err = match (&out, options.stderr.as_deref()) {
            // One file has one end: two that are opened apart would write over each other.
            (Some(file), same) if same == options.stdout.as_deref() => Some(share(file)?),
            (_, other) => other.map(open).transpose()?,
        };
        Ok(Self { out, err })
    }

    pub(super) fn give(&self, command: &mut Command) -> Result<(), Error> {
        if let Some(file) = &self.out {
            command.stdout(share(file)?);
        }
        if let Some(file) = &self.err {
            command.stderr(share(file)?);
        }
        Ok(())
    }
}

fn share(file: &File) -> Result<File, Error> {
    file.try_clone().map_err(|source| Error::Output { file: "once more".to_owned(), source })
}

/// `file:`, `append:` or `truncate:` and a path, as in systemd.exec(5).
fn open(how: &str) -> Result<File, Error> {
    let wrong = || Error::Usage(format!("`{how}` names no file for the output"));
    let (mode, path) = how.split_once(':').ok_or_else(wrong)?;
    let mut options = File::options();
    options.create(true).custom_flags(O_NOCTTY).mode(0o666);
    match mode {
        "file" => options.read(true).write(true),
        "append" => options.append(true),
        "truncate" => options.write(true).truncate(true),
        _ => return Err(wrong()),
    };
    options.open(path).map_err(|source| Error::Output { file: path.to_owned(), source })
}

//! Exit codes: one for each kind of trouble, documented in `docs/images.md`.

use std::{error::Error, fmt, io, path::Path, process::ExitCode};

use crate::{
    build, elf, enlarge, ext4, inject, keep, payload, plan, revert, settings, source, tools, workdir,
};

/// How a run ended. The numbers are an interface: they never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something failed that no other code describes.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A program of e2fsprogs is missing.
    ToolMissing = 3,
    /// An input is missing or cannot be read.
    Input = 4,
    /// The file is no ext4 image, or it is truncated.
    NotExt4 = 5,
    /// The image uses features that cannot be handled.
    Features = 6,
    /// The filesystem is damaged, or its journal cannot be replayed.
    Damaged = 7,
    /// There is no room in the image, or SIZE is too small.
    NoSpace = 8,
    /// Symbolic links in the image form a loop.
    Loop = 9,
    /// A parent folder in the image is missing or leads nowhere.
    NoParent = 10,
    /// A directory, or a file where a folder is needed, is in the way.
    InTheWay = 11,
    /// A program is not static, or no program at all.
    NotStatic = 12,
    /// A program or an image is for another machine.
    Machine = 13,
    /// A services file or the configuration is wrong.
    BadConfig = 14,
    /// BASE and OUT are the same file, or OUT lies in BASE.
    SameFile = 15,
    /// The output folder is missing, cannot be written, or its disk is full; or OUT is no file.
    Output = 16,
    /// The image belongs to a memory snapshot.
    BesideSnapshot = 17,
    /// Enabled units of the image would no longer start.
    LostUnits = 18,
    /// Keep mode does not go together with this image.
    KeepUnfit = 19,
    /// `verify`: a check failed.
    CheckFailed = 20,
    /// `diff`: the images differ.
    Differ = 21,
    /// `revert`: there is nothing of ours in the image.
    NotInjected = 22,
    /// What was written reads back differently.
    ReadBack = 23,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What a command failed with: printed as one line, then the program ends with its code.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    text: String,
}

impl Failure {
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    pub fn input(path: &Path, error: &io::Error) -> Self {
        Self::new(Exit::Input, format!("cannot read {}: {error}", path.display()))
    }

    pub fn output(path: &Path, error: &io::Error) -> Self {
        Self::new(Exit::Output, format!("cannot write {}: {error}", path.display()))
    }

    /// With more to say.
    #[must_use]
    pub fn with(self, more: &str) -> Self {
        Self { text: self.text + more, ..self }
    }

    /// With the thing it speaks of in front.
    #[must_use]
    pub fn about(self, thing: &str) -> Self {
        Self { text: format!("{thing}: {}", self.text), ..self }
    }

    fn from_error(exit: Exit, error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = error.source();
        }
        Self { exit, text }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An error that knows its exit code.
trait Coded: Error {
    fn exit(&self) -> Exit;
}

macro_rules! failures {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::from_error(error.exit(), &error)
            }
        })*
    };
}

failures!(
    build::Error,
    enlarge::Error,
    ext4::Error,
    inject::Error,
    payload::Error,
    plan::Error,
    revert::Error,
    settings::Error,
    source::Error,
    tools::Error,
    workdir::Error
);

/// A read-only or full disk of this host tells more than the operation it broke.
fn host(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::NotFound => Exit::Input,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => {
            Exit::Output
        }
        _ => Exit::Failed,
    }
}

impl Coded for ext4::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Open { .. } => Exit::Input,
            Self::NotExt4 { .. } | Self::Truncated { .. } => Exit::NotExt4,
            Self::Features { .. } => Exit::Features,
            Self::Read { .. } | Self::Damaged(_) => Exit::Damaged,
            Self::TooLarge { .. } => Exit::Failed,
            Self::NotFound { .. } | Self::Dangling { .. } => Exit::NoParent,
            Self::NotDirectory { .. } => Exit::InTheWay,
            Self::Loop { .. } => Exit::Loop,
        }
    }
}

impl Coded for tools::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Missing { .. } => Exit::ToolMissing,
            Self::NotClean { .. } | Self::Recovery { .. } => Exit::Damaged,
            Self::DiskFull { .. } => Exit::Output,
            Self::Run { .. } | Self::Failed { .. } => Exit::Failed,
        }
    }
}

impl Coded for plan::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Image(error) => error.exit(),
            Self::Tool(error) => error.exit(),
            Self::InTheWay { .. } => Exit::InTheWay,
            Self::NoParent { .. } => Exit::NoParent,
            Self::NoSpace { .. } => Exit::NoSpace,
            Self::Host { source, .. } => host(source),
            Self::ReadBack { .. } => Exit::ReadBack,
            Self::Name(_) | Self::NotUtf8(_) => Exit::Failed,
        }
    }
}

impl Coded for build::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Image(error) => error.exit(),
            Self::Tool(error) => error.exit(),
            Self::Plan(error) => error.exit(),
            Self::Host { source, .. } => host(source),
            Self::TooSmall { .. } => Exit::NoSpace,
            Self::Differs { .. } => Exit::ReadBack,
            Self::Name(_) => Exit::Failed,
        }
    }
}

impl Coded for payload::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::NoProgram(_) | Self::Read { .. } => Exit::Input,
            Self::Unfit { source: elf::Error::Machine { .. }, .. } => Exit::Machine,
            Self::Unfit { .. } => Exit::NotStatic,
            Self::Image(error) => error.exit(),
            Self::Plan(error) => error.exit(),
        }
    }
}

impl Coded for revert::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Image(error) => error.exit(),
            Self::Tool(error) => error.exit(),
            Self::Plan(error) => error.exit(),
            Self::NotInjected => Exit::NotInjected,
            Self::Left(_) => Exit::ReadBack,
            Self::BadManifest { .. } | Self::Newer(_) | Self::Name(_) => Exit::Failed,
        }
    }
}

impl Coded for keep::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Image(error) => error.exit(),
            _ => Exit::KeepUnfit,
        }
    }
}

impl Coded for inject::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Image(error) => error.exit(),
            Self::Tool(error) => error.exit(),
            Self::Plan(error) => error.exit(),
            Self::Payload(error) => error.exit(),
            Self::Keep(error) => error.exit(),
            Self::Revert(error) => error.exit(),
            Self::Workdir(error) => error.exit(),
            Self::Host { source, .. } => host(source),
            Self::Settings(error) => error.exit(),
            Self::LostUnits { .. } => Exit::LostUnits,
            Self::SameFile(_) | Self::Inside { .. } => Exit::SameFile,
            Self::BesideSnapshot { .. } => Exit::BesideSnapshot,
            Self::UnknownMachine(_) | Self::OtherMachine { .. } => Exit::Machine,
        }
    }
}

impl Coded for enlarge::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Image(error) => error.exit(),
            Self::Tool(error) => error.exit(),
            Self::Smaller { .. } => Exit::NoSpace,
            Self::Changed(_) => Exit::ReadBack,
        }
    }
}

impl Coded for settings::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Image(error) => error.exit(),
            Self::Plan(error) => error.exit(),
            Self::Read { .. } => Exit::Input,
            Self::Wrong { .. } | Self::NoServices(_) => Exit::BadConfig,
        }
    }
}

impl Coded for source::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Io { source, .. } => host(source),
            _ => Exit::Input,
        }
    }
}

impl Coded for workdir::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::NoName(_) => Exit::Usage,
            _ => Exit::Output,
        }
    }
}

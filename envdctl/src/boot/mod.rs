//! `envdctl boot`: where the time of a boot went – kernel, PID 1's stages, services, envd.

pub mod bars;
pub mod svg;
pub mod timeline;

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Args;
use guest::control::Stage;

use crate::{
    client::{ANSWER_BOUND, Client},
    console::record::{self, Line},
    exit::{Exit, Failure, Fatal},
    guest_args::GuestArgs,
    text::{self, ColorChoice, Paint},
};
use timeline::Timeline;

/// The largest console log that is read (bytes); of a larger one the end.
const MAX_LOG: u64 = 256 * 1024 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  envdctl boot                                     of the guest that runs
  envdctl boot --from console.log                  of a saved serial log, raw or in the orchestrator's JSON lines
  envdctl boot --from run1.log run2.log run3.log   median and spread
  envdctl boot --svg boot.svg                      a picture for a report")]
pub struct BootArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Saved console logs instead of a running guest; the last boot of each counts; - is standard input
    #[arg(long, value_name = "FILE", num_args = 1..)]
    from: Vec<PathBuf>,
    /// Print the timeline as JSON; its fields are documented in docs/envdctl.md
    #[arg(long)]
    json: bool,
    /// Write the timeline as an SVG picture to this file; - is standard output
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
    /// Colour the bars
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

/// Why there is no timeline.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot read the console log {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} holds no line \"envd-init: boot {{…}}\": envd never became healthy there, or it is no console of envd-init (see envdctl doctor --console)",
        path.display()
    )]
    NoBoot { path: PathBuf },
    #[error(
        "the guest reports no boot stages (it is not PID 1 there: keep mode leaves the boot to the image's own init)"
    )]
    NoStages,
    #[error("cannot write the picture {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Fatal for BootError {
    fn exit(&self) -> Exit {
        match self {
            Self::Write { .. } => Exit::Failed,
            _ => Exit::BadInput,
        }
    }
}

/// Shows the timeline of a boot.
pub fn run(args: &BootArgs) -> Result<Exit, Failure> {
    let timeline = if args.from.is_empty() { from_guest(&args.guest)? } else { from_logs(&args.from)? };
    if let Some(path) = &args.svg {
        write_picture(path, &svg::render(&timeline))?;
    } else if args.json {
        text::print(&text::json(&timeline));
    } else {
        text::print(&bars::render(&timeline, Paint::new(args.color)));
    }
    Ok(Exit::Ok)
}

fn from_guest(guest: &GuestArgs) -> Result<Timeline, Failure> {
    let status = Client::connect(&guest.endpoint()?, ANSWER_BOUND)?.status()?;
    let stages = timeline::complete(&status.stages, status.envd.as_ref());
    if stages.is_empty() {
        return Err(BootError::NoStages.into());
    }
    Ok(Timeline::new(format!("Boot of {}", text::sanitise(&status.hostname)), &[stages]))
}

fn from_logs(paths: &[PathBuf]) -> Result<Timeline, Failure> {
    let boots = paths.iter().map(|path| last_boot(path)).collect::<Result<Vec<_>, _>>()?;
    let title = match paths {
        [one] => format!("Boot in {}", one.file_name().unwrap_or(one.as_os_str()).to_string_lossy()),
        _ => format!("{} boots", paths.len()),
    };
    Ok(Timeline::new(title, &boots))
}

fn last_boot(path: &Path) -> Result<Vec<Stage>, BootError> {
    let bytes = read_log(path).map_err(|source| BootError::Read { path: path.to_owned(), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let boots = text.lines().rev().map(record::parse);
    boots
        .filter_map(|line| match line {
            Line::Boot(report) => Some(report.stages),
            _ => None,
        })
        .find(|stages| !stages.is_empty())
        .ok_or_else(|| BootError::NoBoot { path: path.to_owned() })
}

/// The bytes of a console log; of one that is larger than [`MAX_LOG`] the end.
pub fn read_log(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        io::stdin().take(MAX_LOG).read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    if length > MAX_LOG {
        file.seek(SeekFrom::Start(length - MAX_LOG))?;
    }
    file.take(MAX_LOG).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write_picture(path: &Path, picture: &str) -> Result<(), BootError> {
    if path.as_os_str() == "-" {
        text::print(picture);
        return Ok(());
    }
    std::fs::write(path, picture).map_err(|source| BootError::Write { path: path.to_owned(), source })?;
    text::print(&format!("{}\n", path.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[&str]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        file
    }

    #[test]
    fn the_last_boot_of_a_log_counts_and_fakes_do_not() {
        let boot = |end: u64| {
            format!(
                r#"[    1.000000] envd-init: boot {{"stages":[{{"name":"mounts","begin_ns":1,"end_ns":{end}}}]}}"#
            )
        };
        let fake = format!("[    2.000000] app: {}", &boot(99)[15..]);
        let file = log(&[&boot(5), &boot(7), &fake, "\u{1b}[2Jjunk"]);
        assert_eq!(last_boot(file.path()).unwrap()[0].end_ns, 7);
    }

    #[test]
    fn a_log_without_a_boot_says_what_is_missing() {
        let file = log(&["[    0.1] x"]);
        let error = last_boot(file.path()).unwrap_err().to_string();
        assert!(error.contains("envd never became healthy"), "{error}");
    }
}

//! Which of a parser's lines the inputs reached, as LLVM's instrumentation counted them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::run;
use crate::target::Target;

/// Where `scripts/fuzz` has found `llvm-profdata` and `llvm-cov`; unset: nothing is measured.
const TOOLS: &str = "LLVM_BIN";

/// The counts of one target's children.
#[derive(Debug)]
pub(crate) struct Coverage {
    tools: Option<PathBuf>,
    folder: PathBuf,
}

impl Coverage {
    pub(crate) fn begin(target: &Target) -> Result<Self> {
        let tools = std::env::var_os(TOOLS).filter(|path| !path.is_empty()).map(PathBuf::from);
        let folder = tests::paths::output("fuzz")?.join(format!("{}.profiles", target.name));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        Ok(Self { tools, folder })
    }

    /// For the children's `LLVM_PROFILE_FILE`.
    pub(crate) fn pattern(&self) -> PathBuf {
        self.folder.join("%p.profraw")
    }

    /// The percentage of lines reached; `None` where it cannot be measured. The lines themselves go into a file beside.
    pub(crate) fn finish(self, target: &Target) -> Result<Option<f64>> {
        let measured = self.tools.as_deref().map(|tools| self.measure(tools, target)).transpose();
        let _ = fs::remove_dir_all(&self.folder);
        Ok(measured?.flatten())
    }

    fn measure(&self, tools: &Path, target: &Target) -> Result<Option<f64>> {
        let raw: Vec<PathBuf> =
            fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        if raw.is_empty() {
            return Ok(None);
        }
        let merged = self.folder.join("merged.profdata");
        run(Command::new(tools.join("llvm-profdata"))
            .args(["merge", "--sparse", "-o"])
            .arg(&merged)
            .args(&raw))?;
        let of_sources = |command: &mut Command| {
            command.arg(std::env::current_exe()?).arg("--instr-profile").arg(&merged).arg("--sources");
            command.args(target.sources.iter().map(|source| tests::paths::root().join(source)));
            run(command)
        };
        let lines =
            of_sources(Command::new(tools.join("llvm-cov")).args(["show", "--show-line-counts-or-regions"]))?;
        fs::write(tests::paths::output("fuzz")?.join(format!("{}.lines", target.name)), lines)?;
        let summary = of_sources(Command::new(tools.join("llvm-cov")).args(["export", "--summary-only"]))?;
        let export: Export = serde_json::from_slice(&summary).context("reading what llvm-cov exports")?;
        Ok(export.data.first().map(|data| data.totals.lines.percent))
    }
}

#[derive(Debug, Deserialize)]
struct Export {
    data: Vec<Data>,
}

#[derive(Debug, Deserialize)]
struct Data {
    totals: Totals,
}

#[derive(Debug, Deserialize)]
struct Totals {
    lines: Lines,
}

#[derive(Debug, Deserialize)]
struct Lines {
    percent: f64,
}

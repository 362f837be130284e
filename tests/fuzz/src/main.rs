//! `make fuzz`: every parser, at least a million inputs each.
//!
//! `COUNT=` inputs a target (default 1,000,000; images: one for each 500 of them), `SEED=` to replay, `ONLY=` for one
//! target. Each target runs in a process of its own, so that whatever ends one (a stack that overflows, an allocation
//! beyond the bound) is a finding about one input and not the end of the run. What fails is kept as
//! `target/fuzz/TARGET-SEED-N`, to be added to the corpus in `tests/fuzz/corpus/TARGET/` with the fix; `fuzz --input TARGET FILE`
//! runs one input and lets it panic aloud.
//!
//! `scripts/fuzz` builds this program instrumented and says in `LLVM_BIN` where LLVM's tools are; then the share of each
//! parser's lines that the inputs reached is told too, and the lines themselves are in `target/fuzz/TARGET.lines`.

mod coverage;
mod drive;
mod mutate;
mod parent;
mod target;

use std::alloc::System;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use cap::Cap;

/// A parser that wants more memory than this for an input of 64 KiB hoards; the allocation fails, and that is the finding.
const MEMORY_BOUND: usize = 512 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY_BOUND);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.as_slice() {
        [] => parent::run(),
        [flag, name, from] if flag == drive::FLAG => drive::main(name, from).map(|()| true),
        [flag, name, file] if flag == "--input" => drive::one(name, file.as_ref()).map(|()| true),
        _ => Err(anyhow::anyhow!(
            "no arguments (COUNT, SEED and ONLY are read from the environment), or --input TARGET FILE"
        )),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// A number of the environment; unset and empty mean the default.
fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().with_context(|| format!("{name}={text}: not a number")),
        _ => Ok(default),
    }
}

/// What a program prints, once it has succeeded.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", said.trim());
    Ok(output.stdout)
}

//! The parsers, each as a function of bytes that must neither panic nor hang nor hoard.

mod guest_side;
mod host_side;
mod images;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::mutate::Mutator;

/// One parser under test.
#[derive(Debug)]
pub(crate) struct Target {
    /// Also the name of its folder in the corpus.
    pub(crate) name: &'static str,
    /// Panics when something is wrong.
    pub(crate) run: fn(&[u8]),
    pub(crate) seeds: Seeds,
    /// The files whose lines are to be reached.
    pub(crate) sources: &'static [&'static str],
}

/// What inputs are made from.
#[derive(Debug)]
pub(crate) enum Seeds {
    /// Files of the corpus, and tokens of the grammar.
    Corpus(&'static [&'static [u8]]),
    /// Images of the corpus, and those that e2fsprogs makes on the spot.
    Images,
}

/// Inputs of other targets for each image.
const INPUTS_AN_IMAGE: u64 = 500;

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    guest_side::IP,
    guest_side::CMDLINE,
    guest_side::CONFIG,
    guest_side::SERVICES,
    guest_side::LOG,
    wire::CONNECT,
    wire::OK,
    wire::CONTROL_REQUEST,
    wire::CONTROL_REPLY,
    wire::ENDPOINT,
    wire::ENVD_ANSWER,
    host_side::CONSOLE,
    host_side::RULES,
    host_side::UNITS,
    host_side::TAR,
    host_side::ELF,
    images::EXT4,
];

pub(crate) fn find(name: &str) -> Result<&'static Target> {
    TARGETS.iter().find(|target| target.name == name).with_context(|| format!("there is no target {name}"))
}

impl Target {
    /// How many inputs it is to be run on.
    pub(crate) fn count(&self) -> Result<u64> {
        let count = crate::number("COUNT", 1_000_000)?;
        Ok(match self.seeds {
            Seeds::Corpus(_) => count,
            Seeds::Images => count.div_ceil(INPUTS_AN_IMAGE),
        })
    }

    /// All inputs that a seed leads to, without end: first what is in the corpus, then what is made of it.
    pub(crate) fn inputs(&self, seed: u64) -> Result<Box<dyn Iterator<Item = Vec<u8>>>> {
        Ok(match self.seeds {
            Seeds::Corpus(dictionary) => {
                let corpus = corpus(self.name)?;
                let mut mutator = Mutator::new(corpus.clone(), dictionary, seed);
                Box::new(corpus.into_iter().chain(std::iter::repeat_with(move || mutator.input())))
            }
            Seeds::Images => Box::new(images::inputs(corpus(self.name)?, seed)?),
        })
    }
}

fn corpus(name: &str) -> Result<Vec<Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&folder).with_context(|| format!("read the corpus {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    ensure!(!paths.is_empty(), "the corpus {} is empty", folder.display());
    Ok(paths.iter().map(fs::read).collect::<std::io::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough to run through the whole corpus and some hundred mutations of each input.
    const INPUTS: usize = 4000;
    const IMAGES: usize = 40;

    #[test]
    fn no_parser_panics_over_its_corpus_or_what_is_made_of_it() {
        for target in TARGETS {
            let count = if matches!(target.seeds, Seeds::Images) { IMAGES } else { INPUTS };
            for input in target.inputs(1).unwrap().take(count) {
                (target.run)(&input);
            }
        }
    }

    #[test]
    fn the_sources_that_are_to_be_reached_exist() {
        for source in TARGETS.iter().flat_map(|target| target.sources) {
            assert!(::tests::paths::root().join(source).exists(), "{source}");
        }
    }
}

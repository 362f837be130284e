//! The payload as a tar: to `ADD` in a template's Dockerfile, or to unpack on a machine that runs.
//!
//! It carries keep mode, because what comes by Dockerfile must survive the provisioning that follows: nothing in it is a file that
//! provisioning writes. Only folders of our own have entries, so unpacking changes no folder of the image's.

use std::path::Path;

use crate::{
    elf::{Elf, Machine},
    ext4::Kind,
    keep,
    manifest::HOME,
    payload::{self, Error},
    plan::{Plan, What},
    settings, tree,
};

const BLOCK: usize = 512;
/// The name field of the oldest form, which every reader knows.
const NAME: usize = 100;

/// Makes the archive: sorted, owned by root, all of one time.
pub fn make(guest: &Path, machine: Option<Machine>, epoch: u64) -> Result<Vec<u8>, Error> {
    let machine = match machine {
        Some(machine) => machine,
        None => machine_of(&guest.join("envd-wrapper"))?,
    };
    let mut plan = keep::payload();
    payload::programs(&mut plan, guest, machine)?;
    settings::shipped_services(&mut plan);
    plan.items.sort_by(|a, b| a.path.cmp(&b.path));
    archive(&plan, epoch)
}

fn machine_of(program: &Path) -> Result<Machine, Error> {
    let bytes = std::fs::read(program).map_err(|_| Error::NoProgram(program.to_owned()))?;
    let elf = Elf::parse(&bytes).map_err(|source| Error::Unfit { path: program.to_owned(), source })?;
    Ok(elf.machine.unwrap_or(Machine::X86_64))
}

fn archive(plan: &Plan, epoch: u64) -> Result<Vec<u8>, Error> {
    let mut tar = Vec::new();
    let mut folders: Vec<&str> = Vec::new();
    for item in &plan.items {
        let folder = std::str::from_utf8(tree::parent(item.path.as_bytes())).unwrap_or(HOME);
        if folder.starts_with(HOME) && !folders.contains(&folder) {
            folders.push(folder);
            header(&mut tar, &format!("{folder}/"), Kind::Dir, 0o755, 0, "", epoch);
        }
        match &item.what {
            What::File { content, mode } => {
                let bytes = content.read()?;
                header(&mut tar, &item.path, Kind::File, *mode, bytes.len(), "", epoch);
                tar.extend_from_slice(&bytes);
                tar.resize(tar.len().next_multiple_of(BLOCK), 0);
            }
            What::Link { target } => header(&mut tar, &item.path, Kind::Link, 0o777, 0, target, epoch),
            What::Dir { .. } => (),
        }
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    Ok(tar)
}

fn header(tar: &mut Vec<u8>, path: &str, kind: Kind, mode: u16, size: usize, target: &str, epoch: u64) {
    let name = path.trim_start_matches('/');
    assert!(name.len() <= NAME && target.len() <= NAME, "paths of the payload are short");
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, &format!("{epoch:011o}"));
    put(148, "        ");
    put(
        156,
        match kind {
            Kind::Dir => "5",
            Kind::Link => "2",
            _ => "0",
        },
    );
    put(157, target);
    put(257, "ustar\u{0}00root");
    put(297, "root");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&block);
}

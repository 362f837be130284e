//! Is a program fit for a guest: a static ELF of the right machine?

const PT_INTERP: u32 = 3;
const PT_DYNAMIC: u32 = 2;
const DT_NEEDED: u64 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Machine {
    #[serde(rename = "x86_64")]
    X86_64,
    Aarch64,
}

impl Machine {
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Debian's word for it.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "x86_64" | "amd64" => Some(Self::X86_64),
            "aarch64" | "arm64" => Some(Self::Aarch64),
            _ => None,
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("is no ELF program")]
    NotElf,
    #[error("is a broken ELF file")]
    Broken,
    #[error("is built for {found}, the image is {wanted}", wanted = wanted.name())]
    Machine { found: String, wanted: Machine },
    #[error("is dynamically linked ({0}); build it static")]
    Dynamic(String),
    #[error("is an ELF file, but no program")]
    NotProgram,
}

/// What the header of an ELF program says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    pub machine: Option<Machine>,
    machine_number: u16,
    executable: bool,
    /// The dynamic loader it asks for, or that it needs libraries.
    pub dynamic: Option<String>,
}

impl Elf {
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() < 20 || &bytes[..4] != b"\x7fELF" {
            return Err(Error::NotElf);
        }
        let machine_number = u16::from_le_bytes([bytes[18], bytes[19]]);
        let machine = match machine_number {
            62 => Some(Machine::X86_64),
            183 => Some(Machine::Aarch64),
            _ => None,
        };
        // Class 2 (64 bit) and data 1 (little endian): anything else is foreign, and not looked at further.
        if bytes[4] != 2 || bytes[5] != 1 || machine.is_none() {
            return Ok(Self { machine: None, machine_number, executable: true, dynamic: None });
        }
        let kind = u16::from_le_bytes([bytes[16], bytes[17]]);
        let dynamic = dynamic(bytes).ok_or(Error::Broken)?;
        Ok(Self { machine, machine_number, executable: matches!(kind, 2 | 3), dynamic })
    }

    /// Requires a static program of that machine.
    pub fn require_static(&self, wanted: Machine) -> Result<(), Error> {
        if self.machine != Some(wanted) {
            let found = self.machine.map_or_else(
                || format!("another machine (ELF number {})", self.machine_number),
                |machine| machine.name().to_owned(),
            );
            return Err(Error::Machine { found, wanted });
        }
        match &self.dynamic {
            _ if !self.executable => Err(Error::NotProgram),
            Some(what) => Err(Error::Dynamic(what.clone())),
            None => Ok(()),
        }
    }
}

/// Why it is dynamic, if it is; `None` outside means that the file is broken.
#[allow(clippy::option_option, reason = "the outer one is only for `?` on what is cut off")]
fn dynamic(bytes: &[u8]) -> Option<Option<String>> {
    let offset = u64_at(bytes, 32)? as usize;
    let size = usize::from(u16_at(bytes, 54)?);
    let count = usize::from(u16_at(bytes, 56)?);
    let mut needs = None;
    for index in 0..count {
        let header = bytes.get(offset.checked_add(index * size)?..)?.get(..56)?;
        let kind = u32::from_le_bytes(header[..4].try_into().ok()?);
        let (begin, len) = (u64_at(header, 8)? as usize, u64_at(header, 32)? as usize);
        let segment = bytes.get(begin..begin.checked_add(len)?);
        match kind {
            PT_INTERP => {
                let loader = segment?.split(|byte| *byte == 0).next().unwrap_or_default();
                return Some(Some(format!("it asks for {}", String::from_utf8_lossy(loader))));
            }
            PT_DYNAMIC => {
                let entries = segment?.chunks_exact(16).take_while(|entry| u64_at(entry, 0) != Some(0));
                if entries.into_iter().any(|entry| u64_at(entry, 0) == Some(DT_NEEDED)) {
                    needs = Some("it needs shared libraries".to_owned());
                }
            }
            _ => (),
        }
    }
    Some(needs)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_elf_and_what_is_cut_off_is_refused() {
        assert_eq!(Elf::parse(b"#!/bin/sh\n and some more text"), Err(Error::NotElf));
        let own = std::fs::read("/proc/self/exe").expect("this test");
        assert_eq!(Elf::parse(&own[..80]), Err(Error::Broken));
    }

    #[test]
    fn a_dynamic_program_is_named_with_its_loader() {
        // Test programs of the host target are linked dynamically.
        let own = std::fs::read("/proc/self/exe").expect("this test");
        let elf = Elf::parse(&own).expect("an ELF");
        if let Some(machine) = elf.machine
            && elf.dynamic.is_some()
        {
            assert!(matches!(elf.require_static(machine), Err(Error::Dynamic(_))));
        }
    }

    #[test]
    fn a_foreign_machine_is_named() {
        let mut header = vec![0; 64];
        header[..4].copy_from_slice(b"\x7fELF");
        (header[4], header[5], header[18]) = (2, 1, 40);
        let elf = Elf::parse(&header).expect("an ELF");
        let error = elf.require_static(Machine::X86_64).expect_err("foreign");
        assert_eq!(error.to_string(), "is built for another machine (ELF number 40), the image is x86_64");
    }
}

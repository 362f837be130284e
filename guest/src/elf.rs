//! What the head of a file says about running it: architecture, interpreter, script.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::errno::Errno;

/// `e_machine` of the architecture that this program was built for.
#[cfg(target_arch = "x86_64")]
pub const HERE: u16 = 62;
#[cfg(target_arch = "aarch64")]
pub const HERE: u16 = 183;

const MAGIC: &[u8] = b"\x7fELF";
const PROGRAM_HEADER_INTERPRETER: u32 = 3;
/// Enough for the ELF header, the program headers and the interpreter's path of any usual program.
const HEAD: u64 = 4096;

/// What a file is, as far as executing it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    Elf {
        machine: u16,
        /// The dynamic loader; `None` for a static program.
        interpreter: Option<String>,
    },
    Script {
        interpreter: String,
    },
    Other,
}

/// Reads the head of a file.
pub fn inspect(path: &Path) -> std::io::Result<Program> {
    let mut head = Vec::with_capacity(HEAD as usize);
    File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    Ok(classify(&head))
}

fn classify(head: &[u8]) -> Program {
    if head.starts_with(MAGIC) {
        return match u16_at(head, 18) {
            Some(machine) => Program::Elf { machine, interpreter: interpreter(head) },
            None => Program::Other,
        };
    }
    match head.strip_prefix(b"#!") {
        Some(rest) => Program::Script { interpreter: first_word(rest) },
        None => Program::Other,
    }
}

fn first_word(line: &[u8]) -> String {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    String::from_utf8_lossy(line).split_whitespace().next().unwrap_or_default().to_owned()
}

/// The path in the PT_INTERP program header of a 64-bit little-endian ELF.
fn interpreter(head: &[u8]) -> Option<String> {
    let table = u64_at(head, 32)? as usize;
    let size = usize::from(u16_at(head, 54)?);
    let count = usize::from(u16_at(head, 56)?);
    let header = (0..count)
        .map_while(|index| head.get(table.checked_add(index * size)?..))
        .find(|header| u32_at(header, 0) == Some(PROGRAM_HEADER_INTERPRETER))?;
    let (offset, length) = (u64_at(header, 8)? as usize, u64_at(header, 32)? as usize);
    let bytes = head.get(offset..offset.checked_add(length)?)?;
    Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "32-bit x86".to_owned(),
        40 => "32-bit arm".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv".to_owned(),
        other => format!("machine {other}"),
    }
}

/// Why a program could not be executed, in words that name what to mend.
pub fn explain(path: &Path, errno: Errno) -> String {
    let shown = path.display();
    match errno {
        Errno::ENOENT if !path.exists() => format!("{shown} is missing"),
        Errno::EACCES if path.is_dir() => format!("{shown} is a directory"),
        Errno::EACCES => format!("{shown} is not executable (chmod +x, or its filesystem is noexec)"),
        Errno::ENOENT | Errno::ENOEXEC | Errno::ELIBBAD => explain_content(path, errno),
        Errno::ETXTBSY => format!("{shown} is still being written"),
        _ => format!("{shown}: {}", errno.desc()),
    }
}

fn explain_content(path: &Path, errno: Errno) -> String {
    let shown = path.display();
    match inspect(path) {
        Ok(Program::Elf { machine, .. }) if machine != HERE => {
            format!("{shown} is built for {}, this machine is {}", machine_name(machine), machine_name(HERE))
        }
        Ok(Program::Elf { interpreter: Some(loader), .. }) if !Path::new(&loader).exists() => {
            format!("{shown} needs the dynamic loader {loader}, which is missing (build it static)")
        }
        Ok(Program::Script { interpreter }) if !Path::new(&interpreter).exists() => {
            format!("{shown} is a script for {interpreter}, which is missing")
        }
        Ok(Program::Elf { .. }) => format!("{shown} is a damaged ELF file"),
        Ok(_) => format!("{shown} is neither an ELF program nor a script"),
        Err(_) => format!("{shown}: {}", errno.desc()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_dynamic_program_names_its_loader_and_its_machine() {
        let Program::Elf { machine, interpreter } = inspect(Path::new("/bin/sh")).unwrap() else {
            panic!("/bin/sh is no ELF")
        };
        assert_eq!(machine, HERE);
        assert!(interpreter.is_some_and(|loader| loader.contains("ld-")));
    }

    #[test]
    fn each_reason_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let mut arm = [0; 64];
        arm[..4].copy_from_slice(MAGIC);
        arm[18] = 40;
        assert!(explain(&folder.path().join("none"), Errno::ENOENT).ends_with("is missing"));
        assert!(explain(&file("arm", &arm), Errno::ENOEXEC).contains("built for 32-bit arm"));
        assert!(
            explain(&file("script", b"#!/no/such -x\n"), Errno::ENOENT)
                .contains("for /no/such, which is missing")
        );
        assert!(explain(&file("text", b"hello"), Errno::ENOEXEC).contains("neither"));
        assert!(explain(folder.path(), Errno::EACCES).contains("directory"));
    }
}

//! What the tests of images share: trees described in a few lines, archives, programs that pass for guest programs.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// Time of everything in the archives: 2025-01-01.
pub const EPOCH: u64 = 1_735_689_600;

/// An entry of an archive.
#[derive(Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub ids: (u32, u32),
    pub mtime: u64,
    pub link: Vec<u8>,
    pub data: Vec<u8>,
    pub device: (u32, u32),
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
}

pub fn entry(kind: u8, path: impl AsRef<[u8]>, mode: u32) -> Entry {
    let (link, data, pax) = (Vec::new(), Vec::new(), Vec::new());
    let path = path.as_ref().to_vec();
    Entry { path, kind, mode, ids: (0, 0), mtime: EPOCH, link, data, device: (0, 0), pax }
}

pub fn dir(path: impl AsRef<[u8]>) -> Entry {
    entry(b'5', path, 0o755)
}

pub fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    Entry { data: data.as_ref().to_vec(), ..entry(b'0', path, 0o644) }
}

pub fn program(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    Entry { mode: 0o755, ..file(path, data) }
}

pub fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry { link: target.as_ref().to_vec(), ..entry(b'2', path, 0o777) }
}

pub fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry { link: target.as_ref().to_vec(), ..entry(b'1', path, 0o644) }
}

impl Entry {
    #[must_use]
    pub fn owned(mut self, uid: u32, gid: u32) -> Self {
        self.ids = (uid, gid);
        self
    }

    #[must_use]
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.pax.push((format!("SCHILY.xattr.{name}").into_bytes(), value.to_vec()));
        self
    }

    fn write(&self, tar: &mut Vec<u8>) {
        let mut pax = self.pax.clone();
        if self.path.len() > 100 {
            pax.push((b"path".to_vec(), self.path.clone()));
        }
        if self.link.len() > 100 {
            pax.push((b"linkpath".to_vec(), self.link.clone()));
        }
        if self.ids.0 > 0o7_777_777 {
            pax.push((b"uid".to_vec(), self.ids.0.to_string().into_bytes()));
        }
        if self.ids.1 > 0o7_777_777 {
            pax.push((b"gid".to_vec(), self.ids.1.to_string().into_bytes()));
        }
        if !pax.is_empty() {
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            header(tar, &Self { data: records.clone(), ..entry(b'x', "pax", 0o644) });
            body(tar, &records);
        }
        header(tar, self);
        body(tar, &self.data);
    }
}

/// One pax record; its length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn header(tar: &mut Vec<u8>, entry: &Entry) {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &entry.path[..entry.path.len().min(100)]);
    put(100, format!("{:07o}", entry.mode).as_bytes());
    put(108, format!("{:07o}", entry.ids.0 & 0o7_777_777).as_bytes());
    put(116, format!("{:07o}", entry.ids.1 & 0o7_777_777).as_bytes());
    put(124, format!("{:011o}", entry.data.len()).as_bytes());
    put(136, format!("{:011o}", entry.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[entry.kind]);
    put(157, &entry.link[..entry.link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", entry.device.0).as_bytes());
    put(337, format!("{:07o}", entry.device.1).as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&block);
}

fn body(tar: &mut Vec<u8>, data: &[u8]) {
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    for entry in entries {
        entry.write(&mut tar);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// A static program of a machine (its ELF number), told from others by its tag. It need not run.
pub fn elf(machine: u16, tag: &str) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16] = 2;
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
    bytes[54] = 56;
    bytes.extend_from_slice(tag.as_bytes());
    bytes
}

pub const X86_64: u16 = 62;
pub const AARCH64: u16 = 183;

/// A small Debian-like image under systemd.
pub fn debian(merged: bool) -> Vec<Entry> {
    let mut entries = vec![
        dir("./"),
        dir("./etc"),
        dir("./usr"),
        dir("./usr/bin"),
        dir("./usr/sbin"),
        dir("./usr/lib"),
        dir("./var"),
        dir("./var/lib"),
        dir("./var/lib/dpkg"),
        dir("./var/lib/dpkg/info"),
        dir("./usr/lib/systemd"),
        dir("./root"),
        dir("./tmp"),
        file("./etc/passwd", "root:x:0:0::/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n"),
        file("./etc/os-release", "PRETTY_NAME=\"Test Linux 1\"\n"),
        file("./var/lib/dpkg/status", ""),
        file("./var/lib/dpkg/diversions", "/bin/sh\n/bin/sh.distrib\ndash\n"),
        file(
            "./var/lib/dpkg/info/systemd-sysv.list",
            "/.\n/sbin/init\n/sbin/reboot\n/sbin/poweroff\n/sbin/halt\n/sbin/shutdown\n",
        ),
        program("./usr/lib/systemd/systemd", elf(X86_64, "systemd libsystemd-shared")),
    ];
    let (bin, sbin) = if merged {
        entries.extend([link("./bin", "usr/bin"), link("./sbin", "usr/sbin"), link("./lib", "usr/lib")]);
        ("./usr/bin", "./usr/sbin")
    } else {
        entries.extend([
            dir("./bin"),
            dir("./sbin"),
            dir("./lib"),
            link("./lib/systemd", "../usr/lib/systemd"),
        ]);
        ("./bin", "./sbin")
    };
    for name in ["bash", "sh", "mount", "umount", "socat", "iptables"] {
        entries.push(program(format!("{bin}/{name}"), elf(X86_64, name)));
    }
    entries.push(
        program(format!("{bin}/systemctl"), elf(X86_64, "systemctl of the image")).xattr("user.kept", b"yes"),
    );
    entries.push(link(format!("{sbin}/init"), "/lib/systemd/systemd"));
    for name in ["reboot", "poweroff", "halt", "shutdown"] {
        entries.push(link(format!("{sbin}/{name}"), "/bin/systemctl"));
    }
    entries
}

/// A folder to work in, with guest programs in `guest/`.
pub struct Bench {
    pub folder: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let guest = folder.path().join("guest");
        fs::create_dir(&guest).expect("made");
        for name in ["init", "envd-wrapper", "vsock-relay"] {
            fs::write(guest.join(name), elf(X86_64, &format!("{name} 1"))).expect("written");
        }
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn tar(&self, name: &str, entries: &[Entry]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, archive(entries)).expect("written");
        path
    }

    /// Builds `NAME.ext4` from entries, with the program under test.
    pub fn image(&self, name: &str, entries: &[Entry]) -> PathBuf {
        let tar = self.tar(&format!("{name}.tar"), entries);
        let out = self.path(&format!("{name}.ext4"));
        self.ok(&[
            OsStr::new("build"),
            tar.as_os_str(),
            OsStr::new("--size=64"),
            OsStr::new("--out"),
            out.as_os_str(),
        ]);
        out
    }

    /// Makes an image by mke2fs itself, with a geometry of its own, from what another image's tar holds.
    pub fn foreign_image(&self, name: &str, entries: &[Entry], options: &[&str]) -> PathBuf {
        let tree = self.path(&format!("{name}.tree"));
        fs::create_dir(&tree).expect("made");
        let tar = self.tar(&format!("{name}.tar"), entries);
        let unpacked =
            Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&tree).status().expect("tar runs");
        assert!(unpacked.success());
        let out = self.path(&format!("{name}.ext4"));
        let mut command = tool("mke2fs");
        command
            .args(["-q", "-F", "-E", "root_owner=0:0"])
            .args(options)
            .arg("-d")
            .arg(&tree)
            .arg(&out)
            .arg("48M");
        let output = command.output().expect("mke2fs runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    }

    pub fn inject(&self, base: &Path, out: &str, more: &[&str]) -> PathBuf {
        let out = self.path(out);
        let output = self.try_inject(base, &out, more);
        assert!(output.status.success(), "{}", said(&output));
        out
    }

    pub fn try_inject(&self, base: &Path, out: &Path, more: &[&str]) -> Output {
        self.rootfs()
            .arg("inject")
            .arg(base)
            .arg("-o")
            .arg(out)
            .arg("--guest")
            .arg(self.path("guest"))
            .args(more)
            .output()
            .expect("rootfs runs")
    }

    pub fn revert(&self, image: &Path, out: &str) -> PathBuf {
        let out = self.path(out);
        self.ok(&[OsStr::new("revert"), image.as_os_str(), OsStr::new("-o"), out.as_os_str()]);
        out
    }

    pub fn rootfs(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rootfs"));
        command
            .current_dir(self.folder.path())
            .env_remove("SOURCE_DATE_EPOCH")
            .env_remove("ROOTFS_TEST_KILL_AT");
        command
    }

    pub fn ok(&self, args: &[&OsStr]) -> String {
        let output = self.rootfs().args(args).output().expect("rootfs runs");
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Requires that two images hold the same tree, times included.
    pub fn same(&self, a: &Path, b: &Path) {
        self.ok(&[OsStr::new("diff"), OsStr::new("--times"), a.as_os_str(), b.as_os_str()]);
    }

    /// The names in the folder, hidden ones too.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("read");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A tool of e2fsprogs, with what lies in sbin in reach.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command
}

pub fn assert_clean(image: &Path) {
    let output = tool("e2fsck").arg("-fn").arg(image).output().expect("e2fsck runs");
    assert!(output.status.success(), "{}", said(&output));
}

pub fn path_of(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}

//! A tar from a file or from stdin, unpacked by the right program when it is compressed.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::fd::AsFd,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread::{self, JoinHandle},
};

/// The first bytes of a compressed stream, and the program that undoes it.
const FORMS: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2")];

/// Bytes of an archive, whatever it was packed with.
#[derive(Debug)]
pub enum Input<R> {
    Plain(BufReader<R>),
    Packed(Unpacker),
}

#[derive(Debug)]
pub struct Unpacker {
    tool: &'static str,
    child: Child,
    output: ChildStdout,
    feeder: Option<JoinHandle<io::Result<u64>>>,
}

/// Opens a tar file; `-` is stdin.
pub fn open(path: &Path) -> io::Result<Input<File>> {
    let raw = if is_stdin(path) { stdin()? } else { File::open(path)? };
    Input::new(raw)
}

/// What messages call it.
pub fn name(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// As a file: the standard library's own reads through a small buffer.
fn stdin() -> io::Result<File> {
    io::stdin().as_fd().try_clone_to_owned().map(File::from)
}

impl<R: Read + Send + 'static> Input<R> {
    fn new(raw: R) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(1 << 18, raw);
        let head = reader.fill_buf()?;
        let form = FORMS.iter().find(|(magic, _)| head.starts_with(magic));
        let Some((_, tool)) = form else { return Ok(Self::Plain(reader)) };
        let spawned =
            Command::new(tool).args(["-d", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child =
            spawned.map_err(|error| io::Error::new(error.kind(), format!("starting {tool}: {error}")))?;
        let (stdin, output) = (child.stdin.take(), child.stdout.take());
        let (Some(mut stdin), Some(output)) = (stdin, output) else {
            return Err(io::Error::other("no pipes"));
        };
        let feeder = thread::spawn(move || io::copy(&mut reader, &mut stdin));
        Ok(Self::Packed(Unpacker { tool, child, output, feeder: Some(feeder) }))
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Packed(unpacker) => unpacker.read(buffer),
        }
    }
}

impl Read for Unpacker {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.output.read(buffer)?;
        if len == 0 && !buffer.is_empty() {
            self.finish()?;
        }
        Ok(len)
    }
}

impl Unpacker {
    /// A stream that ends early is an error, not a short archive.
    fn finish(&mut self) -> io::Result<()> {
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
            let status = self.child.wait()?;
            if !status.success() {
                return Err(io::Error::other(format!("{} ended with {status}", self.tool)));
            }
        }
        Ok(())
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        if self.feeder.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

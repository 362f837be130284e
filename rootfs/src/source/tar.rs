//! Tar archives as they really come: ustar, GNU long names and sparse files, pax with attributes and sparse files.
//!
//! An archive is a sequence of 512-byte headers, each followed by contents padded to 512 bytes. A header may be preceded by others that
//! amend it: GNU `L`/`K` (long name, long link target) or pax `x` (any key) and `g` (for all that follow). A sparse file
//! stores its data pieces back to back, with a map of where they belong: in the header (GNU `S`), in pax keys (0.0, 0.1) or at the
//! head of the data (1.0). Incremental archives of GNU tar have a list of names with each folder, and perhaps a label (`V`) before all.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use super::acl;
use crate::ext4::show;

const BLOCK: usize = 512;
/// Headers that amend others are read into memory; a larger one is an attack or a broken archive.
const MAX_META: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the tar archive")]
    Read(#[source] io::Error),
    #[error("the tar archive ends in the middle of {0}")]
    CutOff(String),
    #[error("this is no tar archive (or a broken one) at byte {0}")]
    BadHeader(u64),
    #[error("tar entry {0}: {1}")]
    Entry(String, &'static str),
}

type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Dir,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    /// Real size of a file, holes included.
    pub size: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where the data pieces of a file belong: offset and length, ascending.
    pub pieces: Vec<(u64, u64)>,
}

type Pax = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads entries one after another; the data of one has to be taken (or is skipped) before the next.
pub struct Archive<R> {
    input: R,
    position: u64,
    /// Bytes of the current entry's data that were not read, and its padding.
    left: u64,
    padding: u64,
    global: Pax,
}

impl<R: Read> Archive<R> {
    pub fn new(input: R) -> Self {
        Self { input, position: 0, left: 0, padding: 0, global: Pax::new() }
    }

    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry, or `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let (mut long_name, mut long_link, mut pax) = (None, None, Pax::new());
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header[124..136]).ok_or(Error::BadHeader(self.position))?;
            match header[156] {
                b'L' => long_name = Some(trim_nul(self.meta(size)?)),
                b'K' => long_link = Some(trim_nul(self.meta(size)?)),
                // The label of the archive itself.
                b'V' => {
                    self.left = size;
                    self.padding = size.next_multiple_of(BLOCK as u64) - size;
                }
                b'x' => pax = records(&self.meta(size)?),
                b'g' => {
                    let records = records(&self.meta(size)?);
                    self.global.extend(records);
                }
                _ => {
                    let mut all = self.global.clone();
                    all.append(&mut pax);
                    if header[156] == b'D' {
                        all.insert(DUMPED.to_vec(), self.meta(size)?);
                    }
                    return self.entry(&header, size, long_name, long_link, &all).map(Some);
                }
            }
        }
    }

    /// Reads some of the current entry's data.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        self.fill(&mut buffer[..want], "a file")?;
        self.left -= want as u64;
        Ok(want)
    }

    /// Reads what is behind the end of the archive, so that a digest covers the whole stream.
    pub fn drain(&mut self) -> Result<()> {
        io::copy(&mut self.input, &mut io::sink()).map(|_| ()).map_err(Error::Read)
    }

    fn skip_rest(&mut self) -> Result<()> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink()).map_err(Error::Read)?;
        self.position += skipped;
        if skipped == rest { Ok(()) } else { Err(Error::CutOff("a file".into())) }
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::CutOff(what.to_owned()),
            _ => Error::Read(error),
        })?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut header = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.input.read(&mut header[have..]).map_err(Error::Read)? {
                0 if have == 0 && self.position > 0 => return Ok(None),
                0 => return Err(Error::BadHeader(self.position)),
                len => have += len,
            }
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
            .sum();
        if number(&header[148..156]) != Some(sum) {
            return Err(Error::BadHeader(self.position));
        }
        self.position += BLOCK as u64;
        Ok(Some(header))
    }

    fn meta(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_META {
            return Err(Error::BadHeader(self.position));
        }
        let mut data = vec![0; size.next_multiple_of(BLOCK as u64) as usize];
        self.fill(&mut data, "a long name")?;
        data.truncate(size as usize);
        Ok(data)
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        size: u64,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        pax: &Pax,
    ) -> Result<Entry> {
        let bad = Error::BadHeader(self.position);
        let text = |key: &str| pax.get(key.as_bytes()).cloned();
        let decimal = |key: &str| {
            text(key).and_then(|value| String::from_utf8(value).ok()).and_then(|value| whole(&value))
        };
        let path = text("GNU.sparse.name")
            .or_else(|| text("path"))
            .or(long_name)
            .unwrap_or_else(|| short_name(header));
        let link = text("linkpath").or(long_link).unwrap_or_else(|| trim_nul(header[157..257].to_vec()));
        let stored = decimal("size").map_or(size, |size| size as u64);
        let field = |range: std::ops::Range<usize>| number(&header[range]);
        let device = || Some((field(329..337)? as u32, field(337..345)? as u32));
        let kind = match header[156] {
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Dir,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::Hardlink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => device().map(|(major, minor)| EntryKind::Char(major, minor)).ok_or(bad)?,
            b'4' => device().map(|(major, minor)| EntryKind::Block(major, minor)).ok_or(bad)?,
            b'5' | b'D' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            b'M' => {
                return Err(Error::Entry(show(&path), "it goes on from another volume, which is not here"));
            }
            _ => return Err(Error::Entry(show(&path), "its type is unknown")),
        };
        if pax.get(DUMPED).is_some_and(|names| leaves_out(names)) {
            let why = "files of this folder are left out, as in a later step of an incremental backup; give a whole one";
            return Err(Error::Entry(show(&path), why));
        }
        let mut entry = Entry {
            mode: field(100..108).unwrap_or(0o644) as u16 & 0o7777,
            uid: decimal("uid").map(|id| id as u64).or_else(|| field(108..116)).unwrap_or(0) as u32,
            gid: decimal("gid").map(|id| id as u64).or_else(|| field(116..124)).unwrap_or(0) as u32,
            mtime: decimal("mtime").or_else(|| field(136..148).map(|time| time as i64)).unwrap_or(0),
            size: stored,
            xattrs: xattrs(pax),
            pieces: vec![(0, stored)],
            path,
            kind,
        };
        // A hard link may carry the size of what it names, but no data of its own here.
        let data = if entry.kind == EntryKind::File { stored } else { 0 };
        self.left = data;
        self.padding = data.next_multiple_of(BLOCK as u64) - data;
        if entry.kind == EntryKind::File {
            self.sparse(header, pax, &mut entry)?;
        }
        Ok(entry)
    }

    /// Replaces the one piece of an ordinary file by the map of a sparse one.
    fn sparse(&mut self, header: &[u8; BLOCK], pax: &Pax, entry: &mut Entry) -> Result<()> {
        let broken = |entry: &Entry| Error::Entry(show(&entry.path), "its map of holes is broken");
        let decimal = |key: &str| {
            pax.get(key.as_bytes())
                .and_then(|value| std::str::from_utf8(value).ok())
                .and_then(|value| value.parse::<u64>().ok())
        };
        if header[156] == b'S' {
            entry.pieces = self.old_sparse_map(header).ok_or_else(|| broken(entry))?;
            entry.size = number(&header[483..495]).ok_or_else(|| broken(entry))?;
        } else if decimal("GNU.sparse.major") == Some(1) {
            entry.size = decimal("GNU.sparse.realsize").ok_or_else(|| broken(entry))?;
            entry.pieces = self.map_in_data().ok_or_else(|| broken(entry))?;
        } else if let Some(map) = pax.get(b"GNU.sparse.map".as_slice()) {
            entry.size = decimal("GNU.sparse.size").ok_or_else(|| broken(entry))?;
            let numbers: Option<Vec<u64>> = map
                .split(|byte| *byte == b',')
                .map(|word| std::str::from_utf8(word).ok()?.parse().ok())
                .collect();
            entry.pieces = numbers
                .ok_or_else(|| broken(entry))?
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect();
        } else {
            return Ok(());
        }
        let stored: u64 = entry.pieces.iter().map(|(_, len)| len).sum();
        let ordered = entry.pieces.windows(2).all(|pair| pair[0].0.saturating_add(pair[0].1) <= pair[1].0);
        let inside = entry.pieces.last().is_none_or(|(at, len)| at.saturating_add(*len) <= entry.size);
        if stored == self.left && ordered && inside { Ok(()) } else { Err(broken(entry)) }
    }

    fn old_sparse_map(&mut self, header: &[u8; BLOCK]) -> Option<Vec<(u64, u64)>> {
        let mut pieces = Vec::new();
        take_pairs(&header[386..482], &mut pieces)?;
        let mut more = header[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            self.fill(&mut block, "a map of holes").ok()?;
            take_pairs(&block[..504], &mut pieces)?;
            more = block[504] != 0;
        }
        Some(pieces)
    }

    /// Form 1.0: decimal lines at the head of the data, padded to a block.
    fn map_in_data(&mut self) -> Option<Vec<(u64, u64)>> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut line = String::new();
        let wanted =
            |numbers: &[u64]| numbers.first().map_or(1, |count| count.saturating_mul(2).saturating_add(1));
        while (numbers.len() as u64) < wanted(&numbers) {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 || self.read_data(&mut block).ok()? != BLOCK {
                return None;
            }
            for byte in block {
                if (numbers.len() as u64) >= wanted(&numbers) {
                    break;
                }
                match byte {
                    b'\n' => numbers.push(std::mem::take(&mut line).parse().ok()?),
                    digit => line.push(char::from(digit)),
                }
            }
        }
        Some(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

fn take_pairs(raw: &[u8], pieces: &mut Vec<(u64, u64)>) -> Option<()> {
    for pair in raw.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        pieces.push((number(&pair[..12])?, number(&pair[12..])?));
    }
    Some(())
}

/// A number field: octal digits, or binary when the top bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] == 0xff;
        let first = if negative { u64::MAX } else { u64::from(field[0] & 0x7f) };
        return Some(field[1..].iter().fold(first, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| !matches!(byte, 0 | b' '));
    digits.into_iter().try_fold(0_u64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A decimal that may have a fraction, rounded down as every other tool does.
fn whole(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let value: i64 = seconds.parse().ok()?;
    let below = seconds.starts_with('-') && fraction.bytes().any(|digit| digit != b'0');
    Some(value - i64::from(below))
}

fn trim_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn short_name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = trim_nul(header[..100].to_vec());
    // Only POSIX archives have a prefix; GNU keeps other things there.
    let prefix =
        if &header[257..263] == b"ustar\0" { trim_nul(header[345..500].to_vec()) } else { Vec::new() };
    if prefix.is_empty() { name } else { [prefix.as_slice(), b"/", &name].concat() }
}

/// Pax records: `LENGTH KEY=VALUE\n`.
fn records(mut data: &[u8]) -> Pax {
    let mut pax = Pax::new();
    while let Some(space) = data.iter().position(|byte| *byte == b' ') {
        let len = std::str::from_utf8(&data[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let Some(record) = len
            .filter(|len| *len > space + 1 && *len <= data.len())
            .and_then(|len| data.get(space + 1..len - 1))
        else {
            break;
        };
        if let Some(equals) = record.iter().position(|byte| *byte == b'=') {
            let (key, value) = (record[..equals].to_vec(), record[equals + 1..].to_vec());
            append(&mut pax, key, value);
        }
        data = &data[space + 1 + record.len() + 1..];
    }
    pax
}

/// Sparse form 0.0 repeats its keys: they are joined into the map of form 0.1.
fn append(pax: &mut Pax, key: Vec<u8>, value: Vec<u8>) {
    if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
        let map = pax.entry(b"GNU.sparse.map".to_vec()).or_default();
        if !map.is_empty() {
            map.push(b',');
        }
        map.extend(value);
        return;
    }
    pax.insert(key, value);
}

/// The list of a folder's names that `tar --listed-incremental` writes: each behind a letter, `N` where it is not in the archive.
const DUMPED: &[u8] = b"GNU.dumpdir";

fn leaves_out(names: &[u8]) -> bool {
    names.split(|byte| *byte == 0).any(|name| name.first() == Some(&b'N'))
}

/// Attributes; ACLs under the archive's own keys, for the numbers of their names are not known yet.
fn xattrs(pax: &Pax) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let name = |key: &[u8]| {
        let is_acl = acl::KEYS.iter().any(|(acl, _)| *acl == key);
        if is_acl { Some(key.to_vec()) } else { Some(key.strip_prefix(b"SCHILY.xattr.")?.to_vec()) }
    };
    pax.iter().filter_map(|(key, value)| Some((name(key)?, value.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  17 "), Some(0o17));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(b"12x"), None);
    }

    #[test]
    fn a_negative_fraction_rounds_down() {
        assert_eq!(whole("12.9"), Some(12));
        assert_eq!(whole("-1.5"), Some(-2));
        assert_eq!(whole("-1.0"), Some(-1));
    }

    #[test]
    fn pax_records_may_hold_any_byte() {
        let pax = records(b"11 path=a\xff\n20 SCHILY.xattr.a=\0\n");
        assert_eq!(pax.get(b"path".as_slice()).map(Vec::as_slice), Some(b"a\xff".as_slice()));
    }

    #[test]
    fn an_empty_input_and_garbage_are_no_archives() {
        assert!(matches!(Archive::new([].as_slice()).next_entry(), Err(Error::BadHeader(0))));
        assert!(matches!(Archive::new([7; 1024].as_slice()).next_entry(), Err(Error::BadHeader(0))));
    }
}

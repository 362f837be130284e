//! The log ring: the tail of what was said, bounded, in two text files for each writer.
//!
//! `/run/envd-init/log/WRITER.log` is the segment that grows, `WRITER.log.1` the one before it. One line a record:
//!
//! ```text
//! SEQUENCE NANOSECONDS LEVEL COMPONENT TEXT…
//! ```
//!
//! A shell in a broken guest reads it with `cat`; a writer that crashed goes on with the next sequence number; nothing is
//! mapped or locked. /run is memory, so a segment is small. A sequence number that is missing is a gap, and is counted.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::clock::Moment;
use crate::control::LogRecord;
use crate::record::Level;

/// Where the rings are.
pub const FOLDER: &str = "/run/envd-init/log";
/// A segment that is larger than this (bytes) is put aside.
pub const SEGMENT: u64 = 32 * 1024;
/// Records that are kept in memory until /run can be written.
const EARLY: usize = 64;

/// One writer's ring.
#[derive(Debug)]
pub struct Ring {
    folder: PathBuf,
    name: String,
    file: Option<File>,
    size: u64,
    next: u64,
    early: Vec<String>,
}

impl Ring {
    /// A ring that holds its records in memory until [`Ring::open`] succeeds.
    pub fn new(folder: impl Into<PathBuf>, name: &str) -> Self {
        Self { folder: folder.into(), name: name.to_owned(), file: None, size: 0, next: 1, early: Vec::new() }
    }

    /// Opens the segment and goes on behind its last record.
    pub fn open(&mut self) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        self.make_folder()?;
        let last = [self.segment(), self.previous()].iter().filter_map(|path| last_sequence(path)).max();
        self.append()?;
        self.next = last.unwrap_or(0) + 1;
        for line in std::mem::take(&mut self.early) {
            self.number_and_write(&line);
        }
        Ok(())
    }

    /// Adds one record; its text must be sanitised. A full /run loses the record, and its number shows that.
    pub fn push(&mut self, at: Moment, level: Level, component: &str, text: &str) {
        let line = format!("{} {} {component} {text}\n", at.as_nanos(), level.as_str());
        if self.file.is_none() {
            if self.early.len() < EARLY {
                self.early.push(line);
            }
            return;
        }
        self.number_and_write(&line);
    }

    fn number_and_write(&mut self, line: &str) {
        let sequence = self.next;
        self.next += 1;
        if self.size > SEGMENT && self.rotate().is_err() {
            return;
        }
        let whole = format!("{sequence} {line}");
        if let Some(file) = &mut self.file
            && let Ok(count) = file.write(whole.as_bytes())
        {
            self.size += count as u64;
        }
    }

    /// A segment that somebody removed, or that an append did not make after the last rename, needs no putting aside.
    fn rotate(&mut self) -> io::Result<()> {
        match fs::rename(self.segment(), self.previous()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.make_folder()?;
        self.append()
    }

    fn make_folder(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.folder)
    }

    fn append(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(self.segment())?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn segment(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    fn previous(&self) -> PathBuf {
        self.folder.join(format!("{}.log.1", self.name))
    }
}

fn last_sequence(path: &Path) -> Option<u64> {
    let text = fs::read(path).ok()?;
    text.split(|byte| *byte == b'\n').rev().find_map(|line| parse(line).map(|record| record.seq))
}

/// Reads one line of a segment; `None` for what a full /run or a crash left torn.
pub fn parse(line: &[u8]) -> Option<LogRecord> {
    let mut words = std::str::from_utf8(line).ok()?.splitn(5, ' ');
    let seq = words.next()?.parse().ok()?;
    let at_ns = words.next()?.parse().ok()?;
    let level = Level::parse(words.next()?)?.as_str().to_owned();
    let component = words.next()?.to_owned();
    Some(LogRecord { seq, at_ns, component, level, text: words.next()?.to_owned() })
}

/// Reads all writers' rings in the order of time, and goes on where it stopped.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    /// The next sequence number expected of each writer.
    next: HashMap<String, u64>,
}

/// What a [`Reader`] found that is new.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    pub records: Vec<LogRecord>,
    /// Records that were overwritten or lost between those read before and these.
    pub lost: u64,
}

impl Reader {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), next: HashMap::new() }
    }

    /// Everything that came since the last call. Writers that cannot be read are passed over.
    pub fn poll(&mut self) -> Batch {
        let mut batch = Batch::default();
        for name in self.writers() {
            self.read_writer(&name, &mut batch);
        }
        batch.records.sort_by_key(|record| record.at_ns);
        batch
    }

    fn writers(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".log").map(str::to_owned))
            .collect()
    }

    fn read_writer(&mut self, name: &str, batch: &mut Batch) {
        let mut records = Vec::new();
        // The old segment first; when it is rotated in between, the numbers sort that out.
        for suffix in ["log.1", "log"] {
            let text = fs::read(self.folder.join(format!("{name}.{suffix}"))).unwrap_or_default();
            records.extend(text.split(|byte| *byte == b'\n').filter_map(parse));
        }
        let known = self.next.get(name).copied();
        for record in records {
            let expected = self.next.get(name).copied().unwrap_or(record.seq);
            if record.seq < expected {
                continue;
            }
            if known.is_some() || expected != record.seq {
                batch.lost += record.seq - expected;
            }
            self.next.insert(name.to_owned(), record.seq + 1);
            batch.records.push(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ring(folder: &Path, name: &str) -> Ring {
        let mut ring = Ring::new(folder, name);
        ring.open().unwrap();
        ring
    }

    fn say(ring: &mut Ring, at: u64, text: &str) {
        ring.push(Duration::from_nanos(at), Level::Info, "envd", text);
    }

    #[test]
    fn a_writer_that_crashed_goes_on_with_the_next_number() {
        let folder = tempfile::tempdir().unwrap();
        say(&mut ring(folder.path(), "wrapper"), 1, "before");
        say(&mut ring(folder.path(), "wrapper"), 2, "after");
        let batch = Reader::new(folder.path()).poll();
        assert_eq!(batch.records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(batch.lost, 0);
    }

    #[test]
    fn what_was_said_before_run_was_mounted_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let mut early = Ring::new(folder.path(), "init");
        say(&mut early, 1, "early");
        early.open().unwrap();
        say(&mut early, 2, "late");
        let texts: Vec<_> =
            Reader::new(folder.path()).poll().records.into_iter().map(|record| record.text).collect();
        assert_eq!(texts, ["early", "late"]);
    }

    #[test]
    fn two_writers_merge_by_time_and_a_reader_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let (mut init, mut wrapper) = (ring(folder.path(), "init"), ring(folder.path(), "wrapper"));
        say(&mut wrapper, 20, "b");
        say(&mut init, 10, "a");
        let mut reader = Reader::new(folder.path());
        assert_eq!(
            reader.poll().records.iter().map(|record| record.text.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        say(&mut init, 30, "c");
        assert_eq!(reader.poll().records.len(), 1);
    }

    #[test]
    fn a_flood_is_bounded_and_its_gap_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ring(folder.path(), "wrapper");
        let mut reader = Reader::new(folder.path());
        say(&mut writer, 0, "first");
        reader.poll();
        for number in 0..5000 {
            say(&mut writer, number, "a line of a flood");
        }
        let batch = reader.poll();
        assert_eq!(batch.lost + batch.records.len() as u64, 5000);
        let bytes: u64 =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 2 * (SEGMENT + 1024));
    }

    #[test]
    fn a_ring_whose_files_were_removed_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("log");
        let mut writer = ring(&place, "init");
        let flood = |writer: &mut Ring| (0..1000).for_each(|number| say(writer, number, "a line of a flood"));
        for whole_folder in [false, true] {
            flood(&mut writer);
            let segment = place.join("init.log");
            if whole_folder { fs::remove_dir_all(&place) } else { fs::remove_file(segment) }.unwrap();
            flood(&mut writer);
            say(&mut writer, 1, "the last");
            let last = Reader::new(&place).poll().records.into_iter().max_by_key(|record| record.seq);
            assert_eq!(last.map(|record| record.text).as_deref(), Some("the last"));
        }
        // An append that failed once, after a rename: a folder stands in the segment's place for a while.
        flood(&mut writer);
        fs::remove_file(place.join("init.log")).unwrap();
        fs::create_dir(place.join("init.log")).unwrap();
        fs::remove_file(place.join("init.log.1")).unwrap();
        fs::create_dir(place.join("init.log.1")).unwrap();
        fs::write(place.join("init.log.1/busy"), "").unwrap();
        flood(&mut writer);
        fs::remove_dir_all(place.join("init.log.1")).unwrap();
        fs::remove_dir(place.join("init.log")).unwrap();
        flood(&mut writer);
        say(&mut writer, 1, "the very last");
        let texts: Vec<_> =
            Reader::new(&place).poll().records.into_iter().map(|record| record.text).collect();
        assert!(texts.iter().any(|text| text == "the very last"));
    }

    #[test]
    fn a_torn_line_is_passed_over() {
        assert_eq!(parse(b"12 34 inf"), None);
        assert_eq!(parse(b"5 7 warn envd text with spaces").unwrap().text, "text with spaces");
    }
}

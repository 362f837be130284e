//! What a service writes into its pipe, cut into lines.

/// A line that is longer (bytes) is told in pieces.
pub const MAX_LINE: usize = 4 * 1024;

/// Collects bytes until a line is whole.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes in what was read; gives whole lines to `tell`.
    pub fn push(&mut self, bytes: &[u8], mut tell: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(&rest[..end]);
            tell(self.partial.trim_ascii_end());
            self.partial.clear();
            rest = &rest[end + 1..];
        }
        self.partial.extend_from_slice(rest);
        while self.partial.len() >= MAX_LINE {
            let tail = self.partial.split_off(MAX_LINE);
            tell(&self.partial);
            self.partial = tail;
        }
        if self.partial.is_empty() {
            self.partial = Vec::new(); // a quiet service holds no memory
        }
    }

    /// The last line, when its end never came.
    pub fn finish(&mut self, mut tell: impl FnMut(&[u8])) {
        let rest = std::mem::take(&mut self.partial);
        if !rest.is_empty() {
            tell(&rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut told) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.push(chunk, |line| told.push(String::from_utf8_lossy(line).into_owned()));
        }
        lines.finish(|line| told.push(String::from_utf8_lossy(line).into_owned()));
        told
    }

    #[test]
    fn lines_come_whole_however_they_arrive() {
        assert_eq!(lines(&[b"on", b"e\r\ntwo\n\nth", b"ree"]), ["one", "two", "", "three"]);
    }

    #[test]
    fn a_line_without_end_is_told_in_pieces_and_never_hoarded() {
        let told = lines(&[&[b'x'; 3 * MAX_LINE + 5]]);
        assert_eq!(told.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE, MAX_LINE, 5]);
    }

    proptest! {
        #[test]
        fn no_byte_of_a_line_is_lost_or_hoarded(chunks: Vec<Vec<u8>>) {
            let (mut lines, mut told) = (Lines::default(), Vec::new());
            for chunk in &chunks {
                lines.push(chunk, |line| told.extend_from_slice(line));
                prop_assert!(lines.partial.len() < MAX_LINE);
            }
            lines.finish(|line| told.extend_from_slice(line));
            let visible = |bytes: &[u8]| bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>();
            prop_assert_eq!(visible(&told), visible(&chunks.concat()));
        }
    }
}

//! Turns valid inputs into nearly valid ones.
//!
//! A stack of small mutations on a seed of the corpus, sometimes spliced with another seed: what a coverage-guided fuzzer does
//! without its guidance. It needs no nightly compiler, and a run is replayed by its seed.

use fastrand::Rng;

/// The largest input, in bytes.
const MAX_INPUT: usize = 64 * 1024;

/// Values at which integer handling tends to break.
const INTERESTING: [u32; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];

/// Makes inputs from a corpus.
#[derive(Debug)]
pub(crate) struct Mutator {
    corpus: Vec<Vec<u8>>,
    dictionary: &'static [&'static [u8]],
    rng: Rng,
}

impl Mutator {
    /// `corpus` must not be empty. `dictionary` holds tokens of the grammar.
    pub(crate) fn new(corpus: Vec<Vec<u8>>, dictionary: &'static [&'static [u8]], seed: u64) -> Self {
        Self { corpus, dictionary, rng: Rng::with_seed(seed) }
    }

    /// The next input.
    pub(crate) fn input(&mut self) -> Vec<u8> {
        let mut input = self.seed();
        if self.rng.u8(..8) == 0 {
            self.splice(&mut input);
        }
        for _ in 0..=self.rng.u8(..6) {
            self.mutate(&mut input);
        }
        input.truncate(MAX_INPUT);
        input
    }

    fn seed(&mut self) -> Vec<u8> {
        self.corpus[self.rng.usize(..self.corpus.len())].clone()
    }

    fn splice(&mut self, input: &mut Vec<u8>) {
        let other = self.seed();
        input.truncate(self.place(input));
        input.extend_from_slice(&other[self.rng.usize(..=other.len())..]);
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        match self.rng.u8(..11) {
            0 => self.flip_bit(input),
            1 => self.set_byte(input),
            2 => self.insert_bytes(input),
            3 => self.remove_range(input),
            4 => self.repeat_range(input),
            5 => self.insert_token(input),
            6 => self.overwrite_integer(input),
            7 => input.truncate(self.place(input)),
            8 => self.borrow_line(input),
            9 => self.replace_by_token(input),
            _ => self.change_digit(input),
        }
    }

    /// A place to insert at, the end included.
    fn place(&mut self, input: &[u8]) -> usize {
        self.rng.usize(..=input.len())
    }

    /// A byte that is there.
    fn existing<'i>(&mut self, input: &'i mut [u8]) -> Option<&'i mut u8> {
        let index = (!input.is_empty()).then(|| self.rng.usize(..input.len()))?;
        input.get_mut(index)
    }

    fn flip_bit(&mut self, input: &mut [u8]) {
        let bit = 1 << self.rng.u8(..8);
        if let Some(byte) = self.existing(input) {
            *byte ^= bit;
        }
    }

    fn set_byte(&mut self, input: &mut [u8]) {
        let value = self.rng.u8(..);
        if let Some(byte) = self.existing(input) {
            *byte = value;
        }
    }

    fn insert_bytes(&mut self, input: &mut Vec<u8>) {
        let at = self.place(input);
        let new: Vec<u8> = (0..=self.rng.usize(..8)).map(|_| self.rng.u8(..)).collect();
        input.splice(at..at, new);
    }

    fn remove_range(&mut self, input: &mut Vec<u8>) {
        let range = self.range(input);
        input.drain(range);
    }

    fn repeat_range(&mut self, input: &mut Vec<u8>) {
        let range = self.range(input);
        let piece = input[range.clone()].to_vec();
        let times = self.rng.usize(1..16);
        if input.len() + piece.len() * times <= MAX_INPUT {
            input.splice(range.end..range.end, piece.repeat(times));
        }
    }

    fn range(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let (a, b) = (self.place(input), self.place(input));
        a.min(b)..a.max(b)
    }

    fn insert_token(&mut self, input: &mut Vec<u8>) {
        let Some(token) = self.rng.choice(self.dictionary) else { return };
        let at = self.place(input);
        input.splice(at..at, token.iter().copied());
    }

    /// A line of another seed, between two lines of this one.
    fn borrow_line(&mut self, input: &mut Vec<u8>) {
        let other = self.seed();
        let lines: Vec<&[u8]> = other.split_inclusive(|byte| *byte == b'\n').collect();
        let Some(line) = self.rng.choice(lines) else { return };
        let ends: Vec<usize> =
            input.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        let at = self.rng.choice(ends).unwrap_or(0);
        input.splice(at..at, line.iter().copied());
    }

    fn replace_by_token(&mut self, input: &mut Vec<u8>) {
        let Some(token) = self.rng.choice(self.dictionary) else { return };
        let range = self.range(input);
        let end = range.end.min(range.start + 16);
        input.splice(range.start..end, token.iter().copied());
    }

    fn overwrite_integer(&mut self, input: &mut [u8]) {
        let value = INTERESTING[self.rng.usize(..INTERESTING.len())];
        let bytes = if self.rng.bool() { value.to_be_bytes() } else { value.to_le_bytes() };
        let at = self.place(input);
        for (old, new) in input[at..].iter_mut().zip(bytes) {
            *old = new;
        }
    }

    fn change_digit(&mut self, input: &mut Vec<u8>) {
        let Some(at) = input.iter().position(u8::is_ascii_digit) else { return };
        let number = INTERESTING[self.rng.usize(..INTERESTING.len())].to_string();
        input.splice(at..=at, number.into_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_the_same_inputs() {
        let corpus = [b"tcp:127.0.0.1:49983".to_vec(), b"unix:/run/x.sock".to_vec()];
        let inputs = |seed| {
            let mut mutator = Mutator::new(corpus.to_vec(), &[b"vsock:"], seed);
            (0..200).map(|_| mutator.input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }
}

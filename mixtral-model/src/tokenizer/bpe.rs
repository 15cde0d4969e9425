//! Byte-pair encoding over characters, with bytes or the unknown piece for the characters that have no piece.
//!
//! Neighbours are merged in order of rank, leftmost first among equals, until no pair of neighbours has a merge
//! (Sennrich, Haddow, Birch 2016, <https://arxiv.org/abs/1508.07909>). A heap of candidates over a
//! linked list of symbols makes that `O(n log n)` in the length of the text, which need not be cut into words first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::vocabulary::Vocabulary;

/// What each pair of neighbouring pieces becomes.
pub(super) type Merges = HashMap<(u32, u32), Merge>;

/// One rule. A lower rank goes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    pub(super) rank: u32,
    pub(super) piece: u32,
}

/// The pieces of single characters, and the merges above them.
pub(super) struct Bpe {
    characters: HashMap<char, u32>,
    merges: Merges,
}

/// A piece of the text so far, with its living neighbours.
struct Symbol {
    /// [`MERGED`] once its left neighbour has taken it.
    piece: u32,
    previous: usize,
    next: usize,
}

/// A merge that was possible when it was found: rank, position of the left symbol, the pair, the piece it makes.
/// It is stale if the pair is no longer there.
type Candidate = Reverse<(u32, usize, (u32, u32), u32)>;

/// Beyond either end of the text.
const END: usize = usize::MAX;

/// Not a piece: a vocabulary has fewer than 2^32 of them.
const MERGED: u32 = u32::MAX;

impl Bpe {
    /// Takes the normal pieces of one character from the vocabulary.
    pub(super) fn new(vocabulary: &Vocabulary, merges: Merges) -> Self {
        let single = |text: &str| {
            let mut characters = text.chars();
            characters.next().filter(|_| characters.next().is_none())
        };
        let characters = vocabulary.normal().filter_map(|(id, text)| Some((single(text)?, id))).collect();
        Self { characters, merges }
    }

    /// Appends the pieces of `text` to `out`.
    ///
    /// The text is taken as it is: a space is not turned into `▁`, and no text is special.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: impl Iterator<Item = char>,
        out: &mut Vec<u32>,
    ) {
        let mut symbols = self.symbols(vocabulary, text);
        let mut candidates = BinaryHeap::new();
        for left in 0..symbols.len() {
            candidates.extend(self.candidate(&symbols, left));
        }
        while let Some(Reverse((_, left, pair, piece))) = candidates.pop() {
            if pair_at(&symbols, left) != Some(pair) {
                continue;
            }
            let taken = symbols[left].next;
            let next = symbols[taken].next;
            symbols[taken].piece = MERGED;
            symbols[left].piece = piece;
            symbols[left].next = next;
            if next != END {
                symbols[next].previous = left;
            }
            candidates.extend(self.candidate(&symbols, left));
            candidates.extend(self.candidate(&symbols, symbols[left].previous));
        }
        out.extend(symbols.iter().map(|symbol| symbol.piece).filter(|&piece| piece != MERGED));
    }

    /// One symbol a character. Where a character has no piece, one a byte; or without byte pieces, one a run of such characters.
    fn symbols(&self, vocabulary: &Vocabulary, text: impl Iterator<Item = char>) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::new();
        let push = |symbols: &mut Vec<Symbol>, piece| {
            let at = symbols.len();
            symbols.push(Symbol { piece, previous: at.wrapping_sub(1), next: at + 1 });
        };
        for character in text {
            if let Some(&piece) = self.characters.get(&character) {
                push(&mut symbols, piece);
            } else if let Some(pieces) = vocabulary.bytes() {
                for &byte in character.encode_utf8(&mut [0; 4]).as_bytes() {
                    push(&mut symbols, pieces[usize::from(byte)]);
                }
            } else if symbols.last().is_none_or(|last| last.piece != vocabulary.unk) {
                push(&mut symbols, vocabulary.unk);
            }
        }
        if let Some(last) = symbols.last_mut() {
            last.next = END;
        }
        symbols
    }

    /// The merge of the symbol at `left` with its right neighbour, if there is one.
    fn candidate(&self, symbols: &[Symbol], left: usize) -> Option<Candidate> {
        let pair = pair_at(symbols, left)?;
        let merge = self.merges.get(&pair)?;
        Some(Reverse((merge.rank, left, pair, merge.piece)))
    }
}

/// The pieces of the symbol at `left` and of its right neighbour, unless one of them is missing.
fn pair_at(symbols: &[Symbol], left: usize) -> Option<(u32, u32)> {
    let symbol = symbols.get(left)?;
    let next = symbols.get(symbol.next)?;
    (symbol.piece != MERGED).then_some((symbol.piece, next.piece))
}

//! Byte-pair encoding over characters, with bytes or the unknown piece for the characters that have no piece.
//!
//! Neighbours are merged in order of rank, leftmost first among equals, until no pair of neighbours has a merge
//! (Sennrich, Haddow, Birch 2016, <https://arxiv.org/abs/1508.07909>). A heap of candidates over a
//! linked list of symbols makes that `O(n log n)` in the length of the text, which need not be cut into words first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::vocabulary::{Kind, Vocabulary};

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
    /// Pieces that are cut up again at the end.
    unused: HashSet<u32>,
    fuse_unknown: bool,
    ignore_merges: bool,
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

/// The pair that each unused piece was last seen to be made of, in one text.
type Made = HashMap<u32, (u32, u32)>;

/// Beyond either end of the text.
const END: usize = usize::MAX;

/// Not a piece: a vocabulary has fewer than 2^32 of them.
const MERGED: u32 = u32::MAX;

impl Bpe {
    /// Takes the pieces of one character from those of the vocabulary that merging makes.
    ///
    /// Each run of characters that have no piece is one unknown piece if `fuse_unknown`, else each of them is. A text that is
    /// a piece is that piece if `ignore_merges`, whatever merges would make of it.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        merges: Merges,
        fuse_unknown: bool,
        ignore_merges: bool,
    ) -> Self {
        let single = |text: &str| {
            let mut characters = text.chars();
            characters.next().filter(|_| characters.next().is_none())
        };
        let characters =
            vocabulary.merging().filter_map(|(id, piece)| Some((single(&piece.text)?, id))).collect();
        let unused = vocabulary.of_kind(Kind::Unused).collect();
        Self { characters, merges, unused, fuse_unknown, ignore_merges }
    }

    /// What each pair of neighbours becomes, where that is all there is to encoding.
    pub(super) fn merges(&self) -> Option<&Merges> {
        (!self.ignore_merges).then_some(&self.merges)
    }

    /// Appends the pieces of `text` to `out`.
    ///
    /// The text is taken as it is: a space is not turned into `▁`, and no text is special.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        if self.ignore_merges
            && let Some(id) = vocabulary.id_of(text)
            && vocabulary.get(id).is_some_and(|piece| matches!(piece.kind, Kind::Normal | Kind::UserDefined))
        {
            out.push(id);
            return;
        }
        let mut symbols = self.symbols(vocabulary, text);
        let mut candidates = BinaryHeap::new();
        let mut made = Made::new();
        for left in 0..symbols.len() {
            candidates.extend(self.candidate(&symbols, left, &mut made));
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
            candidates.extend(self.candidate(&symbols, symbols[left].previous, &mut made));
            candidates.extend(self.candidate(&symbols, left, &mut made));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.piece != MERGED) {
            self.cut_up(symbol.piece, &made, out);
        }
    }

    /// One symbol a character. Where a character has no piece, one a byte; or without byte pieces, the unknown one.
    fn symbols(&self, vocabulary: &Vocabulary, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::new();
        let push = |symbols: &mut Vec<Symbol>, piece| {
            let at = symbols.len();
            symbols.push(Symbol { piece, previous: at.wrapping_sub(1), next: at + 1 });
        };
        for character in text.chars() {
            if let Some(&piece) = self.characters.get(&character) {
                push(&mut symbols, piece);
            } else if let Some(pieces) = vocabulary.bytes() {
                for &byte in character.encode_utf8(&mut [0; 4]).as_bytes() {
                    push(&mut symbols, pieces[usize::from(byte)]);
                }
            } else if let Some(unk) = vocabulary.special.unk
                && !(self.fuse_unknown && symbols.last().is_some_and(|last| last.piece == unk))
            {
                push(&mut symbols, unk);
            }
        }
        if let Some(last) = symbols.last_mut() {
            last.next = END;
        }
        symbols
    }

    /// The merge of the symbol at `left` with its right neighbour, if there is one.
    fn candidate(&self, symbols: &[Symbol], left: usize, made: &mut Made) -> Option<Candidate> {
        let pair = pair_at(symbols, left)?;
        let merge = self.merges.get(&pair)?;
        if self.unused.contains(&merge.piece) {
            made.insert(merge.piece, pair);
        }
        Some(Reverse((merge.rank, left, pair, merge.piece)))
    }

    /// Appends `piece` to `out`, or if it is unused the pieces that it was made of.
    ///
    /// The depth is that of the merges, and below the length of the piece, which is bounded where pieces may be unused.
    fn cut_up(&self, piece: u32, made: &Made, out: &mut Vec<u32>) {
        match made.get(&piece) {
            Some(&(left, right)) => {
                self.cut_up(left, made, out);
                self.cut_up(right, made, out);
            }
            None => out.push(piece),
        }
    }
}

/// The pieces of the symbol at `left` and of its right neighbour, unless one of them is missing.
fn pair_at(symbols: &[Symbol], left: usize) -> Option<(u32, u32)> {
    let symbol = symbols.get(left)?;
    let next = symbols.get(symbol.next)?;
    (symbol.piece != MERGED).then_some((symbol.piece, next.piece))
}

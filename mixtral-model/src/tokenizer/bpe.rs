//! Byte-pair encoding over characters, with bytes or the unknown piece for the characters that have no piece.
//!
//! Neighbours are merged in order of rank, leftmost first among equals, until no pair of neighbours has a merge
//! (Sennrich, Haddow, Birch 2016, <https://arxiv.org/abs/1508.07909>). A heap of candidates over a
//! linked list of symbols makes that `O(n log n)` in the length of the text, which need not be cut into words first.
//!
//! Where two characters stand side by side in no piece that merges make, nothing is merged over their boundary, and what is on either side
//! of it goes its own way. So a text is taken in such stretches: a word or so of ordinary text, and the whole of a hostile one.
//! Memory, some 50 bytes a character, is then that of the longest stretch.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use moe_core::{OutOfMemory, memory};

use super::TOKENS;
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
    /// The pairs of characters over whose boundary something is merged; none where that cannot be told by how pieces are spelled.
    joined: Option<HashSet<(char, char)>>,
    /// Pieces that are made, and cut up again at the end.
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

/// What a stretch of text is encoded with.
#[derive(Default)]
struct Work {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
}

impl Work {
    /// Takes in a merge that has become possible.
    fn consider(&mut self, candidate: Option<Candidate>) -> Result<(), OutOfMemory> {
        if let Some(candidate) = candidate {
            let more = self.candidates.len() + 1;
            self.candidates.try_reserve(1).map_err(|_| OutOfMemory::of::<Candidate>(SYMBOLS, more))?;
            self.candidates.push(candidate);
        }
        Ok(())
    }
}

/// What the memory of [`Work`] is for.
const SYMBOLS: &str = "a stretch of text";

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
        let made: HashSet<u32> = merges.values().map(|merge| merge.piece).collect();
        let unused = vocabulary.of_kind(Kind::Unused).filter(|id| made.contains(id)).collect();
        let joined = joined(vocabulary, &merges);
        Self { characters, merges, joined, unused, fuse_unknown, ignore_merges }
    }

    /// Whether a character has a piece of its own.
    pub(super) fn has_character(&self, character: char) -> bool {
        self.characters.contains_key(&character)
    }

    /// Whether pieces are spelled as the text that they stand for.
    pub(super) fn is_spelled(&self) -> bool {
        self.joined.is_some()
    }

    /// What each pair of neighbours becomes, where that is all there is to encoding.
    pub(super) fn merges(&self) -> Option<&Merges> {
        (!self.ignore_merges).then_some(&self.merges)
    }

    /// Appends the pieces of `text` to `out`.
    ///
    /// The text is taken as it is: a space is not turned into `▁`, and no text is special.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        out: &mut Vec<u32>,
    ) -> Result<(), OutOfMemory> {
        if self.ignore_merges
            && let Some(id) = vocabulary.id_of(text)
            && vocabulary.get(id).is_some_and(|piece| matches!(piece.kind, Kind::Normal | Kind::UserDefined))
        {
            return memory::push(out, id, TOKENS);
        }
        self.by_merges(vocabulary, text, out).map(|_| ())
    }

    /// Appends the pieces that merges make of `text`. Returns how many candidates were looked at.
    fn by_merges(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        out: &mut Vec<u32>,
    ) -> Result<usize, OutOfMemory> {
        let (mut work, mut looked_at) = (Work::default(), 0);
        // The character before, if it has a piece.
        let mut before = None;
        for character in text.chars() {
            let piece = self.characters.get(&character).copied();
            if let (Some(before), Some(_)) = (before, piece)
                && self.nothing_joins(before, character)
            {
                looked_at += self.merge(&mut work, out)?;
            }
            self.push(&mut work.symbols, vocabulary, character, piece)?;
            before = piece.map(|_| character);
        }
        Ok(looked_at + self.merge(&mut work, out)?)
    }

    /// Whether nothing is ever merged over the boundary of two characters.
    ///
    /// Where every piece that merges make is spelled like its two parts together, what is left of the boundary ends with the first
    /// character, whatever was merged there, and what is right of it begins with the second. An unused piece is cut up as it was last
    /// made anywhere in the text, so that with those a text is one.
    fn nothing_joins(&self, left: char, right: char) -> bool {
        self.unused.is_empty() && self.joined.as_ref().is_some_and(|joined| !joined.contains(&(left, right)))
    }

    /// Appends the pieces of the symbols to `out`, and leaves none. Returns how many candidates were looked at.
    fn merge(&self, work: &mut Work, out: &mut Vec<u32>) -> Result<usize, OutOfMemory> {
        if let Some(last) = work.symbols.last_mut() {
            last.next = END;
        }
        let mut made = Made::new();
        let mut looked_at = 0;
        for left in 0..work.symbols.len() {
            work.consider(self.candidate(&work.symbols, left, &mut made)?)?;
        }
        while let Some(Reverse((_, left, pair, piece))) = work.candidates.pop() {
            looked_at += 1;
            let symbols = &mut work.symbols;
            if pair_at(symbols, left) != Some(pair) {
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
            for left in [symbols[left].previous, left] {
                work.consider(self.candidate(&work.symbols, left, &mut made)?)?;
            }
        }
        for symbol in work.symbols.iter().filter(|symbol| symbol.piece != MERGED) {
            self.cut_up(symbol.piece, &made, out)?;
        }
        work.symbols.clear();
        Ok(looked_at)
    }

    /// Appends the symbols of a character: its piece; where it has none, one a byte; or without byte pieces, the unknown one.
    fn push(
        &self,
        symbols: &mut Vec<Symbol>,
        vocabulary: &Vocabulary,
        character: char,
        piece: Option<u32>,
    ) -> Result<(), OutOfMemory> {
        memory::reserve(symbols, character.len_utf8(), SYMBOLS)?;
        let is_after = symbols.last().map(|last| last.piece);
        let mut push = |piece| {
            let at = symbols.len();
            symbols.push(Symbol { piece, previous: at.wrapping_sub(1), next: at + 1 });
        };
        if let Some(piece) = piece {
            push(piece);
        } else if let Some(pieces) = vocabulary.bytes() {
            for &byte in character.encode_utf8(&mut [0; 4]).as_bytes() {
                push(pieces[usize::from(byte)]);
            }
        } else if let Some(unk) = vocabulary.special.unk
            && !(self.fuse_unknown && is_after == Some(unk))
        {
            push(unk);
        }
        Ok(())
    }

    /// The merge of the symbol at `left` with its right neighbour, if there is one.
    fn candidate(
        &self,
        symbols: &[Symbol],
        left: usize,
        made: &mut Made,
    ) -> Result<Option<Candidate>, OutOfMemory> {
        let of_pair = pair_at(symbols, left).and_then(|pair| Some((pair, self.merges.get(&pair)?)));
        let Some((pair, merge)) = of_pair else { return Ok(None) };
        if self.unused.contains(&merge.piece) {
            let more = made.len() + 1;
            made.try_reserve(1).map_err(|_| OutOfMemory::of::<(u32, (u32, u32))>(SYMBOLS, more))?;
            made.insert(merge.piece, pair);
        }
        Ok(Some(Reverse((merge.rank, left, pair, merge.piece))))
    }

    /// Appends `piece` to `out`, or if it is unused the pieces that it was made of.
    ///
    /// The depth is that of the merges, and below the length of the piece, which is bounded where pieces may be unused.
    fn cut_up(&self, piece: u32, made: &Made, out: &mut Vec<u32>) -> Result<(), OutOfMemory> {
        match made.get(&piece) {
            Some(&(left, right)) => {
                self.cut_up(left, made, out)?;
                self.cut_up(right, made, out)
            }
            None => memory::push(out, piece, TOKENS),
        }
    }
}

/// The last character of the left and the first one of the right of every pair that is merged, if each makes a piece that is spelled
/// like the two together: a token may have been given another text than the model's.
fn joined(vocabulary: &Vocabulary, merges: &Merges) -> Option<HashSet<(char, char)>> {
    let text = |id| vocabulary.get(id).map(|piece| &*piece.text);
    let of_merge = |(&(left, right), merge): (&(u32, u32), &Merge)| {
        let (left, right) = (text(left)?, text(right)?);
        let spelled = text(merge.piece)?.strip_prefix(left) == Some(right);
        spelled.then_some(())?;
        Some((left.chars().next_back()?, right.chars().next()?))
    };
    merges.iter().map(of_merge).collect()
}

/// The pieces of the symbol at `left` and of its right neighbour, unless one of them is missing.
fn pair_at(symbols: &[Symbol], left: usize) -> Option<(u32, u32)> {
    let symbol = symbols.get(left)?;
    let next = symbols.get(symbol.next)?;
    (symbol.piece != MERGED).then_some((symbol.piece, next.piece))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Tokenizer;

    const MODELS: [(&str, &[u8]); 2] = [
        ("Mixtral", include_bytes!("../../tests/fixtures/tokenizer/tokenizer.model")),
        ("demo", include_bytes!("../../tests/fixtures/demo/tokenizer.model")),
    ];

    /// Texts of `n` characters that have no ordinary words.
    fn hostile(n: usize) -> Vec<(&'static str, String)> {
        let of = |text: &str| text.chars().cycle().take(n).collect::<String>();
        let mixed =
            (0..n as u32).map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26));
        vec![
            ("one letter", of("a")),
            ("one word", of("internationalization")),
            ("letters in no order", mixed.collect()),
            ("spaces", of("▁")),
            ("bytes", of("\u{10ffff}")),
            ("signs", of("=-")),
        ]
    }

    #[test]
    fn work_is_in_proportion_to_the_text() {
        for (name, bytes) in MODELS {
            let tokenizer = Tokenizer::from_sentencepiece(bytes, Path::new("tokenizer.model")).unwrap();
            for ((text, once), (_, twice)) in hostile(20_000).into_iter().zip(hostile(40_000)) {
                let work = |text: &str| {
                    let mut out = vec![];
                    let looked_at = tokenizer.bpe.by_merges(&tokenizer.vocabulary, text, &mut out);
                    (looked_at.unwrap(), out.len())
                };
                let ((once, some), (twice, more)) = (work(&once), work(&twice));
                assert!(once <= 3 * 20_000, "{name}, {text}: {once} candidates");
                assert!(twice.abs_diff(2 * once) <= once / 50 + 20, "{name}, {text}: {once}, {twice}");
                assert!(more.abs_diff(2 * some) <= some / 50 + 20, "{name}, {text}: {some}, {more} pieces");
            }
        }
    }

    /// Stretches by themselves are what the whole text is.
    #[test]
    fn stretches_change_nothing() {
        for (name, bytes) in MODELS {
            let mut tokenizer = Tokenizer::from_sentencepiece(bytes, Path::new("tokenizer.model")).unwrap();
            let heldout = include_str!("../../tests/fixtures/demo/heldout.txt").replace(' ', "▁");
            let mut texts = hostile(500);
            texts.push(("English", heldout));
            texts
                .push(("others", "Äh,▁日本語のテキスト🦀🦀▁▁▁\u{301}é▁fn▁main()▁{}\n\t▁ﬁ№▁Ελλάδα".repeat(3)));
            let encode = |tokenizer: &Tokenizer, text: &str| {
                let mut out = vec![];
                tokenizer.bpe.encode(&tokenizer.vocabulary, text, &mut out).unwrap();
                out
            };
            let found: Vec<_> = texts.iter().map(|(_, text)| encode(&tokenizer, text)).collect();
            assert!(tokenizer.bpe.nothing_joins('e', '▁') && !tokenizer.bpe.nothing_joins('▁', 't'));
            // As if anything were joined.
            let all: HashSet<char> = texts.iter().flat_map(|(_, text)| text.chars()).collect();
            let pairs = all.iter().flat_map(|&a| all.iter().map(move |&b| (a, b)));
            tokenizer.bpe.joined = Some(pairs.collect());
            for ((what, text), found) in texts.iter().zip(found) {
                assert_eq!(found, encode(&tokenizer, text), "{name}, {what}");
            }
        }
    }

    /// A config may give a piece of the model another text: what merges make is then not spelled like its parts.
    #[test]
    fn a_piece_of_another_text_is_merged_across() {
        let (_, bytes) = MODELS[1];
        let tokenizer = Tokenizer::from_sentencepiece(bytes, Path::new("tokenizer.model")).unwrap();
        let whole = tokenizer.encode("Alice was beginning to get very tired").unwrap();
        let made: Vec<u32> = tokenizer.bpe.merges.values().map(|merge| merge.piece).collect();
        let renamed = whole.iter().find(|id| made.contains(id)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.model"), bytes).unwrap();
        let config = serde_json::json!({
            "add_bos_token": true,
            "added_tokens_decoder": { renamed.to_string(): { "content": "[X]", "special": false } },
        });
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!(tokenizer.piece(*renamed), Some("[X]"));
        assert!(!tokenizer.bpe.is_spelled() && !tokenizer.bpe.nothing_joins('e', '▁'));
        assert_eq!(tokenizer.encode("Alice was beginning to get very tired").unwrap(), whole);
        assert_eq!(tokenizer.least_ids(&"a".repeat(1 << 20)), 0);
    }
}

//! What is done to a text before BPE: cutting out the tokens that are written in it, and putting `▁` for spaces.

use std::borrow::Cow;

use moe_core::{OutOfMemory, memory};

use super::TOKENS;
use super::bpe::Bpe;
use super::byte_level::ByteLevel;
use super::find::{Finder, Part, Token};
use super::vocabulary::Vocabulary;

/// How `▁` comes to stand for spaces and in front: first the steps of a normaliser, then a pre-tokeniser.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    pub(super) normalizer: Vec<Step>,
    pub(super) metaspace: Option<Metaspace>,
    /// Texts that are their own pieces once `▁` has been put.
    pub(super) isolated: Finder,
    /// In place of all that, bytes are put for the text.
    pub(super) bytes: Option<ByteLevel>,
}

/// A step of a normaliser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Puts `▁` in front.
    Prepend,
    /// Puts `▁` for spaces.
    MarkSpaces,
    /// Puts one more `▁` in front of a text that begins with one.
    DoubleLeading,
}

/// A pre-tokeniser that puts `▁` for spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metaspace {
    /// Where it puts `▁` in front of a stretch of text that does not begin with one.
    pub(super) scheme: Scheme,
    /// Whether a word, with the `▁` in front of it, is encoded on its own.
    pub(super) split: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Of every stretch between tokens.
    Always,
    /// Of one that begins the text.
    First,
    /// Of none.
    Never,
}

/// How a text is encoded in which tokens may be written.
pub(super) struct Written {
    pub(super) layout: Layout,
    /// The tokens that are found in the text as it is.
    raw: Finder,
    /// The tokens that are found in what the normaliser makes of the text.
    normalized: Finder,
}

impl Layout {
    /// As sentencepiece: a space in front of every stretch of text if `space_in_front`, and `▁` for all spaces.
    pub(super) fn sentencepiece(space_in_front: bool, isolated: Finder) -> Self {
        let normalizer =
            if space_in_front { vec![Step::Prepend, Step::MarkSpaces] } else { vec![Step::MarkSpaces] };
        Self { normalizer, isolated, ..Self::default() }
    }

    /// What the normaliser makes of a text.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub(super) fn normalize<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, OutOfMemory> {
        let mut text = Cow::Borrowed(text);
        if text.is_empty() {
            return Ok(text);
        }
        for step in &self.normalizer {
            text = match step {
                Step::Prepend => Cow::Owned(behind("▁", &text)?),
                Step::MarkSpaces if text.contains(' ') => Cow::Owned(marked("", &text)?),
                Step::DoubleLeading if text.starts_with('▁') => Cow::Owned(behind("▁", &text)?),
                Step::MarkSpaces | Step::DoubleLeading => text,
            };
        }
        Ok(text)
    }

    /// Appends the pieces of a stretch of normalised text without tokens; `first` if it begins the whole text.
    fn encode(
        &self,
        bpe: &Bpe,
        vocabulary: &Vocabulary,
        text: &str,
        first: bool,
        out: &mut Vec<u32>,
    ) -> Result<(), OutOfMemory> {
        if let Some(bytes) = &self.bytes {
            return bytes.encode(bpe, vocabulary, text, out);
        }
        let Some(Metaspace { scheme, split }) = self.metaspace else {
            return encode_isolating(&self.isolated, bpe, vocabulary, text, out);
        };
        let wanted = match scheme {
            Scheme::Always => true,
            Scheme::First => first,
            Scheme::Never => false,
        };
        let front = if wanted && !text.starts_with([' ', '▁']) { "▁" } else { "" };
        let text = marked(front, text)?;
        let mut rest = &*text;
        while split && let Some(end) = rest.match_indices('▁').map(|(at, _)| at).find(|&at| at > 0) {
            let (word, after) = rest.split_at(end);
            encode_isolating(&self.isolated, bpe, vocabulary, word, out)?;
            rest = after;
        }
        encode_isolating(&self.isolated, bpe, vocabulary, rest, out)
    }
}

impl Written {
    /// Takes the tokens to look for before and after normalisation; the latter are spelled as the normaliser leaves them.
    pub(super) fn new(layout: Layout, raw: Finder, normalized: Finder) -> Self {
        Self { layout, raw, normalized }
    }

    /// Whether some token takes the white space beside it.
    pub(super) fn strips(&self) -> bool {
        self.tokens().any(|token| token.lstrip || token.rstrip)
    }

    /// The lengths of the texts that are tokens.
    pub(super) fn token_bytes(&self) -> impl Iterator<Item = usize> {
        self.tokens().map(|token| token.text.len())
    }

    fn tokens(&self) -> impl Iterator<Item = &Token> {
        [&self.raw, &self.normalized, &self.layout.isolated].into_iter().flat_map(Finder::tokens)
    }

    /// Appends the pieces of `text`, in which tokens count as such, to `out`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub(super) fn encode(
        &self,
        bpe: &Bpe,
        vocabulary: &Vocabulary,
        text: &str,
        out: &mut Vec<u32>,
    ) -> Result<(), OutOfMemory> {
        self.raw.split(text, |part| match part {
            Part::Token(id) => memory::push(out, id, TOKENS),
            Part::Text(text, first) => {
                self.normalized.split(&self.layout.normalize(text)?, |part| match part {
                    Part::Token(id) => memory::push(out, id, TOKENS),
                    Part::Text(text, still) => self.layout.encode(bpe, vocabulary, text, first && still, out),
                })
            }
        })
    }
}

/// Appends the pieces of `text`, in which `▁` stands for spaces, to `out`; what is isolated in it grows into nothing else.
pub(super) fn encode_isolating(
    isolated: &Finder,
    bpe: &Bpe,
    vocabulary: &Vocabulary,
    text: &str,
    out: &mut Vec<u32>,
) -> Result<(), OutOfMemory> {
    isolated.split(text, |part| match part {
        Part::Token(id) => memory::push(out, id, TOKENS),
        Part::Text(text, _) => bpe.encode(vocabulary, text, out),
    })
}

/// What the memory of changed texts is for.
const TEXT: &str = "text as pieces spell it";

/// A text with `▁` for its spaces, behind another.
pub(super) fn marked(front: &str, text: &str) -> Result<String, OutOfMemory> {
    let spaces = text.bytes().filter(|&byte| byte == b' ').count();
    let mut marked = room(front.len() + text.len() + spaces * ('▁'.len_utf8() - 1))?;
    marked.push_str(front);
    marked.extend(text.chars().map(|c| if c == ' ' { '▁' } else { c }));
    Ok(marked)
}

/// A text behind another.
pub(super) fn behind(front: &str, text: &str) -> Result<String, OutOfMemory> {
    let mut both = room(front.len() + text.len())?;
    both.push_str(front);
    both.push_str(text);
    Ok(both)
}

/// An empty text with room for so many bytes.
pub(super) fn room(bytes: usize) -> Result<String, OutOfMemory> {
    let mut text = String::new();
    text.try_reserve_exact(bytes).map_err(|_| OutOfMemory::of::<u8>(TEXT, bytes))?;
    Ok(text)
}

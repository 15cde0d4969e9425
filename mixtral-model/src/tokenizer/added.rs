//! What a `tokenizer.json` does to a text before BPE: cutting out the tokens that are written in it, and putting `▁` for spaces.

use std::cmp::Reverse;

use super::bpe::Bpe;
use super::vocabulary::Vocabulary;

/// Which step of the file puts `▁` for spaces and in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A normaliser, in front of every segment between tokens, even where a space leads it.
    Prepend,
    /// The pre-tokeniser, in front of every segment that no space leads.
    MetaspaceAlways,
    /// The pre-tokeniser, in front of a segment that begins the text, unless a space leads it.
    MetaspaceFirst,
}

/// The tokens that are recognised in a text, before and after its normalisation.
pub(super) struct AddedTokens {
    layout: Layout,
    raw: Texts,
    normalized: Texts,
}

/// Texts to look for, with their ids.
struct Texts {
    /// The longest first, so that the first that fits is the longest.
    texts: Vec<(String, u32)>,
    /// Whether a text begins with the byte.
    first: [bool; 256],
}

/// A stretch of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'t> {
    Token(u32),
    Text(&'t str),
}

impl AddedTokens {
    /// Takes the tokens to look for before and after normalisation, which the latter undergo too.
    pub(super) fn new(layout: Layout, raw: Vec<(String, u32)>, mut normalized: Vec<(String, u32)>) -> Self {
        if layout == Layout::Prepend {
            for (text, _) in &mut normalized {
                *text = prepended(text);
            }
        }
        Self { layout, raw: Texts::new(raw), normalized: Texts::new(normalized) }
    }

    /// Appends the pieces of `text`, in which tokens count as such, to `out`.
    pub(super) fn encode(&self, bpe: &Bpe, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let begin = out.len();
        self.raw.split(text, |part| match part {
            Part::Token(id) => out.push(id),
            Part::Text(text) if self.layout == Layout::Prepend => {
                self.normalized.split(&prepended(text), |part| match part {
                    Part::Token(id) => out.push(id),
                    Part::Text(text) => bpe.encode(vocabulary, text.chars(), out),
                });
            }
            Part::Text(text) => self.normalized.split(text, |part| match part {
                Part::Token(id) => out.push(id),
                Part::Text(text) => {
                    let skipped = self.layout == Layout::MetaspaceFirst && out.len() > begin;
                    let prefix = (!skipped && !text.starts_with([' ', '▁'])).then_some('▁');
                    bpe.encode(vocabulary, prefix.into_iter().chain(spaces_marked(text)), out);
                }
            }),
        });
    }
}

impl Texts {
    fn new(mut texts: Vec<(String, u32)>) -> Self {
        texts.sort_by_key(|(text, _)| Reverse(text.len()));
        let mut first = [false; 256];
        for byte in texts.iter().filter_map(|(text, _)| text.bytes().next()) {
            first[usize::from(byte)] = true;
        }
        Self { texts, first }
    }

    /// Gives every part of `haystack` to `emit`, in order: the leftmost longest tokens, and what lies between.
    fn split<'t>(&self, haystack: &'t str, mut emit: impl FnMut(Part<'t>)) {
        let bytes = haystack.as_bytes();
        let (mut done, mut at) = (0, 0);
        while at < bytes.len() {
            match self.find_at(&bytes[at..]) {
                Some((len, id)) => {
                    if done < at {
                        emit(Part::Text(&haystack[done..at]));
                    }
                    emit(Part::Token(id));
                    at += len;
                    done = at;
                }
                None => at += 1,
            }
        }
        if done < at {
            emit(Part::Text(&haystack[done..]));
        }
    }

    /// Length and id of the longest text that `bytes` begin with.
    fn find_at(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        if !self.first[usize::from(bytes[0])] {
            return None;
        }
        let (text, id) = self.texts.iter().find(|(text, _)| bytes.starts_with(text.as_bytes()))?;
        Some((text.len(), *id))
    }
}

/// `text` with `▁` for spaces.
pub(super) fn spaces_marked(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|character| if character == ' ' { '▁' } else { character })
}

/// `▁`, then `text` with `▁` for spaces.
fn prepended(text: &str) -> String {
    std::iter::once('▁').chain(spaces_marked(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftmost_longest() {
        let texts = [("<s>", 1), ("<s>x", 2), ("é", 3)].map(|(text, id)| (text.to_owned(), id));
        let mut parts = Vec::new();
        Texts::new(texts.into()).split("a<s>xé<s>ü<s", |part| parts.push(part));
        assert_eq!(
            parts,
            [Part::Text("a"), Part::Token(2), Part::Token(3), Part::Token(1), Part::Text("ü<s")]
        );
    }
}

//! Finding the texts of tokens in a text.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use regex_syntax::is_word_character;

use super::Reason;

/// No texts to look for are longer together. Those of Mistral's tokenizers have some ten thousand bytes.
const MAX_BYTES: usize = 1 << 22;

/// A token that is recognised where its text is written.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) id: u32,
    pub(super) text: String,
    /// Only where no letter, digit or underscore stands beside it.
    pub(super) single_word: bool,
    /// With the white space on its left.
    pub(super) lstrip: bool,
    /// With the white space on its right.
    pub(super) rstrip: bool,
}

/// Tokens to look for, all at once: the leftmost longest ones are found.
#[derive(Clone, Debug, Default)]
pub(super) struct Finder {
    automaton: Option<AhoCorasick>,
    /// By number of the pattern.
    tokens: Vec<Token>,
}

/// A stretch of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'t> {
    Token(u32),
    /// Text between tokens; whether it begins the whole.
    Text(&'t str, bool),
}

impl Token {
    /// A token that is recognised wherever its text is, and takes nothing else.
    pub(super) fn plain(id: u32, text: &str) -> Self {
        Self { id, text: text.to_owned(), single_word: false, lstrip: false, rstrip: false }
    }
}

impl Finder {
    /// Fails if the texts are too long for a table of reasonable size.
    pub(super) fn new(tokens: Vec<Token>) -> Reason<Self> {
        if tokens.is_empty() {
            return Ok(Self::default());
        }
        let bytes: usize = tokens.iter().map(|token| token.text.len()).sum();
        if bytes > MAX_BYTES {
            return Err(format!("expected at most {MAX_BYTES} bytes of tokens to look for, found {bytes}"));
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // The other kind grows with the texts times the alphabet.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(tokens.iter().map(|token| &token.text))
            .map_err(|error| format!("tokens to look for: {error}"))?;
        Ok(Self { automaton: Some(automaton), tokens })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// What is looked for.
    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Gives every part of `text` to `emit`, in order: tokens, and what lies between.
    pub(super) fn split<'t>(&self, text: &'t str, mut emit: impl FnMut(Part<'t>)) {
        // `stripped`: up to where white space was taken on the right of a token, which need not be walked again.
        let (mut done, mut stripped) = (0, 0);
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if token.single_word && (ends_with_word(&text[..start]) || starts_with_word(&text[end..])) {
                continue;
            }
            if token.lstrip {
                start = if start < done { done } else { done + text[done..start].trim_end().len() };
            }
            if token.rstrip {
                let beyond = end.max(stripped);
                end = text.len() - text[beyond..].trim_start().len();
                stripped = end;
            }
            if done < start {
                emit(Part::Text(&text[done..start], done == 0));
            }
            // Of white space, an earlier token may have taken all.
            if start < end {
                emit(Part::Token(token.id));
            }
            done = end;
        }
        if done < text.len() {
            emit(Part::Text(&text[done..], done == 0));
        }
    }
}

fn ends_with_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word_character)
}

fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word_character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'t>(tokens: Vec<Token>, text: &'t str) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        Finder::new(tokens).unwrap().split(text, |part| parts.push(part));
        parts
    }

    #[test]
    fn leftmost_longest() {
        let tokens = [(1, "<s>"), (2, "<s>x"), (3, "é")].map(|(id, text)| Token::plain(id, text));
        assert_eq!(
            parts(tokens.into(), "a<s>xé<s>ü<s"),
            [Part::Text("a", true), Part::Token(2), Part::Token(3), Part::Token(1), Part::Text("ü<s", false)]
        );
    }

    #[test]
    fn white_space_beside_a_token_may_be_its_own() {
        let both = Token { lstrip: true, rstrip: true, ..Token::plain(1, "<x>") };
        assert_eq!(
            parts(vec![both.clone()], "a \u{3000}<x>\n<x> b"),
            [Part::Text("a", true), Part::Token(1), Part::Token(1), Part::Text("b", false)]
        );
        // A token of white space is found in what another has taken, unless it strips that too.
        let space = Token { rstrip: true, ..Token::plain(2, " ") };
        let after = |space| parts(vec![both.clone(), space], "<x>  ");
        assert_eq!(after(space.clone()), [Part::Token(1), Part::Token(2), Part::Token(2)]);
        assert_eq!(after(Token { lstrip: true, ..space }), [Part::Token(1)]);
    }

    #[test]
    fn a_single_word_has_no_letters_beside_it() {
        let word = Token { single_word: true, ..Token::plain(1, "ab") };
        for (text, found) in [("ab", true), ("-ab.", true), ("xab", false), ("abé", false), ("ab_", false)] {
            assert_eq!(parts(vec![word.clone()], text).contains(&Part::Token(1)), found, "{text}");
        }
    }
}

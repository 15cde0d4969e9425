//! Finding the texts of tokens in a text.

use regex_syntax::is_word_character;

use super::{Reason, shorten};

/// No text to look for is longer, so that looking takes time linear in the text that is searched.
const MAX_TOKEN_BYTES: usize = 512;

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
#[derive(Clone, Debug)]
pub(super) struct Finder {
    /// By text.
    tokens: Vec<Token>,
    /// Which of them begin with each byte: the first, and the one after the last.
    by_first: Box<[(usize, usize); 256]>,
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

impl Default for Finder {
    fn default() -> Self {
        Self { tokens: Vec::new(), by_first: Box::new([(0, 0); 256]) }
    }
}

impl Finder {
    /// Fails if a text is too long.
    pub(super) fn new(mut tokens: Vec<Token>) -> Reason<Self> {
        if let Some(token) = tokens.iter().find(|token| token.text.len() > MAX_TOKEN_BYTES) {
            let (id, text, len) = (token.id, shorten(&token.text), token.text.len());
            return Err(format!(
                "token {id} {text:?}: expected at most {MAX_TOKEN_BYTES} bytes, found {len}"
            ));
        }
        tokens.retain(|token| !token.text.is_empty());
        tokens.sort_by(|a, b| a.text.cmp(&b.text));
        let Self { mut by_first, .. } = Self::default();
        for (at, token) in tokens.iter().enumerate() {
            let range = &mut by_first[usize::from(token.text.as_bytes()[0])];
            *range = (if range.1 == 0 { at } else { range.0 }, at + 1);
        }
        Ok(Self { tokens, by_first })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// What is looked for.
    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Gives every part of `text` to `emit`, in order: tokens, and what lies between; until one is an error.
    pub(super) fn split<'t, E>(
        &self,
        text: &'t str,
        mut emit: impl FnMut(Part<'t>) -> Result<(), E>,
    ) -> Result<(), E> {
        // `stripped`: up to where white space was taken on the right of a token, which need not be walked again.
        let (mut done, mut stripped) = (0, 0);
        let mut at = 0;
        while at < text.len() {
            let Some(token) = self.longest(&text.as_bytes()[at..]) else {
                at += 1;
                continue;
            };
            let (mut start, mut end) = (at, at + token.text.len());
            at = end;
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
                emit(Part::Text(&text[done..start], done == 0))?;
            }
            // Of white space, an earlier token may have taken all.
            if start < end {
                emit(Part::Token(token.id))?;
            }
            done = end;
        }
        if done < text.len() {
            emit(Part::Text(&text[done..], done == 0))?;
        }
        Ok(())
    }

    /// The longest token that `bytes` begin with; of one text, the first.
    fn longest(&self, bytes: &[u8]) -> Option<&Token> {
        let (first, last) = self.by_first[usize::from(bytes[0])];
        let mut candidates = &self.tokens[first..last];
        let mut found = None;
        for depth in 1.. {
            if let [only] = candidates {
                return Some(only).filter(|token| bytes.starts_with(token.text.as_bytes())).or(found);
            }
            // All that are left begin with `depth` bytes of the text; a token that ends there comes first.
            let byte = |token: &Token| token.text.as_bytes().get(depth).copied();
            match candidates.first() {
                Some(token) if byte(token).is_none() => found = Some(token),
                Some(_) => {}
                None => break,
            }
            let Some(&next) = bytes.get(depth) else { break };
            let from = candidates.partition_point(|token| byte(token) < Some(next));
            let to = candidates.partition_point(|token| byte(token) <= Some(next));
            candidates = &candidates[from..to];
        }
        found
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
        let mut take = |part| {
            parts.push(part);
            Ok::<(), ()>(())
        };
        Finder::new(tokens).unwrap().split(text, &mut take).unwrap();
        parts
    }

    #[test]
    fn leftmost_longest() {
        let tokens = [(1, "<s>"), (2, "<s>x"), (3, "é"), (4, "<s>xyz"), (5, "é")];
        let tokens = tokens.map(|(id, text)| Token::plain(id, text));
        assert_eq!(
            parts(tokens.into(), "a<s>xyé<s>ü<s"),
            [
                Part::Text("a", true),
                Part::Token(2),
                Part::Text("y", false),
                Part::Token(3),
                Part::Token(1),
                Part::Text("ü<s", false)
            ]
        );
        assert_eq!(parts(Vec::new(), "a<s>"), [Part::Text("a<s>", true)]);
        let long = |len: usize| Finder::new(vec![Token::plain(7, &"a".repeat(len))]).map(|_| ());
        assert_eq!(long(512), Ok(()));
        assert_eq!(
            long(513),
            Err(format!("token 7 {:?}: expected at most 512 bytes, found 513", "a".repeat(32)))
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

//! Byte-level BPE, as GPT-2, Llama 3 and Mistral's tekken have it: a text is cut into words, and in pieces each byte stands as a
//! character of its own.
//!
//! Words are what a regular expression matches from where the last word ended. Of the four that are known, each is written out as code:
//! they look ahead and go back, yet take time linear in the text this way, whatever it holds.

use moe_core::OutOfMemory;
use regex_syntax::hir::{Class, HirKind};

use super::Reason;
use super::bpe::Bpe;
use super::vocabulary::Vocabulary;
use super::written::{behind, room};

/// How a text becomes words, and words become characters.
#[derive(Clone, Debug)]
pub(super) struct ByteLevel {
    words: Words,
    /// A space is put in front of a stretch of text that does not begin with one.
    space_in_front: bool,
    categories: Categories,
}

/// Which regular expression cuts out words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    Gpt2,
    /// With so many digits in a word at most.
    Llama3 {
        digits: usize,
    },
    Tekken,
}

/// Ranges of characters with their categories, in ascending order; all other characters are [`Category::Other`].
#[derive(Clone, Debug)]
struct Categories(Vec<(char, char, Category)>);

/// What the regular expressions tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Category {
    /// An upper-case or title-case letter.
    Upper,
    Lower,
    OtherLetter,
    Mark,
    Number,
    Space,
    Other,
}

use Category::{Lower, Mark, Number, Other, OtherLetter, Space, Upper};

const LLAMA_3: [&str; 3] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

impl Words {
    /// The words that a regular expression stands for, if it is a known one.
    pub(super) fn of(pattern: &str) -> Option<Self> {
        let [before, digits, after] = LLAMA_3;
        if pattern == TEKKEN {
            return Some(Self::Tekken);
        }
        match pattern.strip_prefix(before)?.strip_suffix(after)? {
            found if found == digits => Some(Self::Llama3 { digits: 3 }),
            r"\p{N}" => Some(Self::Llama3 { digits: 1 }),
            _ => None,
        }
    }
}

impl ByteLevel {
    pub(super) fn new(words: Words, space_in_front: bool) -> Reason<Self> {
        Ok(Self { words, space_in_front, categories: Categories::new()? })
    }

    /// Appends the pieces of a stretch of text to `out`.
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
        let with_space;
        let mut rest = text;
        if self.space_in_front && !text.starts_with(' ') {
            with_space = behind(" ", text)?;
            rest = &with_space;
        }
        while !rest.is_empty() {
            let (word, after) = rest.split_at(self.word(rest));
            // No byte stands as a character of more than two.
            let mut spelled = room(2 * word.len())?;
            spelled.extend(word.bytes().map(character));
            bpe.encode(vocabulary, &spelled, out)?;
            rest = after;
        }
        Ok(())
    }

    /// Length in bytes of the first word of a text that is not empty.
    fn word(&self, text: &str) -> usize {
        match self.words {
            Words::Gpt2 => self.gpt2(text),
            Words::Llama3 { digits } => self.llama3(text, digits),
            Words::Tekken => self.tekken(text),
        }
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    fn gpt2(&self, text: &str) -> usize {
        if let Some(len) = contraction(text, false) {
            return len;
        }
        let start = usize::from(text.starts_with(' '));
        for kind in [is_letter as fn(Category) -> bool, |found| found == Number, is_sign] {
            let len = self.run(&text[start..], kind);
            if len > 0 {
                return start + len;
            }
        }
        self.space(text)
    }

    /// As [`LLAMA_3`] says.
    fn llama3(&self, text: &str, digits: usize) -> usize {
        if let Some(len) = contraction(text, true) {
            return len;
        }
        let letters = |start: usize| Some(self.run(&text[start..], is_letter)).filter(|&len| len > 0);
        if let Some((start, len)) = self.after_leader(text, letters) {
            return start + len;
        }
        let number: usize = text.chars().take(digits).map_while(|c| self.length_of(c, Number)).sum();
        if number > 0 { number } else { self.signs_or_space(text, ['\r', '\n', '\n']) }
    }

    /// As [`TEKKEN`] says.
    fn tekken(&self, text: &str) -> usize {
        let is_first = |found: Category| matches!(found, Upper | OtherLetter | Mark);
        let is_second = |found: Category| matches!(found, Lower | OtherLetter | Mark);
        let ends_low = |start: usize| {
            let text = &text[start..];
            let first = self.run(text, is_first);
            let second = self.run(&text[first..], is_second);
            if second > 0 {
                return Some(first + second);
            }
            // One that is of both kinds can be given back.
            let last = text[..first].char_indices().rev().find(|(_, c)| is_second(self.categories.of(*c)));
            last.map(|(at, c)| at + c.len_utf8())
        };
        let begins_high = |start: usize| Some(self.run(&text[start..], is_first)).filter(|&len| len > 0);
        if let Some((start, len)) =
            self.after_leader(text, ends_low).or_else(|| self.after_leader(text, begins_high))
        {
            return start + len;
        }
        let number = text.chars().next().and_then(|c| self.length_of(c, Number));
        number.unwrap_or_else(|| self.signs_or_space(text, ['\r', '\n', '/']))
    }

    /// `[^\r\n\p{L}\p{N}]?` and then what `matched` finds from there, with or, failing that, without the first character.
    fn after_leader(&self, text: &str, matched: impl Fn(usize) -> Option<usize>) -> Option<(usize, usize)> {
        let leads = |c: &char| {
            let found = self.categories.of(*c);
            !matches!(c, '\r' | '\n') && !is_letter(found) && found != Number
        };
        let leader = text.chars().next().filter(leads).map_or(0, char::len_utf8);
        let starts = if leader > 0 { &[leader, 0][..] } else { &[0] };
        starts.iter().find_map(|&start| Some((start, matched(start)?)))
    }

    /// ` ?[^\s\p{L}\p{N}]+` and any of `trailing`, or ` \s*[\r\n]+`, or [`space`](Self::space).
    fn signs_or_space(&self, text: &str, trailing: [char; 3]) -> usize {
        let start = usize::from(text.starts_with(' '));
        let signs = self.run(&text[start..], is_sign);
        if signs > 0 {
            let end = start + signs;
            return text.len() - text[end..].trim_start_matches(trailing).len();
        }
        let spaces = &text[..self.run(text, |found| found == Space)];
        match spaces.rfind(['\r', '\n']) {
            Some(last) => last + 1,
            None => self.space(text),
        }
    }

    /// `\s+(?!\S)|\s+`: white space, but for its last character if a word follows and there are more.
    fn space(&self, text: &str) -> usize {
        let len = self.run(text, |found| found == Space);
        let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
        match len - last {
            before if before > 0 && len < text.len() => before,
            _ => len,
        }
    }

    /// Length of the run of characters of some categories that the text begins with.
    fn run(&self, text: &str, wanted: impl Fn(Category) -> bool) -> usize {
        text.find(|c| !wanted(self.categories.of(c))).unwrap_or(text.len())
    }

    fn length_of(&self, character: char, wanted: Category) -> Option<usize> {
        (self.categories.of(character) == wanted).then(|| character.len_utf8())
    }
}

impl Categories {
    fn new() -> Reason<Self> {
        let mut ranges = Vec::new();
        for (pattern, category) in [
            (r"[\p{Lu}\p{Lt}]", Upper),
            (r"\p{Ll}", Lower),
            (r"[\p{Lm}\p{Lo}]", OtherLetter),
            (r"\p{M}", Mark),
            (r"\p{N}", Number),
            (r"\s", Space),
        ] {
            let parsed = regex_syntax::parse(pattern).map_err(|error| error.to_string())?;
            if let HirKind::Class(Class::Unicode(class)) = parsed.kind() {
                ranges.extend(class.iter().map(|range| (range.start(), range.end(), category)));
            }
        }
        ranges.sort_by_key(|(start, ..)| *start);
        Ok(Self(ranges))
    }

    fn of(&self, character: char) -> Category {
        let after = self.0.partition_point(|(start, ..)| *start <= character);
        match after.checked_sub(1).map(|at| self.0[at]) {
            Some((_, end, category)) if character <= end => category,
            _ => Other,
        }
    }
}

fn is_letter(found: Category) -> bool {
    matches!(found, Upper | Lower | OtherLetter)
}

fn is_sign(found: Category) -> bool {
    matches!(found, Mark | Other)
}

/// Length of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d`, if the text begins with one.
fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    ["s", "t", "re", "ve", "m", "ll", "d"].iter().find_map(|ending| {
        let mut found = rest.chars();
        for expected in ending.chars() {
            let character = found.next()?;
            // The long s is an s in lower case.
            let folded = if character == 'ſ' { 's' } else { character.to_ascii_lowercase() };
            if character != expected && !(any_case && folded == expected) {
                return None;
            }
        }
        Some(text.len() - found.as_str().len())
    })
}

/// The character that a byte stands as: itself where it is visible, else one from U+0100 on.
pub(super) fn character(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=b' ' => offset(u32::from(byte)),
        0x7f..=0xa0 => offset(33 + u32::from(byte) - 0x7f),
        0xad => offset(67),
    }
}

/// The byte that a character stands for.
pub(super) fn byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The character so many places after those of one byte.
fn offset(n: u32) -> char {
    char::from_u32(0x100 + n).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_stands_as_a_character() {
        for value in 0..=u8::MAX {
            assert_eq!(byte(character(value)), Some(value));
        }
        assert_eq!([b' ', b'\n', 0xad, 0x7f].map(character), ['Ġ', 'Ċ', 'Ń', 'ġ']);
        assert_eq!([' ', '\u{144}', '▁'].map(byte), [None; 3]);
    }

    #[test]
    fn words() {
        let cut = |words: Words, mut text: &'static str| {
            let level = ByteLevel::new(words, false).unwrap();
            let mut found = Vec::new();
            while !text.is_empty() {
                let (word, rest) = text.split_at(level.word(text));
                found.push(word);
                text = rest;
            }
            found
        };
        let text = "I'LL  say\n\n \tx1234 é!\r\n ";
        assert_eq!(
            cut(Words::Gpt2, text),
            ["I", "'", "LL", " ", " say", "\n\n ", "\t", "x", "1234", " é", "!", "\r\n "]
        );
        assert_eq!(
            cut(Words::Llama3 { digits: 3 }, text),
            ["I", "'LL", " ", " say", "\n\n", " ", "\tx", "123", "4", " é", "!\r\n", " "]
        );
        assert_eq!(
            cut(Words::Tekken, "aBC dEf HTMLPage 12/\n"),
            ["a", "BC", " d", "Ef", " HTMLPage", " ", "1", "2", "/\n"]
        );
    }
}

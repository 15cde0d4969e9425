//! Text to token ids and back.
//!
//! Mixtral's tokenizer is sentencepiece BPE, with bytes for the characters that have no piece.
//! It is published in two files with the same vocabulary, `tokenizer.model` (sentencepiece's own)
//! and `tokenizer.json` (of the `tokenizers` library), and spelled out in GGUF files; [`Tokenizer`] reads all three.
//!
//! [`encode`](Tokenizer::encode) is what the `tokenizers` library does: `<s>` in a text is the token.
//! [`encode_ordinary`](Tokenizer::encode_ordinary) and [`decode`](Tokenizer::decode) are what sentencepiece does: `<s>` in a text is text.
//!
//! A file of another kind, such as a unigram model or byte-level BPE, is an error: nothing is encoded by approximation.

mod bpe;
mod find;
mod json;
mod pieces;
mod protobuf;
mod sentencepiece;
mod stream;
mod vocabulary;
mod written;

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use self::bpe::{Bpe, Merges};
use self::find::{Finder, Token};
pub use self::pieces::SentencePieces;
pub use self::stream::StreamDecoder;
use self::vocabulary::{Kind, Piece, Vocabulary};
use self::written::{Layout, Written};
use crate::{Error, Result};

/// What is wrong with a file, before its path is added.
type Reason<T> = std::result::Result<T, String>;

/// No tokenizer file is larger; Mixtral's are below 4 MB.
const MAX_FILE_BYTES: u64 = 1 << 26;

/// A vocabulary, and how text is cut into its pieces.
///
/// Immutable and `Send + Sync`: threads share it by reference.
///
/// ```no_run
/// # fn main() -> mixtral_model::Result<()> {
/// use mixtral_model::Tokenizer;
///
/// let tokenizer = Tokenizer::from_dir("Mixtral-8x7B-v0.1".as_ref())?;
/// let ids = tokenizer.encode_with_bos("Hello world");
/// assert_eq!(tokenizer.decode(&ids)?, "Hello world");
/// # Ok(())
/// # }
/// ```
pub struct Tokenizer {
    vocabulary: Vocabulary,
    bpe: Bpe,
    /// Encoding puts a space in front of a text, and decoding drops it.
    space_in_front: bool,
    /// The pieces that count as such even in a text where nothing is special.
    user_defined: Finder,
    /// How a text is encoded in which tokens may be written.
    written: Written,
    around: Around,
}

/// The ids that a prompt begins and ends with.
#[derive(Default)]
struct Around {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint directory: `tokenizer.model` if it is there, else `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] naming the directory if it holds neither; otherwise those of
    /// [`from_sentencepiece`](Self::from_sentencepiece) and [`from_json`](Self::from_json), or [`Error::Io`].
    /// A damaged `tokenizer.model` is an error even beside a good `tokenizer.json`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.model");
        if let Some(bytes) = read(&path)? {
            return Self::from_sentencepiece(&bytes, &path);
        }
        let path = dir.join("tokenizer.json");
        if let Some(bytes) = read(&path)? {
            return Self::from_json(&bytes, &path);
        }
        let reason = "expected tokenizer.model or tokenizer.json, found neither".to_owned();
        Err(Error::Tokenizer { path: dir.to_owned(), reason })
    }

    /// Reads the bytes of a sentencepiece model; `path` serves error messages alone.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the bytes are not a model, or one that is not BPE, normalises text otherwise than
    /// by a space in front, or lacks some of the 256 byte pieces though it falls back on bytes.
    pub fn from_sentencepiece(bytes: &[u8], path: &Path) -> Result<Self> {
        let build = || {
            let (vocabulary, merges, space_in_front) = sentencepiece::read(bytes)?;
            let special = vocabulary.of_kinds(&[Kind::Unknown, Kind::Control]);
            let around = Around { before: vec![vocabulary.special.bos], after: Vec::new() };
            Self::scored(vocabulary, merges, space_in_front, special, around)
        };
        build().map_err(|reason| unusable(path, reason))
    }

    /// Takes a sentencepiece vocabulary that is spelled out, as in a GGUF file; `path` serves error messages alone.
    ///
    /// Text that no piece covers falls back on bytes if there are byte pieces.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the lists are of different lengths, an id is not below that, a text is empty or occurs twice,
    /// a score is NaN, a type unknown, some but not all byte pieces are there, or a character of a piece is not itself a piece.
    pub fn from_pieces(pieces: SentencePieces, path: &Path) -> Result<Self> {
        let build = || {
            let (vocabulary, merges) = pieces.build()?;
            // Unlike sentencepiece, llama.cpp puts a space in front of what follows a user-defined piece too.
            let special = vocabulary.of_kinds(&[Kind::Unknown, Kind::Control, Kind::UserDefined]);
            let ids = |wanted: bool, id: u32| if wanted { vec![id] } else { Vec::new() };
            let around = Around {
                before: ids(pieces.add_bos.unwrap_or(true), vocabulary.special.bos),
                after: ids(pieces.add_eos.unwrap_or(false), vocabulary.special.eos),
            };
            Self::scored(vocabulary, merges, pieces.space_in_front, special, around)
        };
        build().map_err(|reason| unusable(path, reason))
    }

    /// A tokenizer of sentencepiece's kind; `special` are the tokens that are recognised in a text before all else.
    fn scored(
        vocabulary: Vocabulary,
        merges: Merges,
        space_in_front: bool,
        special: Vec<Token>,
        around: Around,
    ) -> Reason<Self> {
        let user_defined = Finder::new(vocabulary.of_kinds(&[Kind::UserDefined]))?;
        let layout = Layout::sentencepiece(space_in_front, user_defined.clone());
        let written = Written::new(layout, Finder::new(special)?, Finder::default());
        let bpe = Bpe::new(&vocabulary, merges);
        Ok(Self { vocabulary, bpe, space_in_front, user_defined, written, around })
    }

    /// Reads the bytes of a `tokenizer.json`; `path` serves error messages alone.
    ///
    /// BOS and EOS are the special tokens `<s>` and `</s>`.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] if the bytes are not JSON of the expected form, [`Error::Tokenizer`] if it describes anything but
    /// BPE over `▁`-marked text, as converted from sentencepiece: a normaliser `Prepend` and `Replace`,
    /// or a pre-tokeniser `Metaspace` that does not split.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        let file: json::File =
            serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_owned(), source })?;
        let (vocabulary, merges, written) = file.build().map_err(|reason| unusable(path, reason))?;
        let around = Around { before: vec![vocabulary.special.bos], after: Vec::new() };
        let bpe = Bpe::new(&vocabulary, merges);
        Ok(Self { vocabulary, bpe, space_in_front: true, user_defined: Finder::default(), written, around })
    }

    /// The ids of `text` as a program's author writes it, without BOS: where a special token is written, such as `<s>`, it is meant.
    ///
    /// Each stretch of text between such tokens is encoded as if it stood alone. The empty text has no ids.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.written.encode(&self.bpe, &self.vocabulary, text, &mut ids);
        ids
    }

    /// The ids of `text` with what a prompt begins and ends with: usually one BOS in front.
    ///
    /// Otherwise as [`encode`](Self::encode). Where BOS tokens written in the text come first, they are that one.
    pub fn encode_with_bos(&self, text: &str) -> Vec<u32> {
        let Around { before, after } = &self.around;
        let mut ids = self.encode(text);
        let bos = |id: &&u32| **id == self.bos();
        let written = if before.iter().any(|id| bos(&id)) { ids.iter().take_while(bos).count() } else { 0 };
        ids.splice(..written, before.iter().copied());
        ids.extend(after);
        ids
    }

    /// The ids of `text` where nothing in it is special, without BOS.
    ///
    /// Equal to what sentencepiece gives, whichever kind of file was read: user-defined pieces are recognised, control pieces are not.
    /// This is the way to encode what others wrote: no text can forge a control token.
    pub fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        if !text.is_empty() {
            let text = text.replace(' ', "▁");
            let text = if self.space_in_front { format!("▁{text}") } else { text };
            written::encode_isolating(&self.user_defined, &self.bpe, &self.vocabulary, &text, &mut ids);
        }
        ids
    }

    /// The text of `ids`, equal to sentencepiece's decoding.
    ///
    /// Byte pieces form UTF-8, with one U+FFFD for each byte that is not part of a whole character; `▁` is a space, except that
    /// one in front of the text is dropped; control tokens such as BOS have no text; the unknown token is written ` ⁇ `.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`] for an id that the vocabulary does not have.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut text = String::new();
        let mut decoder = self.decoder();
        for &id in ids {
            decoder.push_to(id, &mut text)?;
        }
        text.push_str(&decoder.finish());
        Ok(text)
    }

    /// A decoder for a sequence that begins here.
    pub fn decoder(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// A decoder for what follows `prompt`.
    ///
    /// The text of the prompt and what the decoder returns are together the text of the whole sequence: a space in front of
    /// the continuation is kept. A character whose bytes begin in the prompt is returned once it is whole.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`] for an id that the vocabulary does not have.
    pub fn decoder_after(&self, prompt: &[u32]) -> Result<StreamDecoder<'_>> {
        let mut decoder = self.decoder();
        for &id in prompt {
            decoder.push(id)?;
        }
        Ok(decoder)
    }

    /// The piece of an id as the file spells it, such as `▁the`, `<0x0A>` or `<s>`; `None` beyond the vocabulary.
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.vocabulary.get(id).map(|piece| &*piece.text)
    }

    /// The id of the piece that the file spells so, such as `▁the` or `<s>`.
    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.vocabulary.id_of(piece)
    }

    /// Whether an id is a control token, such as BOS, which has no text and which [`encode_ordinary`](Self::encode_ordinary) never gives.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.get(id).is_some_and(|piece| piece.kind == Kind::Control)
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.end()
    }

    /// Checks that every id is one of a model whose `vocab_size` is given; the model may have more.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if there are more pieces than that.
    pub fn require_at_most(&self, vocab_size: usize) -> Result<()> {
        if self.vocab_size() <= vocab_size {
            return Ok(());
        }
        Err(Error::Setting {
            setting: "tokenizer",
            expected: format!("at most {vocab_size} pieces, the model's vocab_size"),
            found: self.vocab_size().to_string(),
        })
    }

    /// The id that begins a sequence.
    pub fn bos(&self) -> u32 {
        self.vocabulary.special.bos
    }

    /// The id that ends a sequence.
    pub fn eos(&self) -> u32 {
        self.vocabulary.special.eos
    }

    /// The id for unknown text. Encoding gives it only where the vocabulary has no byte pieces.
    pub fn unk(&self) -> u32 {
        self.vocabulary.special.unk
    }

    fn look_up(&self, id: u32) -> Result<&Piece> {
        self.vocabulary.get(id).ok_or(Error::TokenOutOfRange { token: id, vocabulary: self.vocab_size() })
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn unusable(path: &Path, reason: String) -> Error {
    Error::Tokenizer { path: path.to_owned(), reason }
}

/// The beginning of a text that may be long, for a message.
fn shorten(text: &str) -> &str {
    text.char_indices().nth(32).map_or(text, |(end, _)| &text[..end])
}

/// The bytes of a file, or `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => {}
        // Opening a pipe would wait for its writer.
        Ok(_) => return Err(unusable(path, "expected a regular file, found another kind".to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(unusable(path, format!("expected at most {MAX_FILE_BYTES} bytes, found more")));
    }
    Ok(Some(bytes))
}

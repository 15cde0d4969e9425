//! Text to token ids and back.
//!
//! Mixtral's tokenizer is sentencepiece BPE, with bytes for the characters that have no piece.
//! It is published in two files with the same vocabulary, `tokenizer.model` (sentencepiece's own)
//! and `tokenizer.json` (of the `tokenizers` library), and spelled out in GGUF files; [`Tokenizer`] reads all three.
//!
//! Models merged of others have other tokenizers: of byte-level BPE, a `tokenizer.json` that cuts words as GPT-2, Llama 3, Qwen 2
//! or Mistral's tekken is read too, and so is `tekken.json`.
//!
//! [`encode`](Tokenizer::encode) is what the `tokenizers` library does: `<s>` in a text is the token.
//! [`encode_ordinary`](Tokenizer::encode_ordinary) and [`decode`](Tokenizer::decode) are what sentencepiece does: `<s>` in a text is text.
//! Unlike that library, text never grows into a special token by merges.
//!
//! A file of another kind, such as a unigram model, is an error: nothing is encoded by approximation.
//!
//! # Which file counts
//!
//! A directory's tokenizer is what Transformers' `AutoTokenizer` (5.24) makes of it. Where files contradict each other, the first of
//! these counts, and what the others say is told by [`Tokenizer::warnings`]:
//!
//! 1. `tokenizer.json` for pieces, merges, and what is put around a prompt, which is its `post_processor` and not `add_bos_token`.
//!    Which pieces are user-defined only `tokenizer.model` tells. Without `tokenizer.json`, `tokenizer.model` counts for all of that,
//!    with BOS in front of a prompt unless `add_bos_token` is false, EOS at its end if `add_eos_token` is true, and a space in
//!    front of a text after a special token unless `legacy` is false. Without either, `tekken.json` counts, with BOS in front of a
//!    prompt.
//! 2. `added_tokens_decoder` of `tokenizer_config.json` for how a token is recognised, and for what a piece of `tokenizer.model` is
//!    called; if it is absent, `special_tokens_map.json` for the tokens that play a part, and `added_tokens.json` for further ones.
//! 3. `bos_token`, `eos_token` and the like, and `additional_special_tokens`, for tokens that nobody told of before.
//!
//! An added token that is not a piece of the vocabulary has the next free id, whatever id a file gives it.
//! A file that is damaged is an error, whichever others there are.

mod bpe;
mod byte_level;
mod byte_pieces;
mod config;
mod directory;
mod draft;
mod find;
mod json;
mod least;
mod pieces;
mod pipeline;
mod protobuf;
mod sentencepiece;
mod spelled;
mod stream;
mod table;
mod tekken;
mod vocabulary;
mod written;

use std::fmt;
use std::path::{Path, PathBuf};

use moe_core::memory;

use self::bpe::Bpe;
pub use self::byte_pieces::BytePieces;
use self::find::Finder;
pub use self::pieces::SentencePieces;
pub use self::stream::StreamDecoder;
use self::vocabulary::{Kind, Vocabulary};
use self::written::Written;
use crate::{Error, Result};

/// What the memory of a list of ids is for.
const TOKENS: &str = "tokens";

/// What is wrong with a file, before its path is added.
type Reason<T> = std::result::Result<T, String>;

/// A vocabulary, and how text is cut into its pieces.
///
/// Immutable and `Send + Sync`: threads share it by reference.
///
/// ```no_run
/// # fn main() -> mixtral_model::Result<()> {
/// use mixtral_model::Tokenizer;
///
/// let tokenizer = Tokenizer::from_dir("Mixtral-8x7B-v0.1".as_ref())?;
/// let ids = tokenizer.encode_prompt("Hello world")?;
/// assert_eq!(tokenizer.decode(&ids), "Hello world");
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
    warnings: Vec<String>,
    /// The file whose pieces these are.
    path: PathBuf,
    /// How many ids the model has that the tokenizer is for, if that was said.
    model_size: Option<usize>,
}

/// The ids that a prompt begins and ends with.
#[derive(Clone, Debug, Default)]
struct Around {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint directory, of which [several files may tell](self#which-file-counts).
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] naming the directory if it holds no `tokenizer.json`, `tokenizer.model` or `tekken.json`; otherwise those of
    /// [`from_sentencepiece`](Self::from_sentencepiece) and [`from_json`](Self::from_json), [`Error::Config`] for a field of the
    /// files beside them, or [`Error::Io`]. A damaged file is an error even beside good ones.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        directory::open(dir)
    }

    /// Reads the bytes of a sentencepiece model; `path` serves messages alone.
    ///
    /// Control pieces and the unknown one are recognised where they are written; a prompt has BOS in front.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the bytes are not a model, or one that is not BPE, normalises text otherwise than
    /// by a space in front, or lacks some of the 256 byte pieces though it falls back on bytes.
    pub fn from_sentencepiece(bytes: &[u8], path: &Path) -> Result<Self> {
        directory::sentencepiece_draft(bytes, path)?.finish(path).map_err(|reason| unusable(path, reason))
    }

    /// Takes a sentencepiece vocabulary that is spelled out, as in a GGUF file; `path` serves messages alone.
    ///
    /// Control pieces, user-defined ones and the unknown one are recognised where they are written. Text that no piece covers falls
    /// back on bytes if there are byte pieces.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the lists are of different lengths, an id is not below that, a text is empty or occurs twice,
    /// a score is NaN, a type unknown, some but not all byte pieces are there, or a character of a piece is not itself a piece.
    pub fn from_pieces(pieces: SentencePieces, path: &Path) -> Result<Self> {
        let built = pieces.draft().and_then(|draft| draft.warning_of(path).finish(path));
        built.map_err(|reason| unusable(path, reason))
    }

    /// Takes a byte-level BPE vocabulary that is spelled out, as in a GGUF file; `path` serves messages alone.
    ///
    /// Control pieces and user-defined ones are recognised where they are written.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if lists are of different lengths, an id is not below that, a text is empty or occurs twice, a type is
    /// unknown, a merge is not of pieces, or words are cut in a way that is not known.
    pub fn from_byte_pieces(pieces: &BytePieces, path: &Path) -> Result<Self> {
        let built = pieces.draft().and_then(|draft| draft.warning_of(path).finish(path));
        built.map_err(|reason| unusable(path, reason))
    }

    /// Reads the bytes of a `tokenizer.json`; `path` serves messages alone.
    ///
    /// BOS and EOS are the tokens `<s>` and `</s>` if there are such, else what the file suggests; what a prompt has around it is said by the `post_processor`.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] if the bytes are not JSON of the expected form, [`Error::Tokenizer`] if it describes anything but
    /// BPE over `▁`-marked text, as converted from sentencepiece, or byte-level BPE with one of the known ways to cut words.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        directory::json_draft(bytes, path)?.finish(path).map_err(|reason| unusable(path, reason))
    }

    /// The tokenizer for a model that has ids below `vocab_size`. The model may have more ids than there are pieces.
    ///
    /// If it has fewer, added tokens and control tokens beyond are harmless as long as no text holds them: there is a
    /// [warning](Self::warnings), and [`encode_prompt`](Self::encode_prompt) and [`check`](Self::check) refuse them.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the pieces that any text is made of go beyond: then this is another model's tokenizer.
    pub fn for_model(mut self, vocab_size: usize) -> Result<Self> {
        let (mut plain, mut further) = (Vec::new(), Vec::new());
        for (id, piece) in self.vocabulary.iter().filter(|(id, _)| *id as usize >= vocab_size) {
            let list = match piece.kind {
                Kind::Normal | Kind::Unused | Kind::Byte(_) => &mut plain,
                Kind::Unknown | Kind::Control | Kind::UserDefined | Kind::Added => &mut further,
            };
            list.push(id);
        }
        if let Some(last) = plain.last() {
            let reason = format!(
                "vocab: expected ids below {vocab_size}, the model's vocab_size, found pieces up to {last}"
            );
            return Err(unusable(&self.path, reason));
        }
        if let Some(first) = further.first() {
            let more =
                if further.len() > 1 { format!(", and {} more", further.len() - 1) } else { String::new() };
            self.warnings.push(format!(
                "{}: {} is beyond the model, which has {vocab_size} ids{more}; text with it cannot be read",
                self.path.display(),
                self.spelled(*first),
            ));
        }
        self.model_size = Some(vocab_size);
        Ok(self)
    }

    /// What the files contradict each other in, or what in them is passed over, with file and key; a line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The ids of `text` as a program's author writes it, without BOS: where a special token is written, such as `<s>`, it is meant.
    ///
    /// Each stretch of text between such tokens is encoded as if it stood alone. The empty text has no ids.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.written.encode(&self.bpe, &self.vocabulary, text, &mut ids)?;
        Ok(ids)
    }

    /// The ids of `text` with what its files put around a prompt: usually one BOS in front.
    ///
    /// Otherwise as [`encode`](Self::encode). Where BOS tokens written in the text come first, they are that one.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`], and those of [`check`](Self::check).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let Around { before, after } = &self.around;
        let mut ids = Vec::new();
        memory::reserve(&mut ids, before.len(), TOKENS)?;
        ids.extend(before);
        self.written.encode(&self.bpe, &self.vocabulary, text, &mut ids)?;
        let bos = self.bos();
        if before.contains(&bos) {
            let written = ids[before.len()..].iter().take_while(|&&id| id == bos).count();
            ids.drain(before.len()..before.len() + written);
        }
        memory::reserve(&mut ids, after.len(), TOKENS)?;
        ids.extend(after);
        self.check(&ids)?;
        Ok(ids)
    }

    /// Checks that the model has all of these ids, if [it is known](Self::for_model).
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] naming the file and the first token that the model does not have.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        let Some(size) = self.model_size else { return Ok(()) };
        match ids.iter().find(|&&id| id as usize >= size) {
            Some(&id) => {
                let token = self.spelled(id);
                let reason = format!("{token}: expected an id below {size}, the model's vocab_size");
                Err(unusable(&self.path, reason))
            }
            None => Ok(()),
        }
    }

    /// The ids of `text` where nothing in it is special, without BOS.
    ///
    /// Equal to what sentencepiece gives, or with byte-level BPE the `tokenizers` library to such text: user-defined pieces are recognised, control pieces are not.
    /// This is the way to encode what others wrote: no text can forge a control token.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        if let Some(bytes) = &self.written.layout.bytes {
            bytes.encode(&self.bpe, &self.vocabulary, text, &mut ids)?;
        } else if !text.is_empty() {
            let text = written::marked(if self.space_in_front { "▁" } else { "" }, text)?;
            written::encode_isolating(&self.user_defined, &self.bpe, &self.vocabulary, &text, &mut ids)?;
        }
        Ok(ids)
    }

    /// The text of `ids`, equal to sentencepiece's decoding.
    ///
    /// Byte pieces form UTF-8, with one U+FFFD for each byte that is not part of a whole character; `▁` is a space, except that
    /// one in front of the text is dropped; control tokens such as BOS have no text; the unknown token is written ` ⁇ `.
    /// In byte-level BPE all pieces form UTF-8, with one U+FFFD for all bytes of what began a character, as the `tokenizers` library decodes.
    /// An id that stands for no piece has no text: a model may have more ids than its tokenizer.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut decoder = self.decoder();
        for &id in ids {
            decoder.push_to(id, &mut text);
        }
        text + &decoder.finish()
    }

    /// A decoder for a sequence that begins here.
    pub fn decoder(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// A decoder for what follows `prompt`.
    ///
    /// The text of the prompt and what the decoder returns are together the text of the whole sequence: a space in front of
    /// the continuation is kept. A character whose bytes begin in the prompt is returned once it is whole.
    pub fn decoder_after(&self, prompt: &[u32]) -> StreamDecoder<'_> {
        let mut decoder = self.decoder();
        for &id in prompt {
            decoder.push(id);
        }
        decoder
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

    /// The id that begins a sequence.
    pub fn bos(&self) -> u32 {
        self.vocabulary.special.bos
    }

    /// The id that ends a sequence.
    pub fn eos(&self) -> u32 {
        self.vocabulary.special.eos
    }

    /// The id for unknown text, if there is one. Encoding gives it only where the vocabulary has no byte pieces.
    pub fn unk(&self) -> Option<u32> {
        self.vocabulary.special.unk
    }

    /// Whether pieces are spelled in characters that stand for bytes.
    fn is_byte_level(&self) -> bool {
        self.written.layout.bytes.is_some()
    }

    /// An id and its piece, for a message.
    fn spelled(&self, id: u32) -> String {
        match self.piece(id) {
            Some(piece) => format!("token {id} {:?}", shorten(piece)),
            None => format!("token {id}"),
        }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

fn unusable(path: &Path, reason: String) -> Error {
    Error::Tokenizer { path: path.to_owned(), reason }
}

/// The beginning of a text that may be long, for a message.
fn shorten(text: &str) -> &str {
    text.char_indices().nth(32).map_or(text, |(end, _)| &text[..end])
}

//! Reading `tekken.json`, Mistral's own file of its byte-level BPE.
//!
//! Control pieces have the first ids, whether the file names them or not, and the pieces of text follow by rank. There are no
//! merges in it: two neighbours are merged if what they make is a piece, the lowest rank first, as tiktoken does. A word that is a
//! piece is that piece.
//!
//! As with the other files, control pieces with a name are recognised in a text in which tokens may be written, which
//! mistral-common never does; in one where they may not, and within the messages of a chat, they are text here too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::byte_level::{ByteLevel, Words, character};
use super::draft::{Begins, Draft, Surrounds};
use super::pieces::merges;
use super::table::{AddedToken, Table};
use super::vocabulary::{Kind, Piece, UNKNOWN_SURFACE};
use super::written::Layout;
use super::{Reason, shorten};

/// No piece is longer, as finding its merges takes time quadratic in its length; those of the published files are below 100.
const MAX_PIECE_BYTES: usize = 512;

/// The control pieces of files that name none, which are those of versions up to 7.
const CONTROL: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// The fields that matter here.
#[derive(Deserialize)]
#[serde(expecting = "an object with `config` and `vocab`")]
pub(super) struct File {
    config: Config,
    vocab: Vec<Entry>,
    special_tokens: Option<Vec<Control>>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    /// How many ids there are, of which the first so many are for control pieces.
    default_vocab_size: u32,
    default_num_special_tokens: u32,
    /// Of Mistral's format: `v3` and the like.
    version: String,
}

#[derive(Deserialize)]
struct Entry {
    rank: u32,
    token_bytes: String,
}

#[derive(Deserialize)]
struct Control {
    rank: u32,
    token_str: String,
}

impl File {
    pub(super) fn draft(self) -> Reason<Draft> {
        let Config { pattern, default_vocab_size: size, default_num_special_tokens: first, .. } =
            &self.config;
        let number = self.config.version.strip_prefix('v').filter(|number| !number.is_empty());
        if !number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
            let found = shorten(&self.config.version);
            return Err(format!("config.version: expected a version as v3, found {found:?}"));
        }
        let words = Words::of(pattern).ok_or_else(|| {
            format!("config.pattern: expected tekken's words, found {:?}", shorten(pattern))
        })?;
        let count = size.checked_sub(*first).map(|count| count as usize).filter(|count| *count >= 256);
        let Some(entries) = count.and_then(|count| self.vocab.get(..count)) else {
            let found = self.vocab.len();
            return Err(format!(
                "vocab: expected default_vocab_size {size} without default_num_special_tokens {first} pieces, at least 256, found {found}"
            ));
        };
        let named = self.special_tokens.unwrap_or_else(of_old_files);
        let mut pieces = control(&named, *first)?;
        for (rank, entry) in (0..).zip(entries) {
            let text = text(rank, entry)?;
            pieces.push((first + rank, Piece { text: text.into(), kind: Kind::Normal }));
        }
        let mut table = Table::new(pieces)?;
        for Control { token_str, .. } in &named {
            table.add(AddedToken::new(token_str, true))?;
        }
        // The lowest rank is the highest score; below 2^24 they are exact.
        let scores: Vec<f32> = (0..*size).map(|id| -(id as f32)).collect();
        Ok(Draft {
            merges: merges(&table, &scores)?,
            table,
            layout: Layout { bytes: Some(ByteLevel::new(words, false)?), ..Layout::default() },
            space_in_front: false,
            user_defined: Vec::new(),
            written: &[],
            byte_fallback: false,
            fuse_unknown: false,
            ignore_merges: true,
            unknown_surface: UNKNOWN_SURFACE.to_owned(),
            unk: None,
            bos: Begins::Text("<s>".to_owned()),
            eos: Begins::Text("</s>".to_owned()),
            around: Surrounds::Flags { bos: true, eos: false },
            warnings: Vec::new(),
        })
    }
}

fn of_old_files() -> Vec<Control> {
    (0..).zip(CONTROL).map(|(rank, name)| Control { rank, token_str: name.to_owned() }).collect()
}

/// The control pieces, of which there are as many as ids; those without a name are called after their id.
fn control(named: &[Control], count: u32) -> Reason<Vec<(u32, Piece)>> {
    if count > 1 << 16 {
        return Err(format!("config.default_num_special_tokens: expected at most 65536, found {count}"));
    }
    let mut names = vec![None; count as usize];
    for Control { rank, token_str } in named {
        let place = names.get_mut(*rank as usize);
        match place {
            Some(name @ None) => *name = Some(token_str.clone()),
            _ => {
                let name = shorten(token_str);
                return Err(format!(
                    "special token {name:?}: expected a rank of its own below {count}, found {rank}"
                ));
            }
        }
    }
    let text = |(id, name): (u32, Option<String>)| {
        let text = name.unwrap_or_else(|| format!("<SPECIAL_{id}>")).into();
        (id, Piece { text, kind: Kind::Control })
    };
    Ok((0..).zip(names).map(text).collect())
}

/// The bytes of a piece as characters.
fn text(rank: u32, entry: &Entry) -> Reason<String> {
    if entry.rank != rank {
        return Err(format!("vocab: expected rank {rank}, found {}", entry.rank));
    }
    let bytes = STANDARD
        .decode(&entry.token_bytes)
        .map_err(|error| format!("vocab: rank {rank}: expected bytes in base64, found {error}"))?;
    if bytes.is_empty() || bytes.len() > MAX_PIECE_BYTES {
        let found = bytes.len();
        return Err(format!("vocab: rank {rank}: expected 1 to {MAX_PIECE_BYTES} bytes, found {found}"));
    }
    if rank < 256 && bytes != [rank as u8] {
        return Err(format!("vocab: rank {rank}: expected the byte {rank}, found {bytes:?}"));
    }
    Ok(bytes.into_iter().map(character).collect())
}

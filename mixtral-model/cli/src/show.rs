//! Showing tokens as they come.

use anstyle::Style;
use mixtral_model::{Stops, StreamDecoder, Tokenizer};

use crate::failure::{Result, warn};
use crate::output::Output;

/// A way to show a prompt and what follows it.
pub(crate) trait Show {
    /// The prompt has been read.
    fn prompt(&mut self, ids: &[u32]) -> Result<()>;

    /// A token was drawn.
    fn token(&mut self, id: u32) -> Result<()>;

    /// There are no more.
    fn end(&mut self) -> Result<()>;
}

/// Tokens as text, up to one that ends it, or as ids with commas between.
pub(crate) enum Spelling<'t> {
    Text(Option<StreamDecoder<'t>>, Stops),
    Ids { first: bool },
}

impl<'t> Spelling<'t> {
    /// Text if there is a tokenizer.
    pub(crate) fn new(tokenizer: Option<&'t Tokenizer>, stops: &[String]) -> Self {
        let text = |tokenizer: &'t Tokenizer| Self::Text(Some(tokenizer.decoder()), Stops::new(stops));
        tokenizer.map_or(Self::Ids { first: true }, text)
    }

    /// What the next token of the prompt adds. Of a character in several tokens, the last has it all.
    pub(crate) fn prompt(&mut self, id: u32) -> String {
        match self {
            Self::Text(Some(decoder), _) => decoder.push(id),
            other => other.push(id),
        }
    }

    /// What the next token adds that was drawn, as far as it is certain to be shown.
    pub(crate) fn push(&mut self, id: u32) -> String {
        match self {
            Self::Text(Some(decoder), stops) => stops.push(&decoder.push(id)),
            Self::Text(None, _) => String::new(),
            Self::Ids { first } => {
                let comma = if std::mem::take(first) { "" } else { "," };
                format!("{comma}{id}")
            }
        }
    }

    /// What the end of the tokens adds.
    pub(crate) fn finish(&mut self) -> String {
        match self {
            Self::Text(decoder, stops) => {
                let Some(decoder) = decoder.take() else { return String::new() };
                if let Some((first, count)) = decoder.unknown() {
                    warn(&format!(
                        "{count} of the tokens have no piece in the tokenizer and no text, {first} the first of them"
                    ));
                }
                stops.push(&decoder.finish()) + &stops.finish()
            }
            Self::Ids { .. } => String::new(),
        }
    }

    /// The texts that end it, where it is text.
    pub(crate) fn stops(&self) -> Option<&Stops> {
        match self {
            Self::Text(_, stops) => Some(stops),
            Self::Ids { .. } => None,
        }
    }
}

/// How much of the prompt is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// All, in bold on a terminal.
    All,
    /// Nothing; what follows is shown as it would be after the prompt, its leading space included.
    Hidden,
    /// Nothing, and what follows is shown as if it came first.
    Apart,
}

/// The style of a prompt.
pub(crate) const PROMPT: Style = Style::new().bold();

/// Text or ids, and nothing else.
pub(crate) struct Plain<'t> {
    pub(crate) out: Output,
    pub(crate) spelling: Spelling<'t>,
    pub(crate) echo: Echo,
}

impl Show for Plain<'_> {
    fn prompt(&mut self, ids: &[u32]) -> Result<()> {
        if self.echo == Echo::Apart {
            return Ok(());
        }
        let mut text = String::new();
        for &id in ids {
            text.push_str(&self.spelling.prompt(id));
        }
        if self.echo == Echo::All {
            self.out.styled(PROMPT, &text)?;
        }
        Ok(self.out.flush()?)
    }

    fn token(&mut self, id: u32) -> Result<()> {
        self.out.text(&self.spelling.push(id))?;
        Ok(self.out.flush()?)
    }

    fn end(&mut self) -> Result<()> {
        self.out.text(&(self.spelling.finish() + "\n"))?;
        Ok(self.out.flush()?)
    }
}

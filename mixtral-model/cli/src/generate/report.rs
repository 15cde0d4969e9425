//! A generation as JSON.

use mixtral_model::{Ended, Generated, Session};
use serde::Serialize;

use crate::failure::Result;
use crate::show::Show;
use crate::summary;

/// What `generate --json` prints, as its help describes it.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    prompt_ids: &'a [u32],
    ids: &'a [u32],
    text: Option<String>,
    ended: &'static str,
    end_token: Option<u32>,
    stop_text: Option<String>,
    seed: Option<u64>,
    prompt_tokens: usize,
    generated_tokens: usize,
    passes: usize,
    prompt_seconds: f64,
    generation_seconds: f64,
}

impl<'a> Report<'a> {
    /// `heard` is the text, and the text that ended it.
    pub(super) fn new(
        prompt_ids: &'a [u32],
        generated: &'a Generated,
        heard: Option<(String, Option<String>)>,
        seed: Option<u64>,
        session: &Session,
    ) -> Self {
        let (text, stop_text) = heard.map_or((None, None), |(text, stop)| (Some(text), stop));
        let (ended, end_token) = match generated.ended {
            _ if stop_text.is_some() => ("stop_text", None),
            Ended::MaxTokens => ("max_tokens", None),
            Ended::Stop(token) => ("end_token", Some(token)),
            Ended::Context => ("context", None),
            _ => ("interrupted", None),
        };
        Self {
            prompt_ids,
            ids: &generated.tokens,
            text,
            ended,
            end_token,
            stop_text,
            seed,
            prompt_tokens: generated.prompt_tokens,
            generated_tokens: generated.tokens.len(),
            passes: summary::passes(generated, session),
            prompt_seconds: generated.prompt_time.as_secs_f64(),
            generation_seconds: generated.generation_time.as_secs_f64(),
        }
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self).map_err(std::io::Error::other)? + "\n")
    }
}

/// Nothing is shown as it comes.
pub(super) struct Silent;

impl Show for Silent {
    fn prompt(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }

    fn token(&mut self, _: u32) -> Result<()> {
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

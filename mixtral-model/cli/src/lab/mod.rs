//! `mixtral lab`.

mod ablate;
mod compare;
mod page;
mod regret;
mod report;
mod table;

use std::num::NonZeroUsize;
use std::path::Path;

use mixtral_model::lab::{CompareOptions, Comparison, ExpertBytes, compare};
use mixtral_model::{LayerRouters, Model, Source, Tokenizer};
use moe_router::RouterSpec;

use crate::args::{Lab, LabCommand, Running};
use crate::failure::Result;
use crate::input;
use crate::interrupt::Interrupt;
use crate::load::{self, Passes};
use crate::progress::Progress;

/// Tokens of a window where the context allows it.
const WINDOW: usize = 512;

pub(crate) fn run(args: &Lab, interrupt: &Interrupt) -> Result<()> {
    match &args.command {
        LabCommand::Compare(args) => compare::run(args, interrupt),
        LabCommand::Ablate(args) => ablate::run(args, interrupt),
        LabCommand::Regret(args) => regret::run(args, interrupt),
        LabCommand::Report(args) => report::run(args, interrupt),
    }
}

/// A model, and a text in its tokens.
struct Subject {
    source: Source,
    model: Model,
    tokenizer: Tokenizer,
    ids: Vec<u32>,
}

impl Subject {
    /// For passes of at most so many tokens, whose logits are wanted and kept.
    fn new(running: &Running, text: Option<&Path>, tokens: Option<NonZeroUsize>) -> Result<Self> {
        let text = input::text_option(text)?;
        let source = running.model.source()?;
        let tokens = tokens.map_or(WINDOW, NonZeroUsize::get);
        let model = running.load(&source, |config| Passes {
            // Logits of a window, twice, and the text in its tokens.
            besides: (8 * config.vocab_size as u64).saturating_mul(tokens.min(config.max_positions) as u64)
                + 16 * text.len() as u64,
            any_router: true,
            ..Passes::windows(tokens.min(config.max_positions))
        })?;
        let tokenizer = load::tokenizer(&source, &model)?;
        let ids = tokenizer.encode_prompt(&text)?;
        Ok(Self { source, model, tokenizer, ids })
    }

    /// The routing that the model was trained with, by name.
    fn own_router(&self) -> Result<RouterSpec> {
        let spec = format!("top-k:k={}", self.model.config().experts_per_token);
        Ok(spec.parse().map_err(mixtral_model::Error::from)?)
    }

    /// Routers with their names.
    fn routers(&self, specs: &[String]) -> Result<Vec<(String, LayerRouters)>> {
        specs.iter().map(|spec| Ok((spec.clone(), LayerRouters::parse(&self.model, spec)?))).collect()
    }

    /// Reads the text under the model's own routing and under these.
    fn compare<'b>(
        &self,
        routers: &[(String, LayerRouters)],
        options: &CompareOptions,
        bytes: &'b ExpertBytes,
        interrupt: &Interrupt,
    ) -> Result<Comparison<'b>> {
        let Self { model, ids, .. } = self;
        let read = options.windows.tokens_read(ids.len());
        let mut observer = (interrupt.clone(), Progress::new(model, read * (1 + routers.len())));
        let go_on = |_, _| interrupt.go_on();
        Ok(interrupt.during(|| compare(model, ids, options, routers, bytes, &mut observer, go_on))?)
    }
}

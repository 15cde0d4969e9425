//! `mixtral logits`.

use std::fmt::Write as _;
use std::path::Path;

use mixtral_model::{Config, Dump, Error, Tokenizer, Workspace};
use moe_core::numerics;

use crate::args::Logits;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::load::{self, Passes};
use crate::output::{Output, harmless};
use crate::progress::Progress;
use crate::summary::{aside, write_memory};

/// Tokens that a summary names.
const BEST: usize = 5;

pub(crate) fn run(args: &Logits, interrupt: &Interrupt) -> Result<()> {
    if let Some(out) = &args.out {
        require_directory(out)?;
    }
    let source = args.running.model.source()?;
    let tokens = args.ids.0.len();
    let model = args.running.load_with(&source, &args.router, |config| Passes {
        besides: kept(config, tokens),
        ..Passes::windows(args.prefill.map_or(tokens, usize::from).min(tokens))
    })?;
    let mut session = args.running.session(&model, args.seed)?;
    let ids = &args.ids.0;
    let prefill = args.prefill.map_or(ids.len(), usize::from);
    let mut observer = (interrupt.clone(), Progress::new(&model, ids.len()));
    let work = || {
        let workspace = &mut Workspace::new();
        let dump = match Dump::record(&model, &mut session, ids, prefill, workspace, &mut observer) {
            Err(Error::Stopped) => return Err(Failure::Interrupted),
            other => other?,
        };
        drop(observer);
        let Some(path) = &args.out else {
            // A name for each id is welcome, and a model without a tokenizer too.
            return Ok(Output::new().text(&summary(&dump, load::tokenizer(&source, &model).ok().as_ref()))?);
        };
        dump.save(path)?;
        aside(&format!("{}: {} tokens, {} layers", path.display(), ids.len(), dump.layers()));
        write_memory(&model);
        Ok(())
    };
    match &args.out {
        Some(out) => interrupt.during_writing(out, work),
        None => interrupt.during(work),
    }
}

/// Bytes of what is kept of so many tokens: logits, and of every layer what goes in, what comes out, and what the router did.
fn kept(config: &Config, tokens: usize) -> u64 {
    let of_layer = 2 * config.hidden_size + config.experts.most() + 4 * config.experts_per_token;
    let of_token = (config.layers * of_layer + config.vocab_size + config.hidden_size) as u64;
    (4 * of_token).saturating_mul(tokens as u64)
}

/// Tells before the work that there is no place for its result.
fn require_directory(out: &Path) -> Result<()> {
    match out.parent() {
        Some(dir) if !dir.as_os_str().is_empty() && !dir.is_dir() => {
            Err(Failure::not_as_expected(dir.display(), "expected a directory, found none"))
        }
        _ => Ok(()),
    }
}

/// What comes next, and who worked on the last token.
fn summary(dump: &Dump, tokenizer: Option<&Tokenizer>) -> String {
    let logits = dump.logits();
    let last = logits.nrows() - 1;
    let row = logits.row(last).to_vec();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));

    // Writing to a string cannot fail.
    let mut text = format!("next after {} tokens\n    id     logit  probability\n", logits.nrows());
    let mut probabilities = row.clone();
    numerics::softmax(&mut probabilities);
    for &id in order.iter().take(BEST) {
        let _ = write!(text, "{id:>6}  {:>8.4}  {:>10.2}%", row[id], 100.0 * probabilities[id]);
        if let Some(piece) = tokenizer.and_then(|tokenizer| tokenizer.piece(u32::try_from(id).ok()?)) {
            let _ = write!(text, "  {}", harmless(piece).replace(['\n', '\t'], "?"));
        }
        text.push('\n');
    }
    text.push_str("experts of the last token, with their weights\n");
    for n in 0..dump.layers() {
        let _ = write!(text, "layer {n:<2}");
        let choices = dump.choices(n);
        for (expert, weight) in choices.experts(last).iter().zip(choices.weights(last)) {
            let _ = write!(text, "  {expert} ({weight:.3})");
        }
        text.push('\n');
    }
    text
}

//! `mixtral perplexity`.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::Instant;

use mixtral_model::{PerplexityOptions, Workspace};
use serde::Serialize;

use crate::args::Perplexity;
use crate::failure::{Failure, Result};
use crate::input;
use crate::interrupt::Interrupt;
use crate::load;
use crate::output::Output;
use crate::progress::Progress;
use crate::summary::{aside, speed, write_products};

/// Tokens of a window where the context allows it: what published perplexities mostly have.
const WINDOW: usize = 2048;

#[derive(Serialize)]
struct Report {
    tokens: usize,
    window: usize,
    stride: usize,
    predicted_tokens: usize,
    nll_sum: f64,
    perplexity: f64,
}

pub(crate) fn run(args: &Perplexity, interrupt: &Interrupt) -> Result<()> {
    let text = match &args.text {
        Some(path) => input::file(path)?,
        None => input::text_or_stdin(None, "--text")?,
    };
    let source = args.running.model.source()?;
    let model = args.running.load(&source)?;
    let ids = load::tokenizer(&source, &model)?.encode_prompt(&text)?;
    let mut session = args.running.session(&model)?;
    let window = args.window.map_or(WINDOW.min(session.context()), NonZeroUsize::get);
    let stride = args.stride.map_or(window, NonZeroUsize::get);
    let options = PerplexityOptions::new(window).with_stride(stride);

    // The last token of a window needs no reading.
    let read = options.windows(ids.len()).map(|window| window.tokens.len() - 1).sum();
    let mut observer = (interrupt.clone(), Progress::new(&model, read));
    let go_on = |_| ControlFlow::Continue(());
    let begun = Instant::now();
    let found = interrupt.during(|| {
        let workspace = &mut Workspace::new();
        mixtral_model::perplexity(&model, &mut session, &ids, &options, workspace, &mut observer, go_on)
    })?;
    drop(observer);
    let report = Report {
        tokens: ids.len(),
        window,
        stride,
        predicted_tokens: found.predicted,
        nll_sum: found.nll_sum,
        perplexity: found.perplexity(),
    };
    if found.stopped {
        aside(&match found.predicted {
            0 => "interrupted".to_owned(),
            _ => format!("interrupted; until then {}", report.line(found.mean())),
        });
        return Err(Failure::Interrupted);
    }
    let text = match args.json {
        true => serde_json::to_string(&report).map_err(std::io::Error::other)?,
        false => report.line(found.mean()),
    };
    Output::new().text(&(text + "\n"))?;
    aside(&format!("read{}", speed(read, begun.elapsed())));
    write_products(&model);
    Ok(())
}

impl Report {
    fn line(&self, mean: f64) -> String {
        let Self { tokens, window, stride, predicted_tokens, perplexity, .. } = self;
        let overlap = if stride == window { String::new() } else { format!(", {stride} apart") };
        format!(
            "perplexity {perplexity:.4}, {mean:.4} nats a token, of {predicted_tokens} of {tokens} tokens \
             in windows of {window}{overlap}"
        )
    }
}

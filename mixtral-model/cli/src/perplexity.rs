//! `mixtral perplexity`.

mod report;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use mixtral_model::lab::{Divergence, LogitsFile, against, save_logits};
use mixtral_model::{
    DEFAULT_CHUNK, Model, Perplexity as Found, PerplexityOptions, Session, Source, Workspace,
};

use crate::args::Perplexity;
use crate::failure::{Failure, Result};
use crate::input;
use crate::interrupt::Interrupt;
use crate::load::{self, Passes};
use crate::output::Output;
use crate::progress::Progress;
use crate::summary::{aside, speed, write_memory, write_products};
use report::Report;

/// Tokens of a window where the context allows it: what published perplexities mostly have.
const WINDOW: usize = 2048;

pub(crate) fn run(args: &Perplexity, interrupt: &Interrupt) -> Result<()> {
    match &args.against {
        Some(path) => compare(args, path, interrupt),
        None => measure(args, interrupt),
    }
}

/// Reads a text.
fn measure(args: &Perplexity, interrupt: &Interrupt) -> Result<()> {
    let text = input::text_option(args.text.as_deref())?;
    let Ready { source, model, mut session } = Ready::new(args, 16 * text.len() as u64)?;
    let ids = load::tokenizer(&source, &model)?.encode_prompt(&text)?;
    let window = args.window.map_or(WINDOW.min(session.context()), NonZeroUsize::get);
    let options = match args.llama_cpp || args.save_logits.is_some() {
        true => PerplexityOptions::llama_cpp(window, model.config().bos_of(&ids)),
        false => PerplexityOptions::new(window).with_stride(args.stride.map_or(window, NonZeroUsize::get)),
    };
    let read = options.tokens_read(ids.len());
    let mut observer = (interrupt.clone(), Progress::new(&model, read));
    let go_on = |_| ControlFlow::Continue(());
    let begun = Instant::now();
    let workspace = &mut Workspace::new();
    let found = match &args.save_logits {
        None => interrupt.during(|| {
            mixtral_model::perplexity(&model, &mut session, &ids, &options, workspace, &mut observer, go_on)
        }),
        Some(path) => interrupt.during_writing(path, || {
            save_logits(&model, &mut session, &ids, &options, path, workspace, &mut observer)
        }),
    }?;
    drop(observer);
    let took = begun.elapsed();
    tell(args, &Report::new(ids.len(), &options, &found, None), found.stopped)?;
    aside(&format!("read{}", speed(read, took)));
    if let Some(path) = &args.save_logits {
        aside(&format!("{}: {} predictions", path.display(), found.predicted));
    }
    write_products(&model);
    write_memory(&model);
    Ok(())
}

/// Reads the text of a file of logits.
fn compare(args: &Perplexity, path: &Path, interrupt: &Interrupt) -> Result<()> {
    let mut file = LogitsFile::open(path)?;
    let Ready { model, mut session, .. } = Ready::new(args, 4 * file.tokens().len() as u64)?;
    let options = PerplexityOptions::llama_cpp(file.window(), None);
    let (tokens, read) = (file.tokens().len(), options.tokens_read(file.tokens().len()));
    let mut observer = (interrupt.clone(), Progress::new(&model, read));
    let begun = Instant::now();
    let workspace = &mut Workspace::new();
    let (found, divergence): (Found, Divergence) =
        interrupt.during(|| against(&model, &mut session, &mut file, workspace, &mut observer))?;
    drop(observer);
    let took = begun.elapsed();
    let report = Report::new(tokens, &options, &found, Some(divergence));
    tell(args, &report, found.stopped)?;
    aside(&format!("read{}", speed(read, took)));
    write_products(&model);
    write_memory(&model);
    Ok(())
}

/// A model, ready to read.
struct Ready {
    source: Source,
    model: Model,
    session: Session,
}

impl Ready {
    /// For a text that takes so many bytes of memory.
    fn new(args: &Perplexity, besides: u64) -> Result<Self> {
        let passes = Passes { besides, ..Passes::windows(DEFAULT_CHUNK) };
        let source = args.running.model.source()?;
        let model = args.running.load_with(&source, &args.router, |_| passes)?;
        let session = args.running.session(&model, args.seed)?;
        Ok(Self { source, model, session })
    }
}

/// Writes what was found, or what there is of it.
fn tell(args: &Perplexity, report: &Report, stopped: bool) -> Result<()> {
    if stopped {
        aside(&match report.predicted() {
            0 => "interrupted".to_owned(),
            _ => format!("interrupted; until then {}", report.line()),
        });
        return Err(Failure::Interrupted);
    }
    let text = if args.json { report.json()? } else { report.text() };
    Ok(Output::new().text(&text)?)
}

//! `mixtral trace`.

mod convert;
mod simulate;
mod tell;

use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use mixtral_model::lab::{NewTrace, record_trace, trace_header};
use mixtral_model::{Access, Checkpoint, Error, LayerRouters, PerplexityOptions, Session, Workspace};
use moe_router::trace::{Replay, TraceError, TraceReader};

use crate::args::{self, Trace, TraceCommand};
use crate::failure::{Failure, Result};
use crate::input;
use crate::interrupt::Interrupt;
use crate::load::{self, Passes};
use crate::output::Output;
use crate::progress::Progress;
use crate::summary::{aside, write_memory};

/// Tokens of a window where the context allows it.
const WINDOW: usize = 512;

pub(crate) fn run(args: &Trace, interrupt: &Interrupt) -> Result<()> {
    match &args.command {
        TraceCommand::Record(args) => record(args, interrupt),
        TraceCommand::Stats(args) => tell::stats(args),
        TraceCommand::Diff(args) => tell::diff(args),
        TraceCommand::Replay(args) => replay(args, interrupt),
        TraceCommand::Convert(args) => convert::run(args, interrupt),
        TraceCommand::Simulate(args) => simulate::run(args),
    }
}

fn record(args: &args::Record, interrupt: &Interrupt) -> Result<()> {
    let text = input::text_option(args.text.as_deref())?;
    let source = args.running.model.source()?;
    let chunk = args.chunk.or(args.window).map_or(WINDOW, NonZeroUsize::get);
    let besides = 16 * text.len() as u64;
    let passes = Passes { besides, ..Passes::windows(chunk) };
    let model = args.running.load_with(&source, &args.router, |_| passes)?;
    let ids = load::tokenizer(&source, &model)?.encode_prompt(&text)?;
    let mut session = args.running.session(&model, args.seed)?;
    let options = windows(&session, args.window, args.chunk);
    let mut header = trace_header(&model);
    header.model = Some(
        args.running.model.model.as_ref().map_or("built-in demo".to_owned(), |m| m.display().to_string()),
    );
    header.checkpoint = Some(args.running.look_at(&source)?.digest()?.to_string());
    header.router.clone_from(&args.router.router);
    if let Some(path) = &args.router.gates {
        let digest = Checkpoint::open_path(path, Access::Map)?.digest()?;
        header.gates = Some(format!("{}, {digest}", path.display()));
    }
    header.program = Some(concat!("mixtral ", env!("CARGO_PKG_VERSION")).to_owned());
    let mut observer = (interrupt.clone(), Progress::new(&model, options.tokens_read(ids.len())));
    let workspace = &mut Workspace::new();
    let trace = NewTrace { path: &args.out, header: &header };
    let found = interrupt.during_writing(&args.out, || {
        record_trace(&model, &mut session, &ids, &options, trace, workspace, &mut observer)
    })?;
    drop(observer);
    if found.stopped {
        return Err(Failure::Interrupted);
    }
    aside(&format!(
        "{}: {} tokens predicted, perplexity {:.4}",
        args.out.display(),
        found.predicted,
        found.perplexity()
    ));
    write_memory(&model);
    Ok(())
}

fn replay(args: &args::Replay, interrupt: &Interrupt) -> Result<()> {
    let text = input::text_option(args.text.as_deref())?;
    let source = args.running.model.source()?;
    let chunk = args.chunk.or(args.window).map_or(WINDOW, NonZeroUsize::get);
    // A replay holds its trace, and more.
    let trace = std::fs::metadata(&args.trace).map_or(0, |metadata| metadata.len());
    let besides = 3 * trace + 16 * text.len() as u64;
    let passes = Passes { any_router: true, besides, ..Passes::windows(chunk) };
    let mut model = args.running.load(&source, |_| passes)?;
    let file = open(&args.trace)?;
    let replay = Replay::read(file, args.weights.into()).map_err(of_file(&args.trace))?;
    model.set_routers(&LayerRouters::all(&model, Arc::new(replay))?)?;
    let ids = load::tokenizer(&source, &model)?.encode_prompt(&text)?;
    let mut session = args.running.session(&model, 0)?;
    let options = windows(&session, args.window, args.chunk);
    let mut observer = (interrupt.clone(), Progress::new(&model, options.tokens_read(ids.len())));
    let go_on = |_| ControlFlow::Continue(());
    let workspace = &mut Workspace::new();
    let found = interrupt.during(|| {
        mixtral_model::perplexity(&model, &mut session, &ids, &options, workspace, &mut observer, go_on)
    })?;
    drop(observer);
    if found.stopped {
        return Err(Failure::Interrupted);
    }
    let line = format!(
        "perplexity {:.4}, {:.4} nats a token, of {} tokens, routed as recorded\n",
        found.perplexity(),
        found.mean(),
        found.predicted
    );
    Output::new().text(&line)?;
    write_memory(&model);
    Ok(())
}

fn windows(
    session: &Session,
    window: Option<NonZeroUsize>,
    chunk: Option<NonZeroUsize>,
) -> PerplexityOptions {
    let window = window.map_or(WINDOW.min(session.context()), NonZeroUsize::get);
    PerplexityOptions::new(window).with_chunk(chunk.map_or(window, NonZeroUsize::get))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Failure::Input { name: path.display().to_string(), source })
}

/// A trace of that path, its header read.
fn reader(path: &Path) -> Result<TraceReader<File>> {
    TraceReader::new(open(path)?).map_err(of_file(path))
}

/// An error of a trace, with its file.
fn of_file(path: &Path) -> impl Fn(TraceError) -> Failure + '_ {
    |source| Error::Trace { path: path.to_path_buf(), source }.into()
}

//! A model's routing, into a trace.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;

use moe_core::Routed;
use moe_router::trace::{TraceError, TraceHeader, TraceWriter};

use crate::perplexity::score;
use crate::save::replace;
use crate::{Error, Model, Observed, Observer, Perplexity, PerplexityOptions, Result, Session, Workspace};

/// Writes what the routers of a model do to a [trace](moe_router::trace), while it runs. It wants all rows of all layers.
///
/// A pass that fails or is stopped has been recorded up to its last layer; whoever reads it again records it again.
#[derive(Debug)]
pub struct TraceRecorder<W>(TraceWriter<W>);

impl<W: Write> TraceRecorder<W> {
    /// Records into a trace that was begun.
    pub fn new(writer: TraceWriter<W>) -> Self {
        Self(writer)
    }

    /// The trace.
    pub fn into_inner(self) -> TraceWriter<W> {
        self.0
    }
}

impl<W: Write + Send> Observer for TraceRecorder<W> {
    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        Ok(self.0.record(routed.layer, routed.plan, &routed.context)?)
    }
}

/// A trace that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct NewTrace<'a> {
    /// Its file.
    pub path: &'a Path,
    /// What it says of itself: [`trace_header`], and what the caller knows besides.
    pub header: &'a TraceHeader,
}

/// Reads a text window by window, as [`perplexity`](fn@crate::perplexity) does, and records its routing to a file. A window is a sequence
/// whose identity is its number.
///
/// The file appears when it is complete, and not at all if the observer ends the work: the result then says so.
///
/// # Errors
///
/// Those of [`perplexity`](fn@crate::perplexity); [`Error::Trace`]; [`Error::Io`].
pub fn record_trace(
    model: &Model,
    session: &mut Session,
    ids: &[u32],
    options: &PerplexityOptions,
    trace: NewTrace<'_>,
    workspace: &mut Workspace,
    observer: &mut dyn Observer,
) -> Result<Perplexity> {
    let NewTrace { path, header } = trace;
    let failed = |source| Error::Trace { path: path.to_path_buf(), source };
    of_whole_text(path, |out| {
        let mut recorder = TraceRecorder::new(TraceWriter::new(out, header).map_err(failed)?);
        let go_on = |_, _: &[f32]| Ok(ControlFlow::Continue(()));
        let read = score(model, session, ids, options, workspace, &mut (&mut recorder, observer), go_on);
        let read = read.map_err(|error| match error {
            Error::Observer { source } => match source.downcast::<TraceError>() {
                Ok(source) => failed(*source),
                Err(source) => Error::Observer { source },
            },
            other => other,
        })?;
        if !read.stopped {
            recorder.into_inner().finish().map_err(failed)?;
        }
        Ok(read)
    })
}

/// Writes a file while a text is read, which appears if all of it was.
pub(super) fn of_whole_text(
    path: &Path,
    read: impl FnOnce(&mut BufWriter<&File>) -> Result<Perplexity>,
) -> Result<Perplexity> {
    let mut stopped = None;
    let written = replace(path, |out| {
        let found = read(out)?;
        if found.stopped {
            stopped = Some(found);
            return Err(Error::Stopped);
        }
        Ok(found)
    });
    match (written, stopped) {
        (Err(Error::Stopped), Some(found)) => Ok(found),
        (written, _) => written,
    }
}

/// What a trace of a model says of its layers.
pub fn trace_header(model: &Model) -> TraceHeader {
    let config = model.config();
    // A model with more experts than that is none of this family; recording then says so.
    let experts = |n| u16::try_from(config.experts.of(n)).unwrap_or(u16::MAX);
    TraceHeader::new((0..config.layers).map(experts))
}

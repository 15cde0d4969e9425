//! `mixtral lab compare`.

use std::num::NonZeroUsize;

use mixtral_model::PerplexityOptions;
use mixtral_model::lab::{CompareOptions, ExpertBytes};

use super::table::Table;
use super::{Subject, WINDOW};
use crate::args::Compare;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::summary::{aside, write_memory, write_products};

pub(super) fn run(args: &Compare, interrupt: &Interrupt) -> Result<()> {
    let subject = Subject::new(&args.running, args.text.as_deref(), args.window)?;
    let Subject { source, model, ids, .. } = &subject;
    let bytes = ExpertBytes::of(&args.running.look_at(source)?, model.config())?;
    let routers = subject.routers(&args.routers)?;
    let context = args.running.context(model);
    let window = args.window.map_or(WINDOW.min(context), NonZeroUsize::get);
    let stride = args.stride.map_or(window, NonZeroUsize::get);
    let chunk = args.chunk.map_or(window, NonZeroUsize::get);
    let windows = PerplexityOptions::new(window).with_stride(stride).with_chunk(chunk);
    let session = args.running.session_options().with_seed(args.seed);
    let options = CompareOptions::new(windows).with_session(session);

    let found = subject.compare(&routers, &options, &bytes, interrupt)?;
    let table = Table::new(&found, ids.len(), &windows);
    let text = match (args.json, args.csv) {
        (true, _) => table.json()?,
        (_, true) => table.csv(),
        _ => table.text(),
    };
    Output::new().text(&text)?;
    write_products(model);
    write_memory(model);
    if found.stopped {
        aside(&format!("interrupted after {} of {} windows", table.windows_read, table.windows));
        return Err(Failure::Interrupted);
    }
    Ok(())
}

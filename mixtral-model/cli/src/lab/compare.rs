//! `mixtral lab compare`.

use std::num::NonZeroUsize;

use mixtral_model::lab::{CompareOptions, ExpertBytes, compare};
use mixtral_model::{LayerRouters, PerplexityOptions};

use super::table::Table;
use super::{Subject, WINDOW};
use crate::args::Compare;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress::Progress;
use crate::summary::{aside, write_memory, write_products};

pub(super) fn run(args: &Compare, interrupt: &Interrupt) -> Result<()> {
    let Subject { source, model, ids } = Subject::new(&args.running, args.text.as_deref(), args.window)?;
    let bytes = ExpertBytes::of(&args.running.look_at(&source)?, model.config())?;
    let routers = args.routers.iter().map(|spec| Ok((spec.clone(), LayerRouters::parse(&model, spec)?)));
    let routers = routers.collect::<Result<Vec<_>>>()?;
    let context = args.running.context(&model);
    let window = args.window.map_or(WINDOW.min(context), NonZeroUsize::get);
    let stride = args.stride.map_or(window, NonZeroUsize::get);
    let chunk = args.chunk.map_or(window, NonZeroUsize::get);
    let windows = PerplexityOptions::new(window).with_stride(stride).with_chunk(chunk);
    let session = args.running.session_options().with_seed(args.seed);
    let options = CompareOptions::new(windows).with_session(session);

    let read = windows.tokens_read(ids.len());
    let mut observer = (interrupt.clone(), Progress::new(&model, read * (1 + routers.len())));
    let go_on = |_, _| interrupt.go_on();
    let found =
        interrupt.during(|| compare(&model, &ids, &options, &routers, &bytes, &mut observer, go_on))?;
    drop(observer);
    let table = Table::new(&found, ids.len(), &windows);
    let text = match (args.json, args.csv) {
        (true, _) => table.json()?,
        (_, true) => table.csv(),
        _ => table.text(),
    };
    Output::new().text(&text)?;
    write_products(&model);
    write_memory(&model);
    if found.stopped {
        aside(&format!("interrupted after {} of {} windows", table.windows_read, table.windows));
        return Err(Failure::Interrupted);
    }
    Ok(())
}

//! `mixtral inspect`.

use std::num::NonZeroUsize;

use mixtral_model::Report;
use mixtral_model::inspect::About;

use crate::args::Inspect;
use crate::failure::Result;
use crate::load;
use crate::output::{Output, json};

pub(crate) fn run(args: &Inspect) -> Result<()> {
    let source = load::source(args.source.as_deref().or(args.model.model.as_deref()))?;
    let config = source.config()?;
    let checkpoint = source.checkpoint(args.access.access())?;
    let mut report = Report::new(&config, &checkpoint)?
        .with_cache(args.cache.kv_type.into(), args.cache.context.map(NonZeroUsize::get));
    report.about = Some(About::of(&source)?);
    let mut out = Output::new();
    if args.json {
        if args.check_values {
            checkpoint.check_values()?;
        }
        return Ok(out.text(&json(&report, true)?)?);
    }
    out.text(&report.to_string())?;
    if args.check_values {
        checkpoint.check_values()?;
        out.text("values      all finite\n")?;
    }
    Ok(())
}

//! `mixtral inspect`.

use mixtral_model::Report;
use mixtral_model::inspect::About;

use crate::args::{Common, Inspect};
use crate::failure::Result;
use crate::load;
use crate::output::Output;

pub(crate) fn run(common: &Common, args: &Inspect) -> Result<()> {
    let source = load::source(args.source.as_deref().or(common.model.as_deref()))?;
    let config = source.config()?;
    let checkpoint = source.checkpoint(common.access())?;
    let mut report = Report::new(&config, &checkpoint)?;
    report.about = Some(About::of(&source)?);
    let mut out = Output::new();
    if args.json {
        if args.check_values {
            checkpoint.check_values()?;
        }
        let json = serde_json::to_string_pretty(&report).map_err(std::io::Error::other)?;
        return Ok(out.text(&format!("{json}\n"))?);
    }
    out.text(&report.to_string())?;
    if args.check_values {
        checkpoint.check_values()?;
        out.text("values      all finite\n")?;
    }
    Ok(())
}

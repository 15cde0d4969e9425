//! `mixtral trace convert`.

use std::fmt::Write as _;

use mixtral_model::lab::exchange::{
    ExportOptions, Exported, ImportOptions, Imported, TraceFormat, export_file, import_file,
};

use crate::args::TraceConvert;
use crate::failure::Result;
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::summary::aside;

pub(super) fn run(args: &TraceConvert, interrupt: &Interrupt) -> Result<()> {
    let (Some(file), Some(out)) = (&args.file, &args.out) else {
        return Ok(Output::new().text(&list())?);
    };
    interrupt.during_writing(out, || {
        if let Some(format) = args.from {
            let mut options = ImportOptions::default();
            (options.layers, options.choices, options.prompt) = (args.layers, args.choices, args.prompt);
            options.experts.clone_from(&args.experts);
            options.model.clone_from(&args.model);
            options.sequence = args.sequence;
            let Imported { routes, unknown, passed_over, .. } = import_file(format, file, out, &options)?;
            aside(&format!("{}: {routes} routes of a token in a layer", out.display()));
            told(unknown, "routes that the file marks as unknown are not in it");
            told(passed_over, "lines of other layers were passed over");
            format.lacks().iter().for_each(|sentence| aside(sentence));
        } else if let Some(format) = args.to {
            let mut options = ExportOptions::default();
            options.sequence = args.sequence;
            let Exported { routes, left_out, refused, .. } = export_file(format, file, out, options)?;
            aside(&format!("{}: {routes} routes of a token in a layer", out.display()));
            told(left_out, "routes are left out");
            told(refused, "refused pairs are not in it as refused ones");
            aside("lost:");
            format.loses().iter().for_each(|sentence| aside(sentence));
        }
        Ok(())
    })
}

fn told(count: u64, what: &str) {
    if count > 0 {
        aside(&format!("{count} {what}"));
    }
}

/// The formats.
fn list() -> String {
    let mut text = String::new();
    for format in TraceFormat::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{format}: {}", format.about());
        for (heading, sentences) in [("lost in it", format.loses()), ("read from it", format.lacks())] {
            let _ = writeln!(text, "  {heading}:");
            sentences.iter().for_each(|sentence| text += &format!("    {sentence}\n"));
        }
    }
    text
}

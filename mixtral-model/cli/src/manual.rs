//! `mixtral completions` and `mixtral man`: what shells and readers of manuals are told, made of the command's own definition.

use clap::CommandFactory;

use crate::args::{Args, Completions, Man};
use crate::failure::{Failure, Result};
use crate::output::Output;

pub(crate) fn completions(args: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "mixtral", &mut script);
    write(script)
}

pub(crate) fn man(args: &Man) -> Result<()> {
    let mut command = Args::command();
    // Subcommands are told their names in full.
    command.build();
    let page = match &args.command {
        None => command,
        Some(name) => {
            let found = command.find_subcommand(name).cloned();
            let reason = || format!("expected one of mixtral's, found {name:?}");
            found.ok_or_else(|| Failure::not_as_expected("command", reason()))?
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).source(concat!("mixtral ", env!("CARGO_PKG_VERSION"))).render(&mut text)?;
    write(text)
}

/// Writes text that only the command's own definition is in.
fn write(text: Vec<u8>) -> Result<()> {
    let text = String::from_utf8(text).map_err(std::io::Error::other)?;
    Ok(Output::new().text(&text)?)
}

//! The `mixtral` command: [`args`] says what it takes, and each subcommand has a module of its name.

mod args;
mod bench;
mod chat;
mod convert;
mod failure;
mod generate;
mod input;
mod inspect;
mod interrupt;
mod load;
mod logits;
mod output;
mod perplexity;
mod progress;
mod route;
mod routing;
mod show;
mod summary;
mod threads;
mod tokenize;
mod wishes;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use failure::Result;
use interrupt::Interrupt;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(args: &Args) -> Result<()> {
    let Args { common, command } = args;
    let interrupt = Interrupt::install()?;
    // Passes enter this pool from a thread outside it, which may wait where no worker may.
    let threads = common.threads.unwrap_or_else(threads::default);
    rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global()?;
    let done = match command {
        Command::Generate(args) => generate::run(common, args, &interrupt),
        Command::Chat(args) => chat::run(common, args, &interrupt),
        Command::Inspect(args) => inspect::run(common, args),
        Command::Tokenize(args) => tokenize::run(common, args),
        Command::Logits(args) => logits::run(common, args, &interrupt),
        Command::Perplexity(args) => perplexity::run(common, args, &interrupt),
        Command::Route(args) => route::run(args),
        Command::Bench(args) => bench::run(common, args, &interrupt),
        Command::Quantize(args) => convert::quantise(common, args, &interrupt),
        Command::Convert(args) => convert::convert(common, args, &interrupt),
    };
    done.map_err(|failure| failure.of_model(common.model.as_deref()))
}

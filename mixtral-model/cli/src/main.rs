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
mod lab;
mod load;
mod logits;
mod manual;
mod output;
mod perplexity;
mod progress;
mod route;
mod routing;
mod serve;
mod show;
mod stops;
mod summary;
mod threads;
mod tokenize;
mod trace;
mod wishes;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Args, Command};
use failure::{Failure, Result};
use interrupt::Interrupt;

fn main() -> ExitCode {
    let args = match Args::try_parse_from(command_first(std::env::args_os().collect())) {
        Ok(args) => args,
        Err(error) => return said(&error),
    };
    let interrupt = match Interrupt::install() {
        Ok(interrupt) => interrupt,
        Err(failure) => return failure.report(interrupt::EXIT_STATUS),
    };
    match run(&args, &interrupt) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(interrupt.status()),
    }
}

/// Options may stand before the command that they are for: they are read as if they stood behind it.
fn command_first(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.get(1).and_then(|arg| arg.to_str()).is_none_or(|arg| !arg.starts_with('-')) {
        return args;
    }
    let commands = Args::command();
    let is_command = |arg: &OsString| arg.to_str().is_some_and(|arg| commands.find_subcommand(arg).is_some());
    if let Some(at) = args.iter().skip(1).position(is_command) {
        let command = args.remove(at + 1);
        args.insert(1, command);
    }
    args
}

/// Prints what is said in place of a run: help, the version, or what is wrong with the arguments.
fn said(error: &clap::Error) -> ExitCode {
    let printed = if error.use_stderr() {
        // If standard error is closed, there is nobody left to tell.
        let _ = write!(anstream::stderr(), "{}", shortened_lines(&error.render().ansi().to_string()));
        Ok(())
    } else {
        error.print().and_then(|()| std::io::stdout().flush())
    };
    match printed {
        Ok(()) => u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
        Err(error) => Failure::from(error).report(interrupt::EXIT_STATUS),
    }
}

/// The same lines, with an ellipsis in long words.
fn shortened_lines(text: &str) -> String {
    text.split_inclusive('\n').map(failure::shortened).collect()
}

fn run(args: &Args, interrupt: &Interrupt) -> Result<()> {
    let Args { command } = args;
    // Passes enter this pool from a thread outside it, which may wait where no worker may.
    let threads = command.threads().unwrap_or_else(threads::default);
    rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global()?;
    let done = match command {
        Command::Generate(args) => generate::run(args, interrupt),
        Command::Chat(args) => chat::run(args, interrupt),
        Command::Inspect(args) => inspect::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Logits(args) => logits::run(args, interrupt),
        Command::Perplexity(args) => perplexity::run(args, interrupt),
        Command::Route(args) => route::run(args),
        Command::Lab(args) => lab::run(args, interrupt),
        Command::Trace(args) => trace::run(args, interrupt),
        Command::Bench(args) => bench::run(args, interrupt),
        Command::Serve(args) => serve::run(args, interrupt),
        Command::Quantize(args) => convert::quantise(args, interrupt),
        Command::Convert(args) => convert::convert(args, interrupt),
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::man(args),
    };
    done.map_err(|failure| failure.of_model(command.model()))
}

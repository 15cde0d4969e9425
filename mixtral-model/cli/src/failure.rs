//! What ends the command early, and how it is told.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Model(#[from] mixtral_model::Error),
    #[error(transparent)]
    Kernels(#[from] moe_kernels::Error),
    #[error(transparent)]
    Routing(#[from] moe_core::Error),
    #[error(transparent)]
    Memory(#[from] moe_core::OutOfMemory),
    /// Something to read, a file or standard input.
    #[error("{name}")]
    Input { name: String, source: io::Error },
    #[error("{name}: {reason}")]
    NotAsExpected { name: String, reason: String },
    #[error("--ids without --print-ids")]
    NoTextOfIds(#[source] Box<Failure>),
    /// What a model did when it ran, with where it is from.
    #[error("{name}: {source}")]
    OfModel { name: String, source: Box<mixtral_model::Error> },
    #[error("standard output")]
    Output(#[from] io::Error),
    #[error("the conversation does not fit into its context")]
    ChatTooLong(#[source] mixtral_model::Error),
    #[error("threads")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error("signals")]
    Signals(#[source] io::Error),
    /// Ctrl-C, after what there was to say has been said.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    pub(crate) fn not_as_expected(name: impl ToString, reason: impl ToString) -> Self {
        Self::NotAsExpected { name: name.to_string(), reason: reason.to_string() }
    }

    /// The same, told of the model where it says nothing of a file itself.
    pub(crate) fn of_model(self, name: Option<&Path>) -> Self {
        use mixtral_model::Error::{Layer, NotFinite, Weights};
        match (self, name) {
            (Self::Model(source @ (NotFinite { .. } | Layer { .. } | Weights { .. })), Some(name)) => {
                Self::OfModel { name: name.display().to_string(), source: Box::new(source) }
            }
            (other, _) => other,
        }
    }

    /// Writes the error and its sources to standard error, and gives the exit status, `interrupted` where the user ended it.
    ///
    /// That nobody reads the output any more is no error.
    pub(crate) fn report(&self, interrupted: u8) -> ExitCode {
        match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Interrupted => return ExitCode::from(interrupted),
            _ => {}
        }
        self.tell();
        ExitCode::FAILURE
    }

    /// Writes the error and its sources to standard error.
    pub(crate) fn tell(&self) {
        let mut message = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Many errors quote their source already.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = error.source();
        }
        say("error", AnsiColor::Red, &message);
    }
}

/// A warning on standard error.
pub(crate) fn warn(message: &str) {
    say("warning", AnsiColor::Yellow, message);
}

fn say(label: &str, color: AnsiColor, message: &str) {
    let style = Style::new().fg_color(Some(color.into())).bold();
    // If standard error is closed, there is nobody left to tell.
    let _ = writeln!(anstream::stderr(), "{style}{label}:{style:#} {message}");
}

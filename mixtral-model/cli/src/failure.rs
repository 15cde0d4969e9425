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
    /// A file, or standard input.
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
    #[error(transparent)]
    Server(#[from] mixtral_server::Error),
    #[error("the conversation does not fit into its context: {0}")]
    ChatTooLong(String),
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

/// Characters of a name that a message has in full. Files may have names of any length, of tensors, tokens and keys.
const NAME: usize = 200;

/// Characters of a message.
const MESSAGE: usize = 2000;

/// A message in which long words, as names are, have an ellipsis for their middle; and so has the whole, if it is long still.
pub(crate) fn shortened(message: &str) -> String {
    let words = message.split_inclusive(char::is_whitespace);
    cut(&words.map(|word| cut(word, NAME)).collect::<String>(), MESSAGE)
}

/// At most so many characters, those at the beginning and the end.
fn cut(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let (first, last) = (most / 2, most - most / 2 - 1);
    text.chars().take(first).chain(['…']).chain(text.chars().skip(count - last)).collect()
}

fn say(label: &str, color: AnsiColor, message: &str) {
    let message = shortened(message);
    let style = Style::new().fg_color(Some(color.into())).bold();
    // If standard error is closed, there is nobody left to tell.
    let _ = writeln!(anstream::stderr(), "{style}{label}:{style:#} {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_have_an_ellipsis() {
        assert_eq!(shortened("a/b: expected\n x"), "a/b: expected\n x");
        let long = shortened(&format!("tensor a{}z, x", "é".repeat(1000)));
        assert!(long.starts_with("tensor aé") && long.ends_with("éz, x") && long.contains("é…é"), "{long}");
        assert_eq!(long.chars().count(), "tensor ".len() + NAME + "x".len());
        assert_eq!(shortened(&"a b ".repeat(1000)).chars().count(), MESSAGE);
    }
}

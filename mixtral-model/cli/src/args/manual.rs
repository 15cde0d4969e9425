//! What `mixtral completions` and `mixtral man` take.

use clap_complete::Shell;

/// Print what makes a shell complete commands and options.
///
/// In bash, `source <(mixtral completions bash)`; in fish, `mixtral completions fish | source`; others keep it in a file that they
/// read when they start.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

/// Print a manual page, for `man -l -`.
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// The command that it is of [default: mixtral itself]
    pub(crate) command: Option<String>,
}

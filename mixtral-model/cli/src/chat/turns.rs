//! What the user says, from a terminal or a pipe.

use std::io::{self, BufRead, IsTerminal, Write as _};

use anstyle::Style;
use moe_core::OutOfMemory;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};

use crate::failure::{Failure, Result};
use crate::input;
use crate::interrupt::Tidy;
use crate::output::Output;
use crate::summary::aside;

/// Most bytes of a turn: far more than any context holds.
pub(super) const MAX_TURN: usize = 1 << 24;

/// Lines that can be called back.
const HISTORY: usize = 1000;

/// What a terminal begins and ends a turn of several lines with.
const QUOTES: &str = "\"\"\"";

/// The commands of a terminal, with what they do.
const COMMANDS: [(&str, &str); 5] = [
    ("/help", "this list"),
    ("/clear", "forget the conversation"),
    ("/bye", "end the chat, as Ctrl-D does"),
    ("/exit", "the same"),
    (QUOTES, "begin a turn of several lines, which ends with another \"\"\""),
];

/// What the user wishes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Said(String),
    /// The conversation is to be forgotten.
    Clear,
    End,
    /// Ctrl-C in place of a turn.
    Interrupted,
}

/// The user: lines that are edited in a terminal, or those of a pipe, a turn each.
pub(super) enum Turns {
    Terminal(Box<Editor<(), MemHistory>>),
    Pipe,
}

impl Turns {
    pub(super) fn new() -> Result<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Self::Pipe);
        }
        let config = Config::builder().max_history_size(HISTORY).map_err(failed)?.build();
        let history = MemHistory::with_config(&config);
        let editor = Editor::with_history(config, history).map_err(failed)?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next turn; lines without a word are passed over.
    pub(super) fn next(&mut self) -> Result<Turn> {
        match self {
            Self::Terminal(editor) => next_of_terminal(editor),
            Self::Pipe => next_of_pipe(&mut io::stdin().lock()),
        }
    }
}

/// What gives the terminal back as it is now: while a line is edited, keys are not shown by it.
#[cfg(unix)]
pub(super) fn restored_terminal() -> Option<Tidy> {
    use nix::sys::termios::{SetArg, tcgetattr, tcsetattr};
    /// While a line is edited, the terminal marks what is pasted; this ends that.
    const PASTE_UNMARKED: &[u8] = b"\x1b[?2004l";
    let now = tcgetattr(io::stdin()).ok()?;
    Some(Box::new(move || {
        // Without the terminal, there is nothing to give back.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &now);
        let _ = io::stdout().write_all(PASTE_UNMARKED).and_then(|()| io::stdout().flush());
    }))
}

#[cfg(not(unix))]
pub(super) fn restored_terminal() -> Option<Tidy> {
    None
}

fn next_of_pipe(stdin: &mut impl BufRead) -> Result<Turn> {
    loop {
        match input::line(stdin, "standard input", MAX_TURN)? {
            None => return Ok(Turn::End),
            Some(line) if line.trim().is_empty() => {}
            Some(line) => return Ok(Turn::Said(input::without_newline(line))),
        }
    }
}

fn next_of_terminal(editor: &mut Editor<(), MemHistory>) -> Result<Turn> {
    let styled = Output::new().is_styled();
    let mut read = |prompt: &str| {
        let bold = if styled { Style::new().bold() } else { Style::new() };
        let line = match editor.readline(&(prompt, format!("{bold}{prompt}{bold:#}"))) {
            Ok(line) => line,
            Err(ReadlineError::Eof) => return Ok(Err(Turn::End)),
            Err(ReadlineError::Interrupted) => return Ok(Err(Turn::Interrupted)),
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                aside("expected UTF-8, found other bytes: the line is not taken");
                return Ok(Ok(String::new()));
            }
            Err(error) => return Err(failed(error)),
        };
        // A line that cannot be called back is none the worse for it.
        let _ = editor.add_history_entry(line.as_str());
        Ok(Ok(line))
    };
    loop {
        let line = match read("> ")? {
            Ok(line) => line,
            Err(end) => return Ok(end),
        };
        let text = match line.trim_start().strip_prefix(QUOTES) {
            None => match command(&line) {
                Some(Ok(turn)) => return Ok(turn),
                Some(Err(text)) => {
                    aside(&text);
                    continue;
                }
                None => line,
            },
            Some(begun) => match quoted(begun, || read("... "))? {
                Ok(text) => text,
                Err(Turn::Interrupted) => continue,
                Err(end) => return Ok(end),
            },
        };
        if text.len() > MAX_TURN {
            aside(&format!("expected at most {MAX_TURN} bytes in a turn, found {}", text.len()));
        } else if !text.trim().is_empty() {
            return Ok(Turn::Said(text));
        }
    }
}

/// What a line asks for that is a command, or what there is to say of it.
fn command(line: &str) -> Option<Result<Turn, String>> {
    let word = line.trim();
    let name = word.strip_prefix('/')?;
    // A path is no command, and neither is a sentence.
    if name.is_empty() || !name.chars().all(char::is_alphabetic) {
        return None;
    }
    Some(match word {
        "/clear" => Ok(Turn::Clear),
        "/bye" | "/exit" => Ok(Turn::End),
        "/help" => Err(COMMANDS.map(|(name, does)| format!("{name:<7} {does}")).join("\n")),
        _ => Err(format!("no command {word}: /help lists those there are")),
    })
}

/// The lines up to the one that ends with quotes, of which `begun` is the first; or what ends them before.
fn quoted(
    begun: &str,
    mut next: impl FnMut() -> Result<Result<String, Turn>>,
) -> Result<Result<String, Turn>> {
    let mut text = String::new();
    let mut line = begun.to_owned();
    loop {
        let (part, ends) = match line.trim_end().strip_suffix(QUOTES) {
            Some(part) => (part, true),
            None => (&*line, false),
        };
        // What is beyond the limit is read and refused, and not kept.
        if text.len() <= MAX_TURN {
            let (len, more) = (text.len(), part.len() + 1);
            text.try_reserve(more)
                .map_err(|_| OutOfMemory::of::<u8>("a turn of several lines", len + more))?;
            text += part;
            if !ends {
                text.push('\n');
            }
        }
        if ends {
            break;
        }
        line = match next()? {
            Ok(line) => line,
            Err(end) => return Ok(Err(end)),
        };
    }
    Ok(Ok(text.trim_matches('\n').to_owned()))
}

fn failed(error: ReadlineError) -> Failure {
    let source = match error {
        ReadlineError::Io(source) => source,
        other => io::Error::other(other),
    };
    Failure::Input { name: "standard input".to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_lines(begun: &str, lines: &[&str]) -> Result<String, Turn> {
        let mut lines = lines.iter();
        quoted(begun, || Ok(lines.next().map(|line| (*line).to_owned()).ok_or(Turn::End))).unwrap()
    }

    #[test]
    fn several_lines_between_quotes() {
        assert_eq!(of_lines("", &["one", "  two", "\"\"\""]), Ok("one\n  two".to_owned()));
        assert_eq!(of_lines("one", &["two\"\"\"  "]), Ok("one\ntwo".to_owned()));
        assert_eq!(of_lines("one\"\"\"", &[]), Ok("one".to_owned()));
        assert_eq!(of_lines("one", &["two"]), Err(Turn::End));
        let line = "x".repeat(MAX_TURN / 2);
        let long = of_lines(&line, &[&line, &line, &line, "\"\"\""]).unwrap();
        assert!((MAX_TURN + 1..2 * MAX_TURN).contains(&long.len()), "{}", long.len());
    }

    #[test]
    fn commands_are_words_of_letters() {
        assert_eq!(command(" /clear "), Some(Ok(Turn::Clear)));
        assert_eq!((command("/bye"), command("/exit")), (Some(Ok(Turn::End)), Some(Ok(Turn::End))));
        assert!(command("/help").unwrap().unwrap_err().contains("/clear"));
        assert!(command("/halp").unwrap().unwrap_err().starts_with("no command /halp"));
        for text in ["/", "/etc/passwd", "/clear the table", "clear", ""] {
            assert_eq!(command(text), None, "{text}");
        }
    }

    #[test]
    fn lines_of_a_pipe() {
        let mut text: &[u8] = b"one\r\n \n/bye\n\"\"\"\nlast";
        let mut all = Vec::new();
        while let Turn::Said(line) = next_of_pipe(&mut text).unwrap() {
            all.push(line);
        }
        assert_eq!(all, ["one", "/bye", "\"\"\"", "last"]);
    }
}

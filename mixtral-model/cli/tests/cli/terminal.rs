//! A chat in a terminal.
#![cfg(unix)]

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::{mixtral, output};

/// Enough for a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Wide enough for every line that is typed here. Where a line goes on in the next row, it is shown again with its prompt, which a test
/// would take for the prompt of the next line; and what is typed between two lines is lost where it is Ctrl-D.
const WINDOW: Winsize = Winsize { ws_row: 24, ws_col: 500, ws_xpixel: 0, ws_ypixel: 0 };

/// A command whose standard input and output are a terminal.
struct Terminal {
    child: Child,
    keys: File,
    screen: Receiver<Vec<u8>>,
    /// What was shown since the last thing that was expected.
    shown: String,
}

impl Terminal {
    fn start(line: &str, values: &[&str]) -> Self {
        let pair = openpty(&WINDOW, None).unwrap();
        let mut command = mixtral(line, values);
        command.env("TERM", "xterm").env("NO_COLOR", "1");
        command.stdin(pair.slave.try_clone().unwrap()).stdout(pair.slave).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let mut master = File::from(pair.master);
        let keys = master.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = master.read(&mut bytes) {
                let _ = sender.send(bytes[..n].to_vec());
            }
        });
        Self { child, keys, screen, shown: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this is shown, and gives what came before it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            match self.screen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.shown += &String::from_utf8_lossy(&bytes),
                Err(_) => panic!("{text:?} is not shown, but {:?}", self.shown),
            }
        }
    }

    /// Standard error and the exit status, once the command has ended; one that goes on is killed.
    #[track_caller]
    fn end(mut self) -> (String, Option<i32>) {
        let end = Instant::now() + PATIENCE;
        let ended = loop {
            match self.child.try_wait().unwrap() {
                None if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                status => break status.is_some(),
            }
        };
        if !ended {
            self.child.kill().unwrap();
        }
        let output = self.child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(ended, "the command goes on, and has said {err:?}");
        (err, output.status.code())
    }
}

#[test]
fn commands_and_speeds() {
    let mut terminal = Terminal::start("chat -t 0 -n 4", &[]);
    for (typed, answers) in
        [("/help", false), ("/halp", false), ("Who are you?", true), ("/clear", false), ("  ", false)]
    {
        terminal.expect("> ");
        terminal.press(&format!("{typed}\r"));
        if answers {
            terminal.expect("\n");
        }
    }
    terminal.expect("> ");
    terminal.press("/bye\r");
    let (err, status) = terminal.end();
    assert_eq!(status, Some(0), "{err}");
    for command in ["/help", "/clear", "/bye", "/exit", "\"\"\""] {
        assert!(err.lines().any(|line| line.starts_with(&format!("{command} "))), "{command}: {err}");
    }
    assert!(err.contains("\nno command /halp: /help lists those there are\n"), "{err}");
    let speeds: Vec<_> = err.lines().filter(|line| line.starts_with("(prompt: ")).collect();
    assert_eq!(speeds.len(), 1, "{err}");
    assert!(
        speeds[0].contains("; generated: 4 tokens at ") && speeds[0].contains(" tokens/s; stopped"),
        "{err}"
    );
}

/// Bytes that are no UTF-8 are told, and the chat goes on.
#[test]
fn bytes_that_are_no_text() {
    let mut terminal = Terminal::start("chat -t 0 -n 4", &[]);
    terminal.expect("> ");
    terminal.keys.write_all(b"caf\xe9\r").unwrap();
    terminal.expect("> ");
    terminal.press("/bye\r");
    let (err, status) = terminal.end();
    assert_eq!(status, Some(0), "{err}");
    assert!(err.contains("expected UTF-8, found other bytes: the line is not taken\n"), "{err}");
}

/// Where each prompt is as long as the same chat has it after as many turns, what went before is known.
#[test]
fn clear_forgets_and_lines_are_edited_called_back_and_put_together() {
    let mut terminal = Terminal::start("chat -t 0 -n 4", &[]);
    let say = |terminal: &mut Terminal, keys: &str| {
        terminal.expect("> ");
        terminal.press(keys);
        // The line that was typed, then the answer.
        terminal.expect("\n");
        terminal.expect("\n");
    };
    say(&mut terminal, "Where is the whale?\r");
    say(&mut terminal, "And where is the ship that you sailed on?\r");
    terminal.expect("> ");
    terminal.press("/clear\r");
    // Ctrl-A goes to the start of the line.
    say(&mut terminal, "the whale?\u{1}Where is \r");
    terminal.expect("> ");
    terminal.press("/clear\r");
    // Up, past the command.
    say(&mut terminal, "\u{1b}[A\u{1b}[A\r");
    terminal.expect("> ");
    terminal.press("/clear\r");
    terminal.expect("> ");
    terminal.press("\"\"\"Where is\r");
    terminal.expect("... ");
    terminal.press("the whale?\r");
    terminal.expect("... ");
    terminal.press("\"\"\"\r");
    terminal.expect("\n");
    terminal.expect("> ");
    // Ctrl-C forgets the lines that were begun, and at their beginning ends the chat.
    terminal.press("\"\"\"nothing\r");
    terminal.expect("... ");
    terminal.press("\u{3}");
    terminal.expect("> ");
    terminal.press("\u{3}");
    let (err, status) = terminal.end();
    assert_eq!(status, Some(130), "{err}");
    let prompts: Vec<usize> = err
        .lines()
        .filter_map(|line| line.strip_prefix("(prompt: ")?.split(' ').next()?.parse().ok())
        .collect();
    let [first, second, edited, again, lines] = prompts[..] else { panic!("{err}") };
    assert_eq!((edited, again), (first, first), "{err}");
    assert!(second != first && lines > first, "{err}");
}

#[test]
fn what_does_not_fit_is_said_and_the_chat_goes_on() {
    let mut terminal = Terminal::start("chat -t 0 --context 40 -n 30", &[]);
    let long = "And then? ".repeat(20) + "\r";
    for keys in ["Who are you?\r", &long] {
        terminal.expect("> ");
        terminal.press(keys);
        terminal.expect("\n");
    }
    terminal.expect("> ");
    terminal.press("\u{4}");
    let (err, status) = terminal.end();
    assert_eq!(status, Some(0), "{err}");
    assert!(err.contains("error: the conversation does not fit into its context: "), "{err}");
    assert!(err.contains("\n/clear forgets the conversation\n"), "{err}");
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let mut terminal = Terminal::start("chat", &[]);
    let shows =
        |terminal: &Terminal| tcgetattr(&terminal.keys).unwrap().local_flags.contains(LocalFlags::ICANON);
    assert!(shows(&terminal));
    terminal.expect("> ");
    let end = Instant::now() + PATIENCE;
    while shows(&terminal) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!shows(&terminal));
    let keys = terminal.keys.try_clone().unwrap();
    let killed = Command::new("kill").args(["-TERM", &terminal.child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let (err, status) = terminal.end();
    assert_eq!((&*err, status), ("", Some(143)));
    assert!(tcgetattr(&keys).unwrap().local_flags.contains(LocalFlags::ICANON));
}

#[test]
fn help_lists_the_commands() {
    let help = output("chat --help", &[]);
    for command in ["/help", "/clear", "/bye", "/exit", "\"\"\""] {
        assert!(
            help.lines().any(|line| line.starts_with("  ") && line.contains(command)),
            "{command}: {help}"
        );
    }
    assert!(help.contains("at most 16 MiB"), "{help}");
}

//! `mixtral chat`.

use std::io::{self, BufRead, IsTerminal};
use std::ops::ControlFlow;

use anstyle::Style;
use mixtral_model::{Conversation, Ended, Error, Event, GenerateOptions, Unread, Workspace};

use crate::args::Chat;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::load;
use crate::output::Output;
use crate::progress::Progress;
use crate::show::{Echo, Plain, Show, Spelling};
use crate::summary::{self, aside};
use crate::wishes::Wishes;

pub(crate) fn run(args: &Chat, interrupt: &Interrupt) -> Result<()> {
    let source = args.running.model.source()?;
    let wishes = Wishes::new(&source, &args.sampling, args.max_tokens)?;
    let model = args.running.load(&source)?;
    let tokenizer = load::tokenizer(&source, &model)?;
    let mut options = GenerateOptions::new(&model, 512).with_sampling(wishes.sampling.clone());
    let format = load::chat_format(&source, args.format.chat_format.as_ref(), &tokenizer)?;
    options.stop.extend(format.stop_tokens());
    if !format.is_assumed() {
        aside(&format!("chat format: {}", format.evidence()));
    }

    let mut session = args.running.session(&model)?;
    let mut workspace = Workspace::new();
    let mut conversation = Conversation::new(format, &args.system);
    let mut lines = Lines::new();
    while let Some(line) = lines.next()? {
        conversation.ask(&tokenizer, &line)?;
        let Unread { clear, ids } = conversation.unread(&session);
        if clear {
            session.clear();
        }
        let prompt = ids.to_vec();
        let before = if clear { prompt.len() } else { session.position() + prompt.len() };
        if let Some(max_tokens) = wishes.max_tokens(before)? {
            options.max_tokens = max_tokens;
        }
        let mut show =
            Plain { out: Output::new(), spelling: Spelling::new(Some(&tokenizer)), echo: Echo::Apart };
        let progress = Progress::new(&model, prompt.len());
        let bar = progress.bar();
        let mut observer = (interrupt.clone(), progress);
        let mut shown = Ok(());
        let generated = interrupt.during(|| {
            let event = |event| {
                match event {
                    Event::Prompt { done, total } if done == total => bar.finish_and_clear(),
                    Event::Token(id) => shown = show.token(id),
                    _ => {}
                }
                if shown.is_err() || interrupt.wished() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let workspace = &mut workspace;
            mixtral_model::generate(&model, &mut session, &prompt, &options, workspace, &mut observer, event)
        });
        drop(observer);
        shown?;
        let generated = generated.map_err(|error| match error {
            Error::ContextOverflow { .. } => Failure::ChatTooLong(error),
            other => other.into(),
        })?;
        conversation.answered(&tokenizer, &generated.tokens);
        show.end()?;
        if !matches!(generated.ended, Ended::Stop(_)) {
            aside(&format!("({})", summary::reason(&generated, &session)));
        }
    }
    summary::write_products(&model);
    Ok(())
}

/// What the user says, a line a turn; lines without a word are passed over.
struct Lines {
    out: Output,
    interactive: bool,
}

impl Lines {
    fn new() -> Self {
        let out = Output::new();
        Self { interactive: io::stdin().is_terminal() && out.is_terminal(), out }
    }

    /// The next line without its end; `None` at the end of standard input.
    fn next(&mut self) -> Result<Option<String>> {
        loop {
            if self.interactive {
                self.out.styled(Style::new().bold(), "> ")?;
                self.out.flush()?;
            }
            let mut line = String::new();
            let read = io::stdin().lock().read_line(&mut line);
            let read = read.map_err(|source| Failure::Input { name: "standard input".to_owned(), source })?;
            if read == 0 {
                if self.interactive {
                    self.out.text("\n")?;
                }
                return Ok(None);
            }
            if !line.trim().is_empty() {
                return Ok(Some(crate::input::without_newline(line)));
            }
        }
    }
}

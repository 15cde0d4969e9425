//! `mixtral chat`.

mod turns;

use std::ops::ControlFlow;

use mixtral_model::{
    Conversation, Ended, Error, Event, GenerateOptions, Generated, Model, Session, Tokenizer, Unread,
    Workspace,
};

use crate::args::Chat;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::load::{self, Passes};
use crate::output::Output;
use crate::progress::Progress;
use crate::show::{Echo, Plain, Show, Spelling};
use crate::summary::{self, aside};
use crate::wishes::Wishes;
use turns::{Turn, Turns};

pub(crate) fn run(args: &Chat, interrupt: &Interrupt) -> Result<()> {
    let source = args.running.model.source()?;
    let wishes = Wishes::new(&source, &args.sampling, args.max_tokens)?;
    let model = args.running.load_with(&source, &args.router, |_| Passes::TEXT)?;
    let tokenizer = load::tokenizer(&source, &model)?;
    let mut options = GenerateOptions::new(&model, 512).with_sampling(wishes.sampling.clone());
    let format = load::chat_format(&source, args.format.chat_format.as_ref(), &tokenizer)?;
    options.stop.extend(format.stop_tokens());
    if !format.is_assumed() {
        aside(&format!("chat format: {}", format.evidence()));
    }

    let new = Conversation::new(format, &args.system);
    let mut turns = Turns::new()?;
    if turns.is_terminal() {
        interrupt.before_an_end(turns::restored_terminal());
    }
    let mut talk = Talk {
        args,
        interrupt,
        model: &model,
        tokenizer: &tokenizer,
        options,
        wishes: &wishes,
        session: args.running.session(&model, wishes.router_seed(&args.sampling))?,
        workspace: Workspace::new(),
        conversation: new.clone(),
        speeds: args.speed || turns.is_terminal(),
        answered: false,
    };
    let end = talk.take_turns(&mut turns, &new);
    if let Some(seed) = wishes.seed().filter(|_| talk.answered) {
        aside(&format!("seed {seed}"));
    }
    summary::write_products(&model);
    summary::write_memory(&model);
    end
}

/// The part of the context that is kept for an answer, before the oldest turns are left out: one in so many positions.
const ANSWER_OF_CONTEXT: usize = 4;

/// A chat, with all that answers take.
struct Talk<'a> {
    args: &'a Chat,
    interrupt: &'a Interrupt,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    options: GenerateOptions,
    wishes: &'a Wishes,
    session: Session,
    workspace: Workspace,
    conversation: Conversation,
    /// Whether each answer's speed is told.
    speeds: bool,
    /// Whether there was an answer yet.
    answered: bool,
}

impl Talk<'_> {
    /// Answers until there is nothing left to answer.
    fn take_turns(&mut self, turns: &mut Turns, new: &Conversation) -> Result<()> {
        loop {
            match turns.next()? {
                // Where nobody can do something about it, what has no answer ends the chat.
                Turn::Said(text) if !turns.is_terminal() => self.answer(&text)?,
                Turn::Said(text) => {
                    let before = self.conversation.clone();
                    match self.answer(&text) {
                        Err(
                            failure @ (Failure::ChatTooLong(_)
                            | Failure::Memory(_)
                            | Failure::Model(Error::OutOfMemory(_))),
                        ) => {
                            self.conversation = before;
                            failure.tell();
                            aside("/clear forgets the conversation");
                        }
                        other => other?,
                    }
                }
                Turn::Clear => {
                    self.conversation = new.clone();
                    self.session.clear();
                }
                Turn::End => return Ok(()),
                Turn::Interrupted => return Err(Failure::Interrupted),
            }
            if self.interrupt.wished() && !self.interrupt.forget_ctrl_c() {
                return Err(Failure::Interrupted);
            }
        }
    }

    /// Answers what the user said.
    fn answer(&mut self, text: &str) -> Result<()> {
        let Self { args, interrupt, model, tokenizer, options, session, workspace, conversation, .. } = self;
        // What cannot fit is not cut into tokens first.
        let (context, least) = (session.context(), tokenizer.least_ids(text.trim()));
        if least > context {
            let reason = format!("expected at most {context} positions, found at least {least}");
            return Err(Failure::ChatTooLong(reason));
        }
        conversation.ask(tokenizer, text)?;
        // An answer wants some room, too.
        let room = args.max_tokens.unwrap_or(context).min(context / ANSWER_OF_CONTEXT).max(1);
        let (mut shorter, mut left_out) = (conversation.clone(), 0);
        while shorter.ids().len() + room > context && shorter.forget_oldest(tokenizer)? {
            left_out += 1;
        }
        // A question that is too long by itself is refused, and changes nothing.
        if left_out > 0 && shorter.ids().len() <= context {
            *conversation = shorter;
            let turns = if left_out == 1 {
                "the oldest turn".to_owned()
            } else {
                format!("the {left_out} oldest turns")
            };
            aside(&format!("(left out {turns}: all of them do not fit into {context} positions)"));
        }
        let Unread { clear, ids } = conversation.unread(session);
        if clear {
            session.clear();
        }
        let prompt = ids.to_vec();
        let before = if clear { prompt.len() } else { session.position() + prompt.len() };
        if let Some(max_tokens) = self.wishes.max_tokens(before)? {
            options.max_tokens = max_tokens;
        }
        let spelling = Spelling::new(Some(tokenizer), &args.stop.texts);
        let mut show = Plain { out: Output::new(), spelling, echo: Echo::Apart };
        let progress = Progress::new(model, prompt.len());
        let bar = progress.bar();
        let mut observer = (interrupt.clone(), progress);
        let generated = interrupt.during(|| {
            let event = |event| {
                match event {
                    Event::Prompt { done, total } if done == total => bar.finish_and_clear(),
                    Event::Token(id) => show.token(id)?,
                    _ => {}
                }
                let stopped = show.spelling.stops().is_some_and(|stops| stops.found().is_some());
                let ends = stopped || interrupt.wished();
                Ok(if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            };
            mixtral_model::generate(model, session, &prompt, options, workspace, &mut observer, event)
        });
        drop(observer);
        let generated = generated.map_err(|failure| match failure {
            Failure::Model(error @ Error::ContextOverflow { .. }) => Failure::ChatTooLong(error.to_string()),
            other => other,
        })?;
        show.end()?;
        // A text that ends an answer is no part of it, but for what the last token that was shown has of it.
        let stops = show.spelling.stops();
        let said = stops.map_or(generated.tokens.len(), |stops| stops.before(generated.tokens.len()));
        conversation.answered(tokenizer, &generated.tokens[..said]);
        self.answered = true;
        let as_wished = stops.is_some_and(|stops| stops.found().is_some());
        self.tell(&generated, prompt.len(), as_wished || matches!(generated.ended, Ended::Stop(_)));
        Ok(())
    }

    /// Says how fast it went, if that is wished, and why it ended, unless it came to the end that it should.
    fn tell(&self, generated: &Generated, prompt: usize, complete: bool) {
        let reason = (!complete).then(|| summary::reason(generated, &self.session, None));
        let speeds = self.speeds.then(|| summary::speeds(generated, prompt, &self.session));
        let parts: Vec<_> = [speeds, reason].into_iter().flatten().collect();
        if !parts.is_empty() {
            aside(&format!("({})", parts.join("; ")));
        }
    }
}

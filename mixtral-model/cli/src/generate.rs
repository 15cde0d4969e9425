//! `mixtral generate`.

mod report;

use std::ops::ControlFlow;
use std::sync::Mutex;

use mixtral_model::{Ended, Event, GenerateOptions, Model, Tokenizer, Workspace};

use crate::args::{Generate, RoutingView};
use crate::failure::{Failure, Result, warn};
use crate::input;
use crate::interrupt::Interrupt;
use crate::load::{self, Passes};
use crate::output::Output;
use crate::progress::Progress;
use crate::routing::{self, RoutedText, RoutedTokens, Routing, Watch};
use crate::show::{Echo, Plain, Show, Spelling};
use crate::stops::Heard;
use crate::summary::{self, aside};
use crate::wishes::Wishes;
use report::{Report, Silent};

pub(crate) fn run(args: &Generate, interrupt: &Interrupt) -> Result<()> {
    let text = match &args.ids {
        Some(_) => None,
        None => Some(prompt_text(args)?),
    };
    let source = args.running.model.source()?;
    let wishes = Wishes::new(&source, &args.sampling, args.max_tokens)?;
    if args.sampling.limits() && wishes.sampling.temperature == 0.0 {
        warn("greedy choice: --top-k, --top-p and --min-p do nothing without --temperature");
    }

    let model = args.running.load_with(&source, &args.router, |_| Passes::TEXT)?;
    let tokenizer = match (&args.ids, args.print_ids) {
        (Some(_), true) if args.stop.texts.is_empty() => None,
        // The ids are there in any case.
        (Some(_), _) if args.json && args.stop.texts.is_empty() => {
            load::tokenizer(&source, &model).map_err(|failure| warn(&format!("no text: {failure}"))).ok()
        }
        (Some(_), true) => Some(load::tokenizer(&source, &model)?),
        (Some(_), false) => {
            let tokenizer = load::tokenizer(&source, &model);
            Some(tokenizer.map_err(|failure| Failure::NoTextOfIds(failure.into()))?)
        }
        (None, _) => Some(load::tokenizer(&source, &model)?),
    };
    let prompt = match (&args.ids, &text, &tokenizer) {
        (Some(ids), ..) => ids.0.clone(),
        (None, Some(text), Some(tokenizer)) => {
            let context = args.running.context(&model);
            let least = tokenizer.least_ids(text);
            if least > context {
                let reason =
                    format!("expected at most {context} tokens, the context, found at least {least}");
                return Err(Failure::not_as_expected("prompt", reason));
            }
            tokenizer.encode_prompt(text)?
        }
        _ => Vec::new(),
    };
    let max_tokens = wishes.max_tokens(prompt.len())?.unwrap_or(256);
    let seed = wishes.seed().filter(|_| max_tokens > 0);
    let router_seed = wishes.router_seed(&args.sampling);
    let mut options = GenerateOptions::new(&model, max_tokens).with_sampling(wishes.sampling);
    if args.ignore_eos {
        options.stop.clear();
    }

    let routing = Mutex::new(Routing::new(model.config()));
    let mut show = show(args, &model, tokenizer.as_ref(), &routing)?;
    let mut session = args.running.session(&model, router_seed)?;
    let progress = Progress::new(&model, prompt.len());
    let bar = progress.bar();
    let watch = args.show_routing.map(|_| Watch(&routing));
    let mut observer = (interrupt.clone(), (progress, watch));
    // Beside what is shown, which may be ids: where the text is printed in the end, or may end the generation.
    let hears = args.json || !args.stop.texts.is_empty();
    let listener = tokenizer.as_ref().filter(|_| hears);
    let mut heard = listener.map(|tokenizer| Heard::new(tokenizer, &prompt, &args.stop.texts));
    let mut begun = false;
    let generated = interrupt.during(|| {
        let event = |event| {
            match event {
                Event::Prompt { done, total } if done == total => {
                    bar.finish_and_clear();
                    begun = true;
                    show.prompt(&prompt)?;
                }
                Event::Token(id) => {
                    if let Some(heard) = &mut heard {
                        heard.push(id);
                    }
                    show.token(id)?;
                }
                _ => {}
            }
            let stopped = heard.as_ref().is_some_and(|heard| heard.found().is_some());
            Ok(if stopped || interrupt.wished() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let workspace = &mut Workspace::new();
        mixtral_model::generate(&model, &mut session, &prompt, &options, workspace, &mut observer, event)
    });
    drop(observer);
    if begun && !matches!(generated, Err(Failure::Output(_))) {
        show.end()?;
    }
    let generated = generated?;
    drop(show);
    if args.show_routing.is_some() {
        routing::write_shares(&routing::locked(&routing));
    }
    let heard = heard.map(Heard::finish);
    let stop = heard.as_ref().and_then(|(_, stop)| stop.clone());
    if args.json {
        Output::new().text(&Report::new(&prompt, &generated, heard, seed, &session).json()?)?;
    }
    let seed = seed.map_or_else(String::new, |seed| format!("; seed {seed}"));
    let reason = summary::reason(&generated, &session, stop.as_deref());
    aside(&format!("{}{seed}; {reason}", summary::speeds(&generated, prompt.len(), &session)));
    summary::write_products(&model);
    summary::write_memory(&model);
    if generated.ended == Ended::Stopped && stop.is_none() { Err(Failure::Interrupted) } else { Ok(()) }
}

/// The text of argument, file or standard input.
fn prompt_text(args: &Generate) -> Result<String> {
    let text = match (&args.prompt_file, args.prompt.as_deref()) {
        (Some(path), _) => input::without_newline(input::file(path)?),
        (None, Some(prompt)) if prompt != "-" => prompt.to_owned(),
        (None, prompt) => input::without_newline(input::text_or_stdin(prompt, "prompt")?),
    };
    if text.is_empty() {
        return Err(Failure::not_as_expected("prompt", "expected some text, found none"));
    }
    Ok(text)
}

fn show<'a>(
    args: &Generate,
    model: &Model,
    tokenizer: Option<&'a Tokenizer>,
    routing: &'a Mutex<Routing>,
) -> Result<Box<dyn Show + 'a>> {
    let layers = model.config().layers;
    let layer = args.routing_layer.unwrap_or(layers / 2);
    if layer >= layers {
        let reason = format!("expected less than {layers}, the number of layers, found {layer}");
        return Err(Failure::not_as_expected("--routing-layer", reason));
    }
    if args.json {
        return Ok(Box::new(Silent));
    }
    let out = Output::new();
    let spelling = Spelling::new(tokenizer.filter(|_| !args.print_ids), &args.stop.texts);
    let echo = match (args.print_ids, args.no_echo) {
        (true, _) => Echo::Apart,
        (false, true) => Echo::Hidden,
        (false, false) => Echo::All,
    };
    let view = match args.show_routing {
        Some(RoutingView::Auto) if out.is_styled() => Some(RoutingView::Text),
        Some(RoutingView::Auto) => Some(RoutingView::Tokens),
        view => view,
    };
    Ok(match view {
        None => Box::new(Plain { out, spelling, echo }),
        Some(RoutingView::Tokens) => Box::new(RoutedTokens::new(out, tokenizer, !args.no_echo, routing)),
        Some(_) => Box::new(RoutedText::new(Plain { out, spelling, echo }, layer, routing)),
    })
}

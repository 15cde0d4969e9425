//! `mixtral lab regret`.

use std::fmt::Write as _;
use std::num::NonZeroUsize;

use mixtral_model::Error;
use mixtral_model::lab::{Counterfactual, RegretOptions, TokenRegret, regret};
use moe_core::memory;
use serde_json::json;

use super::{Subject, WINDOW};
use crate::args::Regret;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::{Output, harmless};
use crate::summary::{aside, write_memory};

pub(super) fn run(args: &Regret, interrupt: &Interrupt) -> Result<()> {
    let subject = Subject::new(&args.running, args.text.as_deref(), Some(NonZeroUsize::MIN))?;
    let router = args.router.clone().map_or_else(|| subject.own_router(), Ok)?;
    let Subject { model, tokenizer, ids, .. } = &subject;
    let tokens = args.tokens.map_or(WINDOW, NonZeroUsize::get).min(args.running.context(model));
    let ids = &ids[..tokens.min(ids.len())];
    let options = RegretOptions::new(args.layer, router.clone())
        .every(args.every.get())
        .with_session(args.running.session_options());
    let (mut all, mut observer) = (Vec::new(), interrupt.clone());
    let mut failed = Ok(());
    let found = interrupt.during(|| {
        regret(model, ids, &options, &mut observer, |of_token| {
            failed = memory::push(&mut all, Short::of(&of_token), "regrets");
            failed.is_ok() && !interrupt.wished()
        })
    });
    failed?;
    let stopped = match found {
        Err(Error::Stopped) => true,
        other => other.map(|()| interrupt.wished())?,
    };
    if all.is_empty() && !stopped {
        let least = args.every.get() + 1;
        let reason = format!("expected at least {least} tokens, found {}", ids.len());
        return Err(Failure::not_as_expected("text", reason));
    }
    let mean = all.iter().map(|one| one.regret).sum::<f64>() / all.len() as f64;
    let best_share = all.iter().filter(|one| one.rank == 0).count() as f64 / all.len() as f64;
    if args.json {
        let of_token = |one: &Short| {
            let best = &one.best;
            json!({
                "position": one.position, "token": one.token, "next": one.next, "experts": one.own.experts, "nll": one.own.nll,
                "best_experts": best.experts, "best_nll": best.nll, "regret": one.regret, "rank": one.rank,
            })
        };
        let regrets: Vec<_> = all.iter().map(of_token).collect();
        let json = json!({
            "layer": args.layer, "router": router.to_string(), "tokens": all.len(), "mean_regret": mean, "best_share": best_share,
            "regrets": regrets,
        });
        Output::new().text(&format!("{json}\n"))?;
    } else {
        let piece = |id: u32| harmless(&tokenizer.decode(&[id])).replace(['\n', '\t'], "?");
        // Writing to a string cannot fail.
        let mut text =
            "position  token         next          experts    loss  best       loss  regret  better\n"
                .to_owned();
        for one in &all {
            let best = &one.best;
            let experts = |set: &[usize]| set.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            let _ = writeln!(
                text,
                "{:>8}  {:<12}  {:<12}  {:<7}  {:>6.3}  {:<7}  {:>6.3}  {:>6.3}  {:>6}",
                one.position,
                piece(one.token),
                piece(one.next),
                experts(&one.own.experts),
                one.own.nll,
                experts(&best.experts),
                best.nll,
                one.regret,
                one.rank
            );
        }
        let _ = writeln!(
            text,
            "layer {}, {} tokens: mean regret {mean:.4} nats; the choice was the best of all for {:.1}%",
            args.layer,
            all.len(),
            100.0 * best_share
        );
        Output::new().text(&text)?;
    }
    write_memory(model);
    if stopped {
        aside("interrupted: of the tokens until then");
        return Err(Failure::Interrupted);
    }
    Ok(())
}

/// What is told of a token.
struct Short {
    position: usize,
    token: u32,
    next: u32,
    own: Counterfactual,
    best: Counterfactual,
    regret: f64,
    rank: usize,
}

impl Short {
    fn of(one: &TokenRegret) -> Self {
        let TokenRegret { position, token, next, ref own, .. } = *one;
        let (best, regret, rank) = (one.best().clone(), one.regret(), one.rank());
        Self { position, token, next, own: own.clone(), best, regret, rank }
    }
}

//! `mixtral lab ablate`.

use std::fmt::Write as _;
use std::num::NonZeroUsize;

use mixtral_model::PerplexityOptions;
use mixtral_model::lab::{Ablated, CompareOptions, ExpertBytes, ablate};
use serde_json::json;

use super::{Subject, WINDOW};
use crate::args::Ablate;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress::Progress;
use crate::summary::{aside, write_memory};

pub(super) fn run(args: &Ablate, interrupt: &Interrupt) -> Result<()> {
    let subject = Subject::new(&args.running, args.text.as_deref(), args.window)?;
    let router = args.router.clone().map_or_else(|| subject.own_router(), Ok)?;
    let Subject { source, model, ids, .. } = &subject;
    let bytes = ExpertBytes::of(&args.running.look_at(source)?, model.config())?;
    let window = args.window.map_or(WINDOW.min(args.running.context(model)), NonZeroUsize::get);
    let windows = PerplexityOptions::new(window).with_chunk(window);
    let options = CompareOptions::new(windows).with_session(args.running.session_options());
    let read = windows.tokens_read(ids.len());
    let config = model.config();
    let ways = 1 + (0..config.layers).map(|n| config.experts.of(n)).sum::<usize>();
    let mut observer = (interrupt.clone(), Progress::new(model, read * ways));
    let go_on = |_, _| interrupt.go_on();
    let found = interrupt.during(|| ablate(model, ids, &options, &router, &bytes, &mut observer, go_on))?;
    drop(observer);
    let text = if args.json {
        let expert = |expert: &Ablated| {
            json!({
                "layer": expert.layer, "expert": expert.expert, "nll_difference": expert.nll_difference.mean(),
                "half_width": expert.nll_difference.half_width(), "kl": expert.kl.mean(), "same_top": expert.same_top.mean(),
            })
        };
        let experts: Vec<_> = found.experts.iter().map(expert).collect();
        let json = json!({
            "router": router.to_string(), "nll": found.nll.mean(), "windows_read": found.windows, "interrupted": found.stopped,
            "experts": experts,
        });
        format!("{json}\n")
    } else {
        table(&found.experts, found.nll.mean())
    };
    Output::new().text(&text)?;
    write_memory(model);
    if found.stopped {
        aside(&format!("interrupted after {} windows", found.windows));
        return Err(Failure::Interrupted);
    }
    Ok(())
}

/// Layers down, experts across.
fn table(experts: &[Ablated], nll: f64) -> String {
    // Writing to a string cannot fail.
    let mut text = format!("nats a token more without an expert; with all of them {nll:.4}\nlayer");
    let most = experts.iter().map(|one| one.expert + 1).max().unwrap_or(0);
    for expert in 0..most {
        let _ = write!(text, "  {:>9}", format!("expert {expert}"));
    }
    for one in experts {
        if one.expert == 0 {
            let _ = write!(text, "\n{:>5}", one.layer);
        }
        let mean = one.nll_difference.mean();
        let noise = one.nll_difference.half_width().is_some_and(|half| mean.abs() <= half);
        let _ = write!(text, "  {:>9}", format!("{mean:+.4}{}", if noise { "~" } else { "" }));
    }
    text.push('\n');
    text
}

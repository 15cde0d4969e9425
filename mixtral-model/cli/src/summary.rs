//! The closing line.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use anstyle::Style;
use mixtral_model::inspect::peak_memory;
use mixtral_model::{Ended, Generated, Model, Session};
use moe_kernels::Activations;

/// Quiet words beside the text.
pub(crate) const ASIDE: Style = Style::new().dimmed();

/// Why a generation ended; `stop` is the text that ended it.
pub(crate) fn reason(generated: &Generated, session: &Session, stop: Option<&str>) -> String {
    if let Some(stop) = stop {
        return format!("ended by {stop:?}");
    }
    match generated.ended {
        Ended::MaxTokens => "stopped at --max-tokens".to_owned(),
        Ended::Stop(token) => format!("ended by end token {token}"),
        Ended::Context => format!("stopped at the context's limit of {} positions", session.context()),
        _ => "interrupted".to_owned(),
    }
}

/// How many tokens were read of a prompt of `prompt` tokens, how many generated, and how fast.
///
/// The first token is drawn from the pass that reads the end of the prompt, so the speed of generation counts the passes after
/// it.
pub(crate) fn speeds(generated: &Generated, prompt: usize, session: &Session) -> String {
    let passes = passes(generated, session);
    let read = if generated.prompt_tokens < prompt {
        format!("{} of {}", generated.prompt_tokens, tokens(prompt))
    } else {
        tokens(prompt) + &speed(prompt, generated.prompt_time)
    };
    format!(
        "prompt: {read}; generated: {}{}",
        tokens(generated.tokens.len()),
        speed(passes, generated.generation_time)
    )
}

/// Passes through the model after those that read the prompt.
pub(crate) fn passes(generated: &Generated, session: &Session) -> usize {
    // Of what is drawn, the session lacks the last one, or nothing after an end token.
    let drawn = generated.tokens.len();
    let read = if matches!(generated.ended, Ended::Stop(_)) { drawn } else { drawn.saturating_sub(1) };
    read.min(session.position())
}

/// Writes how the model's matrices were multiplied, if some with rounded activations; and where most might have been, that this would
/// have been faster.
pub(crate) fn write_products(model: &Model) {
    let products = model.products();
    if model.compute().activations != Activations::F32 {
        aside(&format!("products: {products}"));
    } else if products.can_be_int8 > products.exact / 2 {
        aside(&format!(
            "products: exact; --activations int8 rounds what {} of {} matrices are multiplied with, and is much faster",
            products.can_be_int8, products.exact
        ));
    }
}

/// Writes what running under a budget of memory came to.
pub(crate) fn write_memory(model: &Model) {
    let Some(found) = model.expert_cache() else { return };
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let percent = |share: u64| 100.0 * share as f64 / found.requests.max(1) as f64;
    let mut line = match peak_memory() {
        Some(peak) => format!("memory: at most {:.2} GB", gigabytes(peak)),
        None => "memory".to_owned(),
    };
    // Writing to a string cannot fail.
    let _ = write!(
        line,
        "; experts in memory for {:.1} % of {} requests ({}",
        percent(found.hits),
        found.requests,
        found.policy
    );
    if let Some(bound) = found.bound {
        let _ = write!(line, "; foreknowledge {:.1} %", percent(bound));
    }
    let _ = write!(line, "); {:.2} GB read", gigabytes(found.disk_bytes));
    if !found.reading.is_zero() {
        let seconds = found.reading.as_secs_f64();
        // While something is read, the disk does what it can.
        let _ = write!(
            line,
            " in {seconds:.2} s, {:.2} GB/s, which is {:.0} % of the time and so of what the disk allows at these hits, {:.2} s of it with nothing else to do",
            gigabytes(found.disk_bytes) / seconds,
            100.0 * seconds / found.passing.as_secs_f64().max(seconds),
            found.waited.as_secs_f64()
        );
    }
    if found.ahead > 0 {
        let pays = match found.ahead_pays {
            Some(true) => ", which pays",
            Some(false) => ", which does not pay",
            None => "",
        };
        let _ = write!(
            line,
            "; {} experts read ahead of the router, of which {:.0} % were wanted{pays}",
            found.ahead,
            100.0 * found.ahead_wanted as f64 / found.ahead as f64
        );
    }
    aside(&line);
}

/// Writes a line beside the text, to standard error.
pub(crate) fn aside(line: &str) {
    let _ = writeln!(anstream::stderr(), "{ASIDE}{line}{ASIDE:#}");
}

fn tokens(n: usize) -> String {
    format!("{n} token{}", if n == 1 { "" } else { "s" })
}

/// " at N tokens/s", or nothing where that would mean nothing.
pub(crate) fn speed(tokens: usize, time: Duration) -> String {
    if tokens == 0 || time.is_zero() {
        return String::new();
    }
    let per_second = tokens as f64 / time.as_secs_f64();
    let digits = if per_second < 10.0 { 2 } else { 0 };
    format!(" at {per_second:.digits$} tokens/s")
}

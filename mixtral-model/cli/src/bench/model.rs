//! A model: reading prompts, and continuing sessions together.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::Instant;

use mixtral_model::{
    Access, Config, Error, Kind, Model, Observed, Observer, Report, Session, Step, Wanted, Workspace,
    available_memory,
};
use moe_core::Routed;
use moe_core::numerics::uniform;
use ndarray::ArrayView2;
use serde::Serialize;

use super::limits::{self, Limits, busy_seconds};
use super::{Done, Spread, rounds};
use crate::args::Bench;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::load::Passes;
use crate::summary::write_memory;

/// Tokens that a session holds before it is continued.
const BEFORE: usize = 16;

/// One kind of pass.
#[derive(Serialize)]
struct Pass {
    case: &'static str,
    sessions: usize,
    /// Of the pass, all sessions together.
    tokens: usize,
    threads: usize,
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    tokens_per_s: f64,
    /// Distinct experts with tokens in a layer, on average.
    experts_touched: f64,
    /// Of the time of all parts.
    attention: f64,
    router: f64,
    experts: f64,
    head: f64,
    /// Of the threads' time, where the system tells; the rest they waited.
    busy: Option<f64>,
    /// Of all matrices but the gates'.
    share_of_fma_peak: f64,
    /// Weights that the pass needs, over a plain read.
    share_of_bandwidth: f64,
    /// The limits themselves, of these rounds.
    peak_gflops: f64,
    read_gbytes_per_s: f64,
    /// How exact products of many rows are cut.
    tiles: &'static str,
    /// Whether the user ended the run before all cases were measured.
    interrupted: bool,
}

pub(super) fn run(args: &Bench, interrupt: &Interrupt) -> Result<Done> {
    let source = args.running.model.source()?;
    let most = |numbers: &[NonZeroUsize]| numbers.iter().map(|n| n.get()).max().unwrap_or(1);
    let (tokens, sessions) = (most(&args.tokens), most(&args.sessions));
    let passes = Passes {
        sessions,
        tokens: tokens.max(sessions),
        logits: sessions,
        besides: limits::READ as u64,
        context: Some(tokens.max(BEFORE + 16)),
        ..Passes::TEXT
    };
    let model = args.running.load(&source, |_| passes)?;
    // Headers only, so that nothing is prefaulted or locked a second time.
    let report = Report::new(model.config(), &source.checkpoint(Access::Map)?)?;
    require_room(&model, args)?;
    let mut bench = ModelBench { args, interrupt, model: &model, report: &report, limits: None };
    let mut passes = Vec::new();
    let prompts = args.tokens.iter().map(|n| (n.get(), true));
    let together = args.sessions.iter().map(|n| (n.get(), false));
    for (n, is_prompt) in prompts.chain(together) {
        match if is_prompt { bench.prompt(n) } else { bench.together(n) } {
            Err(Failure::Model(Error::Stopped)) => break,
            pass => passes.push(pass?),
        }
        if interrupt.wished() {
            break;
        }
    }
    let interrupted = interrupt.wished().then_some(args.tokens.len() + args.sessions.len());
    passes.iter_mut().for_each(|pass| pass.interrupted = interrupted.is_some());
    let done = Done::new(args, &passes, interrupted, || table(&model, &passes));
    write_memory(&model);
    done
}

/// Refuses what no session holds, or no memory, before anything is made.
fn require_room(model: &Model, args: &Bench) -> Result<()> {
    let config = model.config();
    let most = |numbers: &[NonZeroUsize]| numbers.iter().map(|n| n.get()).max().unwrap_or(0);
    let (tokens, sessions) = (most(&args.tokens), most(&args.sessions));
    if tokens > config.max_positions {
        let reason =
            format!("expected at most {}, the model's positions, found {tokens}", config.max_positions);
        return Err(Failure::not_as_expected("--tokens", reason));
    }
    // Keys and values in f32 of what each session holds, and logits.
    let session =
        8 * config.layers * config.kv_heads * config.head_dim * (BEFORE + 16) + 4 * config.vocab_size;
    let available = available_memory().unwrap_or(1 << 40);
    if sessions as u128 * session as u128 > u128::from(available) {
        let reason = format!("expected as many as {} MB of memory hold, found {sessions}", available >> 20);
        return Err(Failure::not_as_expected("--sessions", reason));
    }
    Ok(())
}

struct ModelBench<'a> {
    args: &'a Bench,
    interrupt: &'a Interrupt,
    model: &'a Model,
    report: &'a Report,
    limits: Option<Limits>,
}

impl ModelBench<'_> {
    /// Reading a prompt of so many tokens, of which the last one's logits are wanted.
    fn prompt(&mut self, tokens: usize) -> Result<Pass> {
        self.measure("prompt", 1, tokens, 0)
    }

    /// A token more for each of so many sessions.
    fn together(&mut self, sessions: usize) -> Result<Pass> {
        self.measure("together", sessions, 1, BEFORE)
    }

    fn measure(&mut self, case: &'static str, count: usize, tokens: usize, before: usize) -> Result<Pass> {
        let compute = self.model.compute();
        let limits = match &mut self.limits {
            Some(limits) => limits,
            none => none.insert(Limits::new(compute.backend, compute.activations)?),
        };
        let mut workspace = Workspace::new();
        let mut sessions = Vec::new();
        let (mut seconds, mut parts, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        let rounds = rounds(self.args, count * tokens);
        // The first round makes room.
        for round in 0..=rounds {
            if round == 0 {
                sessions = (0..count)
                    .map(|_| self.args.running.session(self.model, 0))
                    .collect::<Result<Vec<_>>>()?;
            } else if before == 0 {
                sessions.iter_mut().for_each(Session::clear);
            }
            let ids = |s: usize, count: usize| -> Vec<u32> {
                let vocabulary = self.model.config().vocab_size as f32;
                let place = |t| [s as u64, round as u64, t as u64];
                (0..count).map(|t| (uniform(count as u64, &place(t)) * vocabulary) as u32).collect()
            };
            if before > 0 && round == 0 {
                for (s, session) in sessions.iter_mut().enumerate() {
                    let ids = ids(s, before);
                    let step = Step::new(session, &ids).wanted(Wanted::None);
                    self.model.forward(&mut [step], &mut workspace, &mut self.interrupt.clone())?;
                }
            }
            let ids: Vec<_> = (0..count).map(|s| ids(s, tokens)).collect();
            let mut steps: Vec<_> = sessions.iter_mut().zip(&ids).map(|(s, ids)| Step::new(s, ids)).collect();
            let worked = busy_seconds();
            let mut clock = (Clock::new(), self.interrupt.clone());
            let begun = Instant::now();
            match self.model.forward(&mut steps, &mut workspace, &mut clock) {
                // What was measured in some rounds at least is kept.
                Err(Error::Stopped) if !seconds.is_empty() => break,
                other => other?,
            };
            let elapsed = begun.elapsed().as_secs_f64();
            if round > 0 {
                parts.push(clock.0.finish());
                let threads = rayon::current_num_threads() as f64;
                let worked = busy_seconds().zip(worked).map_or(f64::NAN, |(after, before)| after - before);
                busy.push(worked / (elapsed * threads));
                seconds.push(elapsed);
                limits.measure();
            }
        }
        let (peak, read) = limits.take();
        let spread = Spread::of(&seconds);
        let layers = self.model.config().layers;
        let threads = rayon::current_num_threads();
        let touched =
            parts.iter().map(|parts| parts.touched).sum::<usize>() as f64 / (layers * parts.len()) as f64;
        let parts = Parts::medians(&parts);
        let all = parts.seconds();
        let busy = Spread::of(&busy).median;
        Ok(Pass {
            case,
            sessions: count,
            tokens: count * tokens,
            threads,
            seconds: spread.median,
            seconds_min: spread.least,
            seconds_max: spread.greatest,
            tokens_per_s: (count * tokens) as f64 / spread.median,
            experts_touched: touched,
            attention: parts.attention / all,
            router: parts.router / all,
            experts: parts.experts / all,
            head: parts.head / all,
            // Schedulers count in milliseconds.
            busy: Some(busy).filter(|busy| busy.is_finite() && spread.median > 0.02),
            share_of_fma_peak: self.flops(count, count * tokens) / spread.median / peak,
            share_of_bandwidth: self.bytes(touched) / spread.median / read,
            peak_gflops: peak / 1e9,
            read_gbytes_per_s: read / 1e9,
            tiles: self.model.compute().backend.tiles(),
            interrupted: false,
        })
    }

    /// Operations of the matrices. The head's are needed for one token a session, and so are those of the last layer, but for
    /// keys and values.
    fn flops(&self, sessions: usize, tokens: usize) -> f64 {
        let config = self.model.config();
        let idle = self.report.parameters - self.report.active_parameters;
        let experts = self.parameters(Kind::Experts) - idle as f64;
        let layer = (self.parameters(Kind::Attention) + experts) / config.layers as f64;
        let keys_and_values = (2 * config.kv_heads * config.head_dim * config.hidden_size) as f64;
        let head = (config.vocab_size * config.hidden_size) as f64;
        let of_every_token = (config.layers - 1) as f64 * layer + keys_and_values;
        2.0 * (tokens as f64 * of_every_token + sessions as f64 * (layer - keys_and_values + head))
    }

    /// Bytes of weights that a pass reads, where so many experts of a layer have tokens.
    fn bytes(&self, touched: f64) -> f64 {
        let Config { layers, experts, .. } = self.model.config();
        let all = (0..*layers).map(|n| experts.of(n)).sum::<usize>() as f64;
        let needed = |kind: Kind| match kind {
            Kind::Experts => touched * *layers as f64 / all,
            // A token reads a row of it, but for a head that it is too.
            Kind::Embedding if !self.model.config().tie_embeddings => 0.0,
            _ => 1.0,
        };
        self.report.kinds.iter().map(|kind| kind.bytes as f64 * needed(kind.kind)).sum()
    }

    fn parameters(&self, kind: Kind) -> f64 {
        self.report.kinds.iter().filter(|k| k.kind == kind).map(|k| k.parameters as f64).sum()
    }
}

/// Seconds by part of the model.
#[derive(Clone, Default)]
struct Parts {
    attention: f64,
    router: f64,
    experts: f64,
    head: f64,
    /// Experts with tokens, over the layers.
    touched: usize,
}

impl Parts {
    fn seconds(&self) -> f64 {
        self.attention + self.router + self.experts + self.head
    }

    /// Of each part the median of some rounds, so that one that was disturbed is no share of it.
    fn medians(rounds: &[Self]) -> Self {
        let median = |part: fn(&Self) -> f64| Spread::of(&rounds.iter().map(part).collect::<Vec<_>>()).median;
        Self {
            attention: median(|parts| parts.attention),
            router: median(|parts| parts.router),
            experts: median(|parts| parts.experts),
            head: median(|parts| parts.head),
            touched: 0,
        }
    }
}

/// Times a pass: what ends at an event began at the one before.
struct Clock {
    last: Instant,
    parts: Parts,
}

impl Clock {
    fn new() -> Self {
        Self { last: Instant::now(), parts: Parts::default() }
    }

    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        (now - std::mem::replace(&mut self.last, now)).as_secs_f64()
    }

    /// After the pass: what is left is the head's.
    fn finish(mut self) -> Parts {
        self.parts.head += self.lap();
        self.parts
    }
}

impl Observer for Clock {
    fn wants_all_rows(&self) -> bool {
        false
    }

    fn attended(&mut self, _: usize, _: ArrayView2<'_, f32>) -> Observed {
        self.parts.attention += self.lap();
        Ok(())
    }

    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        self.parts.router += self.lap();
        self.parts.touched += routed.plan.expert_offsets().windows(2).filter(|w| w[0] < w[1]).count();
        self.lap();
        Ok(())
    }

    fn layer_done(&mut self, _: usize, _: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        self.parts.experts += self.lap();
        Ok(ControlFlow::Continue(()))
    }
}

fn table(model: &Model, passes: &[Pass]) -> String {
    let mut text = String::new();
    let compute = model.compute();
    let threads = rayon::current_num_threads();
    let _ = writeln!(text, "{} activations, {}, {threads} threads", compute.activations, compute.backend);
    text += &limits::describe(compute.backend, passes.iter().map(|p| [p.peak_gflops, p.read_gbytes_per_s]));
    let _ = writeln!(
        text,
        "                 milliseconds  tokens/s  experts  attention  router  experts  head   busy  of peak  of read"
    );
    for p in passes {
        let what = match p.case {
            "prompt" => format!("prompt of {}", p.tokens),
            _ => format!("sessions: {}", p.sessions),
        };
        let busy = p.busy.map_or("-".to_owned(), |busy| format!("{:.0} %", busy * 100.0));
        let _ = writeln!(
            text,
            "{what:<16} {:>12.2} {:>9.1} {:>8.1} {:>8.0} % {:>5.0} % {:>6.0} % {:>3.0} % {busy:>6} {:>6.0} % {:>6.0} %",
            p.seconds * 1e3,
            p.tokens_per_s,
            p.experts_touched,
            p.attention * 100.0,
            p.router * 100.0,
            p.experts * 100.0,
            p.head * 100.0,
            p.share_of_fma_peak * 100.0,
            p.share_of_bandwidth * 100.0,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Parts;

    #[test]
    fn a_round_that_was_disturbed_is_no_share() {
        let round = |attention| Parts { attention, router: 1.0, experts: 2.0, head: 1.0, touched: 4 };
        let parts = Parts::medians(&[round(1.0), round(900.0), round(1.1)]);
        assert_eq!((parts.attention, parts.seconds()), (1.1, 5.1));
    }
}

//! One text under many routers.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use moe_core::{Locality, Routed, memory};
use moe_router::metrics::ChoiceAgreement;

use super::divergence::{Difference, log_probabilities};
use super::interval::BlockMean;
use super::window::{Predicted, Reading};
use super::{ExpertBytes, RoutingCost, RoutingMap};
use crate::{
    Choices, Error, LayerRouters, Model, Observed, Observer, PerplexityOptions, Result, Session,
    SessionOptions, TextWindow, Workspace,
};

/// What a text came to under one way of routing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Routing<'a> {
    /// What it is called; the first one is the model's own.
    pub name: String,
    /// What a token's experts depend on.
    pub locality: Locality,
    /// Whether it is routed by a trace, in some layer: then that is only what they depend on now.
    pub replays: bool,
    /// Nats a predicted token.
    pub nll: BlockMean,
    /// The same less the baseline's, token for token.
    pub nll_difference: BlockMean,
    /// Kullback-Leibler divergence from the baseline, in nats a predicted token.
    pub kl: BlockMean,
    /// 1 for each predicted token whose most likely one is the baseline's, else 0.
    pub same_top: BlockMean,
    /// How often each layer gave a token the experts that it has in the baseline, by layer.
    pub agreement: Vec<ChoiceAgreement>,
    /// What routing cost.
    pub cost: RoutingCost<'a>,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Time that they took.
    pub time: Duration,
}

/// A text under several ways of routing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Comparison<'a> {
    /// The model's own routing, then the others in order.
    pub routings: Vec<Routing<'a>>,
    /// Windows that all of them have read.
    pub windows: usize,
    /// Where the tokens of these windows went under the model's own routing, if that was asked for.
    pub map: Option<RoutingMap>,
    /// Whether the observer or the caller ended it: the numbers are those of the windows that all have read.
    pub stopped: bool,
}

/// How a text is compared.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CompareOptions {
    /// How it is cut into windows, and these into passes.
    pub windows: PerplexityOptions,
    /// Of the sessions; their identity is the number of the window.
    pub session: SessionOptions,
    /// Whether a [map](Comparison::map) is made, and how many tokens it keeps one by one.
    pub mapped: Option<usize>,
}

impl CompareOptions {
    /// These windows, in sessions as they are by default.
    pub fn new(windows: PerplexityOptions) -> Self {
        Self { windows, session: SessionOptions::default(), mapped: None }
    }

    /// The same with a map of the model's own routing, which keeps so many tokens one by one.
    pub fn with_map(self, tokens: usize) -> Self {
        Self { mapped: Some(tokens), ..self }
    }

    /// The same in other sessions.
    pub fn with_session(self, session: SessionOptions) -> Self {
        Self { session, ..self }
    }
}

/// Reads a text under the model's own routing and under others, window by window, and compares what is predicted.
///
/// A window is read once by each in turn, so that what was measured is of the same text whenever it ends; a token's predictions depend on its
/// routing alone, to the bit. Routers that are not of token locality read a window in one pass; the others in passes of
/// [`chunk`](PerplexityOptions::chunk) tokens. Memory holds the logits of one window, twice. `observer` watches all passes, and `done` is told when
/// a way of routing has read a window: how many windows there are, which it is, and which routing; it ends the work by `Break`.
///
/// # Errors
///
/// Those of [`perplexity`](fn@crate::perplexity).
pub fn compare<'a>(
    model: &Model,
    ids: &[u32],
    options: &CompareOptions,
    others: &[(String, LayerRouters)],
    bytes: &'a ExpertBytes,
    observer: &mut dyn Observer,
    done: impl FnMut([usize; 2], usize) -> ControlFlow<()>,
) -> Result<Comparison<'a>> {
    compare_with(model, None, ids, options, others, bytes, observer, done)
}

/// The same beside another baseline than the model's own routing.
#[allow(clippy::too_many_arguments, reason = "those of `compare`, and one")]
pub(super) fn compare_with<'a>(
    model: &Model,
    baseline: Option<&LayerRouters>,
    ids: &[u32],
    options: &CompareOptions,
    others: &[(String, LayerRouters)],
    bytes: &'a ExpertBytes,
    observer: &mut dyn Observer,
    mut done: impl FnMut([usize; 2], usize) -> ControlFlow<()>,
) -> Result<Comparison<'a>> {
    let mut session = model.session(options.session)?;
    options.windows.check(session.context(), ids.len())?;
    crate::perplexity::check_text(model, ids)?;
    let begin = |name: &str, locality, replays| Routing {
        name: name.to_owned(),
        locality,
        replays,
        nll: BlockMean::new(),
        nll_difference: BlockMean::new(),
        kl: BlockMean::new(),
        same_top: BlockMean::new(),
        agreement: vec![ChoiceAgreement::default(); model.config().layers],
        cost: RoutingCost::new(model, bytes),
        tokens: 0,
        time: Duration::ZERO,
    };
    let ways: Vec<_> =
        std::iter::once(baseline).chain(others.iter().map(|(_, routers)| Some(routers))).collect();
    let locality = baseline.map_or_else(|| model.locality(), |routers| routers.locality(model));
    let mut routings = vec![begin("", locality, false)];
    routings
        .extend(others.iter().map(|(name, routers)| begin(name, routers.locality(model), routers.replays())));
    let map = options.mapped.map(|tokens| RoutingMap::of(model, tokens)).transpose()?;
    let mut comparison = Comparison { routings, windows: 0, map, stopped: false };
    let (mut workspace, mut logits) = (Workspace::new(), Vec::new());
    let (mut choices, mut of_baseline) = (Chosen::new(model), Chosen::new(model));
    let windows = options.windows.windows(ids.len()).count();
    for (n, window) in options.windows.windows(ids.len()).enumerate() {
        session.set_sequence_id(n as u64);
        // What an unfinished window has added is taken back.
        let before = (comparison.routings.clone(), comparison.map.clone());
        let mut wishes_end = false;
        for (way, routers) in ways.iter().enumerate() {
            let routing = &mut comparison.routings[way];
            let reading = Reading {
                ids,
                first: options.windows.first_token,
                chunk: options.windows.chunk,
                routers: *routers,
                uncut: routing.locality != Locality::Token,
            };
            let room = &mut Room { session: &mut session, workspace: &mut workspace, baseline: &mut logits };
            choices.clear();
            let map = comparison.map.as_mut().filter(|_| way == 0);
            let watching = &mut (&mut choices, (map, &mut *observer));
            let read = read_window(model, reading, &window, way == 0, room, routing, watching);
            let stopped = matches!(read, Err(Error::Stopped));
            if !stopped {
                read?;
                if way == 0 {
                    std::mem::swap(&mut of_baseline, &mut choices);
                }
                let found = if way == 0 { &of_baseline } else { &choices };
                of_baseline.compare(found, &mut routing.agreement);
                wishes_end = done([windows, n], way).is_break();
            }
            if stopped || wishes_end && way + 1 < ways.len() {
                let (routings, map) = before;
                return Ok(Comparison { routings, map, stopped: true, ..comparison });
            }
        }
        comparison.windows = n + 1;
        if wishes_end {
            return Ok(Comparison { stopped: n + 1 < windows, ..comparison });
        }
    }
    Ok(comparison)
}

/// The experts that every layer gave to the tokens of a window.
struct Chosen(Vec<Choices>);

impl Chosen {
    fn new(model: &Model) -> Self {
        Self(vec![Choices::new(); model.config().layers])
    }

    fn clear(&mut self) {
        self.0.iter_mut().for_each(Choices::clear);
    }

    fn compare(&self, other: &Self, agreement: &mut [ChoiceAgreement]) {
        for ((one, other), agreement) in self.0.iter().zip(&other.0).zip(agreement) {
            for t in 0..one.tokens() {
                agreement.add(one.experts(t).iter(), other.experts(t).iter());
            }
        }
    }
}

impl Observer for Chosen {
    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        if let Some(layer) = self.0.get_mut(routed.layer) {
            layer.extend(routed.plan);
        }
        Ok(())
    }
}

/// What all passes share.
struct Room<'r> {
    session: &'r mut Session,
    workspace: &'r mut Workspace,
    /// The baseline's logits of the window, `[scored, V]`.
    baseline: &'r mut Vec<f32>,
}

/// Reads a window under one way of routing, and adds what came of it.
fn read_window(
    model: &Model,
    reading: Reading<'_>,
    window: &TextWindow,
    is_baseline: bool,
    room: &mut Room<'_>,
    routing: &mut Routing<'_>,
    observer: &mut dyn Observer,
) -> Result<()> {
    let Room { session, workspace, baseline } = room;
    let vocabulary = model.config().vocab_size;
    if is_baseline {
        baseline.clear();
        memory::reserve(baseline, window.scored.len().saturating_mul(vocabulary), "logits of a window")?;
    }
    let mut sums = Sums::default();
    let (mut p, mut q) = (Vec::new(), Vec::new());
    let (begun, mut compared) = (Instant::now(), Duration::ZERO);
    let mut both = (&mut routing.cost, observer);
    reading.window(model, session, window, workspace, &mut both, |predicted| {
        let since = Instant::now();
        let Predicted { at, tokens, logits } = predicted;
        let logits = logits.as_slice().unwrap_or_default();
        if is_baseline {
            baseline.extend_from_slice(logits);
        }
        let before = &baseline[(at - window.scored.start) * vocabulary..];
        let rows = logits.chunks_exact(vocabulary).zip(before.chunks_exact(vocabulary));
        for (&token, (found, baseline)) in tokens.iter().zip(rows) {
            log_probabilities(baseline, &mut p)?;
            log_probabilities(found, &mut q)?;
            sums.add(&Difference::between(&p, &q, token, f64::NEG_INFINITY));
        }
        compared += since.elapsed();
        Ok(ControlFlow::Continue(()))
    })?;
    routing.time += begun.elapsed().saturating_sub(compared);
    routing.tokens += window.tokens.len() - 1;
    let Sums { nll, difference, kl, same_top, tokens } = sums;
    routing.nll.add(nll, tokens);
    routing.nll_difference.add(difference, tokens);
    routing.kl.add(kl, tokens);
    routing.same_top.add(same_top, tokens);
    Ok(())
}

/// Of the predicted tokens of a window.
#[derive(Default)]
struct Sums {
    nll: f64,
    difference: f64,
    kl: f64,
    same_top: f64,
    tokens: usize,
}

impl Sums {
    fn add(&mut self, of_token: &Difference) {
        self.nll += of_token.nll;
        self.difference += of_token.nll - of_token.baseline_nll;
        self.kl += of_token.kl;
        self.same_top += f64::from(u8::from(of_token.same_top));
        self.tokens += 1;
    }
}

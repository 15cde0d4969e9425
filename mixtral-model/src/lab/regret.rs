//! What a router could have done better, by trying all it could have done.

use moe_core::{Locality, Routed};
use moe_router::RouterSpec;

use super::divergence::log_probabilities;
use crate::routers::{built, built_without};
use crate::{
    Error, LayerRouters, Model, Observed, Observer, Result, Session, SessionOptions, Step, Wanted, Workspace,
};

/// The loss on the next token for one set of experts of one layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Counterfactual {
    /// The experts, ascending.
    pub experts: Vec<usize>,
    /// Negative log-likelihood of the token that came next, in nats.
    pub nll: f64,
}

/// What one token could have had in one layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TokenRegret {
    /// Its position.
    pub position: usize,
    /// Its id.
    pub token: u32,
    /// The token after it, whose loss counts.
    pub next: u32,
    /// What the router chose.
    pub own: Counterfactual,
    /// Every set of as many experts, the router's own too, in the order of their numbers.
    pub all: Vec<Counterfactual>,
}

impl TokenRegret {
    /// The set with the least loss; of equals, the first.
    pub fn best(&self) -> &Counterfactual {
        self.all.iter().fold(&self.own, |best, other| if other.nll < best.nll { other } else { best })
    }

    /// The loss of the router's choice less the least: 0 or more (regret, [2605.07260](https://arxiv.org/abs/2605.07260)).
    pub fn regret(&self) -> f64 {
        self.own.nll - self.best().nll
    }

    /// How many sets have less loss than the router's.
    pub fn rank(&self) -> usize {
        self.all.iter().filter(|other| other.nll < self.own.nll).count()
    }
}

/// What is tried, and where.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegretOptions {
    /// The layer.
    pub layer: usize,
    /// How it routes.
    pub router: RouterSpec,
    /// Every how many tokens one is tried.
    pub every: usize,
    /// Of the session that reads.
    pub session: SessionOptions,
}

impl RegretOptions {
    /// Every token, in one layer, which routes so.
    pub fn new(layer: usize, router: RouterSpec) -> Self {
        Self { layer, router, every: 1, session: SessionOptions::default() }
    }

    /// The same at one token of so many.
    pub fn every(self, every: usize) -> Self {
        Self { every, ..self }
    }

    /// The same in another session.
    pub fn with_session(self, session: SessionOptions) -> Self {
        Self { session, ..self }
    }
}

/// Most sets of experts that are tried for a token.
pub const MOST_SETS: usize = 5000;

/// Reads a text, and at one token of [so many](RegretOptions::every) tries all sets of experts that a layer could have given it, as many as its router takes, each weighted as
/// that would: by brute force, from the state before the token. `found` is told of each token, and ends the work by `false`.
///
/// The layer's other tokens are routed by the same router, and those of the other layers by the model's own, from what they are given.
///
/// # Errors
///
/// [`Error::Setting`] for a layer that the model does not have, steps of 0, more than [`MOST_SETS`] sets, routing that is not of token
/// locality, or a router that takes as many experts as it likes; those of [`Model::forward`].
pub fn regret(
    model: &Model,
    ids: &[u32],
    options: &RegretOptions,
    observer: &mut dyn Observer,
    mut found: impl FnMut(TokenRegret) -> bool,
) -> Result<()> {
    let RegretOptions { layer, ref router, every, session } = *options;
    let experts = model.moe_layer(layer)?.experts();
    let refuse = |setting, expected: String, found: String| Err(Error::Setting { setting, expected, found });
    if every == 0 {
        return refuse("every", "1 or more".to_owned(), "0".to_owned());
    }
    let mut own = LayerRouters::new(model);
    own.set(model, layer, built(router)?)?;
    if own.locality(model) != Locality::Token {
        return refuse("router", "routing of each token by itself".to_owned(), router.to_string());
    }
    let mut session = model.session(session)?;
    let mut workspace = Workspace::new();
    let mut try_it =
        |session: &mut Session, routers: &LayerRouters, at: usize, observer: &mut dyn Observer| {
            let mut chosen = Chosen { layer, experts: Vec::new() };
            let token = [ids[at]];
            let step = Step::new(session, &token).wanted(Wanted::Last).with_routers(routers);
            let logits = model.forward(&mut [step], &mut workspace, &mut (&mut chosen, observer))?;
            let mut row = Vec::new();
            log_probabilities(logits.as_slice().unwrap_or_default(), &mut row)?;
            chosen.experts.sort_unstable();
            Ok::<_, Error>(Counterfactual { experts: chosen.experts, nll: -row[ids[at + 1] as usize] })
        };
    crate::perplexity::check_text(model, ids)?;
    let mut sets: Vec<(Vec<usize>, LayerRouters)> = Vec::new();
    for at in 0..ids.len() - 1 {
        let mine = try_it(&mut session, &own, at, observer)?;
        if !(at + 1).is_multiple_of(every) {
            continue;
        }
        if sets.first().is_none_or(|(set, _)| set.len() != mine.experts.len()) {
            sets = all_sets(model, layer, experts, mine.experts.len(), router)?;
        }
        let mut all = Vec::new();
        for (set, routers) in &sets {
            session.truncate(at)?;
            let tried = try_it(&mut session, routers, at, observer)?;
            if tried.experts != *set {
                let expected = "one that takes all experts of as many as it takes, such as top-k".to_owned();
                return refuse("router", expected, router.to_string());
            }
            all.push(tried);
        }
        session.truncate(at)?;
        try_it(&mut session, &own, at, observer)?;
        let regret = TokenRegret { position: at, token: ids[at], next: ids[at + 1], own: mine, all };
        if !found(regret) {
            return Ok(());
        }
    }
    Ok(())
}

/// All sets of so many experts, with routers that leave a layer no other.
fn all_sets(
    model: &Model,
    layer: usize,
    experts: usize,
    size: usize,
    router: &RouterSpec,
) -> Result<Vec<(Vec<usize>, LayerRouters)>> {
    let count = (0..size).try_fold(1usize, |count, i| Some(count.checked_mul(experts - i)? / (i + 1)));
    if count.is_none_or(|count| count > MOST_SETS) {
        let found = format!("the sets of {size} of {experts}");
        return Err(Error::Setting {
            setting: "experts",
            expected: format!("at most {MOST_SETS} sets"),
            found,
        });
    }
    let mut sets = Vec::new();
    let mut set: Vec<usize> = (0..size).collect();
    loop {
        let others: Vec<_> = (0..experts).filter(|e| !set.contains(e)).collect();
        let mut routers = LayerRouters::new(model);
        routers.set(model, layer, built_without(router, &others)?)?;
        sets.push((set.clone(), routers));
        // The next in the order of numbers.
        let Some(at) = (0..size).rev().find(|&i| set[i] < experts - size + i) else { return Ok(sets) };
        set[at] += 1;
        for i in at + 1..size {
            set[i] = set[i - 1] + 1;
        }
    }
}

/// The experts of the one token of a pass, in one layer.
struct Chosen {
    layer: usize,
    experts: Vec<usize>,
}

impl Observer for Chosen {
    fn wants_all_rows(&self) -> bool {
        false
    }

    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        if routed.layer == self.layer {
            self.experts.extend(routed.plan.active_experts());
        }
        Ok(())
    }
}

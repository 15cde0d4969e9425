//! What each expert is worth: the loss without it.

use std::ops::ControlFlow;

use super::compare::{CompareOptions, Routing, compare};
use super::{BlockMean, ExpertBytes};
use crate::{LayerRouters, Model, Observer, Result};

/// What a text came to without one expert of one layer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ablated {
    /// The layer.
    pub layer: usize,
    /// The expert that no token could have.
    pub expert: usize,
    /// Nats a predicted token more than with it.
    pub nll_difference: BlockMean,
    /// Kullback-Leibler divergence from the predictions with it, in nats a token.
    pub kl: BlockMean,
    /// 1 for each predicted token whose most likely one is the same, else 0.
    pub same_top: BlockMean,
}

/// Every expert of every layer in turn taken away: tokens that would have had it take the next best.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ablation {
    /// By layer, then by expert.
    pub experts: Vec<Ablated>,
    /// Nats a token of the model with all of them.
    pub nll: BlockMean,
    /// Windows that were read in all ways.
    pub windows: usize,
    /// Whether it was ended before the text did.
    pub stopped: bool,
}

/// Reads a text as [`compare`](fn@compare) does, once under the model's own routing and once without each expert: where `router` is a spec of the
/// layers' routing, `steered(router):off=[e]` in the one layer.
///
/// # Errors
///
/// Those of [`compare`](fn@compare) and of [`LayerRouters::parse`].
pub fn ablate(
    model: &Model,
    ids: &[u32],
    options: &CompareOptions,
    router: &str,
    bytes: &ExpertBytes,
    observer: &mut dyn Observer,
    done: impl FnMut([usize; 2], usize) -> ControlFlow<()>,
) -> Result<Ablation> {
    let config = model.config();
    let places: Vec<_> =
        (0..config.layers).flat_map(|n| (0..config.experts.of(n)).map(move |e| (n, e))).collect();
    let without = |&(layer, expert): &(usize, usize)| {
        let spec = format!("{layer}@steered({router}):off=[{expert}]");
        Ok((spec.clone(), LayerRouters::parse(model, &spec)?))
    };
    let routers = places.iter().map(without).collect::<Result<Vec<_>>>()?;
    let found = compare(model, ids, options, &routers, bytes, observer, done)?;
    let mut routings = found.routings.into_iter();
    let nll = routings.next().map(|own| own.nll).unwrap_or_default();
    let of_expert = |((layer, expert), routing): ((usize, usize), Routing<'_>)| {
        let Routing { nll_difference, kl, same_top, .. } = routing;
        Ablated { layer, expert, nll_difference, kl, same_top }
    };
    let experts = places.into_iter().zip(routings).map(of_expert).collect();
    Ok(Ablation { experts, nll, windows: found.windows, stopped: found.stopped })
}

//! What each expert is worth: the loss without it.

use std::ops::ControlFlow;

use moe_router::RouterSpec;

use super::compare::{CompareOptions, Routing, compare_with};
use super::{BlockMean, ExpertBytes};
use crate::routers::{built, built_without};
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
    /// Nats a token with all of them.
    pub nll: BlockMean,
    /// Windows that were read in all ways.
    pub windows: usize,
    /// Whether it was ended before the text did.
    pub stopped: bool,
}

/// Reads a text as [`compare`](fn@super::compare) does, with every layer routed by `router`, once with all experts and once without each: in its layer
/// the router is then `steered(router):off=[e]`.
///
/// # Errors
///
/// Those of [`compare`](fn@super::compare); [`Error::Layer`](crate::Error::Layer) where the router cannot do with a layer's number of experts.
pub fn ablate(
    model: &Model,
    ids: &[u32],
    options: &CompareOptions,
    router: &RouterSpec,
    bytes: &ExpertBytes,
    observer: &mut dyn Observer,
    done: impl FnMut([usize; 2], usize) -> ControlFlow<()>,
) -> Result<Ablation> {
    let config = model.config();
    let places: Vec<_> =
        (0..config.layers).flat_map(|n| (0..config.experts.of(n)).map(move |e| (n, e))).collect();
    let whole = LayerRouters::all(model, built(router)?)?;
    let without = |&(layer, expert): &(usize, usize)| {
        let mut routers = whole.clone();
        routers.set(model, layer, built_without(router, &[expert])?)?;
        Ok((format!("layer {layer} without expert {expert}"), routers))
    };
    let routers = places.iter().map(without).collect::<Result<Vec<_>>>()?;
    let found = compare_with(model, Some(&whole), ids, options, &routers, bytes, observer, done)?;
    let mut routings = found.routings.into_iter();
    let nll = routings.next().map(|own| own.nll).unwrap_or_default();
    let of_expert = |((layer, expert), routing): ((usize, usize), Routing<'_>)| {
        let Routing { nll_difference, kl, same_top, .. } = routing;
        Ablated { layer, expert, nll_difference, kl, same_top }
    };
    let experts = places.into_iter().zip(routings).map(of_expert).collect();
    Ok(Ablation { experts, nll, windows: found.windows, stopped: found.stopped })
}

//! A best expert, and a second one drawn.

use moe_core::{Assignments, Locality, Result, RouteInput, RouteScratch, Router, numerics};

use crate::draw::{self, Stream};
use crate::select::{self, MASKED};

/// Two experts a token: the most probable, and one drawn from the others in proportion to their probabilities, by the Gumbel-max
/// trick: DeepSpeed's `top2gating` with `top2_2nd_expert_sampling`, after GShard, [2006.16668].
///
/// From a token's logits l, `[E]`, with `p = softmax(l)`,
///
/// ```text
/// first  = the greatest l                        ties to the lower expert
/// second = the greatest l + g among the others   g = -ln(-ln(1 - u)), a Gumbel number
/// wₑ     = pₑ
/// ```
///
/// u is uniform in `0..1` for each token and expert: that of [`TokenContext::noise`](moe_core::TokenContext), `[T, E]`, where the
/// input has it, else drawn from (seed, layer, sequence, position, expert). DeepSpeed divides the two weights by their sum after
/// its capacity: [`Renormalized`](crate::Renormalized) around a [`Capped`](crate::Capped) around this one.
///
/// Of masked experts none is taken; a token with one expert left has that one. Locality: token.
///
/// [2006.16668]: https://arxiv.org/abs/2006.16668
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GumbelSecond;

impl GumbelSecond {
    /// The router; there is nothing to set.
    pub fn new() -> Self {
        Self
    }
}

impl Router for GumbelSecond {
    /// Pushes two experts for every token that is not padding, or one where one alone is not masked.
    ///
    /// # Errors
    ///
    /// If given noise is not `[T, E]`.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let context = &input.context;
        draw::check_columns(context, input.experts())?;
        out.with_scratch(|out, RouteScratch { values, keys, .. }| {
            for t in input.present() {
                let logits = input.logits.row(t);
                values.clear();
                values.extend(logits);
                numerics::softmax(values);
                let open = || logits.iter().copied().enumerate().filter(|(_, l)| *l != MASKED);
                select::best_of(open(), 1, keys);
                let Some(&first) = keys.first() else { continue };
                let first = select::index(first);
                out.assign(t, first, values[first]);
                let noisy = open().filter(|&(e, _)| e != first).map(|(e, l)| {
                    let u = context.noise.map_or_else(
                        || draw::uniform(context, Stream::GumbelSecond, t, e),
                        |noise| noise.row(t)[e],
                    );
                    (e, l - numerics::ln(draw::exponential(u)))
                });
                select::best_of(noisy, 1, keys);
                if let Some(&second) = keys.first() {
                    let second = select::index(second);
                    out.assign(t, second, values[second]);
                }
            }
        });
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}

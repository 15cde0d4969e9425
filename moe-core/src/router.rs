//! The routing policy: which experts work on which token, and with what weight.

use std::sync::Arc;

use ndarray::{ArrayView1, ArrayViewMut2, Axis, Slice};

use crate::numerics;
use crate::{Assignments, Error, Result, RouteInput, TokenContext};

/// What a token's experts depend on.
///
/// Only [`Token`](Self::Token) routers leave a token's result the same, bit for bit, over batching and chunking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Locality {
    /// On the token alone.
    Token,
    /// On it and on earlier tokens of its sequence in the same call.
    Causal,
    /// On anything else: on the whole batch, later tokens included, or on [what the router remembers](Router#memory) of earlier
    /// calls. It promises nothing, and is not fit for a decoder without a warning.
    Batch,
}

/// A routing policy. It has settings but no learned weights, and sees logits but never hidden states.
///
/// ```
/// use moe_core::{Assignments, Locality, Result, RouteInput, Router};
///
/// /// Every token goes to the expert of its position, modulo the number of experts.
/// struct RoundRobin;
///
/// impl Router for RoundRobin {
///     fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
///         for token in input.present() {
///             let expert = token % input.experts();
///             match input.is_masked(token, expert) {
///                 true => out.refuse(token, expert),
///                 false => out.assign(token, expert, 1.0),
///             }
///         }
///         Ok(())
///     }
/// }
/// # assert_eq!(RoundRobin.locality(), Locality::Batch);
/// ```
///
/// # Memory
///
/// A router is shared by all who use its layer, and routes by `&self`. One that remembers something from call to call has
/// it behind a lock, and the locality [`Batch`](Locality::Batch), whatever it remembers: routed again, a token may go elsewhere,
/// so that neither chunks nor prefixes, nor passes of others, leave it the same. Whoever uses a layer or a model is then told less:
///
/// - A model has such a router route every row in its last layer too, not only those whose logits are wanted.
/// - Nobody takes memory back. A pass that fails or is stopped after the router was called, and a session that is cleared,
///   leave it as it is. Memory that is kept by layer, [sequence](TokenContext::sequence_ids) and
///   [position](TokenContext::positions), and used only if it is of the position right before, is as good as forgotten then.
/// - Two passes at a time call it in any order. Its results are reproducible only if what it remembers of a sequence comes from
///   that sequence alone, which needs identities of the sequences: by default all are 0.
/// - [`perturb`](Self::perturb) and [`scores`](Self::scores) are called any number of times, and so had better not change memory.
///   A batch may have no tokens.
pub trait Router: Send + Sync {
    /// Pushes the assignments of every token of the input into `out`, which the caller has reset.
    ///
    /// Tokens may come in any order; within a token the order of pushes is the rank, best first. A pair that a capacity
    /// turned away is pushed with [`Assignments::refuse`]. Sequences must not influence each other,
    /// unless a setting is for just that.
    ///
    /// **Padding** is not routed: nothing is pushed for it, and nothing that it holds, NaN included, changes what is pushed for
    /// the [others](RouteInput::present).
    ///
    /// **Masks.** An expert whose logit for a token is negative infinity is [masked](RouteInput::is_masked) for it, and never
    /// assigned. A router that looks at logits asks for experts that are not masked: where a token has fewer of them than the
    /// policy takes it asks for those, and where it has none for nothing. A pair that it wants in spite of the mask, or that
    /// masks leave without a place, is refused.
    ///
    /// # Errors
    ///
    /// If the input lacks what the policy needs (enough experts, token ids). Range, duplicates and weights are checked by
    /// whoever seals the plan.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()>;

    /// What a token's experts depend on. The default promises nothing.
    fn locality(&self) -> Locality {
        Locality::Batch
    }

    /// Turns logits `[T, E]` into those that the router decides on, in place: with the noise that it draws. By default they stay as
    /// they are.
    ///
    /// What is drawn is a function of the context, so that these are the logits of the decision itself. Losses that pair choices with
    /// probabilities want them.
    ///
    /// # Errors
    ///
    /// If the context lacks what the noise needs.
    fn perturb(&self, _: &TokenContext<'_>, _: ArrayViewMut2<'_, f32>) -> Result<()> {
        Ok(())
    }

    /// Turns logits `[T, E]` into the scores that priorities look at, in place; by default softmax over all experts.
    fn scores(&self, _: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) {
        for mut row in logits.rows_mut() {
            match row.as_slice_mut() {
                Some(row) => numerics::softmax(row),
                None => {
                    let mut scores = row.to_vec();
                    numerics::softmax(&mut scores);
                    row.assign(&ArrayView1::from(&scores));
                }
            }
        }
    }
}

/// What a pointer to a router does: as its target.
macro_rules! forward_to_target {
    ($($pointer:ty),*) => {$(
        impl<T: Router + ?Sized> Router for $pointer {
            fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
                (**self).route(input, out)
            }

            fn locality(&self) -> Locality {
                (**self).locality()
            }

            fn perturb(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) -> Result<()> {
                (**self).perturb(context, logits)
            }

            fn scores(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
                (**self).scores(context, logits);
            }
        }
    )*};
}

forward_to_target!(&T, Box<T>, Arc<T>);

/// A router of its own for each sequence of the batch, for sessions that are decoded together under different policies.
///
/// Each routes its sequence as if that were the whole batch, so that no sequence changes another, whatever the routers' locality.
#[derive(Clone, Copy)]
pub struct PerSequence<F> {
    count: usize,
    router: F,
}

impl<'a> PerSequence<()> {
    /// One router a sequence, in order.
    pub fn of(
        routers: &'a [&'a dyn Router],
    ) -> PerSequence<impl Send + Sync + Copy + Fn(usize) -> &'a dyn Router> {
        PerSequence { count: routers.len(), router: move |s| routers[s] }
    }
}

impl<'a, F: Fn(usize) -> &'a dyn Router> PerSequence<F> {
    /// `router(s)` for sequence s of `count`.
    pub fn new(count: usize, router: F) -> Self {
        Self { count, router }
    }
}

impl<'a, F: Send + Sync + Fn(usize) -> &'a dyn Router> Router for PerSequence<F> {
    /// # Errors
    ///
    /// [`Error::Sequence`] with what a sequence's router reports.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let sequences = input.context.sequences();
        if sequences != self.count {
            return Err(Error::Router {
                setting: "one router a sequence",
                expected: format!("{} sequences", self.count),
                found: sequences.to_string(),
            });
        }
        for (sequence, range) in input.sequences().enumerate() {
            let route =
                |out: &mut Assignments| (self.router)(sequence).route(&input.slice(range.clone()), out);
            let of_sequence = |source| Error::Sequence { sequence, source: Box::new(source) };
            out.with_first_token(range.start, route).map_err(of_sequence)?;
        }
        Ok(())
    }

    /// The weakest promise among the routers.
    fn locality(&self) -> Locality {
        (0..self.count).map(|s| (self.router)(s).locality()).max().unwrap_or(Locality::Token)
    }

    fn perturb(&self, context: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        for s in 0..context.sequences().min(self.count) {
            let range = context.sequence(s, logits.nrows());
            let of_sequence = logits.slice_axis_mut(Axis(0), Slice::from(range.clone()));
            (self.router)(s).perturb(&context.slice(&range), of_sequence)?;
        }
        Ok(())
    }

    fn scores(&self, context: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) {
        for s in 0..context.sequences().min(self.count) {
            let range = context.sequence(s, logits.nrows());
            let of_sequence = logits.slice_axis_mut(Axis(0), Slice::from(range.clone()));
            (self.router)(s).scores(&context.slice(&range), of_sequence);
        }
    }
}

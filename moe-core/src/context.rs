//! What a gate and a router may know of a batch besides its numbers.

use std::ops::Range;

use ndarray::{ArrayView2, Axis};

use crate::{Error, Result};

/// The circumstances of a batch of tokens: which sequences they belong to, where they stand, which words they are.
///
/// The default is one sequence whose tokens stand at positions 0, 1, 2, …
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TokenContext<'a> {
    /// Index of the layer in its model; 0 for a layer alone.
    pub layer: usize,
    /// Seed of whatever a router draws. Draws are a function of (seed, layer, sequence, position, expert), never of an
    /// advancing generator, else the other tokens of a batch would change a token.
    pub seed: u64,
    /// Boundaries of the sequences: sequence s is tokens `offsets[s]..offsets[s + 1]`; empty means one sequence.
    pub offsets: &'a [usize],
    /// Position of each token in its sequence; empty means 0, 1, 2, … from the start of each.
    pub positions: &'a [usize],
    /// Vocabulary id of each token, where the caller knows it.
    pub token_ids: Option<&'a [u32]>,
    /// `true` where a token is padding, which should take no capacity.
    pub padding: Option<&'a [bool]>,
}

impl<'a> TokenContext<'a> {
    /// The default context: one sequence, positions from 0, nothing else known.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with sequence boundaries.
    pub fn with_sequences(self, offsets: &'a [usize]) -> Self {
        Self { offsets, ..self }
    }

    /// The same, with positions.
    pub fn with_positions(self, positions: &'a [usize]) -> Self {
        Self { positions, ..self }
    }

    /// The same, with vocabulary ids.
    pub fn with_token_ids(self, ids: &'a [u32]) -> Self {
        Self { token_ids: Some(ids), ..self }
    }

    /// The same, with a padding mask.
    pub fn with_padding(self, padding: &'a [bool]) -> Self {
        Self { padding: Some(padding), ..self }
    }

    /// The same, with a seed for routers that draw.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The same, for another layer.
    pub fn at_layer(self, layer: usize) -> Self {
        Self { layer, ..self }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1).max(1)
    }

    /// The tokens of sequence `s` in a batch of `tokens`.
    ///
    /// # Panics
    ///
    /// If there is no such sequence.
    #[track_caller]
    pub fn sequence(&self, s: usize, tokens: usize) -> Range<usize> {
        match self.offsets {
            [] | [_] => {
                assert_eq!(s, 0, "the batch is one sequence");
                0..tokens
            }
            offsets => offsets[s]..offsets[s + 1],
        }
    }

    /// `true` where token `t` is padding.
    pub fn is_padding(&self, t: usize) -> bool {
        self.padding.is_some_and(|mask| mask[t])
    }

    /// Checks that the lists fit a batch of `tokens`.
    ///
    /// # Errors
    ///
    /// [`Error::Sequences`] or [`Error::Length`].
    pub fn check(&self, tokens: usize) -> Result<()> {
        let o = self.offsets;
        let whole = o.is_empty() || (o.len() > 1 && o[0] == 0 && o[o.len() - 1] == tokens);
        if !whole || o.windows(2).any(|w| w[0] > w[1]) {
            return Err(Error::Sequences { tokens, found: o.to_vec() });
        }
        let length = |what, found: usize| {
            if found == tokens { Ok(()) } else { Err(Error::Length { what, expected: tokens, found }) }
        };
        if !self.positions.is_empty() {
            length("positions", self.positions.len())?;
        }
        if let Some(ids) = self.token_ids {
            length("token ids", ids.len())?;
        }
        if let Some(mask) = self.padding {
            length("padding mask", mask.len())?;
        }
        Ok(())
    }

    /// The context of one stretch of the tokens as a sequence of its own.
    fn slice(&self, range: &Range<usize>) -> Self {
        Self {
            offsets: &[],
            positions: self.positions.get(range.clone()).unwrap_or(&[]),
            token_ids: self.token_ids.map(|ids| &ids[range.clone()]),
            padding: self.padding.map(|mask| &mask[range.clone()]),
            ..*self
        }
    }
}

/// Everything a router may look at.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RouteInput<'a> {
    /// The gate's output, `[T, E]`.
    pub logits: ArrayView2<'a, f32>,
    /// Sequences, positions, ids, padding, seed.
    pub context: TokenContext<'a>,
}

impl<'a> RouteInput<'a> {
    /// Logits `[T, E]` with their context.
    ///
    /// # Errors
    ///
    /// If the context does not fit T tokens.
    pub fn new(logits: ArrayView2<'a, f32>, context: TokenContext<'a>) -> Result<Self> {
        context.check(logits.nrows())?;
        Ok(Self { logits, context })
    }

    /// Number of tokens, T.
    pub fn tokens(&self) -> usize {
        self.logits.nrows()
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.logits.ncols()
    }

    /// The token ranges of the sequences, in order.
    pub fn sequences(&self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let (context, tokens) = (self.context, self.tokens());
        (0..context.sequences()).map(move |s| context.sequence(s, tokens))
    }

    /// The input restricted to one stretch of tokens, as one sequence whose first token is 0.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let context = self.context.slice(&range);
        Self { logits: row_range(self.logits, range), context }
    }
}

/// Some of the rows of a view, for as long as the view's own memory lives.
pub(crate) fn row_range(view: ArrayView2<'_, f32>, range: Range<usize>) -> ArrayView2<'_, f32> {
    view.split_at(Axis(0), range.end).0.split_at(Axis(0), range.start).1
}

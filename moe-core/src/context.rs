//! What a gate and a router may know of a batch besides its numbers.

use std::ops::Range;

use ndarray::{ArrayView2, Axis};

use crate::{Assignments, Error, Result, RouteScratch};

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
    /// Identity of each sequence in what a router draws, `[sequences]`; empty means that all are 0, so that equal positions of
    /// two sequences draw alike. The place of a sequence in the batch is no identity: it would let the others change a token.
    pub sequence_ids: &'a [u64],
    /// Seed of each sequence, `[sequences]`, where they have seeds of their own; empty means [`seed`](Self::seed) for all.
    pub seeds: &'a [u64],
    /// Position of each token in its sequence; empty means 0, 1, 2, … from the start of each.
    pub positions: &'a [usize],
    /// Vocabulary id of each token, where the caller knows it.
    pub token_ids: Option<&'a [u32]>,
    /// `true` where a token is padding: it is not routed and counts nowhere, whatever its logits are.
    pub padding: Option<&'a [bool]>,
    /// Random numbers for routers that draw, `[T, N]`: used in place of draws from the seed. The router says which distribution
    /// they have and how many columns it takes (mostly E).
    pub noise: Option<TokenRows<'a>>,
    /// The output of a second gate that scales the noise of the first, `[T, E]` (Shazeer et al., 1701.06538).
    pub noise_logits: Option<TokenRows<'a>>,
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

    /// The same, with identities of the sequences for what is drawn.
    pub fn with_sequence_ids(self, ids: &'a [u64]) -> Self {
        Self { sequence_ids: ids, ..self }
    }

    /// The same, with a seed for each sequence.
    pub fn with_seeds(self, seeds: &'a [u64]) -> Self {
        Self { seeds, ..self }
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

    /// The same, with random numbers in place of draws from the seed.
    pub fn with_noise(self, noise: TokenRows<'a>) -> Self {
        Self { noise: Some(noise), ..self }
    }

    /// The same, with logits that scale the noise.
    pub fn with_noise_logits(self, logits: TokenRows<'a>) -> Self {
        Self { noise_logits: Some(logits), ..self }
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

    /// The seed that random numbers of token `t` are drawn with.
    pub fn seed_of(&self, t: usize) -> u64 {
        self.seeds.get(self.sequence_of(t)).copied().unwrap_or(self.seed)
    }

    /// The place in the batch of the sequence that token `t` is of.
    fn sequence_of(&self, t: usize) -> usize {
        self.offsets.partition_point(|&start| start <= t).saturating_sub(1)
    }

    /// The layer, sequence identity and position of token `t`: where its random numbers are drawn for
    /// ([`numerics::uniform`](crate::numerics::uniform)).
    pub fn place(&self, t: usize) -> [u64; 3] {
        let s = self.sequence_of(t);
        let start = self.offsets.get(s).copied().unwrap_or(0);
        let position = self.positions.get(t).copied().unwrap_or(t - start);
        [self.layer as u64, self.sequence_ids.get(s).copied().unwrap_or(0), position as u64]
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
        for (what, list) in [("sequence identities", self.sequence_ids), ("seeds", self.seeds)] {
            if !list.is_empty() && list.len() != self.sequences() {
                let (expected, found) = (self.sequences(), list.len());
                return Err(Error::Length { what, expected, found });
            }
        }
        for (what, rows) in [("noise", self.noise), ("noise logits", self.noise_logits)] {
            if let Some(rows) = rows {
                length(what, rows.tokens())?;
            }
        }
        Ok(())
    }

    /// Checks that the lists fit a batch of `tokens` over `experts`, the noise logits too.
    pub(crate) fn check_for(&self, tokens: usize, experts: usize) -> Result<()> {
        self.check(tokens)?;
        match self.noise_logits {
            Some(rows) => {
                Error::check_shape("noise logits", &[tokens, experts], &[rows.tokens(), rows.columns()])
            }
            None => Ok(()),
        }
    }

    /// The context of one stretch of the tokens as a sequence of its own.
    pub(crate) fn slice(&self, range: &Range<usize>) -> Self {
        let of_sequence = |list: &'a [u64]| {
            // An empty stretch at the end of the batch belongs to the last sequence.
            let s = self.sequence_of(range.start).min(list.len().saturating_sub(1));
            list.get(s..s + 1).unwrap_or(&[])
        };
        Self {
            offsets: &[],
            sequence_ids: of_sequence(self.sequence_ids),
            seeds: of_sequence(self.seeds),
            positions: self.positions.get(range.clone()).unwrap_or(&[]),
            token_ids: self.token_ids.map(|ids| &ids[range.clone()]),
            padding: self.padding.map(|mask| &mask[range.clone()]),
            noise: self.noise.map(|rows| rows.slice(range)),
            noise_logits: self.noise_logits.map(|rows| rows.slice(range)),
            ..*self
        }
    }
}

/// Numbers that belong to the tokens of a batch, `[T, N]` in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct TokenRows<'a> {
    values: &'a [f32],
    columns: usize,
}

impl<'a> TokenRows<'a> {
    /// `columns` numbers a token.
    ///
    /// # Errors
    ///
    /// If there is no column, or the numbers do not fill whole rows.
    pub fn new(values: &'a [f32], columns: usize) -> Result<Self> {
        if columns == 0 || !values.len().is_multiple_of(columns) {
            return Err(Error::Router {
                setting: "numbers of the tokens",
                expected: format!("whole rows of {columns}"),
                found: format!("{} numbers", values.len()),
            });
        }
        Ok(Self { values, columns })
    }

    /// Number of tokens, T.
    pub fn tokens(&self) -> usize {
        self.values.len() / self.columns
    }

    /// Numbers a token, N.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The numbers of token `t`.
    ///
    /// # Panics
    ///
    /// If there is no such token.
    #[track_caller]
    pub fn row(&self, t: usize) -> &'a [f32] {
        &self.values[t * self.columns..][..self.columns]
    }

    fn slice(&self, range: &Range<usize>) -> Self {
        Self { values: &self.values[range.start * self.columns..range.end * self.columns], ..*self }
    }
}

/// Everything a router may look at.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RouteInput<'a> {
    /// The gate's output, `[T, E]`.
    pub logits: ArrayView2<'a, f32>,
    /// Sequences, positions, ids, padding, seed, noise.
    pub context: TokenContext<'a>,
}

impl<'a> RouteInput<'a> {
    /// Logits `[T, E]` with their context.
    ///
    /// # Errors
    ///
    /// If the context does not fit T tokens, or its noise logits E experts, whether or not the router looks at them.
    pub fn new(logits: ArrayView2<'a, f32>, context: TokenContext<'a>) -> Result<Self> {
        context.check_for(logits.nrows(), logits.ncols())?;
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

    /// The tokens that are routed, ascending: those that are not padding.
    pub fn present(&self) -> impl Iterator<Item = usize> + Clone + use<'a> {
        let context = self.context;
        (0..self.tokens()).filter(move |&t| !context.is_padding(t))
    }

    /// Whether expert `e` is masked for token `t`, by a logit of negative infinity.
    ///
    /// # Panics
    ///
    /// If there is no such token or expert.
    #[track_caller]
    pub fn is_masked(&self, t: usize, e: usize) -> bool {
        self.logits[[t, e]] == f32::NEG_INFINITY
    }

    /// The token ranges of the sequences, in order.
    pub fn sequences(&self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let (context, tokens) = (self.context, self.tokens());
        (0..context.sequences()).map(move |s| context.sequence(s, tokens))
    }

    /// Routes each sequence on its own, in order, with the memory that [`Assignments::with_scratch`] lends.
    ///
    /// `route` is given the sequence as an input whose first token is 0, and pushes it as such.
    ///
    /// # Errors
    ///
    /// The first that `route` reports.
    pub fn each_sequence(
        &self,
        out: &mut Assignments,
        mut route: impl FnMut(&Self, &mut RouteScratch, &mut Assignments) -> Result<()>,
    ) -> Result<()> {
        out.with_scratch(|out, scratch| {
            self.sequences().try_for_each(|range| {
                out.with_first_token(range.start, |out| route(&self.slice(range), scratch, out))
            })
        })
    }

    /// The input restricted to one stretch of tokens, as one sequence whose first token is 0.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let context = self.context.slice(&range);
        Self { logits: row_range(self.logits, range), context }
    }
}

/// Some of the rows of a view, for as long as the view's own memory lives.
pub(crate) fn row_range(view: ArrayView2<'_, f32>, range: Range<usize>) -> ArrayView2<'_, f32> {
    let rows = view.split_at(Axis(0), range.end).0.split_at(Axis(0), range.start).1;
    // Strides of the whole on no rows: ndarray's debug assertions refuse to copy such a view.
    ArrayView2::from_shape((0, rows.ncols()), &[]).ok().filter(|_| rows.nrows() == 0).unwrap_or(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_draws_for_the_same_places() {
        let positions = [4, 5, 0, 1, 2];
        let noise = [0.0, 1.0, 2.0, 3.0, 4.0];
        let whole = TokenContext::new()
            .with_sequences(&[0, 2, 2, 5])
            .with_sequence_ids(&[70, 80, 90])
            .with_seeds(&[7, 8, 9])
            .with_positions(&positions)
            .with_noise(TokenRows::new(&noise, 1).unwrap())
            .with_noise_logits(TokenRows::new(&noise, 1).unwrap())
            .at_layer(3);
        whole.check(5).unwrap();
        assert_eq!(whole.place(1), [3, 70, 5]);
        assert_eq!(whole.place(2), [3, 90, 0]);
        let slice = whole.slice(&(3..5));
        slice.check(2).unwrap();
        assert_eq!(slice.place(1), whole.place(4));
        assert_eq!([whole.seed_of(1), whole.seed_of(2), slice.seed_of(0), slice.seed_of(1)], [7, 9, 9, 9]);
        assert_eq!(slice.noise.unwrap().row(1), [4.0]);
        assert_eq!(slice.noise_logits.unwrap().row(1), [4.0]);
        let last = whole.slice(&(2..5));
        assert_eq!(last.place(0), whole.place(2));
        // No tokens at the end of the batch are of its last sequence.
        let none = whole.slice(&(5..5));
        none.check(0).unwrap();
        assert_eq!(none.sequence_ids, [90]);
        let defaults = TokenContext::new().with_sequences(&[0, 2, 5]);
        assert_eq!(
            [defaults.place(1), defaults.place(2), defaults.place(4)],
            [[0, 0, 1], [0, 0, 0], [0, 0, 2]]
        );
        assert_eq!([defaults.seed_of(1), defaults.with_seed(4).seed_of(3)], [0, 4]);
        assert!(whole.with_sequence_ids(&[1]).check(5).is_err());
        assert!(whole.with_seeds(&[1]).check(5).is_err());
        assert!(whole.with_noise(TokenRows::new(&noise[..3], 1).unwrap()).check(5).is_err());
        assert!(TokenRows::new(&noise, 2).is_err());
        assert!(TokenRows::new(&[], 0).is_err());
    }

    #[test]
    fn sequences_push_from_their_own_first_token() {
        let logits = ndarray::Array2::from_shape_fn((5, 2), |(t, e)| (2 * t + e) as f32);
        let context = TokenContext::new().with_sequences(&[0, 2, 2, 5]).with_positions(&[7, 8, 0, 1, 2]);
        let input = RouteInput::new(logits.view(), context).unwrap();
        let mut out = Assignments::new();
        out.reset(5, 2).unwrap();
        let mut seen = vec![];
        let route = |input: &RouteInput<'_>, scratch: &mut RouteScratch, out: &mut Assignments| {
            scratch.keys.push(seen.len() as u64);
            seen.push((input.logits.to_owned(), input.context.positions.to_vec(), scratch.keys.len()));
            (0..input.tokens()).for_each(|t| out.assign(t, t % 2, 1.0));
            if seen.len() == 4 { Err(Error::TooLarge { what: "calls", found: 4 }) } else { Ok(()) }
        };
        let mut route = route;
        input.each_sequence(&mut out, &mut route).unwrap();
        let pushed: Vec<_> = out.granted().iter().map(|a| (a.token, a.expert)).collect();
        assert_eq!(pushed, [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]);
        // An error ends it, and the first token is again that of the batch.
        out.reset(5, 2).unwrap();
        assert!(input.each_sequence(&mut out, &mut route).is_err());
        out.assign(0, 1, 1.0);
        assert_eq!(out.granted().last().map(|a| a.token), Some(0));
        assert_eq!(seen.len(), 4);
        assert_eq!(seen[2].0, row_range(logits.view(), 2..5));
        assert_eq!(seen.iter().map(|s| s.2).collect::<Vec<_>>(), [1, 2, 3, 4], "one scratch for all");
        assert_eq!([&seen[0].1[..], &seen[1].1, &seen[2].1], [&[7, 8][..], &[], &[0, 1, 2]]);
    }
}

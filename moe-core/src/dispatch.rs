//! A batch on its way to the experts: which token each row is, grouped by expert.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, Zip};

use crate::{ApplyWeights, Error, Experts, Result, RoutingPlan};

/// What a bank of experts works on: hidden states `[T, D]`, and for each of R rows the token it is. Expert e has the rows
/// [`rows_of(e)`](Self::rows_of).
///
/// No row is copied: a bank reads the hidden states by index, in whatever order and form suits it.
#[derive(Clone, Copy, Debug)]
pub struct Dispatch<'a> {
    layer: usize,
    hidden: ArrayView2<'a, f32>,
    /// `[R]`, each below T.
    row_tokens: &'a [u32],
    /// Boundaries of the groups, ascending, `[E + 1]`; row 0 of the dispatch is the first of them.
    offsets: &'a [usize],
    /// `[R]`, where weights multiply the experts' input.
    input_weights: Option<&'a [f32]>,
}

impl<'a> Dispatch<'a> {
    /// The rows of a sealed plan over hidden states `[T, D]`, for the `layer`-th layer of a model. Weights come along where
    /// they multiply the input.
    ///
    /// # Panics
    ///
    /// If there is not one hidden state for each of the plan's tokens.
    #[track_caller]
    pub fn of(
        plan: &'a RoutingPlan,
        hidden: ArrayView2<'a, f32>,
        apply_weights: ApplyWeights,
        layer: usize,
    ) -> Self {
        assert_eq!(hidden.nrows(), plan.tokens(), "one hidden state a token");
        let input_weights = match apply_weights {
            ApplyWeights::Output => None,
            ApplyWeights::Input => Some(plan.row_weights()),
        };
        Self { layer, hidden, row_tokens: plan.row_tokens(), offsets: plan.expert_offsets(), input_weights }
    }

    /// Rows of hidden states `[T, D]` for whoever has no plan: row r is token `row_tokens[r]`, and expert e has the rows
    /// `offsets[e]..offsets[e + 1]`. The layer is 0.
    ///
    /// # Errors
    ///
    /// [`Error::Dispatch`] if the offsets, `[E + 1]`, do not run from 0 to R without a step back, or a token is not below T.
    pub fn new(hidden: ArrayView2<'a, f32>, row_tokens: &'a [u32], offsets: &'a [usize]) -> Result<Self> {
        let rows = row_tokens.len();
        if offsets.first() != Some(&0) || offsets.last() != Some(&rows) || !offsets.is_sorted() {
            return Err(Error::Dispatch {
                what: "boundaries of the groups",
                expected: format!("an ascending list from 0 to {rows}"),
                found: format!("{offsets:?}"),
            });
        }
        let tokens = hidden.nrows();
        if let Some(token) = row_tokens.iter().find(|&&token| token as usize >= tokens) {
            return Err(Error::Dispatch {
                what: "tokens of the rows",
                expected: format!("tokens below {tokens}"),
                found: token.to_string(),
            });
        }
        Ok(Self { layer: 0, hidden, row_tokens, offsets, input_weights: None })
    }

    /// The same, with a weight for each row that multiplies the expert's input.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if there is not one for each row.
    pub fn with_input_weights(self, weights: &'a [f32]) -> Result<Self> {
        if weights.len() != self.rows() {
            let (expected, found) = (self.rows(), weights.len());
            return Err(Error::Length { what: "input weights", expected, found });
        }
        Ok(Self { input_weights: Some(weights), ..self })
    }

    /// The same, for another layer.
    pub fn at_layer(self, layer: usize) -> Self {
        Self { layer, ..self }
    }

    /// `Ok` where the dispatch fits the bank, and `out`, `[R, D]`, the dispatch.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`].
    pub fn check(&self, bank: &impl Experts, out: &ArrayViewMut2<'_, f32>) -> Result<()> {
        Error::check_shape("dispatch", &[bank.experts(), bank.dim()], &[self.experts(), self.dim()])?;
        Error::check_shape("expert output", &[self.rows(), self.dim()], out.shape())
    }

    /// Index of the layer in its model; 0 for a layer alone.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The hidden states of the batch, `[T, D]`, of all its tokens in their order.
    pub fn hidden(&self) -> ArrayView2<'a, f32> {
        self.hidden
    }

    /// Width of a row, D.
    pub fn dim(&self) -> usize {
        self.hidden.ncols()
    }

    /// Number of rows, R.
    pub fn rows(&self) -> usize {
        self.row_tokens.len()
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// The rows of expert `e`. Those of all experts follow each other from 0 to R.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    #[track_caller]
    pub fn rows_of(&self, e: usize) -> Range<usize> {
        self.offsets[e] - self.offsets[0]..self.offsets[e + 1] - self.offsets[0]
    }

    /// The token of each row, `[R]`, each below T.
    pub fn row_tokens(&self) -> &'a [u32] {
        self.row_tokens
    }

    /// What each row's hidden state is multiplied by before the expert sees it, `[R]`; mostly nothing.
    pub fn input_weights(&self) -> Option<&'a [f32]> {
        self.input_weights
    }

    /// The hidden state that row `r` is, before any [weight](Self::input_weights).
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[inline]
    #[track_caller]
    pub fn row(&self, r: usize) -> ArrayView1<'a, f32> {
        self.hidden.index_axis_move(Axis(0), self.row_tokens[r] as usize)
    }

    /// Copies what the expert of row `r` sees: the hidden state, times its weight where there is one.
    ///
    /// # Panics
    ///
    /// If there is no such row, or `to` is not D wide.
    #[track_caller]
    pub fn copy_row(&self, r: usize, mut to: ArrayViewMut1<'_, f32>) {
        let row = self.row(r);
        match self.input_weights {
            None => to.assign(&row),
            Some(weights) => Zip::from(&mut to).and(&row).for_each(|to, &from| *to = weights[r] * from),
        }
    }

    /// Copies the rows of `range` into `to`, `[N, D]`, for banks that want them side by side.
    ///
    /// # Panics
    ///
    /// If there are no such rows, or the shape does not fit.
    #[track_caller]
    pub fn gather(&self, range: Range<usize>, mut to: ArrayViewMut2<'_, f32>) {
        assert_eq!(to.dim(), (range.len(), self.dim()), "one row for each of the range");
        range.zip(to.rows_mut()).for_each(|(r, to)| self.copy_row(r, to));
    }

    /// The dispatch to some of the experts, which are counted from 0, and so are their rows: of those here they are
    /// `rows_of(experts.start).start..rows_of(experts.end - 1).end`.
    ///
    /// # Panics
    ///
    /// If there are no such experts.
    #[track_caller]
    pub fn of_experts(self, experts: Range<usize>) -> Self {
        let offsets = &self.offsets[experts.start..=experts.end];
        let rows = offsets[0] - self.offsets[0]..offsets[experts.len()] - self.offsets[0];
        Self {
            row_tokens: &self.row_tokens[rows.clone()],
            offsets,
            input_weights: self.input_weights.map(|weights| &weights[rows]),
            ..self
        }
    }
}

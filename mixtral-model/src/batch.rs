//! What a forward pass works on: a step of each session, and the tokens of all as one batch of rows.

use std::ops::Range;

use moe_core::TokenContext;
use moe_core::memory::{held, reserve};
use ndarray::ArrayViewMut2;

use crate::rope::Rope;
use crate::{LayerRouters, Result, Session};

/// What the batch is in errors.
const WHAT: &str = "tokens of a forward pass";

/// Most tokens of a pass that reads a text, unless something else is asked for. It changes no result.
pub const DEFAULT_CHUNK: usize = 512;

/// Which of a step's tokens are to have their logits computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// None: the tokens are read only.
    None,
    /// The last: what the next token is drawn from.
    #[default]
    Last,
    /// Every one.
    All,
}

impl Wanted {
    /// The places among `tokens` tokens.
    fn range(self, tokens: usize) -> Range<usize> {
        match self {
            Self::None => tokens..tokens,
            Self::Last => tokens - 1..tokens,
            Self::All => 0..tokens,
        }
    }
}

/// One session's part of a forward pass.
#[derive(Debug)]
#[non_exhaustive]
pub struct Step<'a> {
    /// The session, which takes the tokens up if the pass succeeds.
    pub session: &'a mut Session,
    /// The tokens that follow what it holds, at least one.
    pub tokens: &'a [u32],
    /// Which logits to compute.
    pub wanted: Wanted,
    /// Routers in the place of the model's own.
    pub routers: Option<&'a LayerRouters>,
}

impl<'a> Step<'a> {
    /// These tokens after what the session holds; the logits of the last are wanted.
    pub fn new(session: &'a mut Session, tokens: &'a [u32]) -> Self {
        Self { session, tokens, wanted: Wanted::Last, routers: None }
    }

    /// The same, with other logits wanted.
    pub fn wanted(self, wanted: Wanted) -> Self {
        Self { wanted, ..self }
    }

    /// The same, routed by other routers.
    ///
    /// All steps of a pass in which one has routers of its own are routed each by itself. With routers that are not of token locality, what comes of a
    /// text depends on how it is cut into steps.
    pub fn with_routers(self, routers: &'a LayerRouters) -> Self {
        Self { routers: Some(routers), ..self }
    }
}

/// The rows of a pass: all tokens of its steps, one step after the other, until it [narrows](Self::narrow) to those whose
/// logits are wanted.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    ids: Vec<u32>,
    positions: Vec<usize>,
    /// Where the rows of each step begin, and the last ones end.
    offsets: Vec<usize>,
    /// What routers know the session of each step by.
    sequence_ids: Vec<u64>,
    /// Seeds of what they draw for it.
    seeds: Vec<u64>,
    /// `(cos, sin)`, `[rows, head_dim / 2]`.
    angles: Vec<(f32, f32)>,
    /// Places of the wanted rows among all tokens, ascending.
    wanted: Vec<usize>,
    narrow: bool,
}

impl Batch {
    /// No steps.
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.offsets.clear();
        self.offsets.push(0);
        self.sequence_ids.clear();
        self.seeds.clear();
        self.wanted.clear();
        self.narrow = false;
    }

    /// Appends the tokens of a step.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory); the batch is then of no use.
    pub(crate) fn push(&mut self, step: &Step<'_>) -> Result<()> {
        let (tokens, position) = (step.tokens.len(), step.session.position());
        let wanted = step.wanted.range(tokens);
        reserve(&mut self.ids, tokens, WHAT)?;
        reserve(&mut self.positions, tokens, WHAT)?;
        reserve(&mut self.offsets, 1, WHAT)?;
        reserve(&mut self.sequence_ids, 1, WHAT)?;
        reserve(&mut self.seeds, 1, WHAT)?;
        reserve(&mut self.wanted, wanted.len(), WHAT)?;
        self.wanted.extend(wanted.map(|t| self.ids.len() + t));
        self.ids.extend_from_slice(step.tokens);
        self.positions.extend(position..position + tokens);
        self.offsets.push(self.ids.len());
        self.sequence_ids.push(step.session.sequence_id());
        self.seeds.push(step.session.seed());
        Ok(())
    }

    /// Bytes of memory that it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        let Self { ids, positions, offsets, sequence_ids, seeds, angles, wanted, .. } = self;
        let places = [positions, offsets, wanted].map(held).iter().sum::<usize>();
        held(ids) + places + held(sequence_ids) + held(seeds) + held(angles)
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Number of rows whose logits are wanted.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted.len()
    }

    /// Vocabulary id of each row.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The rows of step `n`, which are consecutive positions of its session, and the first of these.
    pub(crate) fn step(&self, n: usize) -> (Range<usize>, usize) {
        let rows = self.offsets[n]..self.offsets[n + 1];
        let first = self.positions.get(rows.start).copied().unwrap_or_default();
        (rows, first)
    }

    /// What routers may know of the rows.
    pub(crate) fn context(&self) -> TokenContext<'_> {
        let Self { ids, positions, offsets, sequence_ids, seeds, .. } = self;
        TokenContext::new()
            .with_sequences(offsets)
            .with_sequence_ids(sequence_ids)
            .with_seeds(seeds)
            .with_positions(positions)
            .with_token_ids(ids)
    }

    /// The angles that queries and keys of the rows are turned by.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(crate) fn fill_angles(&mut self, rope: &Rope) -> Result<()> {
        rope.fill(&self.positions, &mut self.angles)
    }

    /// The same, after [`fill_angles`](Self::fill_angles).
    pub(crate) fn angles(&self) -> &[(f32, f32)] {
        &self.angles
    }

    /// The place of a row among all tokens.
    pub(crate) fn token(&self, row: usize) -> usize {
        if self.narrow { self.wanted[row] } else { row }
    }

    /// Leaves only the wanted rows; changes nothing the second time.
    pub(crate) fn narrow(&mut self) {
        if std::mem::replace(&mut self.narrow, true) {
            return;
        }
        let Self { ids, positions, offsets, angles, wanted, .. } = self;
        let half = angles.len() / ids.len().max(1);
        keep(ids, wanted, 1);
        keep(positions, wanted, 1);
        keep(angles, wanted, half);
        ids.truncate(wanted.len());
        positions.truncate(wanted.len());
        angles.truncate(wanted.len() * half);
        for offset in offsets {
            *offset = wanted.partition_point(|row| row < offset);
        }
    }

    /// The wanted rows of a matrix that has a row for every token, moved to its front; or all of one that has only those.
    pub(crate) fn wanted_of<'m>(&self, matrix: ArrayViewMut2<'m, f32>) -> ArrayViewMut2<'m, f32> {
        let (rows, columns) = (self.wanted.len(), matrix.ncols());
        if matrix.nrows() == rows {
            return matrix;
        }
        let values = matrix.into_slice().expect("matrices of the workspace are contiguous");
        keep(values, &self.wanted, columns);
        ArrayViewMut2::from_shape((rows, columns), &mut values[..rows * columns])
            .expect("as long as its shape says")
    }
}

/// Moves some rows, ascending, to the front.
fn keep<V: Copy>(values: &mut [V], rows: &[usize], columns: usize) {
    for (to, &from) in rows.iter().enumerate() {
        if from > to {
            values.copy_within(from * columns..(from + 1) * columns, to * columns);
        }
    }
}

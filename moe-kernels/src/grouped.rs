//! One parallel pass of products over (group of rows, panel of columns), and the layout it writes.

use std::marker::PhantomData;
use std::ops::Range;

use moe_core::numerics::LANES;
use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::element::{Element, Halves, Pairs, with_element};
use crate::pack::{Content, PackedRows, grow};
use crate::product::{PANEL, PANEL_CHUNKS, ROW_BLOCK, panel, panels_of};
use crate::schedule::{for_each_piece, worth_threads};
use crate::simd::{Chunk, Kernel, Simd, floats, floats_mut};
use crate::{Backend, WeightFormat, WeightMatrix};

/// The rows of one expert that has any.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) expert: usize,
    pub(crate) rows: Range<usize>,
}

/// What a task computes from its rows.
#[derive(Clone, Copy)]
pub(crate) enum Product<'a> {
    /// `x · Wᵀ`
    Plain(&'a WeightMatrix),
    /// `silu(x · W1ᵀ) ⊙ (x · W3ᵀ)`
    Activated(&'a WeightMatrix, &'a WeightMatrix),
}

impl Product<'_> {
    fn weight(&self) -> &WeightMatrix {
        match self {
            Self::Plain(w) | Self::Activated(w, _) => w,
        }
    }
}

/// Computes every group's product with its expert's weights, which all have `columns` rows, into `memory`, which grows if
/// it must. Groups are in row order and cover all rows.
///
/// Tasks are (group, panel), in the order of memory. Each sweeps all of its group's rows over one panel of weights.
pub(crate) fn products<'m, 'w>(
    backend: Backend,
    x: PackedRows<'_>,
    groups: &'m [Group],
    columns: usize,
    product: impl Fn(usize) -> Product<'w> + Sync,
    memory: &'m mut Vec<Chunk>,
) -> PanelMajor<'m> {
    let panels = panels_of(columns);
    let rows = groups.last().map_or(0, |g| g.rows.end);
    let total = rows * panels * PANEL_CHUNKS;
    grow(memory, total);
    let start = |task: usize| match groups.get(task / panels.max(1)) {
        Some(g) => (g.rows.start * panels + (task % panels) * g.rows.len()) * PANEL_CHUNKS,
        None => total,
    };
    let cost = rows.saturating_mul(columns).saturating_mul(x.columns());
    for_each_piece(0..groups.len() * panels, &mut memory[..total], &start, cost, &|task, out| {
        let group = &groups[task / panels];
        panel_of_group(backend, x, &group.rows, product(group.expert), task % panels, out);
    });
    PanelMajor { memory: &memory[..total], groups, panels, columns }
}

/// One panel of a product for all rows of a group.
fn panel_of_group(
    backend: Backend,
    x: PackedRows<'_>,
    rows: &Range<usize>,
    product: Product<'_>,
    p: usize,
    out: &mut [Chunk],
) {
    for (block, out) in out.chunks_mut(ROW_BLOCK * PANEL_CHUNKS).enumerate() {
        let first = rows.start + block * ROW_BLOCK;
        let rows = first..(first + ROW_BLOCK).min(rows.end);
        Panel { x, rows: rows.clone(), weight: product.weight(), p, out }.run_on(backend);
        if let Product::Activated(_, w3) = product {
            let mut factor = [Chunk::ZERO; ROW_BLOCK * PANEL_CHUNKS];
            let factor = &mut factor[..out.len()];
            Panel { x, rows, weight: w3, p, out: factor }.run_on(backend);
            backend.run(Activate { h: out, factor });
        }
    }
}

/// One panel of `x · Wᵀ` for a block of rows.
struct Panel<'a> {
    x: PackedRows<'a>,
    rows: Range<usize>,
    weight: &'a WeightMatrix,
    p: usize,
    out: &'a mut [Chunk],
}

impl Panel<'_> {
    fn run_on(self, backend: Backend) {
        match self.x.layout().content {
            Content::Plain => backend.run(self),
            Content::Pairs => backend.run_pairs(Bf16Panel::<Pairs>(self, PhantomData)),
            Content::Halves => backend.run(Bf16Panel::<Halves>(self, PhantomData)),
        }
    }
}

impl Kernel for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, rows, weight, p, out } = self;
        match weight.format() {
            WeightFormat::Plain(dtype) => {
                with_element!(dtype, E => panel::<S, E>(s, x, rows, weight, p, floats_mut(out)));
            }
        }
    }
}

/// The same with activations rounded to bfloat16, for which weights are bfloat16 too.
struct Bf16Panel<'a, E>(Panel<'a>, PhantomData<E>);

impl<E: Element> Kernel for Bf16Panel<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Panel { x, rows, weight, p, out } = self.0;
        panel::<S, E>(s, x, rows, weight, p, floats_mut(out));
    }
}

/// `h = silu(h) ⊙ factor`.
struct Activate<'a> {
    h: &'a mut [Chunk],
    factor: &'a [Chunk],
}

impl Kernel for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (h, u) in self.h.iter_mut().zip(self.factor) {
            s.store(s.mul(s.silu(s.load(h)), s.load(u)), h);
        }
    }
}

/// Rows `[R, columns]`: for each group its panels one after the other, in each panel row by row. What lies beyond the last
/// column is unspecified.
#[derive(Clone, Copy)]
pub(crate) struct PanelMajor<'a> {
    memory: &'a [Chunk],
    groups: &'a [Group],
    panels: usize,
    columns: usize,
}

impl PanelMajor<'_> {
    /// The floats of row `m` in panel `p`, a whole panel of them.
    #[inline]
    fn piece(&self, group: &Group, m: usize, p: usize) -> &[f32] {
        let at = group.rows.start * self.panels + p * group.rows.len() + (m - group.rows.start);
        floats(&self.memory[at * PANEL_CHUNKS..(at + 1) * PANEL_CHUNKS])
    }

    fn group_of(&self, m: usize) -> &Group {
        &self.groups[self.groups.partition_point(|g| g.rows.end <= m)]
    }

    /// Copies chunk `j` of row `m` of `group`, with zeros beyond the last column.
    #[inline(always)]
    pub(crate) fn copy_chunk(&self, group: &Group, m: usize, j: usize, to: &mut [f32; LANES]) {
        let at =
            group.rows.start * self.panels + j / PANEL_CHUNKS * group.rows.len() + (m - group.rows.start);
        *to = self.memory[at * PANEL_CHUNKS + j % PANEL_CHUNKS].0;
        let columns = self.columns - j * LANES;
        if columns < LANES {
            to[columns..].fill(0.0);
        }
    }

    /// Copies row `m`.
    fn copy_row(&self, m: usize, to: &mut [f32]) {
        let group = self.group_of(m);
        for (p, to) in to.chunks_mut(PANEL).enumerate() {
            to.copy_from_slice(&self.piece(group, m, p)[..to.len()]);
        }
    }

    /// Copies all rows into a matrix `[R, columns]`.
    pub(crate) fn copy_to(&self, mut out: ArrayViewMut2<'_, f32>) {
        let parallel = worth_threads(out.len());
        match out.as_slice_mut() {
            Some(out) if parallel => {
                out.par_chunks_mut(self.columns).enumerate().for_each(|(m, to)| self.copy_row(m, to));
            }
            Some(out) => {
                out.chunks_mut(self.columns.max(1)).enumerate().for_each(|(m, to)| self.copy_row(m, to));
            }
            None => {
                for (m, mut row) in out.axis_iter_mut(Axis(0)).enumerate() {
                    let group = self.group_of(m);
                    row.iter_mut()
                        .enumerate()
                        .for_each(|(c, to)| *to = self.piece(group, m, c / PANEL)[c % PANEL]);
                }
            }
        }
    }
}

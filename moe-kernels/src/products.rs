//! One parallel pass of products over (job, panel of weight rows), and the layout it writes.

use std::ops::Range;

use moe_core::numerics::LANES;
use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::chunk::{Chunk, floats, grow};
use crate::kind::Kind;
use crate::packed::{PackedSet, RowSource};
use crate::schedule::{for_each_piece, worth_threads};
use crate::simd::{Kernel, Simd};
use crate::{Backend, Result, WeightView};

/// Weight rows, and so output columns, of a panel: the unit of parallel work. A multiple of what every tile has.
pub(crate) const PANEL: usize = 48;
/// Chunks of one row of a panel's output.
pub(crate) const PANEL_CHUNKS: usize = PANEL / LANES;
/// Rows of x that one sweep over a panel's weights serves. A multiple of every tile's rows.
pub(crate) const ROW_BLOCK: usize = 128;

/// Some packed rows times one matrix, or times two.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Its expert, or its map.
    pub(crate) index: usize,
    pub(crate) rows: Range<usize>,
    /// Output columns: weight rows.
    columns: usize,
    /// Its first task in the pass, and where its output begins.
    first_task: usize,
    start: usize,
}

impl Job {
    fn panels(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    /// The chunks of row `m` (of all rows) in panel `p`.
    #[inline(always)]
    fn chunks(&self, m: usize, p: usize) -> Range<usize> {
        let at = self.start + (p * self.rows.len() + (m - self.rows.start)) * PANEL_CHUNKS;
        at..at + PANEL_CHUNKS
    }
}

/// Lays out the jobs of a pass, each `(index, rows, columns)`, in the order of memory.
pub(crate) fn lay_out(jobs: &mut Vec<Job>, of: impl Iterator<Item = (usize, Range<usize>, usize)>) {
    jobs.clear();
    let (mut first_task, mut start) = (0, 0);
    for (index, rows, columns) in of {
        let job = Job { index, rows, columns, first_task, start };
        first_task += job.panels();
        start += job.panels() * job.rows.len() * PANEL_CHUNKS;
        jobs.push(job);
    }
}

/// What a job computes from its rows.
#[derive(Clone, Copy)]
pub(crate) enum Product<'a> {
    /// `x · Wᵀ`
    Linear(Kind, WeightView<'a>),
    /// `silu(x · W1ᵀ) ⊙ (x · W3ᵀ)`
    Activated([(Kind, WeightView<'a>); 2]),
}

/// Computes every job's product into `memory`, which grows if it must.
///
/// Tasks are (job, panel), in the order of memory. Each sweeps all of its job's rows over one panel of weights.
///
/// # Errors
///
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub(crate) fn multiply<'m, 'w>(
    backend: Backend,
    x: PackedSet<'_>,
    jobs: &'m [Job],
    inner: usize,
    product: impl Fn(usize) -> Product<'w> + Sync,
    memory: &'m mut Vec<Chunk>,
) -> Result<PanelMajor<'m>> {
    let Some(last) = jobs.last() else { return Ok(PanelMajor { memory: &[], jobs }) };
    let tasks = last.first_task + last.panels();
    let total = last.start + last.panels() * last.rows.len() * PANEL_CHUNKS;
    grow(memory, total, "products")?;
    let job_of = |task: usize| &jobs[jobs.partition_point(|job| job.first_task <= task) - 1];
    let start = |task: usize| {
        if task >= tasks {
            return total;
        }
        let job = job_of(task);
        job.chunks(job.rows.start, task - job.first_task).start
    };
    let cost = jobs.iter().fold(0usize, |cost, job| {
        cost.saturating_add(job.rows.len().saturating_mul(job.columns).saturating_mul(inner))
    });
    for_each_piece(0..tasks, &mut memory[..total], &start, cost, &|task, out| {
        let job = job_of(task);
        multiply_rows(backend, &x, &job.rows, product(job.index), task - job.first_task, out);
    });
    Ok(PanelMajor { memory: &memory[..total], jobs })
}

/// One panel of a product for all rows of a job.
fn multiply_rows(
    backend: Backend,
    x: &PackedSet<'_>,
    rows: &Range<usize>,
    product: Product<'_>,
    p: usize,
    out: &mut [Chunk],
) {
    for (block, out) in out.chunks_mut(ROW_BLOCK * PANEL_CHUNKS).enumerate() {
        let first = rows.start + block * ROW_BLOCK;
        let rows = first..(first + ROW_BLOCK).min(rows.end);
        match product {
            Product::Linear(kind, w) => kind.multiply_panel(x, rows, w, p, out),
            Product::Activated([(kind1, w1), (kind3, w3)]) => {
                kind1.multiply_panel(x, rows.clone(), w1, p, out);
                let mut factor = [Chunk::ZERO; ROW_BLOCK * PANEL_CHUNKS];
                let factor = &mut factor[..out.len()];
                kind3.multiply_panel(x, rows, w3, p, factor);
                backend.run(Activate { h: out, factor });
            }
        }
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

/// The outputs of a pass, `[job][panel][row of the job][column of the panel]`. What lies beyond the last column of a job is
/// unspecified.
#[derive(Clone, Copy)]
pub(crate) struct PanelMajor<'a> {
    memory: &'a [Chunk],
    jobs: &'a [Job],
}

impl PanelMajor<'_> {
    /// Copies the outputs of jobs that follow each other, and have as many columns, into a matrix of their rows.
    pub(crate) fn copy_jobs_to(&self, jobs: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let jobs = &self.jobs[jobs];
        let (columns, first) = (out.ncols().max(1), jobs.first().map_or(0, |job| job.rows.start));
        let copy = |m: usize, to: &mut [f32]| {
            let m = first + m;
            let job = &jobs[jobs.partition_point(|job| job.rows.end <= m)];
            for (p, to) in to.chunks_mut(PANEL).enumerate() {
                to.copy_from_slice(&floats(&self.memory[job.chunks(m, p)])[..to.len()]);
            }
        };
        let parallel = worth_threads(out.len());
        match out.as_slice_mut() {
            Some(out) if parallel => out.par_chunks_mut(columns).enumerate().for_each(|(m, to)| copy(m, to)),
            Some(out) => out.chunks_mut(columns).enumerate().for_each(|(m, to)| copy(m, to)),
            None => {
                for (m, mut row) in out.axis_iter_mut(Axis(0)).enumerate() {
                    let m = first + m;
                    let job = &jobs[jobs.partition_point(|job| job.rows.end <= m)];
                    for (c, to) in row.iter_mut().enumerate() {
                        *to = floats(&self.memory[job.chunks(m, c / PANEL)])[c % PANEL];
                    }
                }
            }
        }
    }
}

impl RowSource for PanelMajor<'_> {
    fn columns(&self) -> usize {
        self.jobs.first().map_or(0, |job| job.columns)
    }

    #[inline(always)]
    fn read_chunk(&self, group: usize, m: usize, j: usize, to: &mut [f32; LANES]) {
        let chunks = self.jobs[group].chunks(m, j / PANEL_CHUNKS);
        *to = self.memory[chunks.start + j % PANEL_CHUNKS].0;
        let columns = self.columns() - j * LANES;
        if columns < LANES {
            to[columns..].fill(0.0);
        }
    }
}

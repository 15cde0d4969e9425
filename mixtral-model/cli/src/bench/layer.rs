//! A layer without a model.

use std::fmt::Write as _;
use std::time::Instant;

use bytes::Bytes;
use mixtral_model::{Compute, available_memory};
use moe_core::numerics::uniform;
use moe_core::{MoeLayer, TokenContext, Workspace, memory};
use moe_kernels::{
    Backend, Linear, SwiGluExperts, SwiGluWeights, WeightFormat, WeightMatrix, enter, narrow_row,
};
use moe_router::TopK;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use serde::Serialize;

use super::limits::{self, Limits};
use super::{Done, Spread, chart, rounds};
use crate::args::{Bench, LayerShape};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;

/// One batch size.
#[derive(Serialize)]
struct Case {
    case: String,
    backend: String,
    dtype: String,
    activations: String,
    tokens: usize,
    /// Experts with tokens, of the last round.
    experts_touched: usize,
    threads: usize,
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    gflops: f64,
    gbytes_per_s: f64,
    share_of_fma_peak: f64,
    share_of_bandwidth: f64,
    /// The limits themselves, of these rounds.
    peak_gflops: f64,
    read_gbytes_per_s: f64,
    /// How exact products of many rows are cut.
    tiles: &'static str,
    /// Whether the user ended the run before all cases were measured.
    interrupted: bool,
}

/// A layer among those that are timed in turn.
struct Contestant {
    shape: LayerShape,
    layer: MoeLayer,
    workspace: Workspace,
    /// Of the rounds of one number of tokens.
    seconds: Vec<f64>,
    bytes: Vec<f64>,
}

pub(super) fn run(args: &Bench, shape: LayerShape, interrupt: &Interrupt) -> Result<Done> {
    let compute = args.running.compute();
    let dtype = args.dtype;
    let kind = Linear::new(WeightMatrix::new(Bytes::new(), dtype, 0, 0)?, compute.backend);
    if kind.with_input_precision(compute.activations).input_precision() != compute.activations {
        let reason = format!("expected weights for {} activations, found {dtype}", compute.activations);
        return Err(Failure::not_as_expected("--dtype", reason));
    }
    let mut widths = vec![shape.dim, shape.hidden];
    if args.dense {
        widths.extend([shape.hidden * shape.chosen, shape.hidden * shape.experts]);
    }
    if let Some(width) = widths.into_iter().find(|width| dtype.row_bytes(*width).is_none()) {
        let reason = format!("expected widths in whole blocks of {dtype}, found {width}");
        return Err(Failure::not_as_expected("--layer", reason));
    }
    require_memory(args, shape, dtype)?;
    let mut shapes = vec![shape];
    if args.dense {
        let dense = |hidden| LayerShape { hidden, experts: 1, chosen: 1, ..shape };
        shapes.extend([dense(shape.hidden * shape.chosen), dense(shape.hidden * shape.experts)]);
    }
    let of = args.tokens.len() * shapes.len();
    let contestants = shapes.into_iter().map(|shape| Contestant::new(shape, compute, dtype, interrupt));
    let mut contestants = match contestants.collect::<Result<Vec<_>>>() {
        Err(Failure::Interrupted) => return Done::new(args, &[] as &[Case], Some(of), String::new),
        made => made?,
    };
    let mut limits = Limits::new(compute.backend, compute.activations)?;
    let mut cases = Vec::new();
    for tokens in args.tokens.iter().map(|n| n.get()) {
        let mut y = matrix(tokens, shape.dim)?;
        let mut x = matrix(tokens, shape.dim)?;
        // The first round makes room, and brings what fits into the caches.
        'rounds: for round in 0..=rounds(args, tokens) {
            fill(&mut x, round as u64);
            for contestant in &mut contestants {
                contestant.turn(x.view(), y.view_mut(), dtype, round > 0)?;
                if interrupt.wished() {
                    break 'rounds;
                }
            }
            if round > 0 {
                limits.measure();
            }
        }
        // What was measured in some rounds at least is kept.
        if contestants.iter().any(|contestant| contestant.seconds.is_empty()) {
            break;
        }
        let limits = limits.take();
        cases.extend(contestants.iter_mut().map(|c| c.case(compute, dtype, tokens, limits)));
        if interrupt.wished() {
            break;
        }
    }
    let interrupted = interrupt.wished().then_some(of);
    cases.iter_mut().for_each(|case| case.interrupted = interrupted.is_some());
    if let Some(path) = args.chart.as_deref().filter(|_| interrupted.is_none()) {
        let times =
            |at: usize| cases.iter().skip(at).step_by(3).map(|c| (c.tokens, c.seconds)).collect::<Vec<_>>();
        let svg = chart::svg(&format!("{shape}, {dtype}"), [times(0), times(1), times(2)]);
        let failed = |source| Failure::Input { name: path.display().to_string(), source };
        std::fs::write(path, svg).map_err(failed)?;
    }
    Done::new(args, &cases, interrupted, || table(compute.backend, &cases))
}

/// Refuses what would not fit, before anything is made.
fn require_memory(args: &Bench, shape: LayerShape, dtype: WeightFormat) -> Result<()> {
    let [dim, hidden, experts, chosen] =
        [shape.dim, shape.hidden, shape.experts, shape.chosen].map(|n| n as u128);
    let most = args.tokens.iter().map(|n| n.get() as u128).max().unwrap_or(0);
    let expert = expert_bytes(shape, dtype) as u128;
    // One is made first, and a matrix of f32 before that.
    let alone = experts * expert + expert + 4 * dim * hidden;
    let dense = if args.dense { 2 * (chosen + experts) * expert + 4 * dim * hidden * experts } else { 0 };
    let rows = most * chosen * 4 * (4 * dim + 2 * hidden.max(dim));
    let needed = alone + dense + rows;
    let available = available_memory().map_or(1 << 40, u128::from);
    if needed > available {
        let found = format!(
            "expected at most {} MB, the memory available, found {} MB",
            available >> 20,
            needed >> 20
        );
        return Err(Failure::not_as_expected("--layer and --tokens", found));
    }
    Ok(())
}

/// Bytes of the weights of an expert.
fn expert_bytes(LayerShape { dim, hidden, .. }: LayerShape, dtype: WeightFormat) -> f64 {
    let row = |columns| dtype.row_bytes(columns).unwrap_or(0) as f64;
    2.0 * hidden as f64 * row(dim) + dim as f64 * row(hidden)
}

impl Contestant {
    fn new(
        shape: LayerShape,
        Compute { backend, activations }: Compute,
        dtype: WeightFormat,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let matrix = |seed, rows, columns| weights(seed, dtype, rows, columns, interrupt);
        let gate = Linear::new(matrix(0, shape.experts, shape.dim)?, backend);
        // Experts have memory of their own each, but alike values, which are quickly made.
        let first = [
            matrix(1, shape.hidden, shape.dim)?,
            matrix(2, shape.dim, shape.hidden)?,
            matrix(3, shape.hidden, shape.dim)?,
        ];
        let copy = |w: &WeightMatrix| -> Result<WeightMatrix> {
            look_up(interrupt)?;
            let mut bytes = Vec::new();
            memory::reserve(&mut bytes, w.bytes().len(), WEIGHTS)?;
            bytes.extend_from_slice(w.bytes());
            Ok(WeightMatrix::new(Bytes::from(bytes), dtype, w.rows(), w.columns())?)
        };
        let bank = (0..shape.experts)
            .map(|_| Ok(SwiGluWeights { w1: copy(&first[0])?, w2: copy(&first[1])?, w3: copy(&first[2])? }))
            .collect::<Result<Vec<_>>>()?;
        let experts = SwiGluExperts::new(bank, backend)?.with_input_precision(activations);
        let layer = MoeLayer::new(Box::new(gate), Box::new(TopK::new(shape.chosen)?), Box::new(experts))?;
        Ok(Self { shape, layer, workspace: Workspace::new(), seconds: vec![], bytes: vec![] })
    }

    /// One forward pass, which counts or does not.
    fn turn(
        &mut self,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        dtype: WeightFormat,
        counts: bool,
    ) -> Result<()> {
        let begun = Instant::now();
        // Once for the pass, as a model does.
        enter(|| self.layer.forward(x, TokenContext::new(), &mut self.workspace, &mut (), y))?;
        let seconds = begun.elapsed().as_secs_f64();
        if counts {
            self.seconds.push(seconds);
            self.bytes.push(self.touched() as f64 * expert_bytes(self.shape, dtype) / seconds);
        }
        Ok(())
    }

    /// Number of experts with tokens in the last pass.
    fn touched(&self) -> usize {
        self.workspace.plan().expert_offsets().windows(2).filter(|w| w[0] < w[1]).count()
    }

    /// What the rounds were, which are forgotten.
    fn case(
        &mut self,
        compute: Compute,
        dtype: WeightFormat,
        tokens: usize,
        (peak, read): (f64, f64),
    ) -> Case {
        let LayerShape { dim, hidden, chosen, .. } = self.shape;
        let (spread, bytes) = (Spread::of(&self.seconds), Spread::of(&self.bytes).median);
        self.seconds.clear();
        self.bytes.clear();
        let flops = product([6, dim, hidden, chosen, tokens]) / spread.median;
        Case {
            case: self.shape.to_string(),
            backend: compute.backend.to_string(),
            dtype: dtype.to_string(),
            activations: compute.activations.to_string(),
            tokens,
            experts_touched: self.touched(),
            threads: rayon::current_num_threads(),
            seconds: spread.median,
            seconds_min: spread.least,
            seconds_max: spread.greatest,
            gflops: flops / 1e9,
            gbytes_per_s: bytes / 1e9,
            share_of_fma_peak: flops / peak,
            share_of_bandwidth: bytes / read,
            peak_gflops: peak / 1e9,
            read_gbytes_per_s: read / 1e9,
            tiles: compute.backend.tiles(),
            interrupted: false,
        }
    }
}

fn table(backend: Backend, cases: &[Case]) -> String {
    let mut text = String::new();
    if let Some(Case { dtype, activations, threads, .. }) = cases.first() {
        let _ = writeln!(text, "{dtype} weights, {activations} activations, {backend}, {threads} threads");
    }
    text += &limits::describe(backend, cases.iter().map(|c| [c.peak_gflops, c.read_gbytes_per_s]));
    let header = "tokens  experts  milliseconds (least to most)     GFLOP/s  of peak     GB/s  of read";
    let _ = writeln!(text, "{:<18} {header}", "layer");
    for c in cases {
        let spread = format!("({:.2} to {:.2})", c.seconds_min * 1e3, c.seconds_max * 1e3);
        let _ = writeln!(
            text,
            "{:<18} {:>6} {:>8} {:>10.2} {spread:<22} {:>7.1} {:>6.0} % {:>8.1} {:>6.0} %",
            c.case,
            c.tokens,
            c.experts_touched,
            c.seconds * 1e3,
            c.gflops,
            c.share_of_fma_peak * 100.0,
            c.gbytes_per_s,
            c.share_of_bandwidth * 100.0,
        );
    }
    text
}

fn product(factors: [usize; 5]) -> f64 {
    factors.iter().map(|&n| n as f64).product()
}

/// An error where the user wishes an end while weights are made.
fn look_up(interrupt: &Interrupt) -> Result<()> {
    if interrupt.wished() { Err(Failure::Interrupted) } else { Ok(()) }
}

/// What memory is for.
const WEIGHTS: &str = "weights of an expert";

/// Pseudo-random weights, so that sums of products stay near 1.
fn weights(
    seed: u64,
    dtype: WeightFormat,
    rows: usize,
    columns: usize,
    interrupt: &Interrupt,
) -> Result<WeightMatrix> {
    /// A prime, so that no two rows are alike soon.
    const PERIOD: usize = 65_521;
    /// Rows of blocks that are made; the others are these again, as making them takes long.
    const ROWS: usize = 64;
    let scale = 2.0 / (columns as f32).sqrt();
    let some: Vec<f32> = (0..PERIOD as u64).map(|i| (uniform(seed, &[i]) - 0.5) * scale).collect();
    let mut values = some.iter().copied().cycle();
    match dtype {
        WeightFormat::Blocks(block) => {
            let stride = block.row_bytes(columns).unwrap_or(0);
            let mut bytes = Vec::new();
            memory::refill(&mut bytes, ROWS * stride, 0, WEIGHTS)?;
            for to in bytes.chunks_exact_mut(stride.max(1)) {
                let row: Vec<f32> = values.by_ref().take(columns).collect();
                block.quantise_row(&row, None, to)?;
            }
            let mut all = Vec::new();
            memory::refill_from(
                &mut all,
                stride * rows,
                bytes.iter().copied().cycle().take(stride * rows),
                WEIGHTS,
            )?;
            Ok(WeightMatrix::new(all.into(), dtype, rows, columns)?)
        }
        WeightFormat::Plain(dtype) => {
            let mut bytes = Vec::new();
            memory::refill(&mut bytes, rows * columns * dtype.bytes(), 0, WEIGHTS)?;
            let mut row = Vec::new();
            for to in bytes.chunks_exact_mut(columns.max(1) * dtype.bytes()) {
                look_up(interrupt)?;
                row.clear();
                row.extend(values.by_ref().take(columns));
                narrow_row(dtype, &row, to);
            }
            Ok(WeightMatrix::new(bytes.into(), dtype, rows, columns)?)
        }
        _ => Err(Failure::not_as_expected("--dtype", format!("expected another type than {dtype}"))),
    }
}

/// Hidden states of so many tokens, or what becomes of them.
fn matrix(tokens: usize, dim: usize) -> Result<Array2<f32>> {
    let mut values = Vec::new();
    memory::refill(&mut values, tokens.saturating_mul(dim), 0.0, "hidden states")?;
    let wrong = |error| Failure::not_as_expected("--tokens", error);
    Array2::from_shape_vec((tokens, dim), values).map_err(wrong)
}

/// Makes hidden states pseudo-random.
fn fill(hidden: &mut Array2<f32>, seed: u64) {
    for ((t, d), value) in hidden.indexed_iter_mut() {
        *value = uniform(seed + 100, &[t as u64, d as u64]) * 2.0 - 1.0;
    }
}

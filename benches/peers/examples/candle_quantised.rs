//! An engine that has GGUF's blocks in hand, here candle, lets `moe-kernels` multiply them where they lie:
//!
//! `cargo run --release --features candle --example candle_quantised`
//!
//! The experts of a small layer, `f(x) = (silu(x · W1ᵀ) ⊙ (x · W3ᵀ)) · W2ᵀ`, are candle's quantised tensors. candle computes
//! them expert by expert, and ours all at once from the same bytes, with exact f32 activations and with int8 ones. All three
//! are compared with f64, then timed in turns.

use std::borrow::Cow;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::Linear;
use moe_core::numerics::uniform;
use moe_core::{Dispatch, Scratch};
use moe_kernels::{Activations, Backend, BlockType, SwiGlu, SwiGluView, WeightView};
use ndarray::{ArrayView2, ArrayViewMut2};
use peers::Result;

/// Width of a hidden state, D.
const DIM: usize = 1024;
/// Hidden width of an expert, H.
const HIDDEN: usize = 3584;
/// E.
const EXPERTS: usize = 8;
/// Of each, the median counts.
const TURNS: usize = 5;

/// What ‖y − ref‖ / ‖ref‖ may be where activations stay in f32, and where they are rounded to int8.
const EXACT: f64 = 1e-5;
const INT8: f64 = 4e-2;

fn main() -> Result<()> {
    println!(
        "D {DIM}, H {HIDDEN}, {EXPERTS} experts, 2 a token; {}; median of {TURNS} turns\n",
        Backend::best()
    );
    println!("| weights | tokens | who | error | ms | time / candle |\n|---|--:|---|--:|--:|--:|");
    for (dtype, block) in [(GgmlDType::Q4K, BlockType::Q4K), (GgmlDType::Q8_0, BlockType::Q8_0)] {
        let experts = (0..EXPERTS).map(|e| Expert::random(dtype, e)).collect::<Result<Vec<_>>>()?;
        let mut exact = Ours::new(&experts, block, Activations::F32)?;
        let mut int8 = Ours::new(&experts, block, Activations::Int8)?;
        for tokens in [1, 32, 512] {
            // As many as reach all experts, so that one token does not always find the same two in the cache.
            let batches = (0..EXPERTS.div_ceil(2 * tokens)).map(|i| Batch::new(tokens, i));
            let batches = batches.collect::<Result<Vec<_>>>()?;
            compare(
                &format!("{block} | {tokens}"),
                &batches,
                &experts,
                [
                    ("candle", INT8, &mut |batch| candle(&experts, batch)),
                    ("ours, exact", EXACT, &mut |batch| exact.forward(batch)),
                    ("ours, int8 activations", INT8, &mut |batch| int8.forward(batch)),
                ],
            )?;
        }
    }
    Ok(())
}

/// An expert in candle's terms, with quantised weights or plain ones.
struct Expert<M> {
    w1: M,
    w2: M,
    w3: M,
}

impl<M: Module> Module for Expert<M> {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        (x.apply(&self.w1)?.silu()? * x.apply(&self.w3)?)?.apply(&self.w2)
    }
}

impl Expert<QMatMul> {
    /// Pseudo-random weights, quantised by candle.
    fn random(dtype: GgmlDType, e: usize) -> Result<Self> {
        let matrix = |m: usize, rows: usize, columns: usize| {
            let scale = 4.0 / (columns as f32).sqrt();
            let value = |i: usize| (uniform((3 * e + m) as u64, &[i as u64]) - 0.5) * scale;
            let values: Vec<f32> = (0..rows * columns).map(value).collect();
            QMatMul::from_qtensor(QTensor::quantize(
                &Tensor::from_vec(values, (rows, columns), &Device::Cpu)?,
                dtype,
            )?)
        };
        Ok(Self { w1: matrix(0, HIDDEN, DIM)?, w2: matrix(1, DIM, HIDDEN)?, w3: matrix(2, HIDDEN, DIM)? })
    }

    /// The matrices in candle's memory.
    fn view(&self, block: BlockType) -> Result<SwiGluView<'_>> {
        let of = |w| -> Result<WeightView<'_>> {
            let w = quantised(w)?;
            let (rows, columns) = w.shape().dims2()?;
            // On a CPU, candle has the very bytes of the file.
            let Cow::Borrowed(bytes) = w.data()? else { return Err("these blocks are a copy".into()) };
            Ok(WeightView::new(bytes, block, rows, columns)?)
        };
        Ok(SwiGluView { w1: of(&self.w1)?, w2: of(&self.w2)?, w3: of(&self.w3)? })
    }

    /// What the blocks stand for, in f64.
    fn dequantised(&self) -> Result<Expert<Linear>> {
        let of = |w| -> Result<Linear> {
            Ok(Linear::new(quantised(w)?.dequantize(&Device::Cpu)?.to_dtype(DType::F64)?, None))
        };
        Ok(Expert { w1: of(&self.w1)?, w2: of(&self.w2)?, w3: of(&self.w3)? })
    }
}

fn quantised(w: &QMatMul) -> Result<&QTensor> {
    match w {
        QMatMul::QTensor(w) => Ok(w),
        _ => Err("candle has dequantised this matrix".into()),
    }
}

/// Hidden states and who works on them, grouped as a router's choices must be for either: row r is token `rows[r]`, and expert
/// e has the rows `offsets[e]..offsets[e + 1]`.
struct Batch {
    /// `[T, D]`, for ours.
    x: Vec<f32>,
    /// The same for candle.
    tensor: Tensor,
    rows: Vec<u32>,
    offsets: Vec<usize>,
}

impl Batch {
    fn new(tokens: usize, variant: usize) -> Result<Self> {
        let chosen = |token: usize| {
            let n = tokens * variant + token;
            [2 * n % EXPERTS, (2 * n + 1 + n / 4 % 7) % EXPERTS]
        };
        let (mut rows, mut offsets) = (Vec::new(), vec![0]);
        for e in 0..EXPERTS {
            rows.extend((0..tokens).filter(|&token| chosen(token).contains(&e)).map(|token| token as u32));
            offsets.push(rows.len());
        }
        let x: Vec<f32> = (0..tokens * DIM).map(|i| uniform(99, &[i as u64]) * 2.0 - 1.0).collect();
        let tensor = Tensor::from_slice(&x, (tokens, DIM), &Device::Cpu)?;
        Ok(Self { x, tensor, rows, offsets })
    }

    /// Hidden states of expert e's tokens, `[N, D]`; none if it has no tokens.
    fn tokens_of(&self, e: usize) -> Result<Option<Tensor>> {
        match &self.rows[self.offsets[e]..self.offsets[e + 1]] {
            [] => Ok(None),
            rows => Ok(Some(self.tensor.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)),
        }
    }
}

/// What `run(e, x)` makes of every expert's rows, one after the other. `[R, D]`.
fn expert_by_expert(batch: &Batch, run: impl Fn(usize, Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let mut outputs = Vec::new();
    for e in 0..EXPERTS {
        if let Some(x) = batch.tokens_of(e)? {
            outputs.push(run(e, x)?);
        }
    }
    Ok(Tensor::cat(&outputs, 0)?)
}

/// candle's way.
fn candle(experts: &[Expert<QMatMul>], batch: &Batch) -> Result<Tensor> {
    expert_by_expert(batch, |e, x| Ok(x.apply(&experts[e])?))
}

/// Our way: the bank says how to compute, the weights lie wherever the engine has them.
struct Ours<'a> {
    bank: SwiGlu,
    weights: Vec<SwiGluView<'a>>,
    scratch: Scratch,
}

impl<'a> Ours<'a> {
    fn new(experts: &'a [Expert<QMatMul>], block: BlockType, activations: Activations) -> Result<Self> {
        let weights = experts.iter().map(|expert| expert.view(block)).collect::<Result<Vec<_>>>()?;
        let formats = weights.iter().map(|w| [w.w1.format(), w.w2.format(), w.w3.format()]);
        let bank = SwiGlu::new(DIM, HIDDEN, formats, activations, Backend::best())?;
        for (e, weights) in weights.iter().enumerate() {
            bank.check(e, *weights)?;
        }
        Ok(Self { bank, weights, scratch: Scratch::default() })
    }

    /// `[R, D]`.
    fn forward(&mut self, batch: &Batch) -> Result<Tensor> {
        let x = ArrayView2::from_shape((batch.x.len() / DIM, DIM), &batch.x)?;
        let dispatch = Dispatch::new(x, &batch.rows, &batch.offsets)?;
        let shape = (dispatch.rows(), DIM);
        let mut out = vec![0.0; shape.0 * shape.1];
        let view = ArrayViewMut2::from_shape(shape, &mut out)?;
        self.bank.forward(|e| self.weights[e], dispatch, &mut self.scratch, view)?;
        Ok(Tensor::from_vec(out, shape, &Device::Cpu)?)
    }
}

/// A name, how far from f64 it may be, and the outputs of the experts for a batch.
type Contestant<'a> = (&'a str, f64, &'a mut dyn FnMut(&Batch) -> Result<Tensor>);

/// Checks everybody's outputs, times everybody, and prints a line for each.
fn compare(
    case: &str,
    batches: &[Batch],
    experts: &[Expert<QMatMul>],
    mut contestants: [Contestant<'_>; 3],
) -> Result<()> {
    let mut errors = [0.0; 3];
    for batch in batches {
        let reference = reference(experts, batch)?;
        for ((who, bound, run), worst) in contestants.iter_mut().zip(&mut errors) {
            let y = run(batch)?.to_dtype(DType::F64)?;
            let error = norm(&(y - &reference)?)? / norm(&reference)?;
            assert!(error < *bound, "{who}: {error:e} from f64, expected less than {bound:e}");
            *worst = error.max(*worst);
        }
    }
    let mut seconds = [const { Vec::new() }; 3];
    for turn in 0..TURNS {
        for i in 0..contestants.len() {
            let next = (turn + i) % contestants.len();
            seconds[next].push(time(batches, contestants[next].2)?);
        }
    }
    let medians = seconds.map(median);
    for (((who, ..), error), median) in contestants.iter().zip(errors).zip(medians) {
        println!("| {case} | {who} | {error:.1e} | {:.2} | {:.2} |", 1e3 * median, median / medians[0]);
    }
    Ok(())
}

/// The experts' outputs in f64.
fn reference(experts: &[Expert<QMatMul>], batch: &Batch) -> Result<Tensor> {
    expert_by_expert(batch, |e, x| Ok(x.to_dtype(DType::F64)?.apply(&experts[e].dequantised()?)?))
}

fn norm(x: &Tensor) -> Result<f64> {
    Ok(x.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
}

/// Seconds a call, after one for each batch that is not timed: it wakes threads, and the other's fall asleep.
fn time(batches: &[Batch], run: &mut dyn FnMut(&Batch) -> Result<Tensor>) -> Result<f64> {
    for batch in batches {
        run(batch)?;
    }
    let rounds = 64_usize.div_ceil(batches[0].x.len() / DIM);
    let begun = Instant::now();
    for _ in 0..rounds {
        for batch in batches {
            run(batch)?;
        }
    }
    Ok(begun.elapsed().as_secs_f64() / (rounds * batches.len()) as f64)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

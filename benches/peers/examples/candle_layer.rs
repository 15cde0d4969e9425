//! A whole layer of ours, gate, router and experts, as an operation of candle's on the CPU:
//!
//! `cargo run --release --features candle --example candle_layer`
//!
//! A tensor `[.., T, D]` goes in, and its like comes out, with the same bits as from the layer called directly.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Error, Layout, Shape, Tensor};
use moe_core::numerics::uniform;
use moe_core::{LinearGate, MoeLayer, TokenContext, Workspace};
use moe_kernels::{Backend, SwiGluExperts, SwiGluWeights, WeightMatrix};
use moe_router::TopK;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use peers::Result;

/// Width of a hidden state, D.
const DIM: usize = 128;
/// Hidden width of an expert, H.
const HIDDEN: usize = 224;
/// E.
const EXPERTS: usize = 8;

/// A layer in candle's terms. Its input is f32 in row-major order, `[.., T, D]`: T tokens of one sequence, or of one each.
///
/// It has no backward pass: candle says so if it is asked for gradients.
struct MoeOp {
    layer: MoeLayer,
    /// An operation is shared, and what changes is an argument of the layer: here it waits for the next call.
    workspace: Mutex<Workspace>,
}

impl CustomOp1 for MoeOp {
    fn name(&self) -> &'static str {
        "mixture-of-experts layer"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let shape = layout.shape();
        let [.., tokens, dim] = *shape.dims() else {
            return Err(Error::msg(format!("{}: expected [.., T, D], found {shape:?}", self.name())));
        };
        let values: &[f32] = storage.as_slice()?;
        // A transposed tensor, say, is for the caller to copy, who knows whether it is needed again.
        let Some((from, to)) = layout.contiguous_offsets() else {
            return Err(Error::RequiresContiguous { op: self.name() });
        };
        let rows = shape.elem_count().checked_div(dim).unwrap_or(0);
        let hidden = ArrayView2::from_shape((rows, dim), &values[from..to]).map_err(Error::wrap)?;
        let mut out = vec![0.0; rows * dim];
        let y = ArrayViewMut2::from_shape((rows, dim), &mut out).map_err(Error::wrap)?;

        // Routers that look at other tokens look at those of the sequence alone.
        let ends: Vec<usize> = (0..=rows.checked_div(tokens).unwrap_or(0)).map(|s| s * tokens).collect();
        let context = if rows == 0 { TokenContext::new() } else { TokenContext::new().with_sequences(&ends) };
        // A workspace that a panic has left is as good as any.
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        self.layer.forward(hidden, context, &mut workspace, &mut (), y).map_err(Error::wrap)?;
        Ok((CpuStorage::F32(out), shape.clone()))
    }
}

fn main() -> Result<()> {
    let (op, direct) = (MoeOp { layer: layer()?, workspace: Mutex::default() }, layer()?);
    let mut workspace = Workspace::new();
    for (sequences, tokens) in [(1, 1), (1, 19), (3, 64), (2, 0)] {
        let values = random(7, sequences * tokens * DIM);
        let x = Tensor::from_slice(&values, (sequences, tokens, DIM), &Device::Cpu)?;
        let found = x.apply_op1_no_bwd(&op)?;
        assert_eq!(found.dims(), [sequences, tokens, DIM]);

        let mut y = Array2::zeros((sequences * tokens, DIM));
        let hidden = ArrayView2::from_shape(y.dim(), &values)?;
        direct.forward(hidden, TokenContext::new(), &mut workspace, &mut (), y.view_mut())?;
        assert_eq!(bits(found.flatten_all()?.to_vec1()?), bits(y.into_raw_vec_and_offset().0));
        println!("[{sequences}, {tokens}, {DIM}]: the same bits as the layer itself");
    }

    // A view into a larger tensor is read where it lies; what cannot be read so, is an error.
    let x = Tensor::from_vec(random(9, 40 * DIM), (40, DIM), &Device::Cpu)?;
    let (part, whole) = (x.narrow(0, 10, 5)?, x.apply_op1_no_bwd(&op)?.narrow(0, 10, 5)?);
    let part = part.apply_op1_no_bwd(&op)?;
    assert_eq!(bits(part.flatten_all()?.to_vec1()?), bits(whole.flatten_all()?.to_vec1()?));
    for wrong in [x.t()?, x.narrow(1, 0, DIM - 1)?.contiguous()?, x.to_dtype(DType::F64)?, x.get(0)?] {
        let error = wrong.apply_op1_no_bwd(&op).err().ok_or("a tensor that does not fit was taken")?;
        // What follows may be a backtrace.
        let error = error.to_string();
        println!("{:?} of {:?}: {}", wrong.dims(), wrong.dtype(), error.lines().next().unwrap_or_default());
    }
    Ok(())
}

/// Top-2 of eight SwiGLU experts, as in Mixtral, with pseudo-random weights.
fn layer() -> Result<MoeLayer> {
    let matrix = |seed: usize, rows: usize, columns: usize| {
        let scale = 2.0 / (columns as f32).sqrt();
        let values: Vec<f32> = random(seed, rows * columns).iter().map(|v| v * scale).collect();
        WeightMatrix::from_f32(&values, rows, columns)
    };
    let expert = |e: usize| -> Result<SwiGluWeights> {
        Ok(SwiGluWeights {
            w1: matrix(100 + e, HIDDEN, DIM)?,
            w2: matrix(200 + e, DIM, HIDDEN)?,
            w3: matrix(300 + e, HIDDEN, DIM)?,
        })
    };
    let experts = (0..EXPERTS).map(expert).collect::<Result<Vec<_>>>()?;
    let gate = LinearGate::new(Array2::from_shape_vec((EXPERTS, DIM), random(1, EXPERTS * DIM))?);
    let bank = SwiGluExperts::new(experts, Backend::best())?;
    Ok(MoeLayer::new(Box::new(gate), Box::new(TopK::new(2)?), Box::new(bank))?)
}

/// Numbers between -1 and 1.
fn random(seed: usize, count: usize) -> Vec<f32> {
    (0..count as u64).map(|i| uniform(seed as u64, &[i]) * 2.0 - 1.0).collect()
}

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

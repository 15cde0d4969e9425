//! The experts of `moe-kernels`.

use std::path::Path;

use mixtral_model::{Access, Checkpoint};
use moe_core::{ApplyWeights, Assignments, Dispatch, Experts, RoutingPlan, Scratch, combine};
use moe_kernels::{Activations, Backend, SwiGluExperts, SwiGluWeights, WeightMatrix, limits};
use ndarray::{Array2, ArrayView2};
use peers::{Case, Contestant, Result, arguments, serve};

/// Bytes of memory to read for the bandwidth: several times what caches hold.
const READ: usize = 256 << 20;

fn main() -> Result<()> {
    let (directory, options) = arguments()?;
    let [access, activations] = options.as_slice() else {
        return Err("ours DIRECTORY map|read ACTIVATIONS".into());
    };
    let access = if access == "read" { Access::Read } else { Access::Map };
    let activations = activations.parse()?;
    let version = env!("CARGO_PKG_VERSION");
    let backend = Backend::best();
    let mut ours = Ours::load(&directory, access, backend, activations)?;
    serve(&directory, &format!("moe-kernels {version}, {backend}"), &mut ours)
}

struct Ours {
    backend: Backend,
    /// To be read for the bandwidth.
    memory: Vec<u8>,
    experts: SwiGluExperts,
    case: Option<Case>,
    assignments: Assignments,
    plan: RoutingPlan,
    scratch: Scratch,
    /// `[R, D]`.
    /// `[R, D]`.
    outputs: Array2<f32>,
    /// `[T, D]`.
    y: Array2<f32>,
}

impl Ours {
    fn load(directory: &Path, access: Access, backend: Backend, activations: Activations) -> Result<Self> {
        let checkpoint = Checkpoint::open(directory, access)?;
        let matrix = |expert: usize, name: &str| -> Result<WeightMatrix> {
            let name = format!("model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight");
            let tensor = checkpoint.tensor(&name)?;
            let &[rows, columns] = tensor.shape else { return Err(format!("{name} is no matrix").into()) };
            Ok(WeightMatrix::new(tensor.bytes, tensor.dtype, rows, columns)?)
        };
        let bank = (0..checkpoint.entries().len() / 3)
            .map(|e| Ok(SwiGluWeights { w1: matrix(e, "w1")?, w2: matrix(e, "w2")?, w3: matrix(e, "w3")? }))
            .collect::<Result<Vec<_>>>()?;
        for expert in &bank {
            expert.w1.check(activations)?;
        }
        Ok(Self {
            backend,
            // Not zero, or every page might be the same one.
            memory: vec![1; READ],
            experts: SwiGluExperts::new(bank, backend)?.with_input_precision(activations),
            case: None,
            assignments: Assignments::new(),
            plan: RoutingPlan::new(),
            scratch: Scratch::default(),
            outputs: Array2::default((0, 0)),
            y: Array2::default((0, 0)),
        })
    }
}

impl Contestant for Ours {
    fn prepare(&mut self, case: &Case) -> Result<()> {
        let (tokens, rows, dim) = (case.tokens, case.tokens * case.chosen, self.experts.dim());
        if self.y.dim() != (tokens, dim) || self.outputs.nrows() != rows {
            self.outputs = Array2::zeros((rows, dim));
            self.y = Array2::zeros((tokens, dim));
        }
        self.case = Some(case.clone());
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let case = self.case.as_ref().ok_or("no case")?;
        let x = ArrayView2::from_shape(self.y.dim(), &case.x)?;
        self.assignments.reset(case.tokens, self.experts.experts())?;
        for (token, expert, weight) in case.assignments() {
            self.assignments.assign(token, expert, weight);
        }
        self.plan.seal(&self.assignments)?;
        let dispatch = Dispatch::of(&self.plan, x, ApplyWeights::Output, 0);
        self.experts.forward(dispatch, &mut self.scratch, self.outputs.view_mut())?;
        combine(&self.plan, self.outputs.view(), true, self.y.view_mut());
        Ok(())
    }

    fn output(&self) -> Result<Vec<f32>> {
        Ok(self.y.iter().copied().collect())
    }

    /// The peak of f32 fused multiply-adds, tried until threads that were asleep are spread over the processors, and a plain
    /// read of memory.
    fn limits(&mut self) -> Result<(f64, f64)> {
        let peak = (0..10).map(|_| limits::fma_peak(self.backend, Activations::F32)).fold(0.0, f64::max);
        Ok((peak, limits::read_bandwidth(self.backend, &self.memory)))
    }
}

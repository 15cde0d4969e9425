//! The experts of `moe-kernels`.

use std::path::Path;

use mixtral_model::{Access, Checkpoint};
use moe_core::{ApplyWeights, Assignments, Dispatch, Experts, RoutingPlan, Scratch, combine};
use moe_kernels::{Activations, Backend, SwiGluExperts, SwiGluWeights, WeightMatrix};
use ndarray::{Array2, ArrayView2};
use peers::{Case, Contestant, Limits, Result, arguments, serve};

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
    limits: Limits,
    experts: SwiGluExperts,
    case: Option<Case>,
    assignments: Assignments,
    plan: RoutingPlan,
    scratch: Scratch,
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
        let experts = SwiGluExperts::new(bank, backend)?.with_input_precision(activations);
        if experts.bank().input_precision(0) != [activations; 3] {
            return Err(format!("these weights have no products with {activations} activations").into());
        }
        Ok(Self {
            limits: Limits::new(backend),
            experts,
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

    fn limits(&mut self) -> Result<(f64, f64)> {
        Ok(self.limits.measure())
    }
}

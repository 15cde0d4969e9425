//! The experts of `moe-kernels`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
use mixtral_model::{Access, Checkpoint};
use moe_core::{ApplyWeights, Assignments, Dispatch, Experts, RoutingPlan, Scratch, combine};
use moe_kernels::{Activations, Backend, BlockType, SwiGluExperts, SwiGluWeights, WeightMatrix};
use ndarray::{Array2, ArrayView2};
use peers::{Case, Contestant, Limits, Result, arguments, serve};
use safetensors::SafeTensors;

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
        let experts = checkpoint.entries().len() / 3;
        let blocks = checkpoint.entries().any(|entry| entry.format().is_none());
        let bank = if blocks {
            blocks_of(directory, experts)?
        } else {
            bank(experts, |name| {
                let tensor = checkpoint.tensor(name)?;
                let &[rows, columns] = tensor.shape else {
                    return Err(format!("{name} is no matrix").into());
                };
                Ok(WeightMatrix::new(tensor.bytes, tensor.format, rows, columns)?)
            })?
        };
        // Beside weights in blocks everybody's limit is that of int8 products, and else that of f32.
        let peak = if blocks { Activations::Int8 } else { Activations::F32 };
        let experts = SwiGluExperts::new(bank, backend)?.with_input_precision(activations);
        if experts.bank().input_precision(0) != [activations; 3] {
            return Err(format!("these weights have no products with {activations} activations").into());
        }
        Ok(Self {
            limits: Limits::new(backend, peak),
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

fn bank(experts: usize, matrix: impl Fn(&str) -> Result<WeightMatrix>) -> Result<Vec<SwiGluWeights>> {
    let matrix =
        |e: usize, name: &str| matrix(&format!("model.layers.0.block_sparse_moe.experts.{e}.{name}.weight"));
    (0..experts)
        .map(|e| Ok(SwiGluWeights { w1: matrix(e, "w1")?, w2: matrix(e, "w2")?, w3: matrix(e, "w3")? }))
        .collect()
}

/// Weights in blocks, which the file has as bytes: `[rows, bytes of a row]`, with their type in its metadata.
fn blocks_of(directory: &Path, experts: usize) -> Result<Vec<SwiGluWeights>> {
    let mut file = File::open(directory.join("model.safetensors"))?;
    let mut memory = MmapMut::map_anon(file.metadata()?.len().try_into()?)?;
    // A refusal costs time only.
    let _ = memory.advise(Advice::HugePage);
    file.read_exact(&mut memory)?;
    let memory = Bytes::from_owner(memory.make_read_only()?);
    let (_, header) = SafeTensors::read_metadata(&memory)?;
    let of = header.metadata().as_ref().and_then(|metadata| metadata.get("type"));
    let block: BlockType = of.ok_or("bytes of which type?")?.parse()?;
    let tensors = SafeTensors::deserialize(&memory)?;
    bank(experts, |name| {
        let tensor = tensors.tensor(name)?;
        let &[rows, row_bytes] = tensor.shape() else { return Err(format!("{name} is no matrix").into()) };
        let columns = row_bytes / block.bytes() * block.elements();
        Ok(WeightMatrix::new(memory.slice_ref(tensor.data()), block, rows, columns)?)
    })
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

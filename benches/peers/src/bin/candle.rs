//! The experts in candle's operations, as its own Mixtral uses them: expert by expert, rows picked, added back.

use std::path::Path;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::Linear;
use mixtral_model::{Access, Checkpoint};
use moe_kernels::{Dtype, WeightFormat};
use peers::{Case, Contestant, Result, arguments, serve};

fn main() -> Result<()> {
    let (directory, _) = arguments()?;
    let native = if cfg!(target_feature = "avx2") { ", target-cpu=native" } else { "" };
    let description = format!("candle {}{native}", version()?);
    serve(&directory, &description, &mut Candle::load(&directory)?)
}

/// The version that was built, as the lock file has it.
fn version() -> Result<&'static str> {
    let rest = include_str!("../../Cargo.lock").split_once("name = \"candle-core\"\nversion = \"");
    Ok(rest.and_then(|(_, rest)| rest.split('"').next()).ok_or("candle is not in the lock file")?)
}

struct Candle {
    dtype: DType,
    /// Width of a hidden state, D.
    dim: usize,
    experts: Vec<Expert>,
    case: Option<(Case, Tensor)>,
    y: Option<Tensor>,
}

struct Expert {
    w1: Linear,
    w2: Linear,
    w3: Linear,
}

impl Module for Expert {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let up = x.apply(&self.w3)?;
        (x.apply(&self.w1)?.silu()? * up)?.apply(&self.w2)
    }
}

impl Candle {
    fn load(directory: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(directory, Access::Map)?;
        let linear = |expert: usize, name: &str| -> Result<Linear> {
            let name = format!("model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight");
            let tensor = checkpoint.tensor(&name)?;
            let dtype = match tensor.format {
                WeightFormat::Plain(Dtype::F32) => DType::F32,
                WeightFormat::Plain(Dtype::F16) => DType::F16,
                WeightFormat::Plain(Dtype::Bf16) => DType::BF16,
                other => return Err(format!("{name} is {other}").into()),
            };
            let weight = Tensor::from_raw_buffer(&tensor.bytes, dtype, tensor.shape, &Device::Cpu)?;
            Ok(Linear::new(weight, None))
        };
        let experts = (0..checkpoint.entries().len() / 3)
            .map(|e| Ok(Expert { w1: linear(e, "w1")?, w2: linear(e, "w2")?, w3: linear(e, "w3")? }))
            .collect::<Result<Vec<_>>>()?;
        let first = experts.first().ok_or("no experts")?.w1.weight();
        let (dtype, dim) = (first.dtype(), first.dim(1)?);
        Ok(Self { dtype, dim, experts, case: None, y: None })
    }
}

impl Contestant for Candle {
    /// Activations are of the weights' type.
    fn prepare(&mut self, case: &Case) -> Result<()> {
        let x = Tensor::from_slice(&case.x, (case.tokens, self.dim), &Device::Cpu)?.to_dtype(self.dtype)?;
        self.case = Some((case.clone(), x));
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let (case, x) = self.case.as_ref().ok_or("no case")?;
        let mut groups = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (token, expert, weight) in case.assignments() {
            groups[expert].0.push(token as u32);
            groups[expert].1.push(weight);
        }
        let mut y = x.zeros_like()?;
        for (expert, (tokens, weights)) in self.experts.iter().zip(groups) {
            if tokens.is_empty() {
                continue;
            }
            let weights = Tensor::from_vec(weights, (tokens.len(), 1), &Device::Cpu)?.to_dtype(self.dtype)?;
            let tokens = Tensor::new(tokens, &Device::Cpu)?;
            let out = x.index_select(&tokens, 0)?.apply(expert)?.broadcast_mul(&weights)?;
            y = y.index_add(&tokens, &out, 0)?;
        }
        self.y = Some(y);
        Ok(())
    }

    fn output(&self) -> Result<Vec<f32>> {
        let y = self.y.as_ref().ok_or("no output")?;
        Ok(y.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

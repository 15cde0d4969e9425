//! How much each column of a matrix matters.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use moe_core::memory;
use moe_kernels::{Dtype, WeightFormat};

use crate::checkpoint::{TensorView, tensor_error};
use crate::gguf::Header;
use crate::layout::Layout;
use crate::manifest::{ExpertMatrix, Kind, LayerPart, Manifest, TensorKey, TensorSpec};
use crate::{Access, Checkpoint, Config, ExpertStorage, Result};

/// The mean square of what each column of a matrix is multiplied with, of each expert by itself: what
/// [`quantise_row`](moe_kernels::BlockType::quantise_row) weighs errors with.
#[derive(Clone, Debug)]
pub struct Importance {
    pub(super) path: PathBuf,
    /// By llama.cpp's names of tensors, in its present layout.
    pub(super) tensors: HashMap<String, OfTensor>,
}

/// Of each expert, or of the one matrix that a tensor is.
#[derive(Clone, Debug)]
pub(super) struct OfTensor {
    pub(super) columns: usize,
    /// `None` where no token came by.
    pub(super) means: Vec<Option<Vec<f32>>>,
    /// How many tokens did.
    pub(super) tokens: Vec<f32>,
}

const SUMS: &str = ".in_sum2";
const TOKENS: &str = ".counts";

impl Importance {
    /// Reads an importance matrix as llama.cpp writes it, in a GGUF file: for each tensor sums of squares of its inputs,
    /// `NAME.in_sum2`, and the tokens that these are sums over, `NAME.counts`, both for each expert.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::open_gguf`]; [`Error::Config`](crate::Error::Config) if the file is of another kind; [`Error::Tensor`](crate::Error::Tensor) where sums and counts
    /// do not fit together, or are negative or not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let header = Header::open(path)?;
        const TYPE: &str = "general.type";
        if header.metadata.text(TYPE)? != Some("imatrix") {
            return Err(header.metadata.error(TYPE, "\"imatrix\""));
        }
        let file = Checkpoint::open_gguf(path, Access::Read)?;
        let mut tensors = HashMap::new();
        for entry in file.entries() {
            if let Some(name) = entry.name.strip_suffix(SUMS) {
                let counts = format!("{name}{TOKENS}");
                tensors.insert(
                    name.to_owned(),
                    OfTensor::new(&file.tensor(entry.name)?, &file.tensor(&counts)?)?,
                );
            }
        }
        Ok(Self { path: path.to_path_buf(), tensors })
    }

    /// Where these are from, and of how many tensors they are.
    pub(super) fn origin(&self) -> (String, u32) {
        (self.path.display().to_string(), self.tensors.len() as u32)
    }

    /// The importances of the columns of a tensor of a model of this config, if they are known.
    pub fn columns(&self, spec: &TensorSpec, config: &Config) -> Option<&[f32]> {
        self.of(spec.key, &spec.shape, config)
    }

    pub(super) fn of(&self, key: TensorKey, shape: &[usize], config: &Config) -> Option<&[f32]> {
        let (name, expert) = place(key, shape, config);
        self.tensors.get(&name)?.means.get(expert)?.as_deref()
    }

    /// How many tokens came by at each expert of a layer; `None` if that is not known.
    pub fn tokens_of_experts(&self, layer: usize, config: &Config) -> Option<Vec<u64>> {
        let spec = Manifest::new(config).layer(layer).expert(0, ExpertMatrix::W1);
        let (name, _) = place(spec.key, &spec.shape, config);
        Some(self.tensors.get(&name)?.tokens.iter().map(|&tokens| tokens as u64).collect())
    }

    /// Checks that these are of a model of this config; what a user should know of what they lack.
    pub(super) fn check(&self, config: &Config) -> Result<Vec<String>> {
        let (mut missing, mut never) = (Vec::new(), Vec::new());
        for spec in Manifest::new(config).tensors() {
            if !matches!(spec.kind(), Kind::Attention | Kind::Experts) {
                continue;
            }
            let (name, expert) = place(spec.key, &spec.shape, config);
            let Some(tensor) = self.tensors.get(&name) else {
                missing.push(spec.key);
                continue;
            };
            let experts = match spec.key {
                TensorKey::Layer { layer, .. } if spec.kind() == Kind::Experts => config.experts.of(layer),
                _ => 1,
            };
            let (expected, found) = ((experts, spec.shape[1]), (tensor.means.len(), tensor.columns));
            if expected != found {
                let (expected, found) = (format!("{expected:?} sums"), format!("{found:?}"));
                return Err(tensor_error(&self.path, &name, expected, found));
            }
            if tensor.means[expert].is_none() {
                never.push(spec.key);
            }
        }
        let mut warnings = Vec::new();
        for (what, keys) in [("there are no importances", missing), ("no token came by", never)] {
            if let Some(first) = keys.first() {
                warnings.push(format!(
                    "{}: for {} matrices {what}, {first} the first: all their columns count alike",
                    self.path.display(),
                    keys.len()
                ));
            }
        }
        Ok(warnings)
    }
}

impl OfTensor {
    fn new(sums: &TensorView<'_>, tokens: &TensorView<'_>) -> Result<Self> {
        let wrong = |tensor: &TensorView<'_>, expected: &str, found: String| {
            Err(tensor_error(tensor.path, tensor.name, expected.to_owned(), found))
        };
        for tensor in [sums, tokens] {
            if tensor.format != WeightFormat::Plain(Dtype::F32) {
                return wrong(tensor, "F32", tensor.format.to_string());
            }
        }
        let columns = sums.shape.last().copied().unwrap_or(1);
        let (sums_of, tokens_of) = (floats(sums)?, floats(tokens)?);
        if sums_of.len() != columns.saturating_mul(tokens_of.len()) {
            return wrong(
                tokens,
                "a count for each row of sums",
                format!("{} for {:?}", tokens_of.len(), sums.shape),
            );
        }
        for (tensor, values) in [(sums, &sums_of), (tokens, &tokens_of)] {
            if let Some(bad) = values.iter().find(|value| !(value.is_finite() && **value >= 0.0)) {
                return wrong(tensor, "finite values of at least 0", bad.to_string());
            }
        }
        let mut means: Vec<Option<Vec<f32>>> = Vec::new();
        memory::reserve(&mut means, tokens_of.len(), "importances")?;
        for (sums, &tokens) in sums_of.chunks_exact(columns.max(1)).zip(&tokens_of) {
            let mut mean = Vec::new();
            memory::refill_from(&mut mean, sums.len(), sums.iter().map(|sum| sum / tokens), "importances")?;
            means.push((tokens > 0.0).then_some(mean));
        }
        if let Some(bad) = means.iter().flatten().flatten().find(|mean| !mean.is_finite()) {
            return wrong(sums, "finite means, as sums by counts", bad.to_string());
        }
        Ok(Self { columns, means, tokens: tokens_of })
    }
}

fn floats(tensor: &TensorView<'_>) -> Result<Vec<f32>> {
    let (mut floats, chunks) = (Vec::new(), tensor.bytes.as_chunks().0);
    let values = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes));
    memory::refill_from(&mut floats, chunks.len(), values, "importances")?;
    Ok(floats)
}

/// llama.cpp's name of the tensor that has the importances, and which expert of it.
pub(super) fn place(key: TensorKey, shape: &[usize], config: &Config) -> (String, usize) {
    let expert = match key {
        TensorKey::Layer { part: LayerPart::Expert { expert, .. }, .. } => expert,
        _ => 0,
    };
    (Layout::gguf(ExpertStorage::Stacked).slot(key, shape, config).name, expert)
}

//! Writing a model elsewhere: as a GGUF file, with other types of weights if wanted, or as a directory with the hub's files.
//!
//! Weights go from file to file a few million at a time, rows on all threads, so that memory does not depend on the size of a
//! model. What is kept in its type is copied byte for byte.
//!
//! ```no_run
//! # fn main() -> mixtral_model::Result<()> {
//! use std::ops::ControlFlow;
//!
//! use mixtral_model::convert::{Conversion, Recipe};
//! use mixtral_model::{Access, Source};
//!
//! let source = Source::find("mistralai/Mixtral-8x7B-v0.1".as_ref())?;
//! let recipe = Recipe::new(vec!["q4_k".parse()?, "experts.w2=q6_k".parse()?]);
//! let conversion = Conversion::new(&source, Access::Map, recipe)?;
//! let summary = conversion.gguf()?.write("mixtral.gguf".as_ref(), |_| ControlFlow::Continue(()))?;
//! println!("{summary}");
//! # Ok(())
//! # }
//! ```

mod calibrate;
mod describe;
mod hub;
mod importance;
mod mix;
mod plan;
mod recipe;
mod rows;
mod selection;
mod summary;
mod vocabulary;

use moe_kernels::{Dtype, WeightFormat, WeightMatrix};

pub use calibrate::Calibration;
pub use importance::Importance;
pub use mix::Mix;
pub use plan::Plan;
pub use recipe::{Choice, Recipe};
pub use summary::{Changed, Summary, SummaryRow};

use crate::checkpoint::{Place, tensor_error};
use crate::input::require;
use crate::layout::Layout;
use crate::manifest::{ExpertMatrix, Kind, LayerPart, Manifest, TensorKey, TensorSpec};
use crate::{Access, Checkpoint, Config, ExpertStorage, Result, RowOrder, Source};
use plan::{Output, Part};

/// A model, and the types that its weights are to have elsewhere.
#[derive(Debug)]
pub struct Conversion<'s> {
    source: &'s Source,
    config: Config,
    checkpoint: Checkpoint,
    recipe: Recipe,
    importance: Option<Importance>,
    warnings: Vec<String>,
}

impl<'s> Conversion<'s> {
    /// Opens a model; headers are all that is read.
    ///
    /// # Errors
    ///
    /// Those of [`Source::config`], [`Source::checkpoint`] and [`Checkpoint::verify`]; [`Error::Setting`](crate::Error::Setting) if a choice concerns
    /// nothing of the model.
    pub fn new(source: &'s Source, access: Access, recipe: Recipe) -> Result<Self> {
        let config = source.config()?;
        let checkpoint = source.checkpoint(access)?;
        // What is to be written is planned tensor by tensor.
        require(checkpoint.entries().len().saturating_mul(1024), "a list of tensors")?;
        let mut warnings = source.warnings()?;
        let unused = checkpoint.verify(&config)?;
        if let Some(first) = unused.first() {
            warnings.push(match unused.len() {
                1 => format!("tensor {} is left out", first.escape_debug()),
                n => format!("{n} tensors are left out, {} the first of them", first.escape_debug()),
            });
        }
        recipe.check(&config)?;
        Ok(Self { source, config, checkpoint, recipe, importance: None, warnings })
    }

    /// The same with importances, which decide what quantising spares.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`](crate::Error::Tensor) where they are of another model.
    pub fn with_importance(mut self, importance: Importance) -> Result<Self> {
        self.warnings.extend(importance.check(&self.config)?);
        self.importance = Some(importance);
        Ok(self)
    }

    /// What a GGUF file of the model has in it: llama.cpp's names and shapes, norms and gates in f32 as its converter writes them, rows
    /// of queries and keys in [pairs](RowOrder::Pairs). The experts of a layer are three tensors; where their types differ, each
    /// matrix is a tensor of its own, which llama.cpp does not read.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the tokenizer cannot be spelled out; [`Error::Json`](crate::Error::Json), [`Error::Config`](crate::Error::Config) and [`Error::Io`](crate::Error::Io) for
    /// files beside the weights.
    pub fn gguf(&self) -> Result<Plan<'_>> {
        let mut warnings = self.warnings.clone();
        let specs = stack_by_stack(&self.config);
        let tensors = specs.map(|spec| self.tensor(spec, RowOrder::Pairs)).collect::<Result<Vec<_>>>()?;
        let differs = |pair: &&[Tensor<'_>]| {
            same_stack(pair[0].spec.key, pair[1].spec.key) && pair[0].format != pair[1].format
        };
        let storage = match tensors.windows(2).find(differs) {
            None => ExpertStorage::Stacked,
            Some(pair) => {
                warnings.push(format!(
                    "{} is to be {} and {} {}: each matrix of an expert becomes a tensor of its own, as llama.cpp had it until \
                     April 2024 and reads it no more",
                    pair[0].spec.key, pair[0].format, pair[1].spec.key, pair[1].format
                ));
                ExpertStorage::PerExpert
            }
        };
        let layout = Layout::gguf(storage);
        let mut outputs: Vec<Output<'_>> = Vec::new();
        for Tensor { spec, part, mut format, mut wanted } in tensors {
            if matches!(spec.kind(), Kind::Gate | Kind::Norms) {
                (format, wanted) = (Dtype::F32.into(), None);
            }
            let slot = layout.slot(spec.key, &spec.shape, &self.config);
            match outputs.last_mut() {
                Some(last) if last.name == slot.name => last.parts.push(part),
                _ => outputs.push(Output {
                    name: slot.name,
                    shape: slot.shape,
                    format,
                    wanted,
                    parts: vec![part],
                }),
            }
        }
        let fields = describe::fields(self, &outputs, &mut warnings)?;
        Ok(Plan::gguf(self, outputs, fields, warnings))
    }

    /// What a directory of the model has in it: the hub's names, a tensor for each matrix of an expert, rows of queries and keys in
    /// [halves](RowOrder::Halves), and config and tokenizer beside. What is f32 alone because GGUF files have norms and gates so, becomes
    /// the type of the queries of the first layer again, if that holds its values.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`](crate::Error::Tensor) for a tensor that is quantised and is to stay so; [`Error::Config`](crate::Error::Config) and
    /// [`Error::Io`](crate::Error::Io) for what goes beside the weights.
    pub fn directory(&self) -> Result<Plan<'_>> {
        let mut warnings = self.warnings.clone();
        let layout = Layout::hub();
        let mut outputs: Vec<Output<'_>> = Vec::new();
        let first_query = Manifest::new(&self.config).layer(0).q_proj();
        let of_matrices = self.tensor(first_query, RowOrder::Halves)?.format;
        for spec in Manifest::new(&self.config).tensors() {
            let Tensor { spec, part, mut format, wanted } = self.tensor(spec, RowOrder::Halves)?;
            if let WeightFormat::Blocks(_) = wanted.unwrap_or(format) {
                let expected =
                    "f32, f16 or bf16, since a directory has no quantised weights: choose one of them";
                let Place { path, name, .. } = part.place;
                return Err(tensor_error(path, name, expected.to_owned(), format.to_string()));
            }
            let whole = matches!(spec.kind(), Kind::Gate | Kind::Norms);
            if whole && format == Dtype::F32.into() && self.loses_nothing(&part, of_matrices)? {
                format = of_matrices;
            }
            let slot = layout.slot(spec.key, &spec.shape, &self.config);
            outputs.push(Output {
                name: slot.name,
                shape: slot.shape,
                format,
                wanted: None,
                parts: vec![part],
            });
        }
        let files = hub::files(self, of_matrices, &mut warnings)?;
        Ok(Plan::directory(self, outputs, files, warnings))
    }

    /// Whether a small tensor has the same values in another type.
    fn loses_nothing(&self, part: &Part<'_>, format: WeightFormat) -> Result<bool> {
        let WeightFormat::Plain(dtype) = format else { return Ok(false) };
        let stored = self.checkpoint.matrix(&part.place)?;
        let (mut wide, mut back) = (vec![0.0; stored.columns()], vec![0.0; stored.columns()]);
        for row in 0..stored.rows() {
            stored.widen_row(row, &mut wide);
            let narrow = WeightMatrix::rounded(&wide, dtype, 1, wide.len())?;
            narrow.widen_row(0, &mut back);
            if wide.iter().zip(&back).any(|(a, b)| a.to_bits() != b.to_bits()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where a tensor is, and what is to become of it. `order` is that of the rows of queries and keys.
    fn tensor(&self, spec: TensorSpec, order: RowOrder) -> Result<Tensor<'_>> {
        let place = self.checkpoint.place(&spec, &self.config)?;
        let order = match spec.key {
            TensorKey::Layer { part: LayerPart::Query | LayerPart::Key, .. } => order,
            _ => RowOrder::Halves,
        };
        let chosen = self.recipe.format(spec.key, &self.config, self.importance.is_some());
        let chosen = chosen.unwrap_or(place.format);
        let fitting = match chosen {
            WeightFormat::Blocks(block) => {
                mix::that_fits(block, place.columns).map_or(Dtype::F16.into(), Into::into)
            }
            plain => plain,
        };
        let wanted = Some(chosen).filter(|chosen| *chosen != fitting);
        Ok(Tensor { part: Part { key: spec.key, place, order }, spec, format: fitting, wanted })
    }
}

/// A tensor of the model, and what is to become of it.
struct Tensor<'c> {
    spec: TensorSpec,
    part: Part<'c>,
    format: WeightFormat,
    /// The format that was chosen, where its rows are no whole blocks of that.
    wanted: Option<WeightFormat>,
}

/// All tensors of a model, those that a stack is made of one after the other.
fn stack_by_stack(config: &Config) -> impl Iterator<Item = TensorSpec> {
    let manifest = Manifest::new(config);
    let layer = move |n: usize| {
        let layer = manifest.layer(n);
        let dense = layer.tensors().take_while(|spec| spec.kind() != Kind::Experts);
        let stack = move |matrix| (0..layer.experts()).map(move |expert| layer.expert(expert, matrix));
        dense.chain(ExpertMatrix::ALL.into_iter().flat_map(stack))
    };
    std::iter::once_with(move || manifest.embedding())
        .chain((0..config.layers).flat_map(layer))
        .chain(std::iter::once_with(move || manifest.final_norm()))
        .chain(std::iter::once_with(move || manifest.head()).flatten())
}

/// Whether two tensors are the same matrix of two experts of a layer.
fn same_stack(a: TensorKey, b: TensorKey) -> bool {
    let stack = |key| match key {
        TensorKey::Layer { layer, part: LayerPart::Expert { matrix, .. } } => Some((layer, matrix)),
        _ => None,
    };
    stack(a).is_some_and(|of_a| stack(b) == Some(of_a))
}

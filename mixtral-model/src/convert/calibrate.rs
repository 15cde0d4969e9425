//! Importances measured on a text, by running the model.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use moe_core::{Expert, MoeLayer, PerExpert};
use moe_kernels::{Backend, Linear, LinearScratch, SwiGluWeights, WeightMatrix, vector};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::Conversion;
use super::importance::{Importance, OfTensor, place};
use crate::input::require;
use crate::manifest::{ExpertMatrix, Manifest, TensorSpec};
use crate::{
    Checkpoint, Config, Error, Loader, MoeParts, Observed, Observer, Result, SessionOptions, Step, Wanted,
    Workspace,
};

/// A text on which importances are measured.
#[derive(Clone, Copy, Debug)]
pub struct Calibration<'t> {
    /// Its tokens.
    pub ids: &'t [u32],
    /// It is read in stretches of so many tokens, each by itself.
    pub window: usize,
    /// What computes.
    pub backend: Backend,
    /// What messages call it.
    pub name: &'t Path,
}

impl Importance {
    /// Measures importances by running a model on a text with exact products: the mean square of every column's input, of each expert
    /// over the tokens that were sent to it.
    ///
    /// `progress` is told how many tokens have been read, layer by layer of a stretch in proportion, and may end the work.
    ///
    /// # Errors
    ///
    /// Those of [`Model::load`](crate::Model::load) and [`Model::forward`](crate::Model::forward); [`Error::Setting`] for a window of 0 or
    /// more than the model's positions; [`Error::TextTooShort`] for fewer than two ids; [`Error::OutOfMemory`]; [`Error::Stopped`] if
    /// `progress` ends it.
    pub fn measure(
        conversion: &Conversion<'_>,
        text: Calibration<'_>,
        progress: impl FnMut(usize) -> ControlFlow<()> + Send,
    ) -> Result<Self> {
        let Conversion { config, checkpoint, .. } = conversion;
        let Calibration { ids, window, backend, name } = text;
        if window == 0 || window > config.max_positions {
            let expected = format!("1 to {} tokens", config.max_positions);
            return Err(Error::Setting { setting: "window", expected, found: window.to_string() });
        }
        // BOS alone is no text.
        if ids.len() < 2 {
            return Err(Error::TextTooShort { least: 2, tokens: ids.len() });
        }
        require(sums_and_rows(config, window), "importances")?;
        let banks: Vec<_> = (0..config.layers).map(|_| Arc::new(Mutex::new(OfLayer::default()))).collect();
        let model = Loader::new(config.clone(), checkpoint, backend)
            .moe_layers(|parts| layer(parts, &banks[parts.index()]))
            .load()?;
        let mut observer = Inputs::new(config, checkpoint, backend, progress)?;
        let mut workspace = Workspace::new();
        for ids in ids.chunks(window) {
            let mut session = model.session(SessionOptions::default().with_context(window))?;
            observer.begin(ids)?;
            let step = Step::new(&mut session, ids).wanted(Wanted::None);
            model.forward(&mut [step], &mut workspace, &mut observer)?;
        }
        let mut tensors = HashMap::new();
        let mut put = |spec: &TensorSpec, sums: &[Sums]| {
            let columns = spec.shape[1];
            let means = sums.iter().map(|sums| sums.means(columns)).collect();
            let tokens = sums.iter().map(|sums| sums.tokens as f32).collect();
            let (name, _) = place(spec.key, &spec.shape, config);
            tensors.insert(name, OfTensor { columns, means, tokens });
        };
        for (n, bank) in banks.iter().enumerate() {
            let layer = Manifest::new(config).layer(n);
            let Inputs { normed, mixed, .. } = &observer;
            for spec in [layer.q_proj(), layer.k_proj(), layer.v_proj()] {
                put(&spec, std::slice::from_ref(&normed[n]));
            }
            put(&layer.o_proj(), std::slice::from_ref(&mixed[n]));
            let OfLayer { inputs, hidden } = &*bank.lock().unwrap_or_else(PoisonError::into_inner);
            put(&layer.expert(0, ExpertMatrix::W1), inputs);
            put(&layer.expert(0, ExpertMatrix::W3), inputs);
            put(&layer.expert(0, ExpertMatrix::W2), hidden);
        }
        Ok(Self { path: name.to_path_buf(), tensors })
    }
}

/// Bytes of all sums and means, and of the rows of a stretch that are there at once. Where there is no memory for them the process
/// ends, so that as much is asked for at once before, and given back.
fn sums_and_rows(config: &Config, window: usize) -> usize {
    let (dim, hidden) = (config.hidden_size, config.intermediate_size);
    let of_experts = dim.saturating_add(hidden).saturating_mul(config.experts.most());
    let columns = of_experts.saturating_add(2 * dim).saturating_mul(config.layers);
    let of_choices = hidden.saturating_mul(2 * config.experts_per_token);
    let rows = of_choices.saturating_add(2 * dim).saturating_mul(window);
    columns
        .saturating_mul(size_of::<f64>() + size_of::<f32>())
        .saturating_add(rows.saturating_mul(size_of::<f32>()))
}

/// Sums of squares of columns.
#[derive(Clone, Debug, Default)]
struct Sums {
    squares: Vec<f64>,
    tokens: usize,
}

impl Sums {
    fn add(&mut self, rows: ArrayView2<'_, f32>) {
        self.squares.resize(rows.ncols(), 0.0);
        self.tokens += rows.nrows();
        for row in rows.rows() {
            for (sum, &value) in self.squares.iter_mut().zip(row) {
                *sum += f64::from(value).powi(2);
            }
        }
    }

    fn means(&self, columns: usize) -> Option<Vec<f32>> {
        let mean = |sum: &f64| (sum / self.tokens as f64) as f32;
        (self.tokens > 0 && self.squares.len() == columns).then(|| self.squares.iter().map(mean).collect())
    }
}

/// Of each expert of a layer: what comes to w1 and w3, and what comes to w2.
#[derive(Debug, Default)]
struct OfLayer {
    inputs: Vec<Sums>,
    hidden: Vec<Sums>,
}

/// A layer whose experts measure.
fn layer(parts: &MoeParts<'_>, sums: &Arc<Mutex<OfLayer>>) -> Result<MoeLayer> {
    let experts = parts.experts();
    let backend = parts.compute().backend;
    let expert = |index| {
        let SwiGluWeights { w1, w2, w3 } = parts.expert(index)?;
        let matrices = [w1, w2, w3].map(|weight: WeightMatrix| Linear::new(weight, backend));
        Ok(Measuring { index, matrices, backend, sums: sums.clone() })
    };
    {
        let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.inputs = vec![Sums::default(); experts];
        sums.hidden = vec![Sums::default(); experts];
    }
    let of_layer = |source| Error::Layer { layer: parts.index(), source };
    let bank = PerExpert::new((0..experts).map(expert).collect::<Result<_>>()?).map_err(of_layer)?;
    MoeLayer::new(Box::new(parts.gate()?), Box::new(parts.router()?), Box::new(bank)).map_err(of_layer)
}

/// An expert that keeps sums of what comes to each matrix.
struct Measuring {
    index: usize,
    /// w1, w2, w3.
    matrices: [Linear; 3],
    backend: Backend,
    sums: Arc<Mutex<OfLayer>>,
}

impl Expert for Measuring {
    fn dim(&self) -> usize {
        self.matrices[0].weight().columns()
    }

    fn forward(&self, rows: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) -> moe_core::Result<()> {
        let [w1, w2, w3] = &self.matrices;
        let (failed, mut scratch) = (moe_core::Error::experts, LinearScratch::default());
        let shape = (rows.nrows(), w1.weight().rows());
        let (mut gate, mut up) = (Array2::zeros(shape), Array2::zeros(shape));
        Linear::forward_each([w1, w3], rows, &mut scratch, [gate.view_mut(), up.view_mut()])
            .map_err(failed)?;
        if let Some(gate) = gate.as_slice_mut() {
            vector::silu(self.backend, gate);
        }
        gate *= &up;
        {
            let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums.inputs[self.index].add(rows);
            sums.hidden[self.index].add(gate.view());
        }
        w2.forward(gate.view(), &mut scratch, out).map_err(failed)
    }
}

/// Keeps sums of what comes to queries, keys and values, which is the norm of what the layer before hands on, or of the
/// embedding; and of what comes to the output projection.
struct Inputs<P> {
    embedding: WeightMatrix,
    norms: Vec<Vec<f32>>,
    eps: f32,
    backend: Backend,
    normed: Vec<Sums>,
    mixed: Vec<Sums>,
    progress: P,
    /// Tokens read before the stretch at hand, and in it.
    tokens: (usize, usize),
}

impl<P: FnMut(usize) -> ControlFlow<()> + Send> Inputs<P> {
    fn new(config: &Config, checkpoint: &Checkpoint, backend: Backend, progress: P) -> Result<Self> {
        let matrix = |spec: &TensorSpec| checkpoint.matrix(&checkpoint.place(spec, config)?);
        let norm = |n: usize| {
            let stored = matrix(&Manifest::new(config).layer(n).input_norm())?;
            let mut wide = vec![0.0; stored.columns()];
            stored.widen_row(0, &mut wide);
            Ok(wide)
        };
        Ok(Self {
            embedding: matrix(&Manifest::new(config).embedding())?,
            norms: (0..config.layers).map(norm).collect::<Result<_>>()?,
            eps: config.rms_norm_eps,
            backend,
            normed: vec![Sums::default(); config.layers],
            mixed: vec![Sums::default(); config.layers],
            progress,
            tokens: (0, 0),
        })
    }

    /// A stretch begins.
    fn begin(&mut self, ids: &[u32]) -> Result<()> {
        let vocabulary = self.embedding.rows();
        if let Some(&token) = ids.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::TokenOutOfRange { token, vocabulary });
        }
        let mut hidden = Array2::zeros((ids.len(), self.embedding.columns()));
        for (mut row, &token) in hidden.rows_mut().into_iter().zip(ids) {
            if let Some(row) = row.as_slice_mut() {
                self.embedding.widen_row(token as usize, row);
            }
        }
        self.tokens = (self.tokens.0 + self.tokens.1, ids.len());
        self.add(0, hidden.view());
        Ok(())
    }

    fn add(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) {
        let mut normed = Array2::zeros(hidden.dim());
        vector::rms_norm(self.backend, hidden, &self.norms[layer], self.eps, normed.view_mut());
        self.normed[layer].add(normed.view());
    }
}

impl<P: FnMut(usize) -> ControlFlow<()> + Send> Observer for Inputs<P> {
    fn attended(&mut self, layer: usize, mixed: ArrayView2<'_, f32>) -> Observed {
        self.mixed[layer].add(mixed);
        Ok(())
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        let next = layer + 1;
        if next < self.norms.len() {
            self.add(next, hidden);
        }
        let (before, now) = self.tokens;
        Ok((self.progress)(before + now * next / self.norms.len()))
    }
}

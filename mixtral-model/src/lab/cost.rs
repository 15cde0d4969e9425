//! What routing costs, counted while a model runs.

use std::ops::ControlFlow;

use moe_core::Routed;
use moe_router::metrics::ExpertLoad;
use ndarray::ArrayView2;

use crate::{Checkpoint, Config, Error, ExpertMatrix, Manifest, Model, Observed, Observer, Result};

/// Bytes of the weights of every expert, by layer and expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertBytes(Vec<Vec<u64>>);

impl ExpertBytes {
    /// Of a model as its checkpoint has it.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] for a checkpoint that is not of the config.
    pub fn of(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let manifest = Manifest::new(config);
        let expert = |layer: usize, e: usize| {
            let matrices = [ExpertMatrix::W1, ExpertMatrix::W2, ExpertMatrix::W3];
            matrices.into_iter().try_fold(0, |sum, matrix| {
                let place = checkpoint.place(&manifest.layer(layer).expert(e, matrix), config)?;
                Ok::<_, Error>(sum + place.bytes)
            })
        };
        let layer = |n: usize| (0..config.experts.of(n)).map(|e| expert(n, e)).collect::<Result<_>>();
        Ok(Self((0..config.layers).map(layer).collect::<Result<_>>()?))
    }

    /// Those of one expert; 0 for one that is not there.
    pub fn at(&self, layer: usize, expert: usize) -> u64 {
        self.0.get(layer).and_then(|experts| experts.get(expert)).copied().unwrap_or(0)
    }
}

/// Counts what routers asked for and got, over all layers and passes.
#[derive(Clone, Debug)]
pub struct RoutingCost<'a> {
    bytes: &'a ExpertBytes,
    /// Rows of each expert, by layer.
    load: Vec<ExpertLoad>,
    /// Tokens routed, in all layers together.
    tokens: u64,
    rows: u64,
    refused: u64,
    /// Layers that routed, in all passes together.
    layers_routed: u64,
    distinct: u64,
    touched: u64,
    passes: u64,
}

impl<'a> RoutingCost<'a> {
    /// Nothing counted yet.
    pub fn new(model: &Model, bytes: &'a ExpertBytes) -> Self {
        let config = model.config();
        Self {
            bytes,
            load: (0..config.layers)
                .map(|n| ExpertLoad::from_counts(vec![0; config.experts.of(n)]))
                .collect(),
            tokens: 0,
            rows: 0,
            refused: 0,
            layers_routed: 0,
            distinct: 0,
            touched: 0,
            passes: 0,
        }
    }

    /// Share of the pairs that routers asked for and that capacity, or a mask, refused; 0 where none was asked for.
    pub fn drop_rate(&self) -> f64 {
        match self.rows + self.refused {
            0 => 0.0,
            all => self.refused as f64 / all as f64,
        }
    }

    /// Experts that work on a token in a layer, on average.
    pub fn experts_per_token(&self) -> f64 {
        self.rows as f64 / self.tokens as f64
    }

    /// Distinct experts of a layer that a pass used, on average over layers and passes.
    pub fn distinct_experts(&self) -> f64 {
        self.distinct as f64 / self.layers_routed as f64
    }

    /// Bytes of the weights of experts that a pass used, on average over passes.
    pub fn bytes_per_pass(&self) -> f64 {
        self.touched as f64 / self.passes as f64
    }

    /// Rows of each expert, by layer.
    pub fn load(&self) -> &[ExpertLoad] {
        &self.load
    }

    /// Population standard deviation of a layer's load over its mean, on average over layers; 0 is an even spread.
    pub fn load_cv(&self) -> f64 {
        self.mean_of_layers(ExpertLoad::cv)
    }

    /// Largest load of a layer over its mean, on average over layers; 1 is an even spread.
    pub fn load_max_over_mean(&self) -> f64 {
        self.mean_of_layers(ExpertLoad::max_over_mean)
    }

    /// Of the layers that had work.
    fn mean_of_layers(&self, of: impl Fn(&ExpertLoad) -> f64) -> f64 {
        let worked = self.load.iter().filter(|load| load.counts().iter().any(|&rows| rows > 0));
        let (sum, count) = worked.fold((0.0, 0.0), |(sum, count), load| (sum + of(load), count + 1.0));
        if count == 0.0 { 0.0 } else { sum / count }
    }
}

impl Observer for RoutingCost<'_> {
    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        let (layer, plan) = (routed.layer, routed.plan);
        self.tokens += plan.tokens() as u64;
        self.rows += plan.rows() as u64;
        self.refused += plan.refused().len() as u64;
        self.layers_routed += 1;
        for expert in plan.active_experts() {
            self.distinct += 1;
            self.touched += self.bytes.at(layer, expert);
            if let Some(load) = self.load.get_mut(layer) {
                load.add_tokens(expert, plan.expert_rows(expert).len() as u64);
            }
        }
        Ok(())
    }

    fn layer_done(&mut self, layer: usize, _: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        self.passes += u64::from(layer == 0);
        Ok(ControlFlow::Continue(()))
    }
}

//! Other gates in the place of a model's own.

use moe_core::Gate;
use moe_kernels::Linear;

use crate::checkpoint::tensor_error;
use crate::manifest::{LayerPart, Manifest, TensorKey};
use crate::routers::no_layer;
use crate::{Checkpoint, Error, Model, Result};

/// Layers beyond a model's that are looked for: more than any model has.
const BEYOND: usize = 1024;

impl Model {
    /// Puts another gate in the place of that of one layer, which is given back.
    ///
    /// What comes before the layer has the same bits as before; sessions hold keys and values of what was read, whatever read it.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a layer that the model does not have; [`Error::Layer`] for a gate of another number of experts or another
    /// width. The layer then keeps its own.
    pub fn replace_gate(&mut self, layer: usize, gate: Box<dyn Gate>) -> Result<Box<dyn Gate>> {
        let count = self.layers.len();
        let found = self.layers.get_mut(layer).ok_or_else(|| no_layer(layer, count))?;
        found.moe.replace_gate(gate).map_err(|source| Error::Layer { layer, source })
    }

    /// Takes the gates that a checkpoint has: all, or those of some layers, by the names and in the types that a model's have. Gives the
    /// layers. Whatever else the checkpoint has is not looked at.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] for a gate of another shape, or of no type of weights, or if there is none; [`Error::Io`]. The model then keeps
    /// its own.
    pub fn load_gates(&mut self, checkpoint: &Checkpoint) -> Result<Vec<usize>> {
        let (manifest, mut gates) = (Manifest::new(&self.config), Vec::new());
        for layer in 0..self.config.layers {
            let spec = manifest.layer(layer).gate();
            if checkpoint.entry(&checkpoint.layout().name(spec.key)).is_some() {
                let weight = checkpoint.matrix(&checkpoint.place(&spec, &self.config)?)?;
                gates.push((layer, Linear::new(weight, self.compute.backend)));
            }
        }
        // A gate of a layer that the model does not have is of another model.
        for layer in self.config.layers..self.config.layers + BEYOND {
            let key = TensorKey::Layer { layer, part: LayerPart::Gate };
            if let Some(found) = checkpoint.entry(&checkpoint.layout().name(key)) {
                let expected = format!("gates of {} layers", self.config.layers);
                return Err(tensor_error(found.path, found.name, expected, "one more".to_owned()));
            }
        }
        if gates.is_empty() {
            // Names the gate that is missing first.
            checkpoint.place(&manifest.layer(0).gate(), &self.config)?;
        }
        let layers = gates.iter().map(|&(layer, _)| layer).collect();
        for (layer, gate) in gates {
            self.replace_gate(layer, Box::new(gate))?;
        }
        Ok(layers)
    }
}

//! What a pass holds of things that passes share.

use moe_kernels::may_wait;

use crate::model::Layer;
use crate::{Error, Result, Workspace};

/// A pass's share of what the banks of a model's layers divide among passes, given back when this goes, also by an error or
/// a panic.
pub(crate) struct Reserved<'a> {
    layers: &'a [Layer],
    /// The pass's buffers; the share is among them.
    pub(crate) workspace: &'a mut Workspace,
}

impl<'a> Reserved<'a> {
    /// Reserves for a pass of `tokens` through all layers, in their order. It waits where it may.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] where it may not, and whatever else a bank reports.
    pub(crate) fn new(layers: &'a [Layer], tokens: usize, workspace: &'a mut Workspace) -> Result<Self> {
        let reserved = Self { layers, workspace };
        let may_wait = may_wait();
        for (n, layer) in layers.iter().enumerate() {
            let moe = &mut reserved.workspace.moe;
            layer.moe.reserve(tokens, may_wait, moe).map_err(|error| Error::moe(n, error, |row| row))?;
        }
        Ok(reserved)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        for layer in self.layers {
            layer.moe.release(&mut self.workspace.moe);
        }
    }
}

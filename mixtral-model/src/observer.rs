//! Watching a forward pass, and stopping it.

use std::ops::ControlFlow;

use moe_core::Routed;
use ndarray::ArrayView2;

/// Is told what a forward pass does, layer by layer. `()` looks away.
pub trait Observer: Send {
    /// A layer's attention is done: its output has joined the residual stream.
    fn attended(&mut self, layer: usize) {
        let _ = layer;
    }

    /// A layer has routed its tokens.
    fn routed(&mut self, routed: &Routed<'_>) {
        let _ = routed;
    }

    /// A layer is done; `hidden` is what it hands on, `[T, D]`. `Break` ends the pass with [`Error::Stopped`](crate::Error::Stopped),
    /// which leaves every session as it was before.
    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> ControlFlow<()> {
        let _ = (layer, hidden);
        ControlFlow::Continue(())
    }
}

impl Observer for () {}

/// Perhaps an observer.
impl<O: Observer> Observer for Option<O> {
    fn attended(&mut self, layer: usize) {
        if let Some(observer) = self {
            observer.attended(layer);
        }
    }

    fn routed(&mut self, routed: &Routed<'_>) {
        if let Some(observer) = self {
            observer.routed(routed);
        }
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> ControlFlow<()> {
        self.as_mut().map_or(ControlFlow::Continue(()), |observer| observer.layer_done(layer, hidden))
    }
}

/// Two observers side by side.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn attended(&mut self, layer: usize) {
        self.0.attended(layer);
        self.1.attended(layer);
    }

    fn routed(&mut self, routed: &Routed<'_>) {
        self.0.routed(routed);
        self.1.routed(routed);
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> ControlFlow<()> {
        self.0.layer_done(layer, hidden)?;
        self.1.layer_done(layer, hidden)
    }
}

impl<O: Observer + ?Sized> Observer for &mut O {
    fn attended(&mut self, layer: usize) {
        (**self).attended(layer);
    }

    fn routed(&mut self, routed: &Routed<'_>) {
        (**self).routed(routed);
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> ControlFlow<()> {
        (**self).layer_done(layer, hidden)
    }
}

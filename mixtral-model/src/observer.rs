//! Watching a forward pass, and stopping it.

use std::ops::ControlFlow;

use moe_core::{BoxError, Routed};
use ndarray::ArrayView2;

/// What an observer gives back: whatever keeps it from its work ends the pass with
/// [`Error::Observer`](crate::Error::Observer), which leaves every session as it was before.
pub type Observed<T = ()> = Result<T, BoxError>;

/// Is told what a forward pass does, layer by layer. `()` looks away.
///
/// Layers work on all tokens of the pass, but for the last: where [`wants_all_rows`](Self::wants_all_rows) is false it works
/// only on those whose logits are wanted, perhaps none.
pub trait Observer: Send {
    /// Whether the last layer must work on all tokens too, though their results serve the observer alone.
    ///
    /// True unless said otherwise, so that an observer that counts or keeps rows misses none. One that looks at no rows
    /// should say false: of a prompt whose last logits alone are wanted, a layer less has its experts at work.
    fn wants_all_rows(&self) -> bool {
        true
    }

    /// A layer's attention is done: its output has joined the residual stream. `mixed` is what came to the output projection,
    /// the heads' weighted means of values, `[rows, heads · head_dim]`.
    fn attended(&mut self, layer: usize, mixed: ArrayView2<'_, f32>) -> Observed {
        let _ = (layer, mixed);
        Ok(())
    }

    /// A layer has routed its tokens; the context says which they are. This is where the logits of its router, and the hidden
    /// states that gate and experts read, can be had: they are the layer's only while it is told of here.
    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        let _ = routed;
        Ok(())
    }

    /// A layer is done; `hidden` is what it hands on, `[rows, D]`: a row for each of the tokens that it worked on. `Break` ends
    /// the pass with [`Error::Stopped`](crate::Error::Stopped), which leaves every session as it was before.
    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        let _ = (layer, hidden);
        Ok(ControlFlow::Continue(()))
    }
}

impl Observer for () {
    fn wants_all_rows(&self) -> bool {
        false
    }
}

/// Perhaps an observer.
impl<O: Observer> Observer for Option<O> {
    fn wants_all_rows(&self) -> bool {
        self.as_ref().is_some_and(O::wants_all_rows)
    }

    fn attended(&mut self, layer: usize, mixed: ArrayView2<'_, f32>) -> Observed {
        self.as_mut().map_or(Ok(()), |observer| observer.attended(layer, mixed))
    }

    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        self.as_mut().map_or(Ok(()), |observer| observer.routed(routed))
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        self.as_mut().map_or(Ok(ControlFlow::Continue(())), |observer| observer.layer_done(layer, hidden))
    }
}

/// Two observers side by side.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn wants_all_rows(&self) -> bool {
        self.0.wants_all_rows() || self.1.wants_all_rows()
    }

    fn attended(&mut self, layer: usize, mixed: ArrayView2<'_, f32>) -> Observed {
        self.0.attended(layer, mixed)?;
        self.1.attended(layer, mixed)
    }

    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        self.0.routed(routed)?;
        self.1.routed(routed)
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        match self.0.layer_done(layer, hidden)? {
            ControlFlow::Continue(()) => self.1.layer_done(layer, hidden),
            stop @ ControlFlow::Break(()) => Ok(stop),
        }
    }
}

impl<O: Observer + ?Sized> Observer for &mut O {
    fn wants_all_rows(&self) -> bool {
        (**self).wants_all_rows()
    }

    fn attended(&mut self, layer: usize, mixed: ArrayView2<'_, f32>) -> Observed {
        (**self).attended(layer, mixed)
    }

    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        (**self).routed(routed)
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        (**self).layer_done(layer, hidden)
    }
}

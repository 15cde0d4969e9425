//! Ctrl-C.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mixtral_model::Observer;
use ndarray::ArrayView2;

use crate::failure::{Failure, Result};

/// What shells report of a command that SIGINT ended.
pub(crate) const EXIT_STATUS: u8 = 130;

/// Whether the user wishes an end.
///
/// While the model [works](Self::during), the first Ctrl-C is a wish that the work looks at between layers, and the second
/// ends the process; at all other times the first does.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<State>);

#[derive(Default)]
struct State {
    at_work: AtomicBool,
    wished: AtomicBool,
}

impl Interrupt {
    pub(crate) fn install() -> Result<Self, Failure> {
        let this = Self::default();
        let Self(state) = this.clone();
        ctrlc::set_handler(move || {
            if !state.at_work.load(Ordering::SeqCst) || state.wished.swap(true, Ordering::SeqCst) {
                std::process::exit(EXIT_STATUS.into());
            }
        })?;
        Ok(this)
    }

    /// Does work that looks at [`wished`](Self::wished), and comes to an end by itself if so.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.wished.store(false, Ordering::SeqCst);
        self.0.at_work.store(true, Ordering::SeqCst);
        let result = work();
        self.0.at_work.store(false, Ordering::SeqCst);
        result
    }

    pub(crate) fn wished(&self) -> bool {
        self.0.wished.load(Ordering::SeqCst)
    }
}

impl Observer for Interrupt {
    fn wants_all_rows(&self) -> bool {
        false
    }

    fn layer_done(&mut self, _: usize, _: ArrayView2<'_, f32>) -> ControlFlow<()> {
        if self.wished() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

//! A bar while a prompt is read.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mixtral_model::{Model, Observer};
use ndarray::ArrayView2;

/// Shorter waits need no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// Counts layers of tokens, and shows them on a standard error that is a terminal once it takes long.
pub(crate) struct Progress {
    bar: ProgressBar,
    begun: Instant,
    shown: bool,
    /// Tokens of the pass at hand, which the last layer may not work on.
    tokens: usize,
}

impl Progress {
    pub(crate) fn new(model: &Model, tokens: usize) -> Self {
        let total = tokens.saturating_mul(model.config().layers) as u64;
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
            .with_message(format!("reading {tokens} tokens"));
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40.cyan/dim} {percent}%, {eta} left") {
            bar.set_style(style.progress_chars("━━─"));
        }
        Self { bar, begun: Instant::now(), shown: false, tokens: 0 }
    }

    /// The bar, to be cleared when the prompt is read.
    pub(crate) fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }
}

impl Observer for Progress {
    fn wants_all_rows(&self) -> bool {
        false
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> ControlFlow<()> {
        if layer == 0 {
            self.tokens = hidden.nrows();
        }
        if !self.bar.is_finished() {
            self.bar.inc(self.tokens as u64);
            if !self.shown && self.begun.elapsed() > PATIENCE {
                self.shown = true;
                self.bar.set_draw_target(ProgressDrawTarget::stderr());
            }
        }
        ControlFlow::Continue(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

//! A bar while a prompt is read, or a model written.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mixtral_model::{Model, Observed, Observer};
use ndarray::ArrayView2;

/// Shorter waits need no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is done of so much, shown on a standard error that is a terminal once it takes long.
pub(crate) struct Bar {
    bar: ProgressBar,
    begun: Instant,
    shown: bool,
}

/// Counts layers of tokens.
pub(crate) struct Progress {
    bar: Bar,
    /// Tokens of the pass at hand, which the last layer may not work on.
    tokens: usize,
}

impl Bar {
    pub(crate) fn new(total: u64, message: String) -> Self {
        let bar =
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()).with_message(message);
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40.cyan/dim} {percent}%, {eta} left") {
            bar.set_style(style.progress_chars("━━─"));
        }
        Self { bar, begun: Instant::now(), shown: false }
    }

    /// So much is done.
    pub(crate) fn set(&mut self, done: u64) {
        if self.bar.is_finished() {
            return;
        }
        self.bar.set_position(done);
        if !self.shown && self.begun.elapsed() > PATIENCE {
            self.shown = true;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress {
    pub(crate) fn new(model: &Model, tokens: usize) -> Self {
        let total = tokens.saturating_mul(model.config().layers) as u64;
        Self { bar: Bar::new(total, format!("reading {tokens} tokens")), tokens: 0 }
    }

    /// The bar, to be cleared when the prompt is read.
    pub(crate) fn bar(&self) -> ProgressBar {
        self.bar.bar.clone()
    }
}

impl Observer for Progress {
    fn wants_all_rows(&self) -> bool {
        false
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        if layer == 0 {
            self.tokens = hidden.nrows();
        }
        self.bar.set(self.bar.bar.position() + self.tokens as u64);
        Ok(ControlFlow::Continue(()))
    }
}

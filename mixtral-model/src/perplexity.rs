//! How well a model predicts a text.

use std::ops::{ControlFlow, Range, RangeInclusive};

use moe_core::{Locality, numerics};
use rayon::prelude::*;

use crate::lab::{BlockMean, Predicted, Reading};
use crate::{DEFAULT_CHUNK, Error, Model, Observer, Result, Session, Workspace};

/// How a text is cut into windows, and how these are read.
///
/// A window is a text of its own: nothing before it is seen. Its tokens that an earlier window has predicted already are
/// context only; so is the first token of all, before which there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PerplexityOptions {
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from the start of a window to the start of the next. As many as the window has mean no overlap: then the first
    /// token of each window is predicted by nobody.
    pub stride: usize,
    /// Most tokens that go through the model in one pass: with V the vocabulary, memory holds `chunk · V` logits. It changes
    /// speed and memory, nothing else (with routers of token locality).
    pub chunk: usize,
    /// Tokens at the beginning of every window that are not predicted, at least 1.
    pub unscored: usize,
    /// Whether a last window that is not whole is left out.
    pub whole_windows: bool,
    /// Takes the place of every window's first token.
    pub first_token: Option<u32>,
}

impl PerplexityOptions {
    /// Windows of so many tokens without overlap, read 512 tokens at a time.
    pub fn new(window: usize) -> Self {
        Self {
            window,
            stride: window,
            chunk: DEFAULT_CHUNK,
            unscored: 1,
            whole_windows: false,
            first_token: None,
        }
    }

    /// As llama-perplexity reads a text: whole windows without overlap, a BOS in place of the first token of each, of a model that has
    /// one, and of each window the second half predicted, from the token after the middle on.
    pub fn llama_cpp(window: usize, bos: Option<u32>) -> Self {
        Self { unscored: window / 2 + 1, whole_windows: true, first_token: bos, ..Self::new(window) }
    }

    /// The same, with windows that begin so many tokens apart.
    pub fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same, read in other chunks.
    pub fn with_chunk(self, chunk: usize) -> Self {
        Self { chunk, ..self }
    }

    /// The windows of a text of so many tokens, in order, but for a last one that would predict nothing.
    pub fn windows(&self, tokens: usize) -> impl Iterator<Item = TextWindow> + use<> {
        let (window, stride, unscored) = (self.window, self.stride.max(1), self.unscored.max(1));
        let fit = tokens.saturating_sub(window);
        let whole = self.whole_windows && tokens >= window;
        let last = if whole { fit / stride } else { fit.div_ceil(stride) };
        let count = if self.whole_windows && tokens < window { 0 } else { last + 1 };
        let window = move |n: usize| {
            let start = stride * n;
            let end = tokens.min(start.saturating_add(window));
            // The window before ended there.
            let predicted = if n == 0 { 0 } else { start - stride + window };
            TextWindow { tokens: start..end, scored: predicted.max(start.saturating_add(unscored))..end }
        };
        (0..count).map(window).filter(|window| !window.scored.is_empty())
    }

    /// Tokens that go through the model for a text of so many: of each window all but the last.
    pub fn tokens_read(&self, tokens: usize) -> usize {
        self.windows(tokens).map(|window| window.tokens.len() - 1).sum()
    }

    /// Whether sessions of so many positions can hold the windows, and there are some in a text of so many tokens.
    pub(crate) fn check(&self, context: usize, tokens: usize) -> Result<()> {
        let least = self.unscored.saturating_add(1).max(2);
        let bounds = [("window", self.window, least, context), ("stride", self.stride, 1, self.window)];
        for (setting, found, least, most) in bounds {
            if found < least || found > most {
                let expected = format!("{least} to {most} tokens");
                return Err(Error::Setting { setting, expected, found: found.to_string() });
            }
        }
        if self.chunk == 0 {
            return Err(Error::Setting { setting: "chunk", expected: "1 or more".into(), found: "0".into() });
        }
        match self.windows(tokens).next() {
            None if tokens >= 2 => Err(Error::TextTooShort { least: self.window, tokens }),
            _ => Ok(()),
        }
    }
}

/// A stretch of a text that is read by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextWindow {
    /// Its tokens.
    pub tokens: Range<usize>,
    /// Those of them that are predicted, each from all of the window's tokens before it.
    pub scored: Range<usize>,
}

/// A token that was predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Scored {
    /// Its place in the text.
    pub at: usize,
    /// Its id.
    pub token: u32,
    /// Its negative log-likelihood, in nats.
    pub nll: f64,
}

/// How well a text was predicted.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Perplexity {
    /// Negative log-likelihood of all predicted tokens, in nats, added in the order of the text.
    pub nll_sum: f64,
    /// Number of predicted tokens.
    pub predicted: usize,
    /// The same window by window, of those that were read whole: how sure the mean is.
    pub by_window: BlockMean,
    /// Whether the caller or an observer ended it: the numbers are then those of the text's beginning.
    pub stopped: bool,
}

impl Perplexity {
    /// Nats a token; NaN if none was predicted.
    pub fn mean(&self) -> f64 {
        self.nll_sum / self.predicted as f64
    }

    /// e to the [`mean`](Self::mean).
    pub fn perplexity(&self) -> f64 {
        libm::exp(self.mean())
    }

    /// The 95 % confidence interval of the perplexity, from [blocks of windows](BlockMean); `None` for a single window.
    pub fn interval(&self) -> Option<RangeInclusive<f64>> {
        let (mean, half) = (self.by_window.mean(), self.by_window.half_width()?);
        Some(libm::exp(mean - half)..=libm::exp(mean + half))
    }
}

/// Predicts every token of a text from those before it in its window: `nll = ln Σ exp(l) - l[token]` over the logits l, in f64.
///
/// The session lends its memory and settings: it is cleared for each window, of which the number is its identity for routers meanwhile, and in the end
/// holds some of the last one's tokens. Where the model's routers are not of token locality, a window is read in one pass.
/// `event` is told of every predicted token, in order, and ends the work by `Break`; so does the observer, within a layer's time.
///
/// The last token of a window is predicted but not read, and the observer hears nothing of it.
///
/// # Errors
///
/// [`Error::Setting`] for a window of less than two tokens or beyond the session's context, a stride of none or beyond the window,
/// or empty chunks; [`Error::TextTooShort`]; [`Error::TokenOutOfRange`]; those of [`Model::forward`], but that being stopped is an end
/// and not an error.
pub fn perplexity(
    model: &Model,
    session: &mut Session,
    ids: &[u32],
    options: &PerplexityOptions,
    workspace: &mut Workspace,
    observer: &mut dyn Observer,
    mut event: impl FnMut(Scored) -> ControlFlow<()>,
) -> Result<Perplexity> {
    score(model, session, ids, options, workspace, observer, |scored, _| Ok(event(scored)))
}

/// Whether something is to be predicted in a text of the model's tokens.
pub(crate) fn check_text(model: &Model, ids: &[u32]) -> Result<()> {
    if ids.len() < 2 {
        return Err(Error::TextTooShort { least: 2, tokens: ids.len() });
    }
    let vocabulary = model.config().vocab_size;
    match ids.iter().find(|&&token| token as usize >= vocabulary) {
        Some(&token) => Err(Error::TokenOutOfRange { token, vocabulary }),
        None => Ok(()),
    }
}

/// [`perplexity`], with `scored` being given the logits `[V]` that each token was predicted by.
pub(crate) fn score(
    model: &Model,
    session: &mut Session,
    ids: &[u32],
    options: &PerplexityOptions,
    workspace: &mut Workspace,
    observer: &mut dyn Observer,
    scored: impl FnMut(Scored, &[f32]) -> Result<ControlFlow<()>>,
) -> Result<Perplexity> {
    let own = session.sequence_id();
    let found = score_windows(model, session, ids, options, workspace, observer, scored);
    session.set_sequence_id(own);
    found
}

fn score_windows(
    model: &Model,
    session: &mut Session,
    ids: &[u32],
    options: &PerplexityOptions,
    workspace: &mut Workspace,
    observer: &mut dyn Observer,
    mut scored: impl FnMut(Scored, &[f32]) -> Result<ControlFlow<()>>,
) -> Result<Perplexity> {
    options.check(session.context(), ids.len())?;
    check_text(model, ids)?;
    let (mut nlls, mut result) = (Vec::new(), Perplexity::default());
    let uncut = model.locality() != Locality::Token;
    let reading = Reading { ids, first: options.first_token, chunk: options.chunk, routers: None, uncut };
    for (n, window) in options.windows(ids.len()).enumerate() {
        session.set_sequence_id(n as u64);
        let mut sum = 0.0;
        let read = reading.window(model, session, &window, workspace, observer, |predicted| {
            let Predicted { at, tokens, logits } = predicted;
            let rows = logits.as_slice().unwrap_or_default().par_chunks_exact(logits.ncols());
            rows.zip(tokens).map(|(row, &token)| nll(row, token)).collect_into_vec(&mut nlls);
            let rows = logits.as_slice().unwrap_or_default().chunks_exact(logits.ncols());
            for (i, ((&nll, &token), row)) in nlls.iter().zip(tokens).zip(rows).enumerate() {
                sum += nll;
                result.nll_sum += nll;
                result.predicted += 1;
                if scored(Scored { at: at + i, token, nll }, row)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        });
        match read {
            Err(Error::Stopped) => return Ok(Perplexity { stopped: true, ..result }),
            other => other?,
        }
        result.by_window.add(sum, window.scored.len());
    }
    Ok(result)
}

/// Negative log-likelihood of a token under the softmax of its logits; terms are added in the order of the vocabulary.
fn nll(logits: &[f32], token: u32) -> f64 {
    log_sum_exp(logits) - f64::from(logits[token as usize])
}

/// ln Σ exp(l), in f64; terms are added in the order of the vocabulary.
///
/// A logit less this is the logarithm of its token's probability, as [`perplexity`] and whoever compares with it compute it.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = numerics::max(logits);
    f64::from(top) + log_sum(logits, top)
}

/// ln Σ exp(l - greatest), the same less the greatest logit.
pub(crate) fn log_sum(logits: &[f32], greatest: f32) -> f64 {
    let top = f64::from(greatest);
    libm::log(logits.iter().map(|&logit| libm::exp(f64::from(logit) - top)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_every_token_that_they_can_once() {
        let windows = |tokens, window, stride| -> Vec<_> {
            let options = PerplexityOptions::new(window).with_stride(stride);
            options.windows(tokens).map(|w| (w.tokens, w.scored)).collect()
        };
        assert_eq!(windows(10, 4, 4), [(0..4, 1..4), (4..8, 5..8), (8..10, 9..10)]);
        // A token alone is predicted by nobody.
        assert_eq!(windows(9, 4, 4), [(0..4, 1..4), (4..8, 5..8)]);
        assert_eq!(windows(9, 4, 3), [(0..4, 1..4), (3..7, 4..7), (6..9, 7..9)]);
        assert_eq!(windows(6, 4, 1), [(0..4, 1..4), (1..5, 4..5), (2..6, 5..6)]);
        assert_eq!(windows(3, 4, 2), [(0..3, 1..3)]);
        assert_eq!(windows(3, usize::MAX, usize::MAX), [(0..3, 1..3)]);
        for tokens in [0, 1] {
            assert_eq!(windows(tokens, 4, 2), []);
        }
        for (tokens, window) in [(50, 7), (50, 8), (51, 50), (51, 51)] {
            for stride in 1..window {
                let scored = windows(tokens, window, stride).into_iter().flat_map(|(_, scored)| scored);
                assert!(scored.eq(1..tokens), "{tokens} {window} {stride}");
            }
        }
    }

    #[test]
    fn likelihoods_add_up_to_one() {
        let logits = [3.0f32, -1.0, 88.5, 87.0, -1000.0];
        let sum: f64 = (0..5).map(|token| (-nll(&logits, token)).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-15, "{sum}");
        assert_eq!(nll(&[0.5], 0), 0.0);
        assert_eq!(nll(&[0.0; 8], 3), libm::log(8.0));
        let mean = Perplexity { nll_sum: 8.0, predicted: 4, ..Perplexity::default() };
        assert_eq!((mean.mean(), mean.perplexity()), (2.0, libm::exp(2.0)));
    }
}

//! What two engines, or two models, predict on one text, through a file.

use std::ops::ControlFlow;
use std::path::Path;

use super::divergence::{Difference, Divergence, log_probabilities};
use super::logits_file::{LogitsFile, LogitsWriter};
use super::record::of_whole_text;
use crate::perplexity::score;
use crate::{Error, Model, Observer, Perplexity, PerplexityOptions, Result, Session, Workspace};

/// Log-probabilities up to here are left out of divergences, as llama-perplexity does: its files do not tell them apart.
const FLOOR: f64 = -16.0;

/// Reads a text as llama-perplexity does, [`PerplexityOptions::llama_cpp`], and writes what is predicted to a file of its format.
///
/// The file appears when it is complete, and not at all if the observer ends the work: the result then says so.
///
/// # Errors
///
/// Those of [`perplexity`](fn@crate::perplexity); [`Error::TextTooShort`] for less than one window; [`Error::Io`].
pub fn save_logits(
    model: &Model,
    session: &mut Session,
    ids: &[u32],
    options: &PerplexityOptions,
    path: &Path,
    workspace: &mut Workspace,
    observer: &mut dyn Observer,
) -> Result<Perplexity> {
    let PerplexityOptions { window, unscored, whole_windows, stride, .. } = *options;
    if (unscored, whole_windows, stride) != (window / 2 + 1, true, window) {
        let expected = "those of PerplexityOptions::llama_cpp".to_owned();
        return Err(Error::Setting { setting: "windows", expected, found: "others".to_owned() });
    }
    let (windows, vocabulary) = (options.windows(ids.len()).count(), model.config().vocab_size);
    of_whole_text(path, |out| {
        let mut file = LogitsWriter::new(out, path, window, vocabulary, &ids[..windows * window])?;
        score(model, session, ids, options, workspace, observer, |_, logits| {
            file.push(logits).map(|()| ControlFlow::Continue(()))
        })
    })
}

/// Reads the text of a file of llama-perplexity's format, and compares what is predicted with what the file says. If the text begins with the
/// model's BOS, so does each window.
///
/// # Errors
///
/// Those of [`perplexity`](fn@crate::perplexity); [`Error::Checkpoint`] where the file is of another vocabulary, or damaged.
pub fn against(
    model: &Model,
    session: &mut Session,
    file: &mut LogitsFile,
    workspace: &mut Workspace,
    observer: &mut dyn Observer,
) -> Result<(Perplexity, Divergence)> {
    let vocabulary = model.config().vocab_size;
    if file.vocabulary() != vocabulary {
        let (expected, found) = (format!("a vocabulary of {vocabulary}"), format!("{}", file.vocabulary()));
        return Err(Error::checkpoint(file.path(), expected, found));
    }
    let ids = file.take_tokens();
    let options = PerplexityOptions::llama_cpp(file.window(), model.config().bos_of(&ids));
    let (mut divergence, mut row) = (Divergence::new(), Vec::new());
    let (mut baseline, mut own) = (Vec::new(), Vec::new());
    let found = score(model, session, &ids, &options, workspace, observer, |scored, logits| {
        file.next(&mut row)?;
        baseline.clear();
        moe_core::memory::reserve(&mut baseline, vocabulary, "log-probabilities")?;
        baseline.extend(row.iter().map(|&value| f64::from(value)));
        log_probabilities(logits, &mut own)?;
        divergence.add(&Difference::between(&baseline, &own, scored.token, FLOOR))?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((found, divergence))
}

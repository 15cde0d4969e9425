//! Reading a window of a text, and what is predicted in it.

use std::ops::ControlFlow;

use ndarray::{ArrayView2, s};

use crate::{Error, LayerRouters, Model, Observer, Result, Session, Step, TextWindow, Wanted, Workspace};

/// How the windows of a text are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a> {
    /// The whole text.
    pub(crate) ids: &'a [u32],
    /// Takes the place of a window's first token.
    pub(crate) first: Option<u32>,
    /// Most tokens of a pass.
    pub(crate) chunk: usize,
    /// In the place of the model's own.
    pub(crate) routers: Option<&'a LayerRouters>,
    /// Whether a window is one pass, whatever its length: for routers that are not of token locality.
    pub(crate) uncut: bool,
}

/// What is predicted after consecutive tokens of a window.
pub(crate) struct Predicted<'a> {
    /// Place in the text of the first token that is predicted.
    pub(crate) at: usize,
    /// The tokens that came, n of them.
    pub(crate) tokens: &'a [u32],
    /// `[n, V]`.
    pub(crate) logits: ArrayView2<'a, f32>,
}

impl Reading<'_> {
    /// Reads a window in a session, which is cleared first, and hands over what is predicted of its scored tokens, in order. The last token of
    /// the window is not read.
    pub(crate) fn window(
        &self,
        model: &Model,
        session: &mut Session,
        window: &TextWindow,
        workspace: &mut Workspace,
        observer: &mut dyn Observer,
        mut take: impl FnMut(Predicted<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        session.clear();
        // The logits after a token are those of the next one.
        let (begin, read) = (window.scored.start - 1, window.scored.end - 1);
        let mut at = window.tokens.start;
        while at < read {
            let only_read = at < begin && !self.uncut;
            let until = if only_read { begin } else { read };
            let length = if self.uncut { usize::MAX } else { self.chunk };
            let chunk = at..until.min(at.saturating_add(length));
            let wanted = if only_read { Wanted::None } else { Wanted::All };
            let mut replaced = Vec::new();
            let tokens = match self.first.filter(|_| at == window.tokens.start) {
                None => &self.ids[chunk.clone()],
                Some(first) => {
                    moe_core::memory::reserve(&mut replaced, chunk.len(), "tokens of a window")?;
                    replaced.extend_from_slice(&self.ids[chunk.clone()]);
                    replaced[0] = first;
                    &replaced
                }
            };
            let step = Step { routers: self.routers, ..Step::new(&mut *session, tokens).wanted(wanted) };
            let logits = model.forward(&mut [step], workspace, observer)?;
            if wanted == Wanted::All {
                let context = begin.saturating_sub(chunk.start);
                let at = chunk.start + context + 1;
                let (tokens, logits) = (&self.ids[at..chunk.end + 1], logits.slice_move(s![context.., ..]));
                if take(Predicted { at, tokens, logits })?.is_break() {
                    return Err(Error::Stopped);
                }
            }
            at = chunk.end;
        }
        Ok(())
    }
}
